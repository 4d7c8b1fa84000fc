//! Is a record complete, is something known to be missing, or was it changed?
//!
//! Batches go in as they are stored: those of one agent in the order of their numbers, agents mixed as
//! they come. Invariants: what is reported as tampering cannot come of a crash, a lost connection or a
//! full disk of an honest agent; "complete" is said only of histories in which every number from the
//! first to the last is there, signed, unchanged, and tells no loss.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

use audit_proto::v1::{Batch, BatchHeader};

use crate::{
    batch::{self, Header},
    chain::{self, ChainError, Gap, Past},
    key,
    seal::Former,
};

/// A history is silent when it has missed so many of the batches that its agent promised.
const MISSED: i64 = 3;
/// Added to that: clocks differ, and a batch takes its time to arrive.
const SLACK_MS: i64 = 10_000;
/// Batches with a wrong signature that are tried with later keys, to say which one was used.
const MAX_RESIGNED: usize = 64;

/// What was done to a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tampering {
    EventsChanged,
    HeaderChanged,
    Deleted,
    Reordered,
    Replayed,
    Forked,
    /// Signed with a key that was not the one of that time.
    Resigned,
    /// An agent's statement that it dropped events is not its own.
    ForgedDrop,
    Unreadable,
}

impl Tampering {
    pub fn name(self) -> &'static str {
        match self {
            Self::EventsChanged => "events changed",
            Self::HeaderChanged => "header changed",
            Self::Deleted => "deleted",
            Self::Reordered => "reordered",
            Self::Replayed => "replayed",
            Self::Forked => "forked",
            Self::Resigned => "re-signed",
            Self::ForgedDrop => "forged drop",
            Self::Unreadable => "unreadable",
        }
    }
}

/// Something that only tampering explains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub tampering: Tampering,
    /// 0 where it is not known.
    pub batch: i64,
    /// A sentence.
    pub what: String,
}

/// Events that are known to be missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// As in [`audit_proto::v1::Class`]; 0 where it is not known.
    pub class: i32,
    /// "ring", "decode", "hook", "agent", "spool", "collector".
    pub place: String,
    /// None where nobody knows how many.
    pub count: Option<i64>,
    /// Of the events around it, microseconds since the Unix epoch.
    pub first_time: i64,
    pub last_time: i64,
}

/// What was found of one agent.
#[derive(Debug, Clone, Default)]
pub struct History {
    pub agent_id: String,
    pub host_id: String,
    pub first_batch: i64,
    pub last_batch: i64,
    pub batches: i64,
    pub events: i64,
    /// When its first and last batches were sealed.
    pub first_time: i64,
    pub last_time: i64,
    pub findings: Vec<Finding>,
    pub losses: Vec<Loss>,
    /// The agent promised more batches than there are: it is down, cut off, or its tail was removed.
    pub is_silent: bool,
    /// The history whose place it takes.
    pub former: Option<Former>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    Complete,
    Incomplete,
    Tampered,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Complete => "complete",
            Self::Incomplete => "incomplete",
            Self::Tampered => "TAMPERED",
        })
    }
}

#[derive(Debug, Clone, Default)]
pub struct Report {
    pub histories: Vec<History>,
    /// Of batches of which not even the agent can be read.
    pub findings: Vec<Finding>,
}

impl History {
    pub fn verdict(&self) -> Verdict {
        if !self.findings.is_empty() {
            Verdict::Tampered
        } else if !self.losses.is_empty() || self.is_silent {
            Verdict::Incomplete
        } else {
            Verdict::Complete
        }
    }
}

impl Report {
    pub fn verdict(&self) -> Verdict {
        let worst = self.histories.iter().map(History::verdict).max();
        match self.findings.is_empty() {
            true => worst.unwrap_or(Verdict::Complete),
            false => Verdict::Tampered,
        }
    }

    pub fn events(&self) -> i64 {
        self.histories.iter().map(|history| history.events).sum()
    }

    pub fn batches(&self) -> i64 {
        self.histories.iter().map(|history| history.batches).sum()
    }
}

/// Takes batches, gives a [`Report`].
#[derive(Debug, Default)]
pub struct Verifier {
    histories: BTreeMap<String, Walk>,
    findings: Vec<Finding>,
    /// What was looked at is a part: histories may begin anywhere.
    is_part: bool,
}

/// A statement that events were dropped, until the key that signed it has been met.
#[derive(Debug)]
struct Statement {
    batch: i64,
    epoch: i64,
    public_key: Vec<u8>,
}

/// Batches that are missing between two that are there.
#[derive(Debug)]
struct Hole {
    first: i64,
    last: i64,
    events: i64,
    /// Of the batches around it.
    times: (i64, i64),
    /// What follows is signed by a key that the batch before it let follow, as far as that is here.
    is_proven: bool,
}

/// A batch with a signature that is not of its key.
#[derive(Debug)]
struct Unsigned {
    finding: usize,
    hash: [u8; 32],
    signature: Vec<u8>,
}

#[derive(Debug, Default)]
struct Walk {
    found: History,
    past: Option<Past>,
    /// Batches since `past` that are not what they should be, so that the next one cannot name them.
    broken: i64,
    hashes: HashMap<i64, [u8; 32]>,
    keys: BTreeMap<i64, Vec<u8>>,
    holes: Vec<Hole>,
    /// Batches that the agent says the collector has lost.
    gaps: Vec<(i64, i64)>,
    statements: Vec<Statement>,
    unsigned: Vec<Unsigned>,
    forks: Vec<Header>,
    losses: BTreeMap<(i32, String), Loss>,
    next_within_ms: i64,
}

/// Where a sound batch belongs.
enum Place {
    /// Behind those that were met.
    Next(Past),
    /// Among them, where it was missing.
    Late,
    /// Where one is already.
    Taken,
}

impl Verifier {
    /// Of a whole store: histories must begin with batch 1.
    pub fn new() -> Self {
        Self::default()
    }

    /// Of a part of a store, by time: histories may begin anywhere.
    pub fn of_part() -> Self {
        Self {
            is_part: true,
            ..Self::default()
        }
    }

    /// It is a whole store after all.
    pub fn is_whole(&mut self) {
        self.is_part = false;
    }

    /// The next stored batch.
    pub fn batch(&mut self, batch: &Batch) {
        let header = match batch::header(batch) {
            Ok(header) => header,
            Err(error) => {
                let what = format!("a batch cannot be read: {error}");
                return self.unreadable(what);
            }
        };
        let walk = self
            .histories
            .entry(header.fields.agent_id.clone())
            .or_default();
        walk.batch(batch, &header);
    }

    /// A batch that somebody sent in an agent's name, beside the stored one of its number. To be called
    /// after every batch.
    pub fn fork(&mut self, batch: &Batch) {
        // What nobody signed proves nothing.
        if let Ok(header) = batch::header(batch)
            && key::signed_batch(&header.fields.public_key, &header.hash, &batch.signature)
            && let Some(walk) = self.histories.get_mut(&header.fields.agent_id)
        {
            walk.forks.push(header);
        }
    }

    /// A stored batch that not even its store can read.
    pub fn unreadable(&mut self, what: String) {
        self.findings.push(Finding {
            tampering: Tampering::Unreadable,
            batch: 0,
            what,
        });
    }

    /// Everything was looked at; `now` is in microseconds since the Unix epoch.
    pub fn finish(self, now: i64) -> Report {
        let is_part = self.is_part;
        let walks = self.histories.into_values();
        let mut histories: Vec<History> = walks.map(|walk| walk.finish(now, is_part)).collect();
        // Whoever seals can claim to take the place of another: so it excuses nothing there.
        let followed: Vec<Former> = histories.iter().filter_map(|h| h.former.clone()).collect();
        for former in followed {
            let ended = histories
                .iter_mut()
                .find(|history| history.agent_id == former.agent_id);
            let Some(ended) = ended else { continue };
            if ended.last_batch < former.batch {
                let what = format!(
                    "batches {} to {} are missing at the end: the agent that took its place knew of \
                     them",
                    ended.last_batch + 1,
                    former.batch
                );
                ended.findings.push(Finding {
                    tampering: Tampering::Deleted,
                    batch: ended.last_batch + 1,
                    what,
                });
            }
        }
        Report {
            histories,
            findings: self.findings,
        }
    }
}

impl Walk {
    fn find(&mut self, tampering: Tampering, batch: i64, what: String) {
        self.found.findings.push(Finding {
            tampering,
            batch,
            what,
        });
    }

    fn batch(&mut self, batch: &Batch, header: &Header) {
        let number = header.fields.batch;
        let place = match self.place(batch, header) {
            Ok(place) => place,
            Err(error) => return self.blame(batch, header, &error),
        };
        // One that is out of order is told; its events are looked at all the same.
        let is_new = !matches!(place, Place::Taken);
        if let Place::Next(past) = place {
            self.meet(batch, header);
            self.past = Some(past);
            self.broken = 0;
        }
        if is_new {
            self.found.batches += 1;
            self.hashes.insert(number, header.hash);
        }
        match batch::open(batch, &header.fields) {
            Ok(frames) if is_new => self.found.events += frames.len() as i64,
            Ok(_) => {}
            Err(error) => {
                let what = format!("batch {number}: {error}");
                self.find(Tampering::EventsChanged, number, what);
            }
        }
    }

    fn place(&mut self, batch: &Batch, header: &Header) -> Result<Place, ChainError> {
        let Some(past) = &self.past else {
            return Past::begin(batch, header).map(Place::Next);
        };
        match past.follow(batch, header, Gap::Refused) {
            Err(ChainError::Missing { last, found }) => {
                let hole = Hole {
                    first: (last + 1).saturating_add(self.broken),
                    last: found - 1,
                    events: header.fields.events_before.saturating_sub(past.events),
                    times: (self.found.last_time, header.fields.sealed_time),
                    is_proven: header.fields.epoch <= past.epoch.saturating_add(1),
                };
                let past = past.follow(batch, header, Gap::Allowed)?;
                if hole.first <= hole.last {
                    self.holes.push(hole);
                }
                Ok(Place::Next(past))
            }
            Err(ChainError::Again(_)) => {
                chain::signatures(batch, header)?;
                Ok(self.again(batch, header))
            }
            followed => followed.map(Place::Next),
        }
    }

    /// A number that was passed already.
    fn again(&mut self, batch: &Batch, header: &Header) -> Place {
        let number = header.fields.batch;
        match self.hashes.get(&number) {
            Some(hash) if *hash == header.hash => {
                let what = format!("batch {number} is there twice");
                self.find(Tampering::Replayed, number, what);
                Place::Taken
            }
            Some(_) => {
                let what = format!("there are two different batches {number}");
                self.find(Tampering::Forked, number, what);
                Place::Taken
            }
            None => {
                let past = self.past.as_ref().map_or(0, |past| past.batch);
                let what = format!("batch {number} is stored after batch {past}");
                self.find(Tampering::Reordered, number, what);
                self.fill(number);
                self.losses(batch, header);
                Place::Late
            }
        }
    }

    /// It was not missing.
    fn fill(&mut self, number: i64) {
        let holes = std::mem::take(&mut self.holes);
        for hole in holes {
            if !(hole.first..=hole.last).contains(&number) {
                self.holes.push(hole);
                continue;
            }
            let parts = [(hole.first, number - 1), (number + 1, hole.last)];
            for (first, last) in parts.into_iter().filter(|(first, last)| first <= last) {
                self.holes.push(Hole {
                    first,
                    last,
                    ..hole
                });
            }
        }
    }

    /// Notes what the header of a batch in its place says.
    fn meet(&mut self, batch: &Batch, header: &Header) {
        let BatchHeader {
            agent_id,
            batch: number,
            host_id,
            sealed_time,
            epoch,
            public_key,
            next_public_key,
            next_within_ms,
            events_before,
            gaps,
            former_agent_id,
            former_batch,
            ..
        } = &header.fields;
        if self.past.is_none() {
            self.found.agent_id.clone_from(agent_id);
            self.found.first_batch = *number;
            self.found.first_time = *sealed_time;
            if *number > 1 {
                self.holes.push(Hole {
                    first: 1,
                    last: number - 1,
                    events: *events_before,
                    times: (0, *sealed_time),
                    is_proven: true,
                });
            }
            if !former_agent_id.is_empty() {
                self.found.former = Some(Former {
                    agent_id: former_agent_id.clone(),
                    batch: *former_batch,
                });
            }
        }
        self.found.host_id.clone_from(host_id);
        self.found.last_batch = *number;
        self.found.last_time = *sealed_time;
        self.next_within_ms = *next_within_ms;
        let next = epoch.checked_add(1).map(|next| (next, next_public_key));
        for (epoch, key) in [(*epoch, public_key)].into_iter().chain(next) {
            if self.keys.insert(epoch, key.clone()).is_none() {
                self.try_key(epoch, key);
            }
        }
        let gaps = gaps.iter().map(|gap| (gap.first_batch, gap.last_batch));
        self.gaps.extend(gaps);
        self.losses(batch, header);
    }

    fn losses(&mut self, batch: &Batch, header: &Header) {
        let fields = &header.fields;
        let times = (fields.first_time, fields.last_time);
        for lost in &fields.losses {
            // What the spool dropped is counted by the batches that it was dropped from.
            if lost.place != "spool" {
                self.lose(lost.class, &lost.place, lost.count, times);
            }
        }
        let Some(dropped) = &batch.dropped else {
            return;
        };
        self.statements.push(Statement {
            batch: fields.batch,
            epoch: dropped.epoch,
            public_key: dropped.public_key.clone(),
        });
        let mut rest = i64::from(fields.event_count);
        for class in &fields.classes {
            rest = rest.saturating_sub(class.events);
            self.lose(class.class, "spool", Some(class.events), times);
        }
        if rest > 0 {
            self.lose(0, "spool", Some(rest), times);
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

    /// A batch that does not fit: what must have been done?
    fn blame(&mut self, batch: &Batch, header: &Header, error: &ChainError) {
        let number = header.fields.batch;
        let tampering = match error {
            ChainError::Previous(_) => Tampering::Forked,
            ChainError::Key { .. } | ChainError::FirstKey => Tampering::Resigned,
            ChainError::Dropped => Tampering::ForgedDrop,
            ChainError::Unreadable(_) => Tampering::Unreadable,
            _ => Tampering::HeaderChanged,
        };
        if *error == ChainError::Signature && self.unsigned.len() < MAX_RESIGNED {
            self.unsigned.push(Unsigned {
                finding: self.found.findings.len(),
                hash: header.hash,
                signature: batch.signature.to_vec(),
            });
        }
        self.find(tampering, number, format!("batch {number} {error}"));
        self.found.batches += 1;
        if self.found.agent_id.is_empty() {
            self.found.agent_id.clone_from(&header.fields.agent_id);
            self.found.host_id.clone_from(&header.fields.host_id);
        }
        if self.past.as_ref().is_some_and(|past| number <= past.batch) {
            // What follows was compared with what came before.
            self.fill(number);
        } else {
            self.hashes.insert(number, header.hash);
            // What follows is compared with what came before; unless this one is signed, and so has
            // followers.
            match error {
                ChainError::Previous(_) => self.past = Some(Past::of(header)),
                _ => self.broken += 1,
            }
        }
        if *error == ChainError::Signature {
            let keys: Vec<(i64, Vec<u8>)> = self.keys.clone().into_iter().collect();
            keys.iter()
                .for_each(|(epoch, key)| self.try_key(*epoch, key));
        }
    }

    /// Was this key used where another one should have been?
    fn try_key(&mut self, epoch: i64, public_key: &[u8]) {
        for unsigned in &self.unsigned {
            if key::signed_batch(public_key, &unsigned.hash, &unsigned.signature)
                && let Some(finding) = self.found.findings.get_mut(unsigned.finding)
            {
                finding.tampering = Tampering::Resigned;
                finding.what = format!(
                    "batch {} was signed again, with the key of epoch {epoch}",
                    finding.batch
                );
            }
        }
    }

    /// Of batches beside the record, those that the agent's own key has signed.
    fn offered(&mut self) {
        for fork in std::mem::take(&mut self.forks) {
            let BatchHeader {
                batch,
                epoch,
                public_key,
                ..
            } = &fork.fields;
            if self.keys.get(epoch) == Some(public_key)
                && self.hashes.get(batch) != Some(&fork.hash)
            {
                let what = format!("a second batch {batch}, with the agent's key, was offered");
                self.find(Tampering::Forked, *batch, what);
            }
        }
    }

    fn finish(mut self, now: i64, is_part: bool) -> History {
        self.offered();
        for hole in std::mem::take(&mut self.holes) {
            let told = self
                .gaps
                .iter()
                .any(|(first, last)| *first <= hole.first && hole.last <= *last);
            let Hole {
                first,
                last,
                events,
                times,
                is_proven,
            } = hole;
            if told && is_proven {
                self.lose(0, "collector", Some(events), times);
            } else if !(is_part && first == 1) {
                let mut what = format!("batches {first} to {last} ({events} events) are missing");
                if !is_proven {
                    what.push_str(", and with them the proof that what follows is the agent's");
                }
                self.find(Tampering::Deleted, first, what);
            }
        }
        for statement in std::mem::take(&mut self.statements) {
            let known = self.keys.get(&statement.epoch);
            let passed = self.keys.last_key_value().map_or(0, |(epoch, _)| *epoch);
            let fits = match known {
                Some(key) => *key == statement.public_key,
                // Of a key that no stored batch has told yet.
                None => statement.epoch > passed,
            };
            if !fits {
                let batch = statement.batch;
                let what = format!(
                    "the statement that the events of batch {batch} were dropped is not its agent's"
                );
                self.find(Tampering::ForgedDrop, batch, what);
            }
        }
        let promised = self.next_within_ms;
        let silent_ms = now.saturating_sub(self.found.last_time) / 1000;
        History {
            is_silent: promised > 0
                && silent_ms > promised.saturating_mul(MISSED).saturating_add(SLACK_MS),
            losses: self.losses.into_values().collect(),
            ..self.found
        }
    }
}

#[cfg(test)]
mod tests;
