//! When is a batch durable, and in which order do batches enter the store?
//!
//! One thread appends what all sessions submit, syncs once for a group, makes it visible, then
//! answers. So an acknowledged batch is on disk and in every later query.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use audit_ledger::Past;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use crate::{
    history::InOrder,
    store::{Prepared, Store},
};

/// Batches of one sync: enough to share its cost, few enough to keep the wait short.
const GROUP: usize = 128;
/// Batches waiting for the thread; each also holds a part of `ingest.in_flight_bytes`.
pub const QUEUE: usize = 256;

pub struct Submission {
    pub record: Vec<u8>,
    pub prepared: Prepared,
    /// Of its agent's history: up to the batch before it, and with it.
    pub after: i64,
    pub past: Past,
    /// Answered after the sync; an error says why the batch is not stored.
    pub reply: oneshot::Sender<Result<i64, String>>,
    /// This batch's part of the memory bound, given back when it is dropped.
    pub _permit: OwnedSemaphorePermit,
}

/// Runs until every sender is gone.
pub fn run(store: &Arc<Store>, mut queue: mpsc::Receiver<Submission>, stop: &AtomicBool) {
    let mut group = Vec::with_capacity(GROUP);
    while let Some(first) = queue.blocking_recv() {
        group.push(first);
        while group.len() < GROUP
            && let Ok(next) = queue.try_recv()
        {
            group.push(next);
        }
        store.wait_for_room(|| stop.load(Ordering::Acquire));
        commit(store, &mut group);
    }
    tracing::debug!("writer has drained");
}

/// Answers those whose predecessor was not stored.
fn refuse_gaps(store: &Store, group: &mut Vec<Submission>) {
    let mut in_order = InOrder::default();
    let (next, gaps): (Vec<_>, Vec<_>) = group.drain(..).partition(|submission| {
        in_order.follows(&submission.past, submission.after, || {
            let stream = store.stream(&submission.past.agent_id);
            stream.map_or(0, |stream| stream.past.batch)
        })
    });
    *group = next;
    for submission in gaps {
        let reason = format!("the batch before {} is not stored", submission.past.batch);
        let _ = submission.reply.send(Err(reason));
    }
}

fn commit(store: &Store, group: &mut Vec<Submission>) {
    refuse_gaps(store, group);
    if group.is_empty() {
        return;
    }
    let records: Vec<&[u8]> = group.iter().map(|s| s.record.as_slice()).collect();
    match store.append(&records) {
        Ok(indexes) => {
            store.problems().clear("write-ahead log");
            for (submission, index) in group.drain(..).zip(indexes) {
                let batch = submission.past.batch;
                store.place(submission.prepared, submission.past, index);
                // A session that is gone will learn it from its next Welcome.
                let _ = submission.reply.send(Ok(batch));
            }
        }
        Err(error) => {
            let message = format!(
                "batches cannot be stored ({error}); agents keep theirs and try again: free space or \
                 repair the disk under {}",
                store.dir().display()
            );
            store.problems().set("write-ahead log", &message);
            for submission in group.drain(..) {
                let _ = submission.reply.send(Err(message.clone()));
            }
        }
    }
}
