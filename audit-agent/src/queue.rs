//! Where do sealed batches wait until the collector has them? In a queue bounded by bytes, shared by
//! the pipeline's thread, which blocks when it is full, and the shipping task.
//!
//! Invariants: a batch leaves only by [`Queue::acknowledge`]; numbers ascend by one; one batch is
//! taken whatever its size when the queue is empty, so that none can block for ever.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use audit_proto::{Message as _, v1::Batch};
use tokio::sync::Notify;

/// How often a blocked push looks whether it should give up.
const LOOK_EVERY: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub struct Queue {
    inner: Mutex<Inner>,
    room: Condvar,
    /// Something was pushed, acknowledged or closed.
    changed: Notify,
    max_bytes: usize,
}

#[derive(Debug, Default)]
struct Inner {
    batches: VecDeque<Waiting>,
    bytes: usize,
    last_pushed: i64,
    closed: bool,
    /// Of the room, what others use.
    reserved: usize,
}

#[derive(Debug)]
struct Waiting {
    batch: Batch,
    number: i64,
    bytes: usize,
}

/// What is in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Depth {
    pub batches: usize,
    pub bytes: usize,
    pub events: u64,
}

impl Queue {
    pub fn new(max_bytes: usize) -> Self {
        Self {
            inner: Mutex::default(),
            room: Condvar::new(),
            changed: Notify::new(),
            max_bytes,
        }
    }

    /// Adds a batch, waiting for room; gives it back when `give_up` says so. The result tells
    /// whether it had to wait.
    pub fn push(&self, batch: Batch, give_up: impl Fn() -> bool) -> Result<bool, Box<Batch>> {
        let bytes = batch.encoded_len();
        let mut inner = self.lock();
        let mut waited = false;
        while !inner.batches.is_empty() && inner.bytes + inner.reserved + bytes > self.max_bytes {
            if give_up() {
                return Err(Box::new(batch));
            }
            waited = true;
            inner = match self.room.wait_timeout(inner, LOOK_EVERY) {
                Ok((inner, _)) => inner,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        let number = batch.header.as_ref().map_or(0, |header| header.batch);
        inner.bytes += bytes;
        inner.last_pushed = number;
        inner.batches.push_back(Waiting {
            batch,
            number,
            bytes,
        });
        drop(inner);
        self.changed.notify_waiters();
        Ok(waited)
    }

    /// A queue that holds these and will get no more: what a former run has left.
    pub fn left_over(batches: Vec<Batch>) -> Self {
        let queue = Self::new(usize::MAX);
        for batch in batches {
            // There is room for all.
            let _ = queue.push(batch, || true);
        }
        queue.close();
        queue
    }

    /// Leaves room for so many bytes that wait elsewhere.
    pub fn reserve(&self, bytes: usize) {
        self.lock().reserved = bytes;
        self.room.notify_all();
    }

    /// Every batch that is not acknowledged.
    pub fn waiting(&self) -> Vec<Batch> {
        let inner = self.lock();
        inner
            .batches
            .iter()
            .map(|waiting| waiting.batch.clone())
            .collect()
    }

    /// No more batches will come.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_waiters();
    }

    /// The first batch after `number`; waits for one, `None` when there never will be.
    pub async fn after(&self, number: i64) -> Option<Batch> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Registered before looking, so that no push is missed between the two.
            changed.as_mut().enable();
            {
                let inner = self.lock();
                let next = inner.batches.iter().find(|waiting| waiting.number > number);
                if let Some(next) = next {
                    return Some(next.batch.clone());
                }
                if inner.closed {
                    return None;
                }
            }
            changed.await;
        }
    }

    /// Forgets batches up to `number`; returns how many events they held.
    pub fn acknowledge(&self, number: i64) -> u64 {
        let mut inner = self.lock();
        let mut events = 0;
        while inner
            .batches
            .front()
            .is_some_and(|waiting| waiting.number <= number)
            && let Some(done) = inner.batches.pop_front()
        {
            inner.bytes -= done.bytes;
            events += event_count(&done.batch);
        }
        drop(inner);
        self.room.notify_all();
        self.changed.notify_waiters();
        events
    }

    /// Number of the first batch that is kept, if any.
    pub fn first(&self) -> Option<i64> {
        self.lock().batches.front().map(|waiting| waiting.number)
    }

    /// Number of the last batch ever pushed.
    pub fn last_pushed(&self) -> i64 {
        self.lock().last_pushed
    }

    pub fn depth(&self) -> Depth {
        let inner = self.lock();
        Depth {
            batches: inner.batches.len(),
            bytes: inner.bytes,
            events: inner
                .batches
                .iter()
                .map(|waiting| event_count(&waiting.batch))
                .sum(),
        }
    }

    /// Returns when the queue is closed and empty.
    pub async fn drained(&self) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let inner = self.lock();
                if inner.closed && inner.batches.is_empty() {
                    return;
                }
            }
            changed.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code that holds the lock can panic half way through a change.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn event_count(batch: &Batch) -> u64 {
    batch
        .header
        .as_ref()
        .map_or(0, |header| u64::try_from(header.event_count).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use audit_proto::v1::BatchHeader;
    use std::sync::Arc;

    fn batch(number: i64, bytes: usize) -> Batch {
        Batch {
            header: Some(BatchHeader {
                batch: number,
                event_count: 10,
                ..BatchHeader::default()
            }),
            events: vec![0; bytes].into(),
        }
    }

    fn number(batch: Option<Batch>) -> Option<i64> {
        batch
            .and_then(|batch| batch.header)
            .map(|header| header.batch)
    }

    #[tokio::test]
    async fn batches_stay_until_acknowledged() {
        let queue = Queue::new(1 << 20);
        for n in 1..=3 {
            queue.push(batch(n, 10), || false).expect("room");
        }
        assert_eq!(number(queue.after(0).await), Some(1));
        assert_eq!(number(queue.after(2).await), Some(3));
        assert_eq!(queue.acknowledge(2), 20);
        assert_eq!(number(queue.after(0).await), Some(3));
        queue.close();
        assert_eq!(number(queue.after(3).await), None);
        assert_eq!(queue.acknowledge(9), 10);
        queue.drained().await;
        assert_eq!(queue.depth().bytes, 0);
    }

    #[test]
    fn a_full_queue_blocks_and_takes_up_again() {
        let queue = Arc::new(Queue::new(1000));
        assert!(
            !queue
                .push(batch(1, 5000), || false)
                .expect("the first is always taken")
        );
        assert!(queue.push(batch(2, 10), || true).is_err());
        let pushing = {
            let queue = Arc::clone(&queue);
            std::thread::spawn(move || queue.push(batch(2, 10), || false))
        };
        while !pushing.is_finished() && queue.depth().batches == 1 {
            std::thread::sleep(Duration::from_millis(20));
            queue.acknowledge(1);
        }
        pushing.join().expect("thread").expect("pushed");
        assert_eq!(queue.first(), Some(2));
        assert_eq!(queue.last_pushed(), 2);
    }

    #[tokio::test]
    async fn a_waiting_reader_is_woken() {
        let queue = Arc::new(Queue::new(1000));
        let reading = {
            let queue = Arc::clone(&queue);
            tokio::spawn(async move { queue.after(0).await })
        };
        tokio::task::yield_now().await;
        queue.push(batch(1, 1), || false).expect("room");
        assert_eq!(number(reading.await.expect("task")), Some(1));
    }
}
