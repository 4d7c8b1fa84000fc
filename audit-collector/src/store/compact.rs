//! Fresh rows into Parquet, believed only after reading them back.
//!
//! Steps, each safe to die after: write `X.new` and `X.headers.new` and sync them; read every event
//! back from the file and compare each batch's Merkle root with its header; rename; replace the
//! manifest (from here the file counts); forget the fresh rows; delete WAL segments. A batch whose
//! rows do not give its root is written again with the original bytes in `raw`.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    fs::{self, File},
    io::{self, Write as _},
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use arrow::{
    array::{Array as _, ArrayRef, BinaryArray, RecordBatch, new_null_array},
    datatypes::Field,
    error::ArrowError,
};
use audit_columns::{POSITION_INDEX, RAW_INDEX};
use audit_ledger::Frames;
use audit_proto::{
    Message as _,
    v1::{Batch, Kind},
};
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, Encoding, ZstdLevel},
    file::properties::{EnabledStatistics, WriterProperties},
    schema::types::ColumnPath,
};

use super::{
    Manifest, Store, TableFile, end_position, fresh::Chunk, lock, manifest::sync_parent, position,
    record, sealed::rows_of,
};

/// Measured: fewer rows lose compression, more lose pruning.
const ROW_GROUP_ROWS: usize = 131_072;
/// Columns whose values grow and hardly repeat: differences are smaller than a dictionary, and cheaper.
const GROWING_COLUMNS: [(&str, Encoding); 5] = [
    ("id", Encoding::DELTA_BYTE_ARRAY),
    ("time", Encoding::DELTA_BINARY_PACKED),
    ("boot_time_ns", Encoding::DELTA_BINARY_PACKED),
    ("sequence", Encoding::DELTA_BINARY_PACKED),
    (audit_columns::POSITION, Encoding::DELTA_BINARY_PACKED),
];
/// Columns that people ask for by one exact value.
const BLOOM_COLUMNS: [&str; 4] = ["id", "process_exec_id", "parent_exec_id", "container_id"];
/// After a failure; the rows stay in the WAL and in memory meanwhile.
const RETRY: Duration = Duration::from_secs(10);
const DAY_US: i64 = 86_400_000_000;
/// Day partitions of one compaction; agents with clocks beyond share the last.
const MAX_DAYS: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum CompactError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("Parquet: {0}")]
    Parquet(#[from] parquet::errors::ParquetError),
    #[error("columns: {0}")]
    Arrow(#[from] ArrowError),
    #[error("{0}")]
    Rows(#[from] audit_columns::NotAnEvent),
    #[error("write-ahead log: {0}")]
    Wal(#[from] audit_wal::WalError),
    #[error(
        "{count} batches read back from Parquet do not give their Merkle roots (first: WAL record \
         {first}); their WAL segment is kept"
    )]
    Mismatch { count: usize, first: u64 },
    #[error("WAL record {0} is unreadable")]
    Record(u64),
}

/// Rows of one batch within a chunk.
#[derive(Clone)]
struct Placed {
    chunk: Arc<Chunk>,
    start: usize,
    events: usize,
    event_bytes: usize,
    wal_index: u64,
    proof: Vec<u8>,
}

/// Original bytes by WAL index, for the rows that need them.
type Raw = HashMap<u64, Vec<Option<Vec<u8>>>>;

pub struct Compactor {
    store: Arc<Store>,
}

impl Compactor {
    pub fn new(store: Arc<Store>) -> Self {
        Self { store }
    }

    /// Compacts whenever there is enough to, until `stop`.
    pub fn run(&self, stop: &AtomicBool) {
        while !stop.load(Ordering::Acquire) {
            if let Some(reason) = self.due()
                && !self.run_once(reason)
            {
                let mut waited = Duration::ZERO;
                while waited < RETRY && !stop.load(Ordering::Acquire) {
                    std::thread::sleep(Duration::from_millis(100));
                    waited += Duration::from_millis(100);
                }
            }
            let state = lock(&self.store.state);
            let _unused = self
                .store
                .arrived
                .wait_timeout(state, Duration::from_millis(250));
        }
    }

    /// The configuration key whose bound is reached.
    fn due(&self) -> Option<&'static str> {
        let state = lock(&self.store.state);
        let config = &self.store.config;
        let age = state
            .fresh
            .oldest()
            .map(|t| t.elapsed())
            .unwrap_or_default();
        if state.fresh.rows() >= config.compact_rows {
            Some("compact_rows")
        } else if state.fresh.bytes() >= config.fresh_max_bytes / 2 {
            Some("half of fresh_max_bytes")
        } else if age >= Duration::from_secs(config.compact_after_s) {
            Some("compact_after_s")
        } else {
            None
        }
    }

    /// Compacts all there is; false when it failed and the rows stay where they are.
    pub fn run_once(&self, reason: &str) -> bool {
        match self.compact(reason) {
            Ok(()) => {
                self.store.problems.clear("compaction");
                true
            }
            Err(error) => {
                self.store.problems.set("compaction", error.to_string());
                false
            }
        }
    }

    fn compact(&self, reason: &str) -> Result<(), CompactError> {
        let began = Instant::now();
        let (chunks, mut manifest) = {
            let mut state = lock(&self.store.state);
            let chunks = state.fresh.set_border();
            let manifest = Manifest {
                streams: state.streams.states(),
                events: state.events,
                batches: state.batches,
                ..Manifest::clone(&state.manifest)
            };
            (chunks, manifest)
        };
        let Some(through) = chunks.last().map(|c| c.last_index()) else {
            return Ok(());
        };
        for (day, batches) in by_day(&chunks) {
            let file = self.write_verified(&day, &batches)?;
            manifest.files.push(file);
        }
        manifest.compacted_through = through;
        manifest
            .save(&self.store.dir)
            .map_err(|source| CompactError::Io {
                path: self.store.dir.join(super::manifest::FILE_NAME),
                source,
            })?;
        let files = manifest.files.len();
        let events: usize = chunks.iter().map(|chunk| chunk.rows()).sum();
        {
            let mut state = lock(&self.store.state);
            state.manifest = Arc::new(manifest);
            state.fresh.remove_through(through);
        }
        self.store.room.notify_all();
        let took_ms = began.elapsed().as_millis() as u64;
        tracing::info!(through, files, events, took_ms, reason, "compacted");
        self.store.drop_wal()?;
        Ok(())
    }

    fn write_verified(&self, day: &str, batches: &[Placed]) -> Result<TableFile, CompactError> {
        let (Some(first), Some(last)) = (batches.first(), batches.last()) else {
            return Err(CompactError::Record(0));
        };
        let name = format!(
            "events/day={day}/{:016x}-{:016x}.parquet",
            first.wal_index, last.wal_index
        );
        let path = self.store.dir.join(&name);
        let new = path.with_extension("new");
        let io_error = |source| CompactError::Io {
            path: path.clone(),
            source,
        };
        fs::create_dir_all(path.parent().unwrap_or(&self.store.dir)).map_err(io_error)?;

        write_parquet(&new, batches, &Raw::new())?;
        let wrong = verify(&new, batches)?;
        if !wrong.is_empty() {
            let (raw, kinds) = self.original_bytes(&wrong, batches)?;
            tracing::warn!(
                batches = wrong.len(),
                ?kinds,
                "batches keep their original bytes beside columns"
            );
            write_parquet(&new, batches, &raw)?;
            if let [first, ..] = verify(&new, batches)?[..] {
                return Err(CompactError::Mismatch {
                    count: wrong.len(),
                    first,
                });
            }
        }
        write_headers(&path.with_extension("headers"), batches).map_err(io_error)?;
        let bytes = fs::metadata(&new).map_err(io_error)?.len();
        fs::rename(&new, &path)
            .and_then(|()| sync_parent(&path))
            .map_err(io_error)?;
        let proofs = batches.iter().filter_map(|b| proof(&b.proof));
        let times: Vec<(i64, i64)> = proofs
            .map(|(_, header)| (header.fields.first_time, header.fields.last_time))
            .collect();
        Ok(TableFile {
            path: name,
            bytes,
            rows: batches.iter().map(|b| b.events as u64).sum(),
            batches: batches.len() as u64,
            first_position: position(first.wal_index, 0),
            last_position: end_position(last.wal_index),
            first_time: times.iter().map(|t| t.0).min().unwrap_or_default(),
            last_time: times.iter().map(|t| t.1).max().unwrap_or_default(),
        })
    }

    /// From the WAL, for the events of `wrong` whose columns do not give the same bytes; and the kinds
    /// of those.
    fn original_bytes(
        &self,
        wrong: &[u64],
        batches: &[Placed],
    ) -> Result<(Raw, BTreeSet<Kind>), CompactError> {
        let (mut raw, mut kinds) = (Raw::new(), BTreeSet::new());
        for placed in batches.iter().filter(|b| wrong.contains(&b.wal_index)) {
            let index = placed.wal_index;
            let (_, bytes) = self
                .store
                .read_from(index)?
                .next()
                .ok_or(CompactError::Record(index))??;
            let originals = record::frames(&bytes).map_err(|_| CompactError::Record(index))?;
            let rows: Vec<usize> = (placed.start..placed.start + placed.events).collect();
            let rebuilt = placed.chunk.columns.events(&rows, |_| true)?;
            let kept = originals.events().zip(rebuilt).map(|(original, event)| {
                let differs = event.encode_to_vec() != original;
                kinds.extend(differs.then(|| event.kind()));
                differs.then(|| original.to_vec())
            });
            raw.insert(index, kept.collect());
        }
        Ok((raw, kinds))
    }
}

/// Batches by the day of their first event, in order of position.
fn by_day(chunks: &[Arc<Chunk>]) -> BTreeMap<String, Vec<Placed>> {
    let mut days: BTreeMap<String, Vec<Placed>> = BTreeMap::new();
    for chunk in chunks {
        let mut start = 0;
        for entry in &chunk.batches {
            let mut day = day_name(entry.first_time);
            if days.len() >= MAX_DAYS && !days.contains_key(&day) {
                day = days.last_key_value().map_or(day, |(day, _)| day.clone());
            }
            days.entry(day).or_default().push(Placed {
                chunk: chunk.clone(),
                start,
                events: entry.events,
                event_bytes: entry.event_bytes,
                wal_index: entry.wal_index,
                proof: entry.proof.clone(),
            });
            start += entry.events;
        }
    }
    days
}

/// YYYY-MM-DD of microseconds since the epoch, by the civil-from-days method.
fn day_name(time: i64) -> String {
    let z = time.div_euclid(DAY_US) + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

fn properties() -> Result<WriterProperties, CompactError> {
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_data_page_row_count_limit(20_000)
        .set_created_by(concat!("hostaudit ", env!("CARGO_PKG_VERSION")).to_owned());
    for (column, encoding) in GROWING_COLUMNS {
        properties = properties
            .set_column_dictionary_enabled(ColumnPath::from(column), false)
            .set_column_encoding(ColumnPath::from(column), encoding);
    }
    for column in BLOOM_COLUMNS {
        properties = properties.set_column_bloom_filter_enabled(ColumnPath::from(column), true);
    }
    Ok(properties.build())
}

fn write_parquet(path: &Path, batches: &[Placed], raw: &Raw) -> Result<(), CompactError> {
    let io_error = |source| CompactError::Io {
        path: path.to_path_buf(),
        source,
    };
    let columns = columns_there(batches, raw);
    let schema = Arc::new(audit_columns::file_schema().project(&columns)?);
    let file = File::create(path).map_err(io_error)?;
    let mut writer = ArrowWriter::try_new(file, schema.clone(), Some(properties()?))?;
    for (start, run) in runs(batches, raw) {
        let rows: usize = run.iter().map(|b| b.events).sum();
        if rows > 0 {
            let raw = raw.get(&run[0].wal_index);
            let columns = columns.iter().zip(schema.fields());
            let arrays: Vec<ArrayRef> = columns
                .map(|(at, field)| array(*at, field, &run[0].chunk, start..start + rows, raw))
                .collect::<Result<_, _>>()?;
            writer.write(&RecordBatch::try_new(schema.clone(), arrays)?)?;
        }
    }
    let file = writer.into_inner()?;
    file.sync_all().map_err(io_error)
}

/// Consecutive batches of one chunk written at once; a batch with raw bytes stands alone.
fn runs<'a>(batches: &'a [Placed], raw: &Raw) -> Vec<(usize, &'a [Placed])> {
    batches
        .chunk_by(|a, b| {
            Arc::ptr_eq(&a.chunk, &b.chunk)
                && a.start + a.events == b.start
                && !raw.contains_key(&a.wal_index)
                && !raw.contains_key(&b.wal_index)
        })
        .map(|run| (run[0].start, run))
        .collect()
}

/// Of [`audit_columns::file_schema`], those in which there are values.
fn columns_there(batches: &[Placed], raw: &Raw) -> Vec<usize> {
    let has = |at: &usize| batches.iter().any(|batch| batch.chunk.columns.has(*at));
    let mut there: Vec<usize> = (0..POSITION_INDEX).filter(has).collect();
    there.push(POSITION_INDEX);
    there.extend((!raw.is_empty()).then_some(RAW_INDEX));
    there
}

/// Some rows of column `at`.
fn array(
    at: usize,
    field: &Field,
    chunk: &Chunk,
    rows: Range<usize>,
    raw: Option<&Vec<Option<Vec<u8>>>>,
) -> Result<ArrayRef, ArrowError> {
    let (start, length) = (rows.start, rows.len());
    let array: Option<ArrayRef> = match (at, raw) {
        (POSITION_INDEX, _) => Some(chunk.positions.slice(start, length)),
        (RAW_INDEX, Some(raw)) => {
            let raw = raw.iter().map(Option::as_deref);
            Some(Arc::new(BinaryArray::from_iter(raw)))
        }
        (RAW_INDEX, None) => None,
        _ => chunk.columns.array(at, rows, field.data_type())?,
    };
    Ok(array.unwrap_or_else(|| new_null_array(field.data_type(), length)))
}

/// WAL indexes of the batches whose root the file does not give.
fn verify(path: &Path, batches: &[Placed]) -> Result<Vec<u64>, CompactError> {
    let file = File::open(path).map_err(|source| CompactError::Io {
        path: path.to_path_buf(),
        source,
    })?;
    let sizes = batches
        .iter()
        .map(|batch| (batch.events, batch.event_bytes));
    let mut reader = rows_of(file, sizes)?;
    let mut pending = VecDeque::new();
    let mut wrong = Vec::new();
    for placed in batches {
        while pending.len() < placed.events {
            match reader.next() {
                Some(batch) => hash_events(&batch?, &mut pending)?,
                None => return Ok(batches.iter().map(|b| b.wal_index).collect()),
            }
        }
        let leaves = pending.drain(..placed.events).collect();
        let is_right = proof(&placed.proof).is_some_and(|(batch, header)| {
            batch.dropped.is_some() || audit_ledger::root_of(leaves)[..] == header.fields.root[..]
        });
        if !is_right {
            wrong.push(placed.wal_index);
        }
    }
    Ok(wrong)
}

/// Events hashed at once: enough for every lane of the digest, few enough to stay in the cache.
const BLOCK_EVENTS: usize = 32;
/// Of a block's events, what is kept for the next one.
const KEPT_BYTES: usize = 1 << 20;

/// Rebuilds the events of some rows and appends the hash of each one's bytes, a block of them at a
/// time.
fn hash_events(batch: &RecordBatch, hashes: &mut VecDeque<[u8; 32]>) -> Result<(), CompactError> {
    let mut frames = Frames::default();
    audit_columns::encode(batch, |event| {
        frames.push(event);
        if frames.len() == BLOCK_EVENTS {
            hashes.extend(audit_ledger::leaves(frames.events()));
            frames.clear(KEPT_BYTES);
        }
    })?;
    hashes.extend(audit_ledger::leaves(frames.events()));
    Ok(())
}

/// What an encoded batch without its events says.
fn proof(encoded: &[u8]) -> Option<(Batch, audit_ledger::Header)> {
    let batch = Batch::decode(encoded).ok()?;
    let header = audit_ledger::header(&batch).ok()?;
    Some((batch, header))
}

/// WAL index and proof of each batch, after its length: enough to prove a row later.
fn write_headers(path: &Path, batches: &[Placed]) -> io::Result<()> {
    let mut out = Vec::new();
    for batch in batches {
        out.extend_from_slice(&batch.wal_index.to_le_bytes());
        out.extend_from_slice(&(batch.proof.len() as u32).to_le_bytes());
        out.extend_from_slice(&batch.proof);
    }
    let mut file = File::create(path)?;
    file.write_all(&out)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::day_name;

    #[test]
    fn days_have_their_names() {
        assert_eq!(day_name(0), "1970-01-01");
        assert_eq!(day_name(-1), "1969-12-31");
        assert_eq!(day_name(951_782_400_000_000), "2000-02-29");
        assert_eq!(day_name(1_795_219_199_999_999), "2026-11-20");
        assert_eq!(day_name(1_795_219_200_000_000), "2026-11-21");
    }
}
