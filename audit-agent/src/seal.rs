//! How does a full batch become a sealed one? On a thread of its own, between the reader and the
//! queue: hashing and compressing take as long as everything before them.
//!
//! Invariants: batches are sealed in the order in which they were passed; the reader is at most one
//! batch ahead; where batches outlive the agent, they are kept before they are sent; memory goes round:
//! what a batch was collected in is given back when it is sealed.

use std::{
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

use audit_ledger::{Frames, Sealer};
use audit_proto::v1::Batch;

use crate::{
    batch::Filled,
    counters::{self, Counters},
    identity::Identity,
    queue::Queue,
    unsent::Keeper,
};

/// Batches between the two threads: one, so that neither waits for the other to begin. More would
/// only move the wait of a full queue away from the rings, at 2 MiB each.
const PASSED: usize = 1;
/// A wait for room in the queue that is worth a line in the log.
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
    sealer: Sealer,
    /// What an empty batch may keep for the next.
    kept_bytes: usize,
    /// Sealed, and not kept yet.
    sealed: Vec<Batch>,
    abandoned: u64,
    parts: Parts,
}

/// Where sealed batches go.
pub struct Parts {
    pub queue: Arc<Queue>,
    pub counters: Arc<Counters>,
    /// Of former runs.
    pub former: Vec<Arc<Queue>>,
    pub keeper: Option<Keeper>,
    /// Asked while the queue is full.
    pub give_up: Box<dyn Fn() -> bool + Send>,
}

/// Both ends. `batch_bytes` is the limit of a batch.
pub fn handover(identity: &Identity, batch_bytes: usize, parts: Parts) -> (Handover, Sealing) {
    let (filled, to_seal) = sync_channel(PASSED);
    let (empty, spare) = sync_channel(PASSED);
    let Identity {
        host_id,
        boot_id,
        run,
        ..
    } = identity.clone();
    let sealing = Sealing {
        filled: to_seal,
        spare: empty,
        sealer: Sealer::new(host_id, boot_id, run),
        kept_bytes: batch_bytes,
        sealed: Vec::new(),
        abandoned: 0,
        parts,
    };
    (Handover { filled, spare }, sealing)
}

impl Handover {
    /// Passes a batch on, waiting for room; returns memory for the next one. Gives the batch back
    /// when the other end is gone.
    pub fn pass(&self, filled: Filled) -> Result<Frames, Filled> {
        self.filled.send(filled).map_err(|refused| refused.0)?;
        Ok(self.spare.try_recv().unwrap_or_default())
    }
}

impl Sealing {
    /// Until the reader's end is gone; returns how many events could not be put into the queue
    /// before the agent had to end.
    pub fn run(mut self) -> u64 {
        while let Ok(Filled {
            mut frames,
            first_time,
            last_time,
            mark,
        }) = self.filled.recv()
        {
            if !frames.is_empty() {
                let batch = self.sealer.seal(&frames, first_time, last_time);
                self.sealed.push(batch);
            }
            // One huge event must not keep its memory for ever.
            frames.clear(self.kept_bytes);
            // Refused when there is one to spare already.
            let _ = self.spare.try_send(frames);
            if let Some(keeper) = &mut self.parts.keeper {
                let Some(mark) = mark else {
                    continue;
                };
                let queues = self.parts.former.iter().chain([&self.parts.queue]);
                let waiting = || queues.clone().flat_map(|queue| queue.waiting()).collect();
                keeper.keep(&mark, &self.sealed, &waiting);
            }
            self.send();
        }
        self.send();
        self.abandoned
    }

    fn send(&mut self) {
        for batch in std::mem::take(&mut self.sealed) {
            self.enqueue(batch);
        }
    }

    fn enqueue(&mut self, batch: Batch) {
        let begun = Instant::now();
        match self.parts.queue.push(batch, &self.parts.give_up) {
            Ok(false) => {}
            Ok(true) => {
                counters::add(&self.parts.counters.queue_full, 1);
                if begun.elapsed() > LONG {
                    tracing::warn!(
                        waited_ms = begun.elapsed().as_millis() as u64,
                        "the queue of batches was full; soon after, the rings were not read either"
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
