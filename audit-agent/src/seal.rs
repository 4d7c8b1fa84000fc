//! How does a full batch become a sealed one on disk? On two threads of their own, between the reader
//! and the spool: one hashes, compresses and signs, which takes as long as everything before it; one
//! writes, and waits for the disk.
//!
//! Invariants: where the source marks what batches tell, they are kept with their mark, so that after a crash
//! the next run neither tells an event again nor leaves one out; batches are sealed and kept in the order in which they were passed; the reader is at most
//! one batch ahead of sealing, and sealing [`SEALED`] of the disk; what came while a sync ran goes with
//! the next one; memory goes round: what a batch was collected in is given back when it is sealed.

use std::{
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{Receiver, SyncSender, TryRecvError, sync_channel},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use audit_ledger::{Frames, Summary};
use audit_proto::v1::{Batch, BatchRange};

use crate::{
    batch::Filled,
    counters::{self, Counters},
    spool::{Mark, Spool},
};

/// Batches between the two threads: one, so that neither waits for the other to begin. More would
/// only move the wait of a full queue away from the rings, at 2 MiB each.
const PASSED: usize = 1;
/// Compressed ones, between sealing and the disk.
const SEALED: usize = 8;
/// A wait for room in the spool that is worth a line in the log.
const LONG: Duration = Duration::from_secs(1);

/// The reader's end.
#[derive(Debug)]
pub struct Handover {
    filled: SyncSender<Filled>,
    spare: Receiver<Frames>,
}

/// The sealing thread's end.
pub struct Sealing {
    filled: Receiver<Filled>,
    spare: SyncSender<Frames>,
    sealed: SyncSender<Sealed>,
    spool: Arc<Spool>,
    /// What an empty batch may keep for the next.
    kept_bytes: usize,
    /// How long the reader may be without a batch.
    next_within: Duration,
    gaps: Receiver<BatchRange>,
}

/// The keeping thread's end.
pub struct Keeping {
    sealed: Receiver<Sealed>,
    pub spool: Arc<Spool>,
    pub counters: Arc<Counters>,
    /// Batches are kept with the mark that covers them, and not before.
    marked: bool,
    /// Asked while the spool is full.
    pub give_up: Box<dyn Fn() -> bool + Send>,
}

struct Sealed {
    batch: Option<Batch>,
    mark: Option<Box<Mark>>,
}

/// What sealing is made of.
pub struct Parts {
    pub spool: Arc<Spool>,
    pub counters: Arc<Counters>,
    /// Limit of a batch.
    pub batch_bytes: usize,
    /// The source marks what batches tell ([`crate::source::Source::mark`]).
    pub marked: bool,
    /// The reader passes on a heartbeat at least so often.
    pub next_within: Duration,
    pub give_up: Box<dyn Fn() -> bool + Send>,
    /// Batches that will never reach the collector, to be told in the next header.
    pub gaps: Receiver<BatchRange>,
}

/// The ends of all three.
pub fn handover(parts: Parts) -> (Handover, Sealing, Keeping) {
    let (filled, to_seal) = sync_channel(PASSED);
    let (empty, spare) = sync_channel(PASSED);
    let (sealed, to_keep) = sync_channel(SEALED);
    let sealing = Sealing {
        filled: to_seal,
        spare: empty,
        sealed,
        spool: Arc::clone(&parts.spool),
        kept_bytes: parts.batch_bytes,
        next_within: parts.next_within,
        gaps: parts.gaps,
    };
    let keeping = Keeping {
        sealed: to_keep,
        spool: parts.spool,
        counters: parts.counters,
        marked: parts.marked,
        give_up: parts.give_up,
    };
    (Handover { filled, spare }, sealing, keeping)
}

impl Handover {
    /// Passes a batch on, waiting for room; returns memory for the next one, and how many events were
    /// lost because the other end is gone.
    pub fn pass(&self, filled: Filled) -> (Frames, u64) {
        let abandoned = match self.filled.send(filled) {
            Ok(()) => 0,
            Err(refused) => refused.0.frames.len() as u64,
        };
        (self.spare.try_recv().unwrap_or_default(), abandoned)
    }
}

impl Sealing {
    /// Until the reader's end is gone.
    pub fn run(self) {
        while let Ok(filled) = self.filled.recv() {
            let Filled {
                mut frames,
                first_time,
                last_time,
                classes,
                losses,
                is_last,
                mark,
            } = filled;
            let next_within_ms = match is_last {
                true => 0,
                false => self.next_within.as_millis() as i64,
            };
            let batch = (is_last || !frames.is_empty()).then(|| {
                let summary = Summary {
                    sealed_time: now(),
                    first_time,
                    last_time,
                    classes,
                    losses,
                    next_within_ms,
                    gaps: self.gaps.try_iter().collect(),
                };
                self.spool.seal(&frames, summary)
            });
            // One huge event must not keep its memory for ever.
            frames.clear(self.kept_bytes);
            // Refused when there is one to spare already.
            let _ = self.spare.try_send(frames);
            if self.sealed.send(Sealed { batch, mark }).is_err() {
                return;
            }
        }
    }
}

fn now() -> i64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(now.as_micros()).unwrap_or(i64::MAX)
}

impl Keeping {
    /// Until the sealing end is gone; returns how many events could not be kept before the agent had
    /// to end.
    pub fn run(self) -> u64 {
        let mut abandoned = 0;
        // Those behind the last mark.
        let mut rest = Vec::new();
        while let Ok(first) = self.sealed.recv() {
            let (mut batches, mut mark) = (Vec::new(), None);
            let mut next = Ok(first);
            while let Ok(sealed) = next {
                rest.extend(sealed.batch);
                if sealed.mark.is_some() || !self.marked {
                    batches.append(&mut rest);
                }
                mark = sealed.mark.or(mark);
                next = match batches.len() < SEALED {
                    true => self.sealed.try_recv(),
                    false => Err(TryRecvError::Empty),
                };
            }
            if !batches.is_empty() || mark.is_some() {
                abandoned += self.keep(&batches, mark.as_deref());
            }
        }
        match rest.is_empty() {
            true => abandoned,
            false => abandoned + self.keep(&rest, None),
        }
    }

    fn keep(&self, batches: &[Batch], mark: Option<&Mark>) -> u64 {
        let begun = Instant::now();
        let abandoned = self.spool.keep(batches, mark, &self.give_up);
        if let Some(mark) = mark {
            mark.kept.store(mark.number, Ordering::Release);
        }
        if begun.elapsed() > LONG {
            counters::add(&self.counters.spool_waits, 1);
            tracing::warn!(
                waited_ms = begun.elapsed().as_millis() as u64,
                "the spool was full or its disk slow; soon after, the rings were not read either"
            );
        }
        abandoned
    }
}
