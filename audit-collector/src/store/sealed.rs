//! How does a stored batch become again what its agent had sealed? From the WAL as it is there; from a
//! table file by encoding its rows anew, which compaction has proven to give the same bytes.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::{self, File},
    io,
    path::PathBuf,
    vec,
};

use arrow::array::RecordBatch;
use audit_ledger::Frames;
use audit_proto::{Message as _, v1::Batch};
use parquet::{
    arrow::arrow_reader::{
        ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader,
        ParquetRecordBatchReaderBuilder,
    },
    errors::ParquetError,
};

use super::{Snapshot, Store, TableFile};

/// Rows of a file in memory at once, and how many bytes of events, if one batch has no more.
const WINDOW_ROWS: usize = 8192;
const WINDOW_BYTES: usize = 4 * audit_ledger::MAX_EVENT_BYTES as usize;

#[derive(Debug, thiserror::Error)]
pub enum SealedError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: {reason}", path.display())]
    Damaged { path: PathBuf, reason: String },
    #[error("write-ahead log: {0}")]
    Wal(#[from] audit_wal::WalError),
    #[error("write-ahead log record {0} is no batch")]
    Record(u64),
}

/// Every stored batch in the order in which they were stored, as of one moment.
pub struct Sealed {
    groups: vec::IntoIter<Vec<TableFile>>,
    open: Vec<OpenFile>,
    /// Files that cannot be read, to be told.
    errors: Vec<SealedError>,
    snapshot: Snapshot,
    log: audit_wal::Reader,
    zstd: zstd::bulk::Compressor<'static>,
}

impl Store {
    /// All of them, those in the WAL after those in files.
    pub fn sealed(&self) -> Result<Sealed, SealedError> {
        let snapshot = self.snapshot();
        let log = self.read_from(snapshot.manifest.compacted_through + 1)?;
        let zstd = zstd::bulk::Compressor::new(1).map_err(|source| SealedError::Io {
            path: self.dir.clone(),
            source,
        })?;
        Ok(Sealed {
            groups: groups(snapshot.manifest.files.clone()).into_iter(),
            open: Vec::new(),
            errors: Vec::new(),
            snapshot,
            log,
            zstd,
        })
    }
}

/// Files of one compaction, whose batches are mixed by day, are read together.
fn groups(mut files: Vec<TableFile>) -> Vec<Vec<TableFile>> {
    files.sort_by_key(|file| file.first_position);
    let mut groups: Vec<(i64, Vec<TableFile>)> = Vec::new();
    for file in files {
        match groups.last_mut() {
            Some((last, group)) if file.first_position <= *last => {
                *last = (*last).max(file.last_position);
                group.push(file);
            }
            _ => groups.push((file.last_position, vec![file])),
        }
    }
    groups.into_iter().map(|(_, group)| group).collect()
}

impl Iterator for Sealed {
    type Item = Result<Batch, SealedError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(error) = self.errors.pop() {
                return Some(Err(error));
            }
            let next = self.open.iter_mut().min_by_key(|file| file.next_index());
            if let Some(file) = next
                && file.next_index() != u64::MAX
            {
                let batch = file.next_batch(&mut self.zstd);
                if batch.is_err() {
                    file.proofs.clear();
                }
                return Some(batch);
            }
            self.open.clear();
            let Some(group) = self.groups.next() else {
                break;
            };
            for file in group {
                match OpenFile::open(&self.snapshot, &file) {
                    Ok(file) => self.open.push(file),
                    Err(error) => self.errors.push(error),
                }
            }
        }
        let record = self.log.next()?;
        let read = |(index, record): (u64, Vec<u8>)| {
            Batch::decode(&record[..]).map_err(|_| SealedError::Record(index))
        };
        Some(record.map_err(SealedError::from).and_then(read))
    }
}

/// The rows of a table file, for `audit_columns::encode`. Of its batches, in order: events, and their bytes.
pub fn rows_of(
    file: File,
    batches: impl Iterator<Item = (usize, usize)> + Clone,
) -> Result<ParquetRecordBatchReader, ParquetError> {
    let found = ArrowReaderMetadata::load(&file, ArrowReaderOptions::new())?;
    let options = ArrowReaderOptions::new().with_schema(audit_columns::keyed(found.schema()));
    let keyed = ArrowReaderMetadata::try_new(found.metadata().clone(), options)?;
    ParquetRecordBatchReaderBuilder::new_with_metadata(file, keyed)
        .with_batch_size(window_rows(batches))
        .build()
}

/// A window of that many rows can be held: a column of it is one array, which ends at 2 GiB, and 8,192 events
/// with all arguments of a program may have more.
fn window_rows(batches: impl Iterator<Item = (usize, usize)> + Clone) -> usize {
    let mut rows = WINDOW_ROWS;
    while rows > 1 && !fit(batches.clone(), rows) {
        rows /= 2;
    }
    rows
}

/// Whether the batches that each window touches are together not too large.
fn fit(batches: impl Iterator<Item = (usize, usize)>, rows: usize) -> bool {
    let (mut end, mut window_bytes) = (0usize, 0usize);
    for (events, bytes) in batches.filter(|(events, _)| *events > 0) {
        let start = end;
        end += events;
        if start % rows == 0 {
            window_bytes = 0;
        }
        window_bytes = window_bytes.saturating_add(bytes);
        if window_bytes > WINDOW_BYTES {
            return false;
        }
        if start / rows != (end - 1) / rows {
            window_bytes = bytes;
        }
    }
    true
}

struct OpenFile {
    path: PathBuf,
    /// By WAL index, the batches without their events.
    proofs: VecDeque<(u64, Batch)>,
    rows: ParquetRecordBatchReader,
    /// Events of rows that were read and belong to later batches.
    ahead: VecDeque<Vec<u8>>,
}

impl OpenFile {
    fn open(snapshot: &Snapshot, file: &TableFile) -> Result<Self, SealedError> {
        let path = snapshot.dir.join(&file.path);
        let damaged = |reason: String| SealedError::Damaged {
            path: path.clone(),
            reason,
        };
        let proofs = path.with_extension("headers");
        let bytes = fs::read(&proofs).map_err(|source| SealedError::Io {
            path: proofs,
            source,
        })?;
        let proofs =
            read_proofs(&bytes).ok_or_else(|| damaged("its headers are cut".to_owned()))?;
        let rows = File::open(&path).map_err(|source| SealedError::Io {
            path: path.clone(),
            source,
        })?;
        let headers = proofs.iter().map(|(_, batch)| {
            let header = audit_ledger::header(batch).ok();
            header
                .filter(|_| batch.dropped.is_none())
                .map_or((0, 0), |header| {
                    let fields = header.fields;
                    let number = |said: i64| usize::try_from(said).unwrap_or_default();
                    (
                        number(fields.event_count.into()),
                        number(fields.event_bytes),
                    )
                })
        });
        let sizes: Vec<(usize, usize)> = headers.collect();
        let rows =
            rows_of(rows, sizes.iter().copied()).map_err(|error| damaged(error.to_string()))?;
        Ok(Self {
            path,
            proofs: proofs.into(),
            rows,
            ahead: VecDeque::new(),
        })
    }

    fn next_index(&self) -> u64 {
        self.proofs.front().map_or(u64::MAX, |(index, _)| *index)
    }

    fn next_batch(
        &mut self,
        zstd: &mut zstd::bulk::Compressor<'static>,
    ) -> Result<Batch, SealedError> {
        let Some((index, mut batch)) = self.proofs.pop_front() else {
            return Err(SealedError::Record(0));
        };
        if batch.dropped.is_some() {
            return Ok(batch);
        }
        let path = self.path.clone();
        let damaged = |reason: String| SealedError::Damaged {
            path: path.clone(),
            reason,
        };
        let header = match audit_ledger::header(&batch) {
            Ok(header) => header.fields,
            Err(error) => return Err(damaged(format!("record {index}: {error}"))),
        };
        let mut frames = Frames::default();
        while frames.len() < header.event_count.max(0) as usize {
            match self.ahead.pop_front() {
                Some(event) => frames.push(&event),
                None => match self.rows.next() {
                    Some(rows) => {
                        let rows = rows.map_err(|error| damaged(error.to_string()));
                        self.read_ahead(&rows?)?;
                    }
                    // Fewer rows than the header says; whoever looks at the batch will see it.
                    None => break,
                },
            }
        }
        let packed = frames.packed(zstd);
        batch.events = packed.map_err(|error| damaged(error.to_string()))?.into();
        Ok(batch)
    }

    fn read_ahead(&mut self, batch: &RecordBatch) -> Result<(), SealedError> {
        let ahead = &mut self.ahead;
        audit_columns::encode(batch, |event| ahead.push_back(event.to_vec())).map_err(|error| {
            SealedError::Damaged {
                path: self.path.clone(),
                reason: error.to_string(),
            }
        })
    }
}

/// As compaction has written them, in order of their WAL indexes.
fn read_proofs(bytes: &[u8]) -> Option<Vec<(u64, Batch)>> {
    let mut proofs = BTreeMap::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (index, behind) = rest.split_first_chunk::<8>()?;
        let (length, behind) = behind.split_first_chunk::<4>()?;
        let (encoded, behind) = behind.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        proofs.insert(u64::from_le_bytes(*index), Batch::decode(encoded).ok()?);
        rest = behind;
    }
    Some(proofs.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn batches_as_agents_seal_them_are_read_by_the_whole_window() {
        assert_eq!(window_rows([(4096, 2 << 20); 100].into_iter()), WINDOW_ROWS);
        assert_eq!(window_rows([(0, 0)].into_iter()), WINDOW_ROWS);
        assert_eq!(
            window_rows([(1, usize::MAX), (1, usize::MAX)].into_iter()),
            1
        );
    }

    proptest! {
        #[test]
        fn no_window_touches_batches_of_more_than_its_bytes(
            batches in proptest::collection::vec((0..3000usize, 0..=WINDOW_BYTES / 4), 1..60),
        ) {
            let rows = window_rows(batches.iter().copied());
            let mut windows = std::collections::HashMap::<usize, usize>::new();
            let mut start = 0;
            for (events, bytes) in &batches {
                for window in start / rows..(start + events).div_ceil(rows) {
                    *windows.entry(window).or_default() += bytes * usize::from(*events > 0);
                }
                start += events;
            }
            prop_assert!(rows == 1 || windows.values().all(|bytes| *bytes <= WINDOW_BYTES));
        }
    }
}
