//! Where do sealed batches wait until the collector has them? On disk, in two logs of [`audit_wal`], and
//! the newest in memory too, so that a collector that keeps up costs no read.
//!
//! ```text
//! STATE_DIR/spool/current              which history goes on
//! STATE_DIR/spool/AGENT_ID/key         signs its next batches; replaced, never kept
//! STATE_DIR/spool/AGENT_ID/log/        batches, and what they tell of the kernel's records
//! STATE_DIR/spool/AGENT_ID/dropped/    of batches for which there was no room: their headers
//! ```
//!
//! Invariants: a batch is on disk before it is sent, except while the disk fails; none leaves unless the
//! collector has acknowledged it, or its events were dropped for want of room, which is told, and its
//! header stays; numbers ascend by one, and the last batch, from which the history goes on, always
//! stays. What a crash may take is what was not synced, of which nobody was sent anything.

mod disk;
mod key;
mod open;
mod record;
mod state;

use std::{
    collections::{BTreeMap, VecDeque},
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use audit_ledger::{Frames, Sealer, Summary};
use audit_proto::{Message, v1::Batch};
use tokio::sync::Notify;

pub use open::{Opened, SpoolError, Stat, open, stat};
pub use state::{Mark, SetState, State, Told};

use disk::Disk;

/// A disk that fails is tried again so often.
const RETRY: Duration = Duration::from_secs(1);
/// A key signs for so long, or so many batches.
const EPOCH: Duration = Duration::from_secs(600);
const EPOCH_BATCHES: u32 = 4096;

/// What to do when the spool is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// The events of the oldest batches are dropped, and told as lost.
    DropOldest,
    /// The agent stops reading, the rings fill, and the kernel counts what they cannot hold.
    Block,
}

#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub disk_bytes: u64,
    pub max_age: Duration,
    pub when_full: WhenFull,
    /// Of batches in memory.
    pub memory_bytes: usize,
}

/// What waits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Depth {
    pub batches: u64,
    pub events: u64,
    /// On disk, with what is acknowledged and not yet removed.
    pub bytes: u64,
}

/// Events that were dropped for want of room, of each class, since the last time.
pub type Dropped = BTreeMap<i32, i64>;

/// One history.
pub struct Spool {
    dir: PathBuf,
    agent_id: String,
    limits: Limits,
    sealing: Mutex<Sealing>,
    disk: Mutex<Disk>,
    waiting: Mutex<Waiting>,
    /// Something was acknowledged.
    room: Condvar,
    /// Something was kept, acknowledged or closed.
    changed: Notify,
}

struct Sealing {
    sealer: Sealer,
    since: Instant,
    batches: u32,
    failing: bool,
}

#[derive(Debug, Default)]
struct Waiting {
    /// The newest, in order, without a gap.
    memory: VecDeque<InMemory>,
    memory_bytes: usize,
    /// Numbers: of the last that may be sent, and the last acknowledged.
    last: i64,
    acknowledged: i64,
    /// Of batches that are not on disk, the first; 0 when all are.
    unkept: i64,
    /// Events of all batches up to the last, and up to the one acknowledged.
    events: i64,
    events_acknowledged: i64,
    /// Of batches that were handed out: number, and events up to it.
    handed_out: VecDeque<(i64, i64)>,
    disk_bytes: u64,
    /// The collector will never take these; why.
    refused: BTreeMap<i64, String>,
    untold: Dropped,
    closed: bool,
}

#[derive(Debug)]
struct InMemory {
    number: i64,
    bytes: usize,
    batch: Batch,
}

/// A batch on its way, and what of its header matters there.
#[derive(Debug, Clone)]
pub struct Next {
    pub number: i64,
    pub previous_hash: Vec<u8>,
    pub batch: Batch,
}

impl Spool {
    pub fn agent_id(&self) -> &str {
        &self.agent_id
    }

    /// Closes a batch. It is to be kept next, in the same order.
    pub fn seal(&self, frames: &Frames, summary: Summary) -> Batch {
        let mut sealing = lock(&self.sealing);
        let due = sealing.since.elapsed() >= EPOCH || sealing.batches >= EPOCH_BATCHES;
        if due && sealing.sealer.may_evolve() {
            self.evolve(&mut sealing);
        }
        sealing.batches += 1;
        sealing.sealer.seal(frames, summary)
    }

    /// Goes on with the next key, once it is on disk.
    fn evolve(&self, sealing: &mut Sealing) {
        let key = sealing.sealer.key();
        let mut next = audit_ledger::Key::new(key.epoch(), *key.seed());
        next.evolve();
        match key::Kept::new(&self.agent_id, &next, None).write(&self.dir) {
            Ok(()) => {
                sealing.sealer.evolve();
                sealing.since = Instant::now();
                sealing.batches = 0;
                sealing.failing = false;
            }
            Err(error) => {
                if !sealing.failing {
                    tracing::error!(%error, dir = %self.dir.display(), "the next signing key cannot be written; the present one goes on signing");
                }
                sealing.failing = true;
            }
        }
    }

    /// Makes batches durable, with where the source stands, and lets them be sent; waits for room.
    /// While the disk fails they are held in memory. Returns how many events had to be abandoned
    /// because `give_up` said so.
    pub fn keep(&self, batches: &[Batch], mark: Option<&Mark>, give_up: &dyn Fn() -> bool) -> u64 {
        let mut reported = false;
        loop {
            let outcome = self.write(batches, mark);
            match outcome {
                Ok(()) => {
                    self.accept(batches, true);
                    return 0;
                }
                Err(error) => {
                    if !reported {
                        tracing::error!(%error, dir = %self.dir.display(), "batches cannot be kept on disk; they wait in memory");
                        reported = true;
                    }
                }
            }
            let bytes: usize = batches.iter().map(Message::encoded_len).sum();
            let waiting = lock(&self.waiting);
            if waiting.memory.is_empty() || waiting.memory_bytes + bytes <= self.limits.memory_bytes
            {
                drop(waiting);
                self.accept(batches, false);
                return 0;
            }
            if give_up() {
                return batches.iter().map(event_count).sum();
            }
            let waited = self.room.wait_timeout(waiting, RETRY);
            drop(waited);
        }
    }

    /// One write and one sync for what is not on disk yet and for these.
    fn write(&self, batches: &[Batch], mark: Option<&Mark>) -> Result<(), audit_wal::WalError> {
        self.make_room(batches)?;
        let unkept = lock(&self.waiting).unkept();
        let mut disk = lock(&self.disk);
        disk.append(&unkept, batches, mark.map(|mark| &mark.state))?;
        let mut waiting = lock(&self.waiting);
        waiting.unkept = 0;
        waiting.disk_bytes = disk.bytes();
        Ok(())
    }

    /// Removes what is acknowledged; of what is left drops the oldest if there is too much of it or it
    /// is too old, or waits, as configured.
    fn make_room(&self, batches: &[Batch]) -> Result<(), audit_wal::WalError> {
        let bytes: usize = batches.iter().map(Message::encoded_len).sum();
        let acknowledged = lock(&self.waiting).acknowledged;
        let mut disk = lock(&self.disk);
        disk.remove(acknowledged)?;
        loop {
            let too_much = disk.bytes() + bytes as u64 > self.limits.disk_bytes;
            let too_old = disk.oldest().is_some_and(|age| age > self.limits.max_age);
            let drops = too_old || (too_much && self.limits.when_full == WhenFull::DropOldest);
            if !drops {
                if too_much {
                    return Err(disk.full());
                }
                return Ok(());
            }
            let reason = match too_old {
                true => "too old",
                false => "the spool was full",
            };
            let acknowledged = lock(&self.waiting).acknowledged;
            let sealing = lock(&self.sealing);
            let dropped = disk.drop_oldest(acknowledged, |batch| {
                sealing.sealer.drop_events(batch, reason)
            })?;
            let Some(dropped) = dropped else {
                return Ok(());
            };
            let mut waiting = lock(&self.waiting);
            for (class, events) in dropped {
                *waiting.untold.entry(class).or_default() += events;
            }
        }
    }

    fn accept(&self, batches: &[Batch], on_disk: bool) {
        let mut waiting = lock(&self.waiting);
        for batch in batches {
            let Ok(header) = audit_ledger::header(batch) else {
                continue;
            };
            let number = header.fields.batch;
            if !on_disk && waiting.unkept == 0 {
                waiting.unkept = number;
            }
            let bytes = batch.encoded_len();
            waiting.memory_bytes += bytes;
            waiting.last = number;
            waiting.events = header.fields.events_before + i64::from(header.fields.event_count);
            waiting.memory.push_back(InMemory {
                number,
                bytes,
                batch: batch.clone(),
            });
        }
        waiting.shrink(self.limits.memory_bytes);
        drop(waiting);
        self.changed.notify_waiters();
    }

    /// No more batches will come.
    pub fn close(&self) {
        lock(&self.waiting).closed = true;
        self.changed.notify_waiters();
    }

    /// The first batch after `number` that is there; waits for one, `None` when there never will be.
    pub async fn after(self: &Arc<Self>, number: i64) -> Option<Next> {
        let mut number = number;
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Registered before looking, so that no batch is missed between the two.
            changed.as_mut().enable();
            let wanted = {
                let waiting = lock(&self.waiting);
                number = number.max(waiting.acknowledged);
                if number < waiting.last {
                    Some(waiting.in_memory(number + 1))
                } else if waiting.closed {
                    return None;
                } else {
                    None
                }
            };
            match wanted {
                Some(Some(batch)) => return self.hand_out(batch),
                Some(None) => {
                    let spool = Arc::clone(self);
                    let read =
                        tokio::task::spawn_blocking(move || lock(&spool.disk).read(number + 1));
                    match read.await {
                        Ok(Some(batch)) => return self.hand_out(batch),
                        // Damaged on disk, which was told at the start: it goes on behind that.
                        _ => number += 1,
                    }
                }
                None => changed.await,
            }
        }
    }

    fn hand_out(&self, batch: Batch) -> Option<Next> {
        let fields = audit_ledger::header(&batch).ok()?.fields;
        let number = fields.batch;
        let mut waiting = lock(&self.waiting);
        let events = fields.events_before + i64::from(fields.event_count);
        if number == waiting.acknowledged + 1 {
            waiting.events_acknowledged = waiting.events_acknowledged.max(fields.events_before);
        }
        waiting.handed_out.push_back((number, events));
        let reason = waiting.refused.get(&number).cloned();
        drop(waiting);
        let batch = match reason {
            Some(reason) => lock(&self.sealing).sealer.drop_events(&batch, &reason),
            None => batch,
        };
        Some(Next {
            number,
            previous_hash: fields.previous_hash,
            batch,
        })
    }

    /// Forgets batches up to `number`; returns how many events they held, as far as that is known.
    pub fn acknowledge(&self, number: i64) -> u64 {
        let mut waiting = lock(&self.waiting);
        if number <= waiting.acknowledged {
            return 0;
        }
        waiting.acknowledged = number;
        let before = waiting.events_acknowledged;
        while let Some((handed, events)) = waiting.handed_out.front().copied()
            && handed <= number
        {
            waiting.events_acknowledged = waiting.events_acknowledged.max(events);
            waiting.handed_out.pop_front();
        }
        if number == waiting.last {
            waiting.events_acknowledged = waiting.events;
        }
        let events = waiting.events_acknowledged - before;
        while let Some(done) = waiting.memory.pop_front_if(|b| b.number <= number) {
            waiting.memory_bytes -= done.bytes;
        }
        if waiting.unkept != 0 {
            waiting.unkept = match waiting.memory.front() {
                Some(first) => waiting.unkept.max(first.number),
                None => 0,
            };
        }
        drop(waiting);
        self.room.notify_all();
        self.changed.notify_waiters();
        u64::try_from(events).unwrap_or(0)
    }

    /// The collector has less than it had acknowledged: what is still here is sent again. Returns the
    /// numbers that are gone, if any.
    pub fn rewind(&self, stored: i64) -> Option<(i64, i64)> {
        let first = self.first();
        let mut waiting = lock(&self.waiting);
        let acknowledged = waiting.acknowledged;
        if stored >= acknowledged {
            return None;
        }
        waiting.acknowledged = stored.max(first - 1);
        waiting.handed_out.clear();
        (stored + 1 < first).then_some((stored + 1, first - 1))
    }

    /// Number of the first batch that is here, acknowledged or not; else of the next one.
    pub fn first(&self) -> i64 {
        let on_disk = lock(&self.disk).first();
        let waiting = lock(&self.waiting);
        let in_memory = waiting.memory.front().map(|batch| batch.number);
        let first = on_disk.into_iter().chain(in_memory).min();
        first.unwrap_or(waiting.last + 1)
    }

    /// Where a session begins: behind what is acknowledged, or where batches are damaged, behind those.
    /// Earlier ones may be here, for a collector that has lost them.
    pub fn begin_at(&self) -> i64 {
        let acknowledged = lock(&self.waiting).acknowledged;
        let behind_hole = lock(&self.disk).behind_hole(acknowledged + 1);
        behind_hole.unwrap_or_else(|| self.first())
    }

    /// Number of the last batch.
    pub fn last(&self) -> i64 {
        lock(&self.waiting).last
    }

    /// SHA-256 of the header of a batch, as far as it is here.
    pub fn hash_of(&self, number: i64) -> Option<[u8; 32]> {
        let in_memory = lock(&self.waiting).in_memory(number);
        let batch = in_memory.or_else(|| lock(&self.disk).read(number))?;
        let header = audit_ledger::header(&batch).ok()?;
        (header.fields.batch == number).then_some(header.hash)
    }

    /// The collector will never take this batch: it gets the header, and the events are dropped.
    /// Returns how many they are.
    pub fn refuse(&self, number: i64, reason: &str) -> u64 {
        let in_memory = lock(&self.waiting).in_memory(number);
        let batch = in_memory.or_else(|| lock(&self.disk).read(number));
        lock(&self.waiting)
            .refused
            .insert(number, reason.to_owned());
        batch.as_ref().map_or(0, event_count)
    }

    /// This history cannot go on: the collector has another one of the same name. The next start of the
    /// agent begins a new one, with what waits here.
    pub fn give_up_history(&self) -> std::io::Result<()> {
        open::mark_diverged(&self.dir)
    }

    /// What was dropped for want of room, once.
    pub fn take_dropped(&self) -> Dropped {
        std::mem::take(&mut lock(&self.waiting).untold)
    }

    pub fn depth(&self) -> Depth {
        let waiting = lock(&self.waiting);
        let count = |from: i64, to: i64| u64::try_from(to - from).unwrap_or(0);
        Depth {
            batches: count(waiting.acknowledged, waiting.last),
            events: count(waiting.events_acknowledged, waiting.events),
            bytes: waiting.disk_bytes,
        }
    }

    /// Returns when the spool is closed and everything in it acknowledged.
    pub async fn drained(&self) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let waiting = lock(&self.waiting);
                if waiting.closed && waiting.acknowledged >= waiting.last {
                    return;
                }
            }
            changed.await;
        }
    }
}

impl Waiting {
    fn in_memory(&self, number: i64) -> Option<Batch> {
        let first = self.memory.front()?.number;
        let at = usize::try_from(number - first).ok()?;
        self.memory.get(at).map(|held| held.batch.clone())
    }

    /// Batches that are only in memory.
    fn unkept(&self) -> Vec<Batch> {
        if self.unkept == 0 {
            return Vec::new();
        }
        let unkept = self.memory.iter().filter(|b| b.number >= self.unkept);
        unkept.map(|held| held.batch.clone()).collect()
    }

    /// What is on disk need not be here.
    fn shrink(&mut self, memory_bytes: usize) {
        while self.memory_bytes > memory_bytes
            && self.memory.len() > 1
            && let Some(first) = self.memory.front()
            && (self.unkept == 0 || first.number < self.unkept)
            && let Some(gone) = self.memory.pop_front()
        {
            self.memory_bytes -= gone.bytes;
        }
    }
}

fn event_count(batch: &Batch) -> u64 {
    let header = audit_ledger::header(batch);
    header.map_or(0, |header| {
        u64::try_from(header.fields.event_count).unwrap_or(0)
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code that holds a lock can panic half way through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
