//! What happens to a record between the source and a full batch? Decode, enrich, filter, number,
//! encode: all on one thread, because handing single events between threads costs more than the
//! work.
//!
//! Invariants: every record becomes an event, a part of one, or a number in a counter; the numbers
//! of a stream are given in the order of its events.

use std::{sync::Arc, time::Instant};

use audit_common::{
    class, kind,
    record::{Cgroup, Exec, ExecArgs, Header, Open, Record, section, section_flags},
};
use audit_proto::v1::{self, Class, Event, Host};

use crate::{
    actor::{Actor, Actors},
    arguments::{Arguments, Joined},
    batch::Open as OpenBatch,
    clock::Clock,
    counters::{self, Counters},
    decode::{self, DecodeError},
    encode,
    enrich::{Enricher, Verdict},
    filter::Filter,
    own,
    sequence::Sequences,
    ship::Gone,
    source::{Loss, Round},
};

/// Everything between source and batch.
pub struct Stage {
    pub parts: Parts,
    arguments: Arguments,
    sequences: Sequences,
    actors: Actors,
    /// An encoded event, on its way into the batch.
    encoded: Vec<u8>,
}

/// What `encoded` may keep: nearly every event. One with a long argv may need more for a moment.
const KEPT_BYTES: usize = 64 << 10;

/// What a [`Stage`] is made of.
pub struct Parts {
    pub clock: Clock,
    pub enricher: Enricher,
    pub filter: Filter,
    pub batch: OpenBatch,
    pub counters: Arc<Counters>,
    pub host: Host,
}

impl Stage {
    pub fn new(parts: Parts) -> Self {
        Self {
            actors: Actors::new(parts.host.clone()),
            parts,
            arguments: Arguments::default(),
            sequences: Sequences::default(),
            encoded: Vec::new(),
        }
    }

    /// Takes in all of a round.
    pub fn round(&mut self, round: &Round, now: Instant) {
        self.parts.enricher.refresh(round, now);
        for loss in round.losses() {
            self.lost(loss, now);
        }
        for skip in round.skips() {
            tracing::warn!(
                hook = %skip.hook,
                runs = skip.runs,
                "the kernel skipped a program"
            );
            counters::add(&self.parts.counters.lost, skip.runs);
            let mut event = own::skipped(&self.parts.clock, skip);
            self.emit(&mut event, now);
        }
        if let Some(cause) = round.unknown() {
            tracing::warn!(cause, "records may be missing");
            let mut event = own::unknown(&self.parts.clock, cause);
            self.emit(&mut event, now);
        }
        let mut records = 0;
        for bytes in round.records() {
            records += 1;
            self.record(bytes, now);
        }
        counters::add(&self.parts.counters.records, records);
        for amended in self.parts.enricher.containers.amendments(now) {
            let mut event = own::amendment(&self.parts.clock, amended);
            self.emit(&mut event, now);
        }
        while let Some(mut event) = self.arguments.give_up() {
            self.emit(&mut event, now);
        }
        self.arguments.next_round();
    }

    /// Every record so far is an event by now.
    pub fn is_settled(&self) -> bool {
        self.arguments.is_empty()
    }

    /// Ends waiting for arguments that will not come.
    pub fn drain(&mut self, now: Instant) {
        while let Some(mut event) = self.arguments.drain() {
            self.emit(&mut event, now);
        }
    }

    fn record(&mut self, bytes: &[u8], now: Instant) {
        let outcome = decode::parse(bytes).and_then(|record| match record.header.kind {
            kind::EXEC_ARGS => self.continuation(&record, now),
            kind::CGROUP => self.cgroup(&record),
            kind::CONTAINER => self.container(&record, now),
            kind => {
                let mut actor = self.actors.take(&record.header);
                match kind {
                    kind::DNS => self.dns(&record, &mut actor, now),
                    _ => self.event(&record, &mut actor, now),
                }?;
                self.actors.keep(&record.header, actor);
                Ok(())
            }
        });
        if let Err(error) = outcome {
            self.undecodable(bytes, error, now);
        }
    }

    fn decode(&self, record: &Record<'_>, actor: &mut Actor) -> Result<(), DecodeError> {
        let decode = match actor.is_told() {
            true => decode::decode_again,
            false => decode::decode,
        };
        decode(record, &self.parts.clock, &mut actor.event)
    }

    fn event(
        &mut self,
        record: &Record<'_>,
        actor: &mut Actor,
        now: Instant,
    ) -> Result<(), DecodeError> {
        self.decode(record, actor)?;
        let Actor { event, stamp, .. } = actor;
        if self.is_unwatched_read(record, event) {
            self.parts.enricher.table.meet(&record.header);
            self.parts.counters.add_filtered(event.class, 1);
            return Ok(());
        }
        if self.parts.enricher.complete(record, event, stamp, now) == Verdict::Repeated {
            counters::add(&self.parts.counters.merged_exits, 1);
            return Ok(());
        }
        if self.parts.filter.leaves_out(&record.header, event, 1) {
            self.parts.counters.add_filtered(event.class, 1);
            return Ok(());
        }
        if record.header.kind == kind::EXEC && self.hold(record, event, now) {
            return Ok(());
        }
        self.tell(actor, now);
        for race in decode::races(record) {
            actor.event.kind = v1::Kind::ArgumentRace.into();
            actor.event.argument_race = Some(race);
            self.tell(actor, now);
        }
        Ok(())
    }

    /// One event for each message that this record ends; most have one, a piece of a stream may
    /// have none or many.
    fn dns(
        &mut self,
        record: &Record<'_>,
        actor: &mut Actor,
        now: Instant,
    ) -> Result<(), DecodeError> {
        self.decode(record, actor)?;
        let captured = decode::captured_dns(record).ok_or(DecodeError::Payload(kind::DNS))?;
        let Actor { event, stamp, .. } = &mut *actor;
        self.parts.enricher.complete(record, event, stamp, now);
        let time_ns = record.header.time_ns;
        let messages = self.parts.enricher.messages(&captured, time_ns);
        let counters = &self.parts.counters;
        counters::add(&counters.dns_records, 1);
        counters::add(&counters.dns_messages, messages.len() as u64);
        let hidden = messages.len() as u64;
        if self.parts.filter.leaves_out(&record.header, event, hidden) {
            counters.add_filtered(event.class, hidden);
            return Ok(());
        }
        for message in messages {
            actor.event.dns = Some(message);
            self.tell(actor, now);
        }
        Ok(())
    }

    fn is_unwatched_read(&self, record: &Record<'_>, event: &Event) -> bool {
        record.header.kind == kind::OPEN
            && record
                .payload::<Open>()
                .is_some_and(|open| open.result >= 0 && decode::is_watched_read(open.outcome))
            && !self
                .parts
                .filter
                .watches(event.file.as_ref().map_or("", |file| &file.path))
    }

    /// Keeps an exec whose argv goes on in other records.
    fn hold(&mut self, record: &Record<'_>, event: &Event, now: Instant) -> bool {
        let argv = record
            .section(section::ARGV)
            .map_or(&[][..], |section| section.bytes);
        let whole = record.payload::<Exec>().map_or(0, |exec| exec.argv_bytes);
        if argv.len() as u64 >= whole {
            return false;
        }
        let Header { cpu, sequence, .. } = record.header;
        if let Some(mut leaving) = self
            .arguments
            .hold((cpu, sequence), event.clone(), argv, whole)
        {
            self.emit(&mut leaving, now);
        }
        true
    }

    fn continuation(&mut self, record: &Record<'_>, now: Instant) -> Result<(), DecodeError> {
        let args: ExecArgs = record
            .payload()
            .ok_or(DecodeError::Payload(kind::EXEC_ARGS))?;
        let piece = record
            .section(section::ARGV)
            .map_or(&[][..], |section| section.bytes);
        let cpu = record.header.cpu;
        match self
            .arguments
            .join(cpu, args.exec_sequence, args.offset_bytes, piece)
        {
            Joined::Leaves(mut event) => self.emit(&mut event, now),
            Joined::Waiting => {}
            // The exec was filtered, or its loss is told already: nothing is missing beyond it.
            Joined::Orphan => counters::add(&self.parts.counters.orphan_arguments, 1),
        }
        Ok(())
    }

    fn cgroup(&mut self, record: &Record<'_>) -> Result<(), DecodeError> {
        let cgroup: Cgroup = record.payload().ok_or(DecodeError::Payload(kind::CGROUP))?;
        if let Some(path) = record.section(section::CGROUP)
            && path.header.flags & section_flags::TRUNCATED == 0
        {
            self.parts.enricher.containers.learn(cgroup.id, path.bytes);
        }
        Ok(())
    }

    /// Of any cgroup; only containers' are events.
    fn container(&mut self, record: &Record<'_>, now: Instant) -> Result<(), DecodeError> {
        let mut event = Event::default();
        decode::decode(record, &self.parts.clock, &mut event)?;
        let containers = &mut self.parts.enricher.containers;
        let Some(container) = &mut event.container else {
            counters::add(&self.parts.counters.other_cgroups, 1);
            return Ok(());
        };
        containers.changed(container);
        if self.parts.filter.leaves_out(&record.header, &event, 1) {
            self.parts.counters.add_filtered(event.class, 1);
            return Ok(());
        }
        self.emit(&mut event, now);
        if let Some(container) = &event.container {
            let containers = &mut self.parts.enricher.containers;
            containers.told(container, &event.id, now);
        }
        Ok(())
    }

    fn undecodable(&mut self, bytes: &[u8], error: DecodeError, now: Instant) {
        tracing::debug!(%error, bytes = bytes.len(), "record cannot be decoded");
        counters::add(&self.parts.counters.undecodable, 1);
        let stream = Record::parse(bytes)
            .ok()
            .map(|record| record.header)
            .filter(|header| class::name(header.class).is_some() && header.cpu < decode::MAX_CPUS);
        match stream {
            Some(header) => self.lost(
                &Loss {
                    class: header.class,
                    cpu: header.cpu,
                    first_sequence: header.sequence,
                    last_sequence: header.sequence,
                    cause: error.cause(),
                    place: "decode",
                },
                now,
            ),
            None => {
                counters::add(&self.parts.counters.lost, 1);
                let mut event = own::lost_without_stream(&self.parts.clock, error.cause());
                self.emit(&mut event, now);
            }
        }
    }

    /// Sealed events that will never be stored.
    pub fn gone(&mut self, gone: &Gone, now: Instant) {
        let events = gone.events.unwrap_or(0);
        counters::add(&self.parts.counters.lost, events.unsigned_abs());
        let mut event = own::gone(&self.parts.clock, gone);
        self.emit(&mut event, now);
    }

    fn lost(&mut self, loss: &Loss, now: Instant) {
        let count = loss
            .last_sequence
            .saturating_sub(loss.first_sequence)
            .saturating_add(1);
        counters::add(&self.parts.counters.lost, count);
        let of_class = self.parts.counters.of_class(loss.class.into());
        counters::add(&of_class.lost, count);
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        let first = self
            .sequences
            .skip(loss.class.into(), loss.cpu as i32, count);
        tracing::debug!(?loss, "records lost");
        let mut event = own::lost(&self.parts.clock, loss, first, count);
        self.emit(&mut event, now);
    }

    /// As [`Self::emit`], with what its actor's events have in common.
    fn tell(&mut self, actor: &mut Actor, now: Instant) {
        let (event, encoded) = actor.encoded();
        self.number(event);
        self.batch(event, encoded, now);
    }

    /// Numbers an event and puts it into the open batch. The event must not be filtered later.
    pub fn emit(&mut self, event: &mut Event, now: Instant) {
        if event.host.is_none() {
            event.host = Some(self.parts.host.clone());
        }
        let mut actor = Vec::new();
        encode::actor(event, &mut actor);
        self.number(event);
        self.batch(event, &actor, now);
    }

    fn batch(&mut self, event: &Event, actor: &[u8], now: Instant) {
        self.encoded.clear();
        encode::event(event, actor, &mut self.encoded);
        self.parts.batch.push(event, &self.encoded, now);
        self.encoded.shrink_to(KEPT_BYTES);
        counters::add(&self.parts.counters.sealed, 1);
        counters::add(&self.parts.counters.of_class(event.class).sealed, 1);
    }

    fn number(&mut self, event: &mut Event) {
        let cpu = event.cpu.unwrap_or_default();
        let sequence = self.sequences.take(event.class, cpu);
        event.sequence = Some(sequence);
        let class = match u8::try_from(event.class).ok().and_then(class::name) {
            Some(name) => name,
            None if event.class == i32::from(Class::Agent) => "agent",
            None => "unspecified",
        };
        let id = &mut event.id;
        id.clear();
        id.push_str(&self.parts.host.run);
        id.push('-');
        id.push_str(class);
        id.push('-');
        push_number(cpu.into(), id);
        id.push('-');
        push_number(sequence, id);
    }

    /// Passes the open batch on if its time has come.
    pub fn close_due(&mut self, now: Instant) {
        if self.parts.batch.due().is_some_and(|due| due <= now) {
            self.parts.batch.close();
        }
    }
}

/// In decimal, as `write!` does it, in a quarter of the time: every event has two.
fn push_number(number: i64, text: &mut String) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut rest = number.unsigned_abs();
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if number < 0 {
        text.push('-');
    }
    text.extend(digits[at..].iter().map(|digit| char::from(*digit)));
}

#[cfg(test)]
mod tests;
