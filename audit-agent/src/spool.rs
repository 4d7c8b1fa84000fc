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

mod key;
mod logs;
mod open;
mod record;
mod state;

use std::{
    collections::{BTreeMap, VecDeque},
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    task::Poll,
    time::Duration,
};

use audit_ledger::{Frames, Sealer, Summary};
use audit_proto::{Message, v1::Batch};
use audit_wal::{Disk, System, WalError};
use tokio::sync::Notify;

pub use open::{Loss, Opened, SpoolError, Stat, open, open_on, stat};
pub use state::{Mark, SetState, State, Told};

use logs::Logs;

/// A disk that fails is tried again so often.
const RETRY: Duration = Duration::from_secs(1);
/// A key signs for so long.
const EPOCH: Duration = Duration::from_secs(600);

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
    /// What is dropped at once, for want of room.
    pub segment_bytes: u64,
    /// A key signs so many batches at most.
    pub epoch_batches: u32,
}

impl Limits {
    /// Small enough that a spool of 64 MiB has some to drop, large enough that few are made.
    pub const SEGMENT_BYTES: u64 = 8 << 20;
    pub const EPOCH_BATCHES: u32 = 4096;
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
pub struct Spool<D: Disk = System> {
    disk: D,
    dir: PathBuf,
    agent_id: String,
    limits: Limits,
    sealing: Mutex<Sealing>,
    logs: Mutex<Logs<D>>,
    waiting: Mutex<Waiting>,
    /// Something was acknowledged.
    room: Condvar,
    /// Something was kept, acknowledged or closed.
    changed: Notify,
}

struct Sealing {
    sealer: Sealer,
    since: Duration,
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
    /// Of the last batch on disk.
    epoch_on_disk: i64,
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

/// The disk fails.
#[derive(Debug)]
pub struct Unkept {
    pub error: WalError,
    /// The batches are in memory, and written when the disk takes them; else there was no room.
    pub is_taken: bool,
}

/// What there is behind a number.
enum Behind {
    Batch(Batch),
    /// To be read.
    OnDisk,
    Nothing,
    End,
}

impl<D: Disk> Spool<D> {
    pub fn agent_id(&self) -> &str {
        &self.agent_id
    }

    /// Closes a batch. It is to be kept next, in the same order.
    pub fn seal(&self, frames: &Frames, summary: Summary) -> Batch {
        let mut sealing = lock(&self.sealing);
        let since = self.disk.now().saturating_sub(sealing.since);
        let due = since >= EPOCH || sealing.batches >= self.limits.epoch_batches;
        if due && self.may_evolve(&sealing.sealer) {
            self.evolve(&mut sealing);
        }
        sealing.batches += 1;
        sealing.sealer.seal(frames, summary)
    }

    /// A batch that this key has signed is on disk: after a crash, the key in the file shall be that of the
    /// last batch there, or the next one.
    fn may_evolve(&self, sealer: &Sealer) -> bool {
        sealer.may_evolve() && lock(&self.waiting).epoch_on_disk == sealer.key().epoch()
    }

    /// Goes on with the next key, once it is on disk.
    fn evolve(&self, sealing: &mut Sealing) {
        let key = sealing.sealer.key();
        let mut next = audit_ledger::Key::new(key.epoch(), *key.seed());
        next.evolve();
        match key::Kept::new(&self.agent_id, &next, None).write(&self.disk, &self.dir) {
            Ok(()) => {
                sealing.sealer.evolve();
                sealing.since = self.disk.now();
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
        while let Err(Unkept { error, is_taken }) = self.try_keep(batches, mark) {
            if !reported {
                tracing::error!(%error, dir = %self.dir.display(), "batches cannot be kept on disk; they wait in memory");
                reported = true;
            }
            if is_taken {
                break;
            }
            if give_up() {
                return batches.iter().map(event_count).sum();
            }
            let waited = self.room.wait_timeout(lock(&self.waiting), RETRY);
            drop(waited);
        }
        0
    }

    /// As [`Spool::keep`], without waiting.
    pub fn try_keep(&self, batches: &[Batch], mark: Option<&Mark>) -> Result<(), Unkept> {
        let outcome = self.write(batches, mark);
        let is_taken = outcome.is_ok() || self.has_room(batches);
        if is_taken {
            self.accept(batches, outcome.is_ok());
        }
        outcome.map_err(|error| Unkept { error, is_taken })
    }

    fn has_room(&self, batches: &[Batch]) -> bool {
        let bytes: usize = batches.iter().map(Message::encoded_len).sum();
        let waiting = lock(&self.waiting);
        waiting.memory.is_empty() || waiting.memory_bytes + bytes <= self.limits.memory_bytes
    }

    /// One write and one sync for what is not on disk yet and for these.
    fn write(&self, batches: &[Batch], mark: Option<&Mark>) -> Result<(), WalError> {
        self.make_room(batches)?;
        let unkept = lock(&self.waiting).unkept();
        let mut logs = lock(&self.logs);
        logs.append(&unkept, batches, mark.map(|mark| &mark.state))?;
        let mut waiting = lock(&self.waiting);
        waiting.unkept = 0;
        waiting.epoch_on_disk = logs.epoch();
        waiting.disk_bytes = logs.bytes();
        Ok(())
    }

    /// Removes what is acknowledged; of what is left drops the oldest if there is too much of it or it
    /// is too old, or waits, as configured, or because headers of what was dropped take up the room.
    fn make_room(&self, batches: &[Batch]) -> Result<(), WalError> {
        let bytes: usize = batches.iter().map(Message::encoded_len).sum();
        let acknowledged = lock(&self.waiting).acknowledged;
        let mut logs = lock(&self.logs);
        logs.remove(acknowledged)?;
        loop {
            let too_much = logs.bytes() + bytes as u64 > self.limits.disk_bytes;
            let too_old = logs.oldest().is_some_and(|age| age > self.limits.max_age);
            let drops = too_old || (too_much && self.limits.when_full == WhenFull::DropOldest);
            if !drops {
                if too_much {
                    return Err(logs.full());
                }
                return Ok(());
            }
            let reason = match too_old {
                true => "too old",
                false => "the spool was full",
            };
            let acknowledged = lock(&self.waiting).acknowledged;
            let sealing = lock(&self.sealing);
            let dropped = logs.drop_oldest(acknowledged, |batch| {
                sealing.sealer.drop_events(batch, reason)
            })?;
            let Some(dropped) = dropped else {
                // Nothing is left to drop: headers are needed until a collector has them.
                return match too_much && logs.header_bytes() > self.limits.disk_bytes / 2 {
                    true => Err(logs.full_of_headers()),
                    false => Ok(()),
                };
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
    pub async fn after(self: &Arc<Self>, number: i64) -> Option<Next>
    where
        D: Sync + 'static,
        D::File: 'static,
    {
        let mut number = number;
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Registered before looking, so that no batch is missed between the two.
            changed.as_mut().enable();
            match self.behind(&mut number) {
                Behind::Batch(batch) => return self.hand_out(batch),
                Behind::OnDisk => {
                    let spool = Arc::clone(self);
                    let read =
                        tokio::task::spawn_blocking(move || lock(&spool.logs).read(number + 1));
                    match read.await {
                        Ok(Some(batch)) => return self.hand_out(batch),
                        // Damaged on disk, which was told at the start: it goes on behind that.
                        _ => number += 1,
                    }
                }
                Behind::Nothing => changed.await,
                Behind::End => return None,
            }
        }
    }

    /// As [`Spool::after`], without waiting.
    pub fn try_after(&self, number: i64) -> Poll<Option<Next>> {
        let mut number = number;
        loop {
            match self.behind(&mut number) {
                Behind::Batch(batch) => return Poll::Ready(self.hand_out(batch)),
                Behind::OnDisk => match lock(&self.logs).read(number + 1) {
                    Some(batch) => return Poll::Ready(self.hand_out(batch)),
                    None => number += 1,
                },
                Behind::Nothing => return Poll::Pending,
                Behind::End => return Poll::Ready(None),
            }
        }
    }

    /// Looks behind `number`, or behind what is acknowledged if that is more.
    fn behind(&self, number: &mut i64) -> Behind {
        let waiting = lock(&self.waiting);
        *number = (*number).max(waiting.acknowledged);
        if *number < waiting.last {
            let in_memory = waiting.in_memory(*number + 1);
            return in_memory.map_or(Behind::OnDisk, Behind::Batch);
        }
        match waiting.closed {
            true => Behind::End,
            false => Behind::Nothing,
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
        // An earlier session may have been given this one and later ones.
        while waiting
            .handed_out
            .pop_back_if(|(handed, _)| *handed >= number)
            .is_some()
        {}
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
        waiting.refused = waiting.refused.split_off(&(number + 1));
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

    /// A session begins. If the collector has less than it had acknowledged, what is still here is sent
    /// again; returns the numbers that are gone, if any.
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
        let on_disk = lock(&self.logs).first();
        let waiting = lock(&self.waiting);
        let in_memory = waiting.memory.front().map(|batch| batch.number);
        let first = on_disk.into_iter().chain(in_memory).min();
        first.unwrap_or(waiting.last + 1)
    }

    /// Where a session begins: behind what is acknowledged, or where batches are damaged, behind those.
    /// Earlier ones may be here, for a collector that has lost them.
    pub fn begin_at(&self) -> i64 {
        let acknowledged = lock(&self.waiting).acknowledged;
        let behind_hole = lock(&self.logs).behind_hole(acknowledged + 1);
        behind_hole.unwrap_or_else(|| self.first())
    }

    /// Number of the last batch.
    pub fn last(&self) -> i64 {
        lock(&self.waiting).last
    }

    /// SHA-256 of the header of a batch, as far as it is here.
    pub fn hash_of(&self, number: i64) -> Option<[u8; 32]> {
        let in_memory = lock(&self.waiting).in_memory(number);
        let batch = in_memory.or_else(|| lock(&self.logs).read(number))?;
        let header = audit_ledger::header(&batch).ok()?;
        (header.fields.batch == number).then_some(header.hash)
    }

    /// The collector will never take this batch: it gets the header, and the events are dropped.
    /// Returns how many they are.
    pub fn refuse(&self, number: i64, reason: &str) -> u64 {
        let in_memory = lock(&self.waiting).in_memory(number);
        let batch = in_memory.or_else(|| lock(&self.logs).read(number));
        lock(&self.waiting)
            .refused
            .insert(number, reason.to_owned());
        batch.as_ref().map_or(0, event_count)
    }

    /// This history cannot go on: the collector has another one of the same name. The next start of the
    /// agent begins a new one, with what waits here.
    pub fn give_up_history(&self) -> std::io::Result<()> {
        let acknowledged = lock(&self.waiting).acknowledged;
        open::mark_diverged(&self.disk, &self.dir, acknowledged)
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
