//! A WAL record is an encoded `Batch`, verbatim: how it is checked and turned into columns.

use arrow::{
    array::{Array as _, AsArray, ListArray},
    compute,
    datatypes::{Int64Type, TimestampMicrosecondType},
};
use audit_columns::{Columns, NotDecoded, RowsBuilder};
use audit_ledger::{self as ledger, BatchError, Frames, Header};
use audit_proto::{Message as _, columns::at, v1::Batch};

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
    let count = open.len();
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
            rows: count,
            columns,
            proof: proof.encode_to_vec(),
            first_time,
            last_time,
        },
    })
}

fn times(columns: &Columns) -> Option<(i64, i64)> {
    let times = columns[at::TIME]
        .as_ref()?
        .as_primitive::<TimestampMicrosecondType>();
    Some((compute::min(times)?, compute::max(times)?))
}

fn lost(columns: &Columns) -> i64 {
    let Some(counts) = columns[at::LOST_COUNT].as_ref() else {
        return 0;
    };
    let counts = counts.as_primitive::<Int64Type>().iter().flatten();
    counts.fold(0, i64::saturating_add)
}

fn host_name(columns: &Columns) -> String {
    let first = columns[at::HOST_NAME]
        .as_ref()
        .and_then(|c| c.as_string::<i32>().iter().flatten().next());
    first.unwrap_or_default().to_owned()
}

/// Of the last heartbeat.
fn totals(columns: &Columns) -> Option<Totals> {
    let classes = columns[at::AGENT_CLASS_TOTALS].as_ref()?.as_list::<i32>();
    let row = (0..classes.len()).rfind(|row| classes.is_valid(*row))?;
    let filters = columns[at::AGENT_FILTER_TOTALS]
        .as_ref()
        .map(AsArray::as_list::<i32>);
    Some(Totals {
        classes: lines(classes, row),
        filters: filters.map_or_else(Vec::new, |filters| lines(filters, row)),
    })
}

fn lines(lists: &ListArray, row: usize) -> Vec<String> {
    if lists.is_null(row) {
        return Vec::new();
    }
    let lines = lists.value(row);
    let lines = lines.as_string::<i32>().iter().flatten();
    lines.map(str::to_owned).collect()
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
