//! Rows that are durable in the WAL and not yet in a file: what they are and how they are kept few
//! in pieces.
//!
//! Invariants: chunks are in order of position; a chunk holds whole batches; [`Fresh`] never joins
//! chunks across a compaction's border, so that a compaction removes whole chunks.

use std::{sync::Arc, time::Instant};

use arrow::{
    array::{Array, ArrayRef, Int64Array},
    error::ArrowError,
};

use audit_columns::Rows;

use super::position;

/// One batch inside a chunk.
#[derive(Debug, Clone)]
pub struct BatchEntry {
    pub wal_index: u64,
    pub events: usize,
    /// The encoded `Batch` without its events: what proofs and compaction check against.
    pub proof: Vec<u8>,
    pub event_bytes: usize,
    pub first_time: i64,
}

/// Consecutive batches as columns.
#[derive(Debug)]
pub struct Chunk {
    pub columns: Rows,
    pub positions: ArrayRef,
    pub batches: Vec<BatchEntry>,
    pub first_time: i64,
    pub last_time: i64,
    /// What it counts as.
    pub bytes: usize,
    /// Of its events as they are sealed, with what they share in each.
    event_bytes: usize,
    since: Instant,
}

/// Columns of a batch whose WAL index is not known yet.
pub struct Unplaced {
    pub columns: Rows,
    pub proof: Vec<u8>,
    pub event_bytes: usize,
    pub first_time: i64,
    pub last_time: i64,
}

impl Chunk {
    pub fn new(unplaced: Unplaced, wal_index: u64) -> Self {
        let events = unplaced.columns.len();
        let positions = Int64Array::from_iter_values((0..events).map(|at| position(wal_index, at)));
        let batch = BatchEntry {
            wal_index,
            events,
            proof: unplaced.proof,
            event_bytes: unplaced.event_bytes,
            first_time: unplaced.first_time,
        };
        let mut chunk = Self {
            columns: unplaced.columns,
            positions: Arc::new(positions),
            batches: vec![batch],
            first_time: unplaced.first_time,
            last_time: unplaced.last_time,
            bytes: 0,
            event_bytes: unplaced.event_bytes,
            since: Instant::now(),
        };
        chunk.bytes = chunk.measure();
        chunk
    }

    /// Not less than what files and queries make of it allows: they have what events share in each row.
    fn measure(&self) -> usize {
        let proofs = self.batches.iter().map(|b| b.proof.len() + 64);
        let here = self.columns.memory_bytes()
            + self.positions.get_array_memory_size()
            + proofs.sum::<usize>();
        here.max(self.event_bytes / MOST_SHARED)
    }

    pub fn rows(&self) -> usize {
        self.columns.len()
    }

    pub fn first_index(&self) -> u64 {
        self.batches.first().map_or(0, |b| b.wal_index)
    }

    pub fn last_index(&self) -> u64 {
        self.batches.last().map_or(0, |b| b.wal_index)
    }

    fn join(parts: &[Arc<Chunk>]) -> Result<Self, ArrowError> {
        let columns: Vec<&Rows> = parts.iter().map(|c| &c.columns).collect();
        let positions: Vec<&dyn Array> = parts.iter().map(|c| c.positions.as_ref()).collect();
        let mut chunk = Self {
            columns: Rows::join(&columns)?,
            positions: arrow::compute::concat(&positions)?,
            batches: parts
                .iter()
                .flat_map(|c| c.batches.iter().cloned())
                .collect(),
            first_time: parts.iter().map(|c| c.first_time).min().unwrap_or_default(),
            last_time: parts.iter().map(|c| c.last_time).max().unwrap_or_default(),
            bytes: 0,
            event_bytes: parts.iter().map(|c| c.event_bytes).sum(),
            since: parts
                .iter()
                .map(|c| c.since)
                .min()
                .unwrap_or_else(Instant::now),
        };
        chunk.bytes = chunk.measure();
        Ok(chunk)
    }
}

/// Chunks of the same size class are joined by so many: each row is copied at most four times.
const JOIN: usize = 8;
/// Chunks this large stay as they are: larger ones would make a query's piece too coarse.
const LARGE_ROWS: usize = 4096;
/// As much as one batch may have: a column of a chunk is written as one array, which ends at 2 GiB.
const LARGE_BYTES: usize = audit_ledger::MAX_EVENT_BYTES as usize;
/// Rows whose events are more than so many times as large in files count as if they were not.
const MOST_SHARED: usize = 16;

/// The fresh rows, oldest first.
#[derive(Debug, Default)]
pub struct Fresh {
    chunks: Vec<Arc<Chunk>>,
    rows: usize,
    bytes: usize,
    /// No joining of batches up to this WAL index with later ones.
    border: u64,
}

fn size_class(rows: usize) -> u32 {
    rows.max(1).ilog(JOIN)
}

impl Fresh {
    pub fn push(&mut self, chunk: Chunk) -> Result<(), ArrowError> {
        self.rows += chunk.rows();
        self.bytes += chunk.bytes;
        self.chunks.push(Arc::new(chunk));
        while let Some(joined) = self.join_tail()? {
            let at = self.chunks.len() - JOIN;
            let before: usize = self.chunks.drain(at..).map(|c| c.bytes).sum();
            self.bytes = self.bytes - before + joined.bytes;
            self.chunks.push(Arc::new(joined));
        }
        Ok(())
    }

    fn join_tail(&self) -> Result<Option<Chunk>, ArrowError> {
        let Some(tail) = self
            .chunks
            .len()
            .checked_sub(JOIN)
            .map(|at| &self.chunks[at..])
        else {
            return Ok(None);
        };
        let class = size_class(tail[JOIN - 1].rows());
        let alike = tail.iter().all(|c| {
            c.rows() < LARGE_ROWS && size_class(c.rows()) <= class && c.first_index() > self.border
        });
        let event_bytes: usize = tail.iter().map(|c| c.event_bytes).sum();
        if alike && event_bytes <= LARGE_BYTES {
            Chunk::join(tail).map(Some)
        } else {
            Ok(None)
        }
    }

    pub fn chunks(&self) -> &[Arc<Chunk>] {
        &self.chunks
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn oldest(&self) -> Option<Instant> {
        self.chunks.first().map(|c| c.since)
    }

    /// What a compaction shall write; later rows are kept apart from these.
    pub fn set_border(&mut self) -> Vec<Arc<Chunk>> {
        self.border = self.chunks.last().map_or(self.border, |c| c.last_index());
        self.chunks.clone()
    }

    pub fn remove_through(&mut self, wal_index: u64) {
        self.chunks.retain(|c| c.last_index() > wal_index);
        self.rows = self.chunks.iter().map(|c| c.rows()).sum();
        self.bytes = self.chunks.iter().map(|c| c.bytes).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::{array::AsArray, datatypes::Int64Type};
    use audit_columns::RowsBuilder;
    use audit_proto::v1::Event;

    fn chunk(wal_index: u64, events: usize) -> Chunk {
        chunk_of(wal_index, events, events * 100)
    }

    fn chunk_of(wal_index: u64, events: usize, event_bytes: usize) -> Chunk {
        let mut builder = RowsBuilder::new(events);
        for _ in 0..events {
            builder.push(&Event {
                time: wal_index as i64,
                ..Event::default()
            });
        }
        let unplaced = Unplaced {
            columns: builder.finish(),
            proof: vec![1],
            event_bytes,
            first_time: wal_index as i64,
            last_time: wal_index as i64,
        };
        Chunk::new(unplaced, wal_index)
    }

    #[test]
    fn many_small_batches_become_few_chunks_in_order() {
        let mut fresh = Fresh::default();
        for index in 1..=1000 {
            fresh.push(chunk(index, 3)).expect("push");
        }
        assert_eq!(fresh.rows(), 3000);
        assert!(fresh.chunks().len() < 50, "{} chunks", fresh.chunks().len());
        let positions: Vec<i64> = fresh
            .chunks()
            .iter()
            .flat_map(|c| c.positions.as_primitive::<Int64Type>().values().to_vec())
            .collect();
        assert_eq!(positions.len(), 3000);
        assert!(positions.is_sorted());
        assert_eq!(
            fresh.bytes(),
            fresh.chunks().iter().map(|c| c.bytes).sum::<usize>()
        );
    }

    #[test]
    fn rows_that_are_small_for_what_they_share_are_bounded_by_what_files_have_of_them() {
        let mut fresh = Fresh::default();
        let batches = 2 * JOIN * JOIN;
        for index in 1..=batches {
            let event_bytes = LARGE_BYTES / 32;
            fresh
                .push(chunk_of(index as u64, 500, event_bytes))
                .expect("push");
        }
        assert!(fresh.chunks().len() > JOIN, "not all are joined");
        let largest = fresh.chunks().iter().map(|c| c.event_bytes).max();
        assert!(largest <= Some(LARGE_BYTES), "{largest:?}");
        assert!(largest > Some(LARGE_BYTES / 32), "some are joined");
        assert!(fresh.bytes() >= batches * LARGE_BYTES / 32 / MOST_SHARED);
    }

    #[test]
    fn a_border_is_not_joined_across() {
        let mut fresh = Fresh::default();
        for index in 1..=5 {
            fresh.push(chunk(index, 1)).expect("push");
        }
        fresh.set_border();
        for index in 6..=30 {
            fresh.push(chunk(index, 1)).expect("push");
        }
        fresh.remove_through(5);
        assert_eq!(fresh.rows(), 25);
        assert_eq!(fresh.chunks()[0].first_index(), 6);
    }
}
