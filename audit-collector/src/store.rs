//! Where are the events? In the WAL from the moment they are acknowledged, in memory as columns
//! until a compaction has proven them in Parquet; every reader sees both as one.
//!
//! Invariants: a WAL record is in `fresh` or in a file of the manifest, never in both and never in
//! neither, under one lock; a [`Snapshot`] is such a state. Nothing is deleted from the WAL before
//! the manifest that replaces it is on disk.

mod compact;
mod forks;
mod fresh;
mod manifest;
mod missing;
mod reading;
mod record;
mod sealed;
mod table;

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use audit_ledger::Past;
use audit_wal::{Log, Options};
use tokio::sync::watch;

use crate::{
    config,
    problems::Problems,
    streams::{StreamState, Streams},
};
pub use compact::Compactor;
pub use fresh::Chunk;
pub use manifest::{Manifest, TableFile, replace_file, sync_parent};
pub use reading::Reading;
pub use record::{Prepared, Refused, prepare_batch, report_recovery, rows};
pub use table::{EventsTable, fresh_columns};

use forks::Forks;
use fresh::Fresh;
use missing::Missing;

/// A batch's WAL index and an event's place in the batch, in one number that grows.
pub fn position(wal_index: u64, at: usize) -> i64 {
    (wal_index << 20 | at as u64) as i64
}

/// The greatest position a batch can give.
pub fn end_position(wal_index: u64) -> i64 {
    (wal_index << 20 | 0xf_ffff) as i64
}

/// A record is one gRPC message, so it cannot be larger.
const MAX_RECORD_BYTES: u32 = audit_proto::MAX_MESSAGE_BYTES as u32;

/// What [`Store::fresh_after`] finds.
pub enum FreshAfter {
    Rows(Arc<Chunk>),
    /// Nothing is stored after that record.
    None,
    /// What comes next is in memory no longer.
    Compacted,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("data directory {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "data directory {} is in use by another collector; stop it or set another `data_dir`",
        .0.display()
    )]
    InUse(PathBuf),
    #[error(transparent)]
    Manifest(#[from] manifest::ManifestError),
    #[error("write-ahead log in {}: {source}", path.display())]
    Wal {
        path: PathBuf,
        source: audit_wal::WalError,
    },
    #[error(
        "write-ahead log in {}: next record would be {next}, but records up to {through} are in the \
         table already: the log was removed or replaced. Restore it, or move the whole data \
         directory away",
        path.display()
    )]
    WalBehind {
        path: PathBuf,
        next: u64,
        through: u64,
    },
    #[error("write-ahead log record {index}: {reason}")]
    Record { index: u64, reason: String },
}

struct State {
    fresh: Fresh,
    manifest: Arc<Manifest>,
    streams: Streams,
    events: i64,
    batches: i64,
}

pub struct Store {
    dir: PathBuf,
    config: config::Table,
    log: Mutex<Log>,
    state: Mutex<State>,
    /// Fresh rows became fewer.
    room: Condvar,
    /// Rows arrived, or the compactor shall look up.
    arrived: Condvar,
    /// The last stored position; held by tails, alerts and detection.
    present: watch::Sender<i64>,
    /// Records that detection has seen; the WAL keeps the others.
    detected_through: AtomicU64,
    problems: Arc<Problems>,
    /// Of the manifest, the files that are not served.
    missing: Arc<Missing>,
    forks: Forks,
    /// Held for its lock on the data directory.
    _lock: File,
}

/// One consistent state of the table.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub dir: PathBuf,
    pub manifest: Arc<Manifest>,
    pub missing: Arc<Missing>,
    pub chunks: Vec<Arc<Chunk>>,
    /// Events in it.
    pub events: i64,
}

#[derive(Debug, Clone, Default)]
pub struct Totals {
    pub events: i64,
    /// Of them, those that cannot be served.
    pub missing_events: i64,
    pub batches: i64,
    pub wal_bytes: u64,
    pub table_bytes: u64,
    pub table_files: usize,
    pub fresh_rows: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Snapshot {
    /// The files that can be read.
    pub fn files(&self) -> impl Iterator<Item = &TableFile> {
        let files = self.manifest.files.iter();
        files.filter(|file| !self.missing.contains(file))
    }
}

impl Store {
    /// Opens the data directory and reads back what the WAL holds beyond the manifest.
    pub fn open(
        dir: &Path,
        table: config::Table,
        wal_segment_bytes: u64,
        problems: Arc<Problems>,
    ) -> Result<Arc<Self>, OpenError> {
        let lock_file = prepare_dir(dir)?;
        let manifest = Manifest::load(dir)?;
        let orphans = manifest
            .delete_orphans(dir)
            .map_err(|source| OpenError::Io {
                path: dir.join("events"),
                source,
            })?;
        for path in &orphans {
            tracing::warn!(path = %path.display(), "deleted what an unfinished compaction left");
        }
        let missing = Arc::new(Missing::find(&manifest, dir, &problems));
        let log = open_wal(dir, wal_segment_bytes, &manifest, &problems)?;
        let state = State {
            fresh: Fresh::default(),
            streams: Streams::from_states(manifest.streams.clone()),
            events: manifest.events,
            batches: manifest.batches,
            manifest: Arc::new(manifest),
        };
        let last = log.next_index().saturating_sub(1);
        let store = Arc::new(Self {
            dir: dir.to_path_buf(),
            config: table,
            log: Mutex::new(log),
            state: Mutex::new(state),
            room: Condvar::new(),
            arrived: Condvar::new(),
            present: watch::Sender::new(end_position(last)),
            detected_through: AtomicU64::new(0),
            forks: Forks::open(dir, &problems)?,
            problems,
            missing,
            _lock: lock_file,
        });
        store.recover()?;
        Ok(store)
    }

    fn recover(self: &Arc<Self>) -> Result<(), OpenError> {
        let from = self.compacted_through() + 1;
        let wal_error = |source| OpenError::Wal {
            path: self.dir.join("wal"),
            source,
        };
        let reader = self.read_from(from).map_err(wal_error)?;
        let mut records = 0u64;
        for item in reader {
            let (index, record) = item.map_err(wal_error)?;
            let prepared = record::prepare(&record).map_err(|error| OpenError::Record {
                index,
                reason: error.to_string(),
            })?;
            let fields = &prepared.header.fields;
            let stored = self
                .stream(&fields.agent_id)
                .map_or(0, |stream| stream.past.batch);
            if fields.batch <= stored {
                // Written by a sync that reported failure, so the agent sent it again.
                continue;
            }
            // It was found to belong there before it was written.
            let past = Past::of(&prepared.header);
            self.place(prepared, past, index);
            records += 1;
            if self.over_bound() {
                Compactor::new(self.clone()).run_once("fresh_max_bytes");
            }
        }
        tracing::info!(
            records,
            fresh_rows = lock(&self.state).fresh.rows(),
            "read back what is not in the table yet"
        );
        Ok(())
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn problems(&self) -> &Problems {
        &self.problems
    }

    pub fn present(&self) -> watch::Receiver<i64> {
        self.present.subscribe()
    }

    pub fn read_from(&self, index: u64) -> Result<audit_wal::Reader, audit_wal::WalError> {
        let log = lock(&self.log);
        let index = index.max(log.first_index());
        log.read_from(index)
    }

    /// Appends records and syncs once; returns their indexes.
    pub fn append(&self, records: &[&[u8]]) -> Result<Vec<u64>, audit_wal::WalError> {
        let mut log = lock(&self.log);
        log.append_all(records)
    }

    /// Makes a durable batch visible.
    pub fn place(&self, prepared: Prepared, past: Past, index: u64) {
        let chunk_rows = prepared.unplaced.columns.len() as i64;
        let mut state = lock(&self.state);
        let stream = state.streams.entry(&past.agent_id);
        stream.advance(&prepared.header, past);
        stream.events += chunk_rows;
        // What an agent says, which may be anything.
        stream.lost = stream.lost.saturating_add(prepared.lost);
        stream.last_time = stream.last_time.max(prepared.unplaced.last_time);
        if let Some(totals) = prepared.totals {
            stream.totals = totals;
        }
        if !prepared.host_name.is_empty() {
            stream.host_name = prepared.host_name;
        }
        state.events += chunk_rows;
        state.batches += 1;
        if let Err(error) = state.fresh.push(Chunk::new(prepared.unplaced, index)) {
            // Joining is an optimisation: the rows are there, in more pieces.
            self.problems
                .set("store", format!("fresh rows cannot be joined: {error}"));
        }
        drop(state);
        self.arrived.notify_all();
        self.present.send_replace(end_position(index));
    }

    fn over_bound(&self) -> bool {
        lock(&self.state).fresh.bytes() >= self.config.fresh_max_bytes
    }

    /// Waits until fresh rows are below their bound: compaction is behind, so ingest slows down.
    pub fn wait_for_room(&self, stopping: impl Fn() -> bool) {
        let mut state = lock(&self.state);
        while state.fresh.bytes() >= self.config.fresh_max_bytes && !stopping() {
            let wait = std::time::Duration::from_millis(200);
            state = match self.room.wait_timeout(state, wait) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    pub fn snapshot(&self) -> Snapshot {
        let state = lock(&self.state);
        Snapshot {
            dir: self.dir.clone(),
            manifest: state.manifest.clone(),
            missing: self.missing.clone(),
            chunks: state.fresh.chunks().to_vec(),
            events: state.events,
        }
    }

    /// The first fresh rows with records after `index`; they may have some before it.
    pub fn fresh_after(&self, index: u64) -> FreshAfter {
        let state = lock(&self.state);
        if index < state.manifest.compacted_through {
            return FreshAfter::Compacted;
        }
        let chunks = state.fresh.chunks();
        let at = chunks.partition_point(|chunk| chunk.last_index() <= index);
        chunks
            .get(at)
            .map_or(FreshAfter::None, |chunk| FreshAfter::Rows(chunk.clone()))
    }

    /// Of the last record; 0 before the first.
    pub fn last_index(&self) -> u64 {
        lock(&self.log).next_index().saturating_sub(1)
    }

    pub fn stream(&self, agent_id: &str) -> Option<StreamState> {
        lock(&self.state).streams.get(agent_id).cloned()
    }

    pub fn streams(&self) -> Vec<StreamState> {
        lock(&self.state).streams.states()
    }

    pub fn compacted_through(&self) -> u64 {
        lock(&self.state).manifest.compacted_through
    }

    pub fn totals(&self) -> Totals {
        let wal_bytes = lock(&self.log).bytes();
        let state = lock(&self.state);
        Totals {
            events: state.events,
            missing_events: self.missing.events(),
            batches: state.batches,
            wal_bytes,
            table_bytes: state.manifest.files.iter().map(|f| f.bytes).sum(),
            table_files: state.manifest.files.len(),
            fresh_rows: state.fresh.rows(),
        }
    }

    /// Detection has seen every record up to `index`.
    pub fn set_detected(&self, index: u64) {
        self.detected_through.fetch_max(index, Ordering::AcqRel);
    }

    /// Deletes WAL segments that the table replaces and detection has seen.
    fn drop_wal(&self) -> Result<(), audit_wal::WalError> {
        let through = self
            .compacted_through()
            .min(self.detected_through.load(Ordering::Acquire));
        lock(&self.log).drop_before(through + 1)
    }
}

fn prepare_dir(dir: &Path) -> Result<File, OpenError> {
    let failed = |path: PathBuf| move |source| OpenError::Io { path, source };
    for sub in ["events", "tmp", "cursors"] {
        let path = dir.join(sub);
        fs::create_dir_all(&path).map_err(failed(path.clone()))?;
    }
    let path = dir.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(failed(path.clone()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => return Err(OpenError::InUse(dir.to_path_buf())),
        Err(fs::TryLockError::Error(source)) => return Err(OpenError::Io { path, source }),
    }
    // Spilled by queries that a crash ended.
    let tmp = dir.join("tmp");
    fs::remove_dir_all(&tmp)
        .and_then(|()| fs::create_dir(&tmp))
        .map_err(failed(tmp.clone()))?;
    Ok(file)
}

fn open_wal(
    dir: &Path,
    segment_bytes: u64,
    manifest: &Manifest,
    problems: &Problems,
) -> Result<Log, OpenError> {
    let path = dir.join("wal");
    let options = Options {
        segment_bytes,
        max_record_bytes: MAX_RECORD_BYTES,
    };
    let (log, recovery) = Log::open(&path, options).map_err(|source| OpenError::Wal {
        path: path.clone(),
        source,
    })?;
    report_recovery("write-ahead log", &recovery, problems);
    let expected = manifest.compacted_through + 1;
    if log.first_index() > expected {
        let lost = format!("{expected} to {}", log.first_index() - 1);
        problems.set(
            "write-ahead log",
            format!(
                "{}: records {lost} are neither here nor in the table",
                path.display()
            ),
        );
    }
    if log.next_index() <= manifest.compacted_through {
        return Err(OpenError::WalBehind {
            path,
            next: log.next_index(),
            through: manifest.compacted_through,
        });
    }
    Ok(log)
}
