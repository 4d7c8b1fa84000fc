//! What may be sent next, and what does an answer mean? The rules of one session, without a connection
//! and without a clock, so that the simulation runs these and no others.
//!
//! Invariants: batches go out in the order of their numbers, the first of them behind the last one that
//! the collector has, or as the one that Hello named; a collector with another history of this name is
//! found out before it gets a batch.

use audit_proto::v1::{StoredBatch, Welcome};
use audit_wal::Disk;

use crate::spool::{Next, Spool};

/// Why a session cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    #[error(
        "the collector has batch {0} of this history, and another one than this spool: it was restored from \
         an old copy, or copied to another agent"
    )]
    Diverged(i64),
    #[error("batch {0} is next, and those before it are damaged")]
    Hole(i64),
}

#[derive(Debug)]
pub struct Session {
    /// The first batch that Hello said is here.
    first: i64,
    welcome: Welcome,
    sent: i64,
    acknowledged: i64,
}

impl Session {
    /// After Welcome; `first` is what Hello said. Returns the batches too that the collector had
    /// acknowledged and has lost, as far as they are not here either.
    pub fn begin<D: Disk>(
        spool: &Spool<D>,
        first: i64,
        welcome: Welcome,
    ) -> Result<(Self, Option<(i64, i64)>), Wrong> {
        let last = welcome.last_batch;
        let is_other =
            |hash: [u8; 32]| !welcome.last_hash.is_empty() && hash[..] != welcome.last_hash[..];
        if last > spool.last() || spool.hash_of(last).is_some_and(is_other) {
            // Up to where both are the same, nothing has to be sent again in another history.
            let is_here = |stored: &&StoredBatch| {
                spool
                    .hash_of(stored.batch)
                    .is_some_and(|hash| hash[..] == stored.hash)
            };
            let shared = welcome.recent.iter().filter(is_here);
            spool.acknowledge(shared.map(|stored| stored.batch).max().unwrap_or(0));
            return Err(Wrong::Diverged(last));
        }
        let lost = spool.rewind(last);
        let session = Self {
            first,
            welcome,
            sent: last,
            acknowledged: last,
        };
        Ok((session, lost))
    }

    pub fn sent(&self) -> i64 {
        self.sent
    }

    pub fn acknowledged(&self) -> i64 {
        self.acknowledged
    }

    /// Something sent is not acknowledged yet.
    pub fn is_owed(&self) -> bool {
        self.sent > self.acknowledged
    }

    /// Does this batch belong behind what was sent?
    pub fn check(&self, batch: &Next) -> Result<(), Wrong> {
        let last = self.welcome.last_batch;
        let begins = self.sent == last;
        if batch.number != self.sent + 1 && !(begins && batch.number == self.first) {
            return Err(Wrong::Hole(batch.number));
        }
        let names = !self.welcome.last_hash.is_empty() && batch.number == last + 1;
        if begins && names && batch.previous_hash != self.welcome.last_hash {
            return Err(Wrong::Diverged(last));
        }
        Ok(())
    }

    /// It was sent.
    pub fn sending(&mut self, number: i64) {
        self.sent = number;
    }

    /// An Ack came.
    pub fn acknowledge(&mut self, batch: i64) -> Result<(), Wrong> {
        if batch > self.sent {
            return Err(Wrong::Diverged(batch));
        }
        self.acknowledged = self.acknowledged.max(batch);
        Ok(())
    }
}

/// A batch that was refused so often will never be taken.
const REFUSALS: u32 = 3;

/// Refusals of one batch in a row.
#[derive(Debug, Default)]
pub struct Refusals {
    batch: i64,
    times: u32,
}

/// What to do about one more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reaction {
    Again,
    /// Send its header alone: the rest of the history must not wait for it.
    DropEvents,
    /// Not even its header is taken.
    GiveUp,
}

impl Refusals {
    pub fn refused(&mut self, batch: i64) -> Reaction {
        if self.batch != batch {
            *self = Self { batch, times: 0 };
        }
        self.times += 1;
        match self.times {
            REFUSALS => Reaction::DropEvents,
            times if times >= 2 * REFUSALS => Reaction::GiveUp,
            _ => Reaction::Again,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_batch_loses_its_events_before_its_history_ends() {
        let mut refusals = Refusals::default();
        let seven: Vec<Reaction> = (0..6).map(|_| refusals.refused(7)).collect();
        let again = Reaction::Again;
        assert_eq!(
            seven,
            [
                again,
                again,
                Reaction::DropEvents,
                again,
                again,
                Reaction::GiveUp
            ]
        );
        assert_eq!(refusals.refused(8), again, "another one begins anew");
    }
}
