//! One history, batch by batch: what is there, what is wrong with it, and what is missing?

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use audit_proto::v1::{Batch, BatchHeader};

use super::{
    Finding, History, Loss, Tampering,
    holes::{Hole, Told},
};
use crate::{
    batch::{self, Header},
    chain::{self, ChainError, Gap, Past},
    key,
    seal::Former,
};

/// A history is silent when it has missed so many of the batches that its agent promised.
const MISSED: u64 = 3;
/// Added to that: clocks differ, and a batch takes its time to arrive.
const SLACK_MS: u64 = 10_000;
/// Batches with a wrong signature that are tried with later keys, to say which one was used.
const MAX_RESIGNED: usize = 64;
/// Places of losses: of batches that were dropped, and of batches that are gone.
const SPOOL: &str = "spool";
const COLLECTOR: &str = "collector";

/// A statement that events were dropped, until the key that signed it has been met.
#[derive(Debug)]
struct Statement {
    batch: i64,
    epoch: i64,
    public_key: Vec<u8>,
}

/// A batch with a signature that is not of its key.
#[derive(Debug)]
struct Unsigned {
    finding: usize,
    hash: [u8; 32],
    signature: Vec<u8>,
}

impl Unsigned {
    /// Was this key used where another one should have been?
    fn try_key(&self, epoch: i64, public_key: &[u8], findings: &mut [Finding]) {
        if key::signed_batch(public_key, &self.hash, &self.signature)
            && let Some(finding) = findings.get_mut(self.finding)
        {
            finding.tampering = Tampering::Resigned;
            finding.what = format!(
                "batch {} was signed again, with the key of epoch {epoch}",
                finding.batch
            );
        }
    }
}

/// Events that the agent says its spool has lost, beyond those of batches that are here without them.
#[derive(Debug, Default)]
struct Spool {
    told: i64,
    is_unknown: bool,
    times: Option<(i64, i64)>,
    dropped: i64,
}

/// Where a sound batch belongs.
enum Place {
    /// Behind all that were met; `true` where it names another batch before it than the one there.
    Next(Past, bool),
    /// Among the numbers that were missing.
    Late(usize),
    /// Its number is taken.
    Again(Tampering),
}

#[derive(Debug, Default)]
pub struct Walk {
    found: History,
    past: Option<Past>,
    /// Of sound batches.
    hashes: HashMap<i64, [u8; 32]>,
    /// Numbers of batches that are told as unsound: what they are is known, and so not missing.
    unsound: BTreeSet<i64>,
    keys: BTreeMap<i64, Vec<u8>>,
    holes: Vec<Hole>,
    /// By number, what a batch that was not here by then must be, as the one behind it says.
    named: HashMap<i64, Vec<u8>>,
    gaps: Told,
    statements: Vec<Statement>,
    unsigned: Vec<Unsigned>,
    forks: Vec<Header>,
    losses: BTreeMap<(i32, String), Loss>,
    spool: Spool,
    next_within_ms: i64,
}

impl Walk {
    /// The next stored batch of this agent.
    pub fn batch(&mut self, batch: &Batch, header: &Header) {
        if self.found.agent_id.is_empty() {
            self.found.agent_id.clone_from(&header.fields.agent_id);
            self.found.host_id.clone_from(&header.fields.host_id);
        }
        let number = header.fields.batch;
        match self.place(batch, header) {
            Ok(Place::Again(tampering)) => {
                let what = match tampering {
                    Tampering::Replayed => format!("batch {number} is there twice"),
                    _ => format!("there are two different batches {number}"),
                };
                self.find(tampering, number, what);
            }
            Ok(Place::Late(at)) => self.late(at, batch, header),
            Ok(Place::Next(past, is_fork)) => {
                if is_fork {
                    self.find_fork(number);
                }
                self.behind(header);
                self.meet(batch, header);
                self.past = Some(past);
            }
            Err(error) => self.blame(batch, header, &error),
        }
    }

    /// A batch beside the record, of which only the signature is known to be of its key.
    pub fn offer(&mut self, header: Header) {
        self.forks.push(header);
    }

    fn find(&mut self, tampering: Tampering, batch: i64, what: String) {
        self.found.findings.push(Finding {
            tampering,
            batch,
            what,
        });
    }

    fn find_fork(&mut self, number: i64) {
        let what = format!(
            "batch {number} names another batch before it than the one that is here: the history has two ends"
        );
        self.find(Tampering::Forked, number, what);
    }

    /// Where a batch belongs, if it is sound.
    fn place(&self, batch: &Batch, header: &Header) -> Result<Place, ChainError> {
        let fields = &header.fields;
        let Some(past) = &self.past else {
            return Ok(Place::Next(Past::first(batch, header)?, false));
        };
        if fields.batch > past.batch {
            return match past.next(batch, header, Gap::Allowed) {
                Err(ChainError::Previous(_)) => {
                    past.keys(fields)?;
                    Ok(Place::Next(Past::of(header), true))
                }
                next => Ok(Place::Next(next?, false)),
            };
        }
        chain::signed(batch, header)?;
        chain::first_key(fields)?;
        self.known_keys(fields)?;
        if let Some(hash) = self.hashes.get(&fields.batch) {
            return Ok(Place::Again(match *hash == header.hash {
                true => Tampering::Replayed,
                false => Tampering::Forked,
            }));
        }
        let of_its_time = |hole: &Hole| {
            let numbers = hole.first..=hole.last;
            let epochs = hole.epochs.0..=hole.epochs.1;
            numbers.contains(&fields.batch) && epochs.contains(&fields.epoch)
        };
        match self.holes.iter().position(of_its_time) {
            Some(at) => Ok(Place::Late(at)),
            None => Err(self.alien(fields)),
        }
    }

    fn alien(&self, fields: &BatchHeader) -> ChainError {
        let (last, epoch) = self
            .past
            .as_ref()
            .map_or((0, 0), |past| (past.batch, past.epoch));
        ChainError::Key {
            found: fields.epoch,
            last,
            epoch,
        }
    }

    /// An epoch has one key.
    fn known_keys(&self, fields: &BatchHeader) -> Result<(), ChainError> {
        let other = |epoch: Option<i64>, key: &Vec<u8>| {
            let known = epoch.and_then(|epoch| self.keys.get(&epoch));
            known.is_some_and(|known| known != key)
        };
        match other(Some(fields.epoch), &fields.public_key)
            || other(fields.epoch.checked_add(1), &fields.next_public_key)
        {
            true => Err(self.alien(fields)),
            false => Ok(()),
        }
    }

    /// Notes what is missing before a batch that is behind all others.
    fn behind(&mut self, header: &Header) {
        let fields = &header.fields;
        let hole = match &self.past {
            None => {
                self.found.first_time = fields.sealed_time;
                Hole::before(header)
            }
            Some(past) => Hole {
                first: past.batch + 1,
                last: fields.batch - 1,
                events: (past.events, fields.events_before),
                times: (self.found.last_time, fields.sealed_time),
                epochs: (past.epoch, fields.epoch),
            },
        };
        if hole.first <= hole.last {
            self.named.insert(hole.last, fields.previous_hash.clone());
            self.holes.push(hole);
        }
        self.found.last_batch = fields.batch;
        self.found.last_time = fields.sealed_time;
        self.found.host_id.clone_from(&fields.host_id);
        self.next_within_ms = fields.next_within_ms;
    }

    /// A number that was passed already. It was not missing; whether it is the one that belongs there is
    /// told by its neighbours.
    fn late(&mut self, at: usize, batch: &Batch, header: &Header) {
        let number = header.fields.batch;
        let last = self.found.last_batch;
        if !self.unsound.contains(&number) {
            let what = format!("batch {number} is stored after batch {last}");
            self.find(Tampering::Reordered, number, what);
        }
        let previous = &header.fields.previous_hash;
        match self.hashes.get(&(number - 1)) {
            Some(hash) if hash[..] != previous[..] => self.find_fork(number),
            Some(_) => {}
            None => {
                self.named.insert(number - 1, previous.clone());
            }
        }
        let named = self.named.remove(&number);
        if named.is_some_and(|hash| hash != header.hash) {
            self.find_fork(number + 1);
        }
        let hole = self.holes.swap_remove(at);
        self.holes.extend(hole.without(header));
        self.meet(batch, header);
    }

    /// Takes what a sound batch says and has.
    fn meet(&mut self, batch: &Batch, header: &Header) {
        let fields = &header.fields;
        let number = fields.batch;
        self.found.batches += 1;
        if self.hashes.is_empty() || number < self.found.first_batch {
            self.found.first_batch = number;
        }
        self.hashes.insert(number, header.hash);
        if number == 1 && !fields.former_agent_id.is_empty() {
            self.found.former = Some(Former {
                agent_id: fields.former_agent_id.clone(),
                batch: fields.former_batch,
            });
        }
        let next = fields.epoch.checked_add(1);
        let keys = [
            (Some(fields.epoch), &fields.public_key),
            (next, &fields.next_public_key),
        ];
        for (epoch, key) in keys {
            if let Some(epoch) = epoch
                && self.keys.insert(epoch, key.clone()).is_none()
            {
                for unsigned in &self.unsigned {
                    unsigned.try_key(epoch, key, &mut self.found.findings);
                }
            }
        }
        self.gaps.add(&fields.gaps, number);
        self.losses(fields);
        if self.found.lacking.is_empty() && batch::is_of_later_version(&batch.header) {
            self.found.lacking.push(format!(
                "batch {number} says what this program does not know: it is of a later version"
            ));
        }
        match &batch.dropped {
            Some(_) => self.dropped(batch, header),
            None => self.open(batch, fields),
        }
    }

    fn open(&mut self, batch: &Batch, fields: &BatchHeader) {
        match batch::open(batch, fields) {
            Ok(frames) => self.found.events += frames.len() as i64,
            Err(error) => {
                let what = format!("batch {}: {error}", fields.batch);
                self.find(Tampering::EventsChanged, fields.batch, what);
            }
        }
    }

    fn losses(&mut self, fields: &BatchHeader) {
        let times = (fields.first_time, fields.last_time);
        for lost in &fields.losses {
            let count = lost.count.filter(|count| *count >= 0);
            if lost.place != SPOOL {
                self.lose(lost.class, &lost.place, count, times);
                continue;
            }
            let spool = &mut self.spool;
            spool.told = spool.told.saturating_add(count.unwrap_or(0));
            spool.is_unknown |= count.is_none();
            let (first, last) = spool.times.unwrap_or(times);
            spool.times = Some((first.min(times.0), last.max(times.1)));
        }
    }

    /// A batch whose events its agent dropped, if the statement of that is its own.
    fn dropped(&mut self, batch: &Batch, header: &Header) {
        let fields = &header.fields;
        let number = fields.batch;
        if !batch.events.is_empty() {
            let what = format!("batch {number} has events, and says that they were dropped");
            self.find(Tampering::EventsChanged, number, what);
        }
        if let Err(error) = chain::statement(batch, header) {
            self.find(
                Tampering::ForgedDrop,
                number,
                format!("batch {number} {error}"),
            );
        } else if let Some(dropped) = &batch.dropped {
            self.statements.push(Statement {
                batch: number,
                epoch: dropped.epoch,
                public_key: dropped.public_key.clone(),
            });
        }
        let times = (fields.first_time, fields.last_time);
        let mut rest = i64::from(fields.event_count);
        for class in fields.classes.iter().filter(|class| class.events > 0) {
            let events = class.events.min(rest);
            rest -= events;
            self.drop_events(class.class, events, times);
        }
        self.drop_events(0, rest, times);
    }

    fn drop_events(&mut self, class: i32, events: i64, times: (i64, i64)) {
        if events > 0 {
            self.lose(class, SPOOL, Some(events), times);
            self.spool.dropped = self.spool.dropped.saturating_add(events);
        }
    }

    fn lose(&mut self, class: i32, place: &str, count: Option<i64>, times: (i64, i64)) {
        let entry = self.losses.entry((class, place.to_owned()));
        let loss = entry.or_insert_with(|| Loss {
            class,
            place: place.to_owned(),
            count: Some(0),
            first_time: times.0,
            last_time: times.1,
        });
        loss.count = loss
            .count
            .zip(count)
            .map(|(sum, more)| sum.saturating_add(more));
        loss.first_time = loss.first_time.min(times.0);
        loss.last_time = loss.last_time.max(times.1);
    }

    /// A batch that is not sound: what must have been done? Nothing that it says counts.
    fn blame(&mut self, batch: &Batch, header: &Header, error: &ChainError) {
        let number = header.fields.batch;
        let tampering = match error {
            ChainError::Key { .. } | ChainError::FirstKey => Tampering::Resigned,
            _ => Tampering::HeaderChanged,
        };
        let finding = self.found.findings.len();
        self.find(tampering, number, format!("batch {number} {error}"));
        self.found.batches += 1;
        self.unsound.insert(number);
        if *error == ChainError::Signature && self.unsigned.len() < MAX_RESIGNED {
            let unsigned = Unsigned {
                finding,
                hash: header.hash,
                signature: batch.signature.to_vec(),
            };
            for (epoch, key) in &self.keys {
                unsigned.try_key(*epoch, key, &mut self.found.findings);
            }
            self.unsigned.push(unsigned);
        }
    }

    /// Of batches beside the record, those that the agent's own key has signed.
    fn offered(&mut self) {
        let mut told = HashSet::new();
        for fork in std::mem::take(&mut self.forks) {
            let BatchHeader {
                batch,
                epoch,
                public_key,
                ..
            } = &fork.fields;
            if self.keys.get(epoch) == Some(public_key)
                && self.hashes.get(batch) != Some(&fork.hash)
                && told.insert(fork.hash)
            {
                let what = format!("a second batch {batch}, with the agent's key, was offered");
                self.find(Tampering::Forked, *batch, what);
            }
        }
    }

    /// Numbers that are missing: did the agent say so, with a key that is proven to be its own?
    fn missing(&mut self, is_part: bool) {
        self.gaps.join();
        for hole in std::mem::take(&mut self.holes) {
            let first_here = hole.last + 1;
            if is_part && hole.is_beginning() {
                // What came before is elsewhere; unless nobody has it.
                if self.gaps.has(hole.last, hole.last) {
                    self.lose(0, COLLECTOR, None, hole.times);
                }
                continue;
            }
            for (first, last, events) in hole.apart_from(&self.unsound) {
                let told = self.gaps.has(first, last);
                let is_proven = hole.is_proven() || last + 1 != first_here;
                if told && (is_proven || hole.is_beginning()) {
                    self.lose(0, COLLECTOR, events, hole.times);
                    if !is_proven {
                        self.found.lacking.push(format!(
                            "nothing before batch {first_here} is here: its keys are believed to be \
                             those of this agent"
                        ));
                    }
                    continue;
                }
                let events =
                    events.map_or_else(String::new, |events| format!(" ({events} events)"));
                let mut what = format!("batches {first} to {last}{events} are missing");
                if told {
                    what.push_str(", and with them the proof that what follows is the agent's");
                }
                self.find(Tampering::Deleted, first, what);
            }
        }
    }

    /// What the agent says its spool has lost is mostly counted by the batches that it was lost from.
    fn spooled(&mut self) {
        let Some(times) = self.spool.times else {
            return;
        };
        let rest = self.spool.told.saturating_sub(self.spool.dropped);
        if self.spool.is_unknown || rest > 0 || self.spool.dropped == 0 {
            let count = (!self.spool.is_unknown).then_some(rest);
            self.lose(0, SPOOL, count, times);
        }
    }

    /// Statements of keys that are not those of their epochs.
    fn forged(&mut self) {
        for statement in std::mem::take(&mut self.statements) {
            let known = self.keys.get(&statement.epoch);
            if known.is_some_and(|known| *known != statement.public_key) {
                let batch = statement.batch;
                let what = format!(
                    "the statement that the events of batch {batch} were dropped is not its agent's"
                );
                self.find(Tampering::ForgedDrop, batch, what);
            }
        }
    }

    /// Does a last batch that promises another one tell that there is none? A clock that is far ahead of
    /// `now`, or a `now` that is of before the record's end, would else hide every tail that is missing.
    fn is_silent(&self, now: i64) -> bool {
        let promised = self.next_within_ms.max(0).unsigned_abs();
        let patience_ms = promised.saturating_mul(MISSED).saturating_add(SLACK_MS);
        self.next_within_ms != 0
            && now.abs_diff(self.found.last_time) > patience_ms.saturating_mul(1000)
    }

    pub fn finish(mut self, now: i64, is_part: bool) -> History {
        self.offered();
        self.missing(is_part);
        self.forged();
        self.spooled();
        let is_silent = self.is_silent(now);
        let mut found = self.found;
        found
            .findings
            .sort_by_key(|finding| (finding.batch, finding.tampering.name()));
        History {
            is_silent,
            losses: self.losses.into_values().collect(),
            ..found
        }
    }
}
