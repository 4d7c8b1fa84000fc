//! Does a batch belong where it arrives? One agent's history as a session sees it, without a connection
//! and without a store, so that the simulation runs these rules and no others.
//!
//! Invariants: a batch is taken if it follows the last one that was taken, or is the one that Hello named
//! as the agent's first; one that is stored already is never taken again, and another one of its number
//! is a fork.

use std::collections::HashMap;

use audit_ledger::{ChainError, Gap, Header, Past};
use audit_proto::v1::{Batch, Hello, StoredBatch, Welcome};

use crate::streams::StreamState;

/// Where the history of one session stands.
#[derive(Debug, Clone)]
pub struct History {
    pub agent_id: String,
    /// Whoever delivers was found to be this host, and its batches are of it alone.
    host_id: String,
    /// The first batch that the agent still has.
    first: i64,
    /// The last batch that is durable.
    stored: i64,
    /// Batches in flight included; `None` before the first.
    past: Option<Past>,
    welcome: Welcome,
}

/// Where a batch belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Next(Gap),
    /// It is there; its session may be told again how far that goes.
    Stored(Option<i64>),
}

/// Why a batch is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unfit {
    /// Neither now nor later.
    Refused(String),
    /// Those before it come first.
    Early(String),
    /// The stored one of its number is another.
    Fork,
}

impl History {
    pub fn begin(hello: &Hello, stored: Option<StreamState>) -> Self {
        let stored = stored.unwrap_or_default();
        let recent = stored.recent().map(|(batch, hash)| StoredBatch {
            batch,
            hash: hash.to_vec(),
        });
        let welcome = Welcome {
            last_batch: stored.past.batch,
            last_hash: stored.past.hash.clone(),
            recent: recent.collect(),
            ..Welcome::default()
        };
        Self {
            agent_id: hello.agent_id.clone(),
            host_id: hello.host_id.clone(),
            first: hello.first_batch,
            stored: stored.past.batch,
            past: (stored.past.batch > 0).then_some(stored.past),
            welcome,
        }
    }

    /// What it has to say about the history.
    pub fn welcome(&mut self) -> Welcome {
        std::mem::take(&mut self.welcome)
    }

    /// The last batch that was taken.
    pub fn last(&self) -> i64 {
        self.past.as_ref().map_or(0, |past| past.batch)
    }

    /// What is known of the history up to there.
    pub fn past(&self) -> Option<&Past> {
        self.past.as_ref()
    }

    /// `state` is what the store has of this agent by now, asked for where it matters.
    pub fn place(
        &self,
        header: &Header,
        state: impl FnOnce() -> Option<StreamState>,
    ) -> Result<Place, Unfit> {
        let number = header.fields.batch;
        for (of, what, expected) in [
            (&header.fields.agent_id, "agent", &self.agent_id),
            (&header.fields.host_id, "host", &self.host_id),
        ] {
            if of != expected {
                return Err(Unfit::Refused(format!(
                    "batch {number} is of {what} {of}, not of the one in Hello"
                )));
            }
        }
        let last = self.last();
        if number <= last {
            let is_stored = state().and_then(|state| state.is_stored(header));
            return match is_stored {
                Some(false) => Err(Unfit::Fork),
                _ => Ok(Place::Stored(
                    (self.stored >= number).then_some(self.stored),
                )),
            };
        }
        if number == self.first {
            return Ok(Place::Next(Gap::Allowed));
        }
        if number != last + 1 {
            return Err(Unfit::Early(format!(
                "batch {number} arrived after batch {last}: batches {} to {} are missing; send them first",
                last + 1,
                number - 1
            )));
        }
        Ok(Place::Next(Gap::Refused))
    }

    /// The batch is taken. Returns the numbers before it that are missing for good, if any.
    pub fn take(&mut self, past: Past) -> Option<(i64, i64)> {
        let missing = (self.last() + 1, past.batch - 1);
        self.past = Some(past);
        (missing.0 <= missing.1).then_some(missing)
    }

    /// It is durable.
    pub fn store(&mut self, batch: i64) {
        self.stored = batch;
    }
}

/// The past with a batch in its place, if its signatures and its predecessor are right.
pub fn follow(
    past: Option<&Past>,
    batch: &Batch,
    header: &Header,
    gap: Gap,
) -> Result<Past, Unfit> {
    let followed = match past {
        Some(past) => past.follow(batch, header, gap),
        None => Past::begin(batch, header),
    };
    followed.map_err(|error| match error {
        ChainError::Previous(_) => Unfit::Fork,
        error => Unfit::Refused(format!("batch {} {error}", header.fields.batch)),
    })
}

/// Which of a group may be written? After a failed write the batches already on their way must not
/// leave a gap behind them.
#[derive(Default)]
pub struct InOrder(HashMap<String, i64>);

impl InOrder {
    /// Does this batch, which was taken after batch `after`, follow what is stored or in this group?
    pub fn follows(&mut self, past: &Past, after: i64, stored: impl FnOnce() -> i64) -> bool {
        let last = self.0.entry(past.agent_id.clone());
        let last = last.or_insert_with(stored);
        let follows = after == *last;
        if follows {
            *last = past.batch;
        }
        follows
    }
}
