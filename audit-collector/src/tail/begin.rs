//! Where does a walk begin? At a cursor, a time, so many events before the present, or the present.

use arrow::array::RecordBatch;
use audit_columns::POSITION;
use audit_proto::v1::TailRequest;
use datafusion::{
    common::DataFusionError,
    logical_expr::{col, lit},
};
use tonic::Status;

use super::positions;
use crate::{
    filter::Filter,
    query::{self, Engine, Session},
    store::{self, Snapshot, Store, TableFile},
};

/// `last_events` at most: their positions are held at once.
const MAX_LAST: i64 = 1_000_000;
/// Batches before the present that are looked at first for the last events.
const FIRST_SPAN_BATCHES: i64 = 256;

pub struct Begin {
    pub cursor: i64,
    /// Events at or before the cursor.
    pub seen: i64,
    /// Files after it that cannot be served.
    pub missing: Vec<TableFile>,
}

impl Begin {
    pub async fn find(
        request: &TailRequest,
        filter: Option<&Filter>,
        engine: &Engine,
        store: &Store,
        present: i64,
    ) -> Result<Self, Status> {
        let snapshot = store.snapshot();
        let given = given(&request.cursor, present)?;
        let since = request.since_time.filter(|_| given.is_none());
        let session = engine.session(false).map_err(|e| query::status(&e))?;
        let cursor = match (given, request.last_events) {
            (Some(cursor), _) => cursor,
            (None, 0) => since.map_or(present, |since| start_of(&snapshot, since, present)),
            (None, last @ 1..=MAX_LAST) => {
                let from = since.map_or(0, |since| start_of(&snapshot, since, present));
                match last_of(&session, filter, last, from, present).await {
                    Ok(cursor) => cursor,
                    Err(error) => return Err(session.status(&error).await),
                }
            }
            (None, last) => {
                return Err(Status::invalid_argument(format!(
                    "last_events = {last} is not 0 to {MAX_LAST}"
                )));
            }
        };
        let missing =
            snapshot.missing.files().iter().filter(|f| {
                f.last_position > cursor && since.is_none_or(|since| f.last_time >= since)
            });
        Ok(Self {
            missing: missing.cloned().collect(),
            seen: seen_at(&session, &snapshot, cursor, present).await?,
            cursor,
        })
    }
}

/// The request's cursor, if it has one.
fn given(cursor: &str, present: i64) -> Result<Option<i64>, Status> {
    if cursor.is_empty() {
        return Ok(None);
    }
    let parsed = cursor.parse::<i64>().ok().filter(|cursor| *cursor >= 0);
    match parsed {
        None => Err(Status::invalid_argument(format!(
            "{cursor:?} is not a cursor; pass one from a TailResponse, or an empty one"
        ))),
        Some(cursor) if cursor > present => Err(Status::out_of_range(format!(
            "cursor {cursor} is beyond the last stored event ({present}): it is of another collector"
        ))),
        cursor => Ok(cursor),
    }
}

/// A cursor before every event that is not older than `since`.
fn start_of(snapshot: &Snapshot, since: i64, present: i64) -> i64 {
    let files = snapshot
        .manifest
        .files
        .iter()
        .filter(|f| f.last_time >= since);
    let chunks = snapshot.chunks.iter().filter(|c| c.last_time >= since);
    files
        .map(|f| f.first_position - 1)
        .chain(chunks.map(|c| store::position(c.first_index(), 0) - 1))
        .min()
        .unwrap_or(present)
}

/// A cursor before the `last` events that pass, or `from` where there are fewer. Looks at ever more
/// of the past, so that what is recent is found without the rest.
async fn last_of(
    session: &Session,
    filter: Option<&Filter>,
    last: i64,
    from: i64,
    present: i64,
) -> Result<i64, DataFusionError> {
    let mut span = FIRST_SPAN_BATCHES;
    loop {
        let after = present
            .saturating_sub(span.saturating_mul(1 << 20))
            .max(from);
        let mut events = session.table("events").await?;
        if let Some(filter) = filter {
            events = events.filter(filter.expr.clone())?;
        }
        let within = col(POSITION).gt(lit(after));
        let found = events
            .filter(within.and(col(POSITION).lt_eq(lit(present))))?
            .select_columns(&[POSITION])?
            .sort(vec![col(POSITION).sort(false, false)])?
            .limit(0, Some(last as usize))?
            .collect()
            .await?;
        let rows: usize = found.iter().map(RecordBatch::num_rows).sum();
        let first = found.iter().rfind(|batch| batch.num_rows() > 0);
        if let Some(batch) = first
            && rows as i64 == last
        {
            let positions = positions(batch)?;
            return Ok(positions[positions.len() - 1] - 1);
        }
        if after <= from {
            return Ok(from);
        }
        span = span.saturating_mul(8);
    }
}

async fn seen_at(
    session: &Session,
    snapshot: &Snapshot,
    cursor: i64,
    present: i64,
) -> Result<i64, Status> {
    if cursor >= present {
        return Ok(snapshot.events);
    }
    let count = async {
        let events = session.table("events").await?;
        let before = events.filter(col(POSITION).lt_eq(lit(cursor)))?;
        before.count().await
    };
    let served = match count.await {
        Ok(count) => count as i64,
        Err(error) => return Err(session.status(&error).await),
    };
    let missing = snapshot.missing.files().iter();
    let missing = missing.filter(|f| f.last_position <= cursor);
    Ok(served + missing.map(|f| f.rows as i64).sum::<i64>())
}
