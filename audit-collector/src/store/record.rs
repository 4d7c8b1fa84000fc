//! A WAL record is an encoded `Batch`, verbatim: how it is checked and turned into columns.

use audit_ledger::{self as ledger, BatchError, Frames, Header};
use audit_proto::{
    Message as _,
    columns::{self, Value},
    v1::{Batch, Event},
};

use super::{
    fresh::Unplaced,
    rows::{BLOCK_EVENTS, RowsBuilder},
};
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
    #[error("event {at} is not an encoded Event: {source}")]
    Event {
        at: usize,
        source: prost::DecodeError,
    },
}

/// The encoded events of a record that was verified before.
pub fn frames(record: &[u8]) -> Result<Frames, Refused> {
    let batch = Batch::decode(record)?;
    let header = ledger::header(&batch)?;
    Ok(ledger::unpack(&batch, &header.fields)?)
}

/// The events of a record that was verified before.
pub fn decode_events(record: &[u8]) -> Result<Vec<Event>, Refused> {
    frames(record)?
        .events()
        .enumerate()
        .map(|(at, bytes)| Event::decode(bytes).map_err(|source| Refused::Event { at, source }))
        .collect()
}

/// Verifies a record and decodes its events into columns, each event once. Whether it belongs into its
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
    let lost_column = columns::index("lost_count");
    let totals_columns = (
        columns::index("agent_class_totals"),
        columns::index("agent_filter_totals"),
    );
    let mut totals = None;
    let (mut lost, mut host_name) = (0i64, String::new());
    let mut times = (i64::MAX, i64::MIN);
    let mut builder = RowsBuilder::new(count);
    let mut block: Vec<Event> = Vec::with_capacity(BLOCK_EVENTS.min(count));
    for (at, bytes) in open.events().enumerate() {
        let event = Event::decode(bytes).map_err(|source| Refused::Event { at, source })?;
        times = (times.0.min(event.time), times.1.max(event.time));
        if let Some(Value::Int(n)) = lost_column.and_then(|c| columns::get(&event, c)) {
            lost = lost.saturating_add(n);
        }
        if let Some(classes) = lines(&event, totals_columns.0) {
            let filters = lines(&event, totals_columns.1).unwrap_or_default();
            totals = Some(Totals { classes, filters });
        }
        if let (true, Some(host)) = (host_name.is_empty(), &event.host) {
            host_name.clone_from(&host.name);
        }
        block.push(event);
        if block.len() == BLOCK_EVENTS {
            builder.push(&block);
            block.clear();
        }
    }
    builder.push(&block);
    if count == 0 {
        times = (header.fields.first_time, header.fields.last_time);
    }
    let proof = Batch {
        events: Default::default(),
        ..batch
    };
    Ok(Prepared {
        header,
        host_name,
        lost,
        totals,
        unplaced: Unplaced {
            rows: builder.rows(),
            columns: builder.finish(),
            proof: proof.encode_to_vec(),
            first_time: times.0,
            last_time: times.1,
        },
    })
}

fn lines(event: &Event, column: Option<usize>) -> Option<Vec<String>> {
    match columns::get(event, column?) {
        Some(Value::TextList(lines)) => Some(lines.to_vec()),
        _ => None,
    }
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
