//! A WAL record is an encoded `Batch`, verbatim: how it is checked and turned into columns.

use arrow::{array::AsArray, compute, datatypes::TimestampMicrosecondType};
use audit_columns::{NotDecoded, Rows, RowsBuilder, View};
use audit_ledger::{self as ledger, BatchError, Frames, Header};
use audit_proto::{
    Message as _,
    columns::{Content, Row as _, at},
    v1::Batch,
};

use super::fresh::Unplaced;
use crate::{problems::Problems, streams::Totals};

/// `position` has 20 bits for the place in a batch.
const MAX_EVENTS: usize = 1 << 20;

/// A verified batch on its way into the store.
pub struct Prepared {
    pub header: Header,
    pub host_name: String,
    pub lost: i64,
    /// Of the last heartbeat in it, if there is one.
    pub totals: Option<Totals>,
    pub unplaced: Unplaced,
}

/// Why a batch cannot be stored, ever.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("not an encoded batch: {0}")]
    Encoding(#[from] prost::DecodeError),
    #[error(transparent)]
    Batch(#[from] BatchError),
    #[error("{0} events are more than the {MAX_EVENTS} that a batch may hold")]
    TooMany(usize),
    #[error(transparent)]
    Event(#[from] NotDecoded),
}

/// The encoded events of a record that was verified before.
pub fn frames(record: &[u8]) -> Result<Frames, Refused> {
    let batch = Batch::decode(record)?;
    let header = ledger::header(&batch)?;
    Ok(ledger::unpack(&batch, &header.fields)?)
}

/// The same as columns.
pub fn rows(record: &[u8]) -> Result<Rows, Refused> {
    let frames = frames(record)?;
    let mut builder = RowsBuilder::new(frames.len());
    builder.push_encoded(frames.events())?;
    Ok(builder.finish())
}

/// Verifies a record and makes columns of its events. Whether it belongs into its
/// agent's history is another question.
pub fn prepare(record: &[u8]) -> Result<Prepared, Refused> {
    let batch = Batch::decode(record)?;
    let header = ledger::header(&batch)?;
    prepare_batch(batch, header)
}

/// As [`prepare`], of a batch that is decoded already.
pub fn prepare_batch(batch: Batch, header: Header) -> Result<Prepared, Refused> {
    let open = ledger::open(&batch, &header.fields)?;
    let (count, event_bytes) = (open.len(), open.bytes());
    if count >= MAX_EVENTS {
        return Err(Refused::TooMany(count));
    }
    let mut builder = RowsBuilder::new(count);
    builder.push_encoded(open.events())?;
    let columns = builder.finish();
    let (first_time, last_time) =
        times(&columns).unwrap_or((header.fields.first_time, header.fields.last_time));
    let proof = Batch {
        events: Default::default(),
        ..batch
    };
    Ok(Prepared {
        header,
        host_name: host_name(&columns),
        lost: lost(&columns),
        totals: totals(&columns),
        unplaced: Unplaced {
            columns,
            proof: proof.encode_to_vec(),
            event_bytes,
            first_time,
            last_time,
        },
    })
}

fn times(columns: &Rows) -> Option<(i64, i64)> {
    let times = columns
        .values(at::TIME)?
        .as_primitive::<TimestampMicrosecondType>();
    Some((compute::min(times)?, compute::max(times)?))
}

/// Each row with a value in `column`.
fn each_with(columns: &Rows, column: usize, mut sink: impl FnMut(&View<'_>)) {
    if !columns.has(column) {
        return;
    }
    let mut view = View::new(columns);
    for row in 0..columns.len() {
        view.set_row(row);
        if view.has(column) {
            sink(&view);
        }
    }
}

fn lost(columns: &Rows) -> i64 {
    let mut lost = 0i64;
    each_with(columns, at::LOST_COUNT, |row| {
        row.each(at::LOST_COUNT, |content| {
            if let Content::Int(count) = content {
                lost = lost.saturating_add(count);
            }
        });
    });
    lost
}

/// Of a batch all events have the same.
fn host_name(columns: &Rows) -> String {
    let names = columns.values(at::HOST_NAME);
    let first = names.and_then(|names| names.as_string::<i32>().iter().flatten().next());
    first.unwrap_or_default().to_owned()
}

/// Of the last heartbeat.
fn totals(columns: &Rows) -> Option<Totals> {
    let mut last = None;
    each_with(columns, at::AGENT_CLASS_TOTALS, |row| {
        last = Some(Totals {
            classes: lines(row, at::AGENT_CLASS_TOTALS),
            filters: lines(row, at::AGENT_FILTER_TOTALS),
        });
    });
    last
}

fn lines(row: &View<'_>, column: usize) -> Vec<String> {
    let mut lines = Vec::new();
    row.each(column, |content| {
        if let Content::Item(line) = content {
            lines.push(line.to_owned());
        }
    });
    lines
}

/// Says what opening a log found wrong.
pub fn report_recovery(name: &str, recovery: &audit_wal::Recovery, problems: &Problems) {
    if recovery.truncated_bytes > 0 {
        tracing::warn!(
            log = name,
            bytes = recovery.truncated_bytes,
            records = recovery.records,
            "cut an unfinished write off the end; it was never acknowledged"
        );
    }
    if let Some(first) = recovery.damaged.first() {
        let places = recovery.damaged.len();
        problems.set(
            name,
            format!("damaged in {places} place(s), the first: {first}"),
        );
    }
}
