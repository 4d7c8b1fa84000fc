//! Is a record complete, is something known to be missing, or was it changed?
//!
//! Batches go in as they are stored: those of one agent in the order of their numbers, agents mixed as
//! they come. Invariants: what is reported as tampering cannot come of a crash, a lost connection or a
//! full disk of an honest agent; "complete" is said only of histories in which every number from the
//! first to the last is there, signed, unchanged, and tells no loss. docs/ledger.md has every rule, and
//! each has a test vector.

mod holes;
mod walk;

use std::{collections::BTreeMap, fmt};

use audit_proto::v1::Batch;

use crate::{batch, key, seal::Former};
use walk::Walk;

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
    /// The agent promised more batches than there are: it is down, cut off, or its tail was removed. Or
    /// its clock and the one that was asked are so far apart that nobody can tell.
    pub is_silent: bool,
    /// What else keeps it from being complete: sentences.
    pub lacking: Vec<String>,
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
    /// What was looked at is a part: what came before it is elsewhere.
    pub is_part: bool,
}

impl History {
    pub fn verdict(&self) -> Verdict {
        if !self.findings.is_empty() {
            Verdict::Tampered
        } else if !self.losses.is_empty() || self.is_silent || !self.lacking.is_empty() {
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
            // Where nothing is here, everything may be missing.
            true => worst.unwrap_or(Verdict::Incomplete),
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
        let header = match batch::header(batch) {
            Ok(header) => header,
            Err(error) => {
                return self.unreadable(format!("a second batch cannot be read: {error}"));
            }
        };
        // What nobody signed proves nothing.
        if key::signed_batch(&header.fields.public_key, &header.hash, &batch.signature)
            && let Some(walk) = self.histories.get_mut(&header.fields.agent_id)
        {
            walk.offer(header);
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
        if !is_part {
            formers(&mut histories);
        }
        Report {
            histories,
            findings: self.findings,
            is_part,
        }
    }
}

/// Are the histories here whose place others take? Their tail may never have arrived, and whoever seals
/// can claim to take the place of anybody: so it is told of the one that says so, and proves nothing.
fn formers(histories: &mut [History]) {
    let ends: BTreeMap<String, i64> = histories
        .iter()
        .map(|history| (history.agent_id.clone(), history.last_batch))
        .collect();
    for history in histories {
        let Some(former) = &history.former else {
            continue;
        };
        let end = ends.get(&former.agent_id).copied().unwrap_or(0);
        if end < former.batch {
            history.lacking.push(format!(
                "it takes the place of agent {}, whose batches {} to {} are not here",
                former.agent_id,
                end + 1,
                former.batch
            ));
        }
    }
}

#[cfg(test)]
mod tests;
