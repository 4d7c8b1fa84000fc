//! What happens to a record between the source and the queue? Decode, enrich, filter, number,
//! encode, seal: all on one thread, because handing single events between threads costs more than
//! the work.
//!
//! Invariants: every record becomes an event, a part of one, or a number in a counter; the numbers
//! of a stream are given in the order of its events.

use std::{
    fmt::Write as _,
    sync::Arc,
    time::{Duration, Instant},
};

use audit_common::{
    class, kind,
    record::{Cgroup, Exec, ExecArgs, Header, Open, Record, section, section_flags},
};
use audit_proto::v1::{Batch, Class, Event, Host};

use crate::{
    arguments::{Arguments, Joined},
    clock::Clock,
    counters::{self, Counters},
    decode::{self, DecodeError},
    enrich::{Enricher, Verdict},
    filter::Filter,
    own,
    queue::Queue,
    seal::Seal,
    sequence::Sequences,
    source::{Loss, Round},
};

/// Everything between source and queue.
pub struct Stage {
    pub parts: Parts,
    arguments: Arguments,
    sequences: Sequences,
    /// Reused, so that its text keeps its memory from event to event.
    event: Event,
    abandoned: u64,
}

/// What a [`Stage`] is made of.
pub struct Parts {
    pub clock: Clock,
    pub enricher: Enricher,
    pub filter: Filter,
    pub seal: Seal,
    pub queue: Arc<Queue>,
    pub counters: Arc<Counters>,
    pub host: Host,
    /// Asked while the queue is full.
    pub give_up: Box<dyn Fn() -> bool + Send>,
}

impl Stage {
    pub fn new(parts: Parts) -> Self {
        let event = Event {
            host: Some(parts.host.clone()),
            ..Event::default()
        };
        Self {
            parts,
            arguments: Arguments::default(),
            sequences: Sequences::default(),
            event,
            abandoned: 0,
        }
    }

    /// Events that could not be put into the queue before the agent had to end.
    pub fn abandoned(&self) -> u64 {
        self.abandoned
    }

    /// Takes in all of a round.
    pub fn round(&mut self, round: &Round, now: Instant) {
        self.parts.enricher.refresh(now);
        for loss in round.losses() {
            self.lost(loss, now);
        }
        for skip in round.skips() {
            tracing::warn!(
                hook = skip.hook,
                runs = skip.runs,
                "the kernel skipped a program"
            );
            counters::add(&self.parts.counters.lost, skip.runs);
            let mut event = own::skipped(&self.parts.clock, skip);
            self.emit(&mut event, now);
        }
        let mut records = 0;
        for bytes in round.records() {
            records += 1;
            self.record(bytes, now);
        }
        counters::add(&self.parts.counters.records, records);
        while let Some(mut event) = self.arguments.give_up() {
            self.emit(&mut event, now);
        }
        self.arguments.next_round();
    }

    /// Ends waiting for arguments that will not come.
    pub fn drain(&mut self, now: Instant) {
        while let Some(mut event) = self.arguments.drain() {
            self.emit(&mut event, now);
        }
    }

    fn record(&mut self, bytes: &[u8], now: Instant) {
        let mut event = std::mem::take(&mut self.event);
        let outcome = decode::parse(bytes).and_then(|record| match record.header.kind {
            kind::EXEC_ARGS => self.continuation(&record, now),
            kind::CGROUP => self.cgroup(&record),
            kind::DNS => self.dns(&record, &mut event, now),
            _ => self.event(&record, &mut event, now),
        });
        self.event = event;
        if let Err(error) = outcome {
            self.undecodable(bytes, error, now);
        }
    }

    fn event(
        &mut self,
        record: &Record<'_>,
        event: &mut Event,
        now: Instant,
    ) -> Result<(), DecodeError> {
        decode::decode(record, &self.parts.clock, event)?;
        if self.is_unwatched_read(record, event) {
            self.parts.enricher.table.meet(&record.header);
            counters::add(&self.parts.counters.filtered, 1);
            return Ok(());
        }
        if self.parts.enricher.complete(record, event, now) == Verdict::Repeated {
            counters::add(&self.parts.counters.merged_exits, 1);
            return Ok(());
        }
        if self.parts.filter.leaves_out(event) {
            counters::add(&self.parts.counters.filtered, 1);
            return Ok(());
        }
        if record.header.kind == kind::EXEC && self.hold(record, event, now) {
            return Ok(());
        }
        self.emit(event, now);
        Ok(())
    }

    /// One event for each message that this record ends; most have one, a piece of a stream may
    /// have none or many.
    fn dns(
        &mut self,
        record: &Record<'_>,
        event: &mut Event,
        now: Instant,
    ) -> Result<(), DecodeError> {
        decode::decode(record, &self.parts.clock, event)?;
        let captured = decode::captured_dns(record).ok_or(DecodeError::Payload(kind::DNS))?;
        self.parts.enricher.complete(record, event, now);
        let time_ns = record.header.time_ns;
        let messages = self.parts.enricher.messages(&captured, time_ns);
        let counters = &self.parts.counters;
        counters::add(&counters.dns_records, 1);
        counters::add(&counters.dns_messages, messages.len() as u64);
        if self.parts.filter.leaves_out(event) {
            counters::add(&counters.filtered, messages.len() as u64);
            return Ok(());
        }
        for message in messages {
            event.dns = Some(message);
            self.emit(event, now);
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

    fn lost(&mut self, loss: &Loss, now: Instant) {
        let count = loss
            .last_sequence
            .saturating_sub(loss.first_sequence)
            .saturating_add(1);
        counters::add(&self.parts.counters.lost, count);
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        let first = self
            .sequences
            .skip(loss.class.into(), loss.cpu as i32, count);
        tracing::debug!(?loss, "records lost");
        let mut event = own::lost(&self.parts.clock, loss, first, count);
        self.emit(&mut event, now);
    }

    /// Numbers an event and puts it into the open batch. The event must not be filtered later.
    pub fn emit(&mut self, event: &mut Event, now: Instant) {
        let cpu = event.cpu.unwrap_or_default();
        let sequence = self.sequences.take(event.class, cpu);
        event.sequence = Some(sequence);
        event.id.clear();
        let class = match u8::try_from(event.class).ok().and_then(class::name) {
            Some(name) => name,
            None if event.class == i32::from(Class::Agent) => "agent",
            None => "unspecified",
        };
        // Writing into a String cannot fail.
        let _ = write!(event.id, "{}-{class}-{cpu}-{sequence}", self.parts.host.run);
        if event.host.is_none() {
            event.host = Some(self.parts.host.clone());
        }
        counters::add(&self.parts.counters.sealed, 1);
        for batch in self.parts.seal.push(event, now).into_iter().flatten() {
            self.enqueue(batch);
        }
    }

    /// Seals the open batch if its time has come.
    pub fn seal_due(&mut self, now: Instant) {
        if self.parts.seal.due().is_some_and(|due| due <= now) {
            self.seal_now();
        }
    }

    pub fn seal_now(&mut self) {
        if let Some(batch) = self.parts.seal.close() {
            self.enqueue(batch);
        }
    }

    fn enqueue(&mut self, batch: Batch) {
        let begun = Instant::now();
        match self.parts.queue.push(batch, &self.parts.give_up) {
            Ok(false) => {}
            Ok(true) => {
                counters::add(&self.parts.counters.queue_full, 1);
                let waited_ms = begun.elapsed().as_millis() as u64;
                if begun.elapsed() > Duration::from_secs(1) {
                    tracing::warn!(
                        waited_ms,
                        "the queue of batches was full; the rings were not read meanwhile"
                    );
                }
            }
            Err(batch) => {
                let events = batch.header.as_ref().map_or(0, |header| header.event_count);
                self.abandoned += u64::try_from(events).unwrap_or(0);
            }
        }
    }
}

#[cfg(test)]
mod tests;
