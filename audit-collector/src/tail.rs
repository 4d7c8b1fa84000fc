//! A reader's walk through the store by position: first files, then fresh rows, then waiting.
//!
//! Invariant: the cursor only grows, and everything stored between two values of it was examined,
//! so a reader that stops and resumes with its cursor sees each event once. There is no queue per
//! reader that could overflow: a slow one is simply further back.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch},
    datatypes::{Int64Type, Schema},
};
use audit_proto::{
    Message as _,
    columns::COLUMNS,
    v1::{Event, TailEvent, TailRequest, TailResponse},
};
use datafusion::{
    common::{DFSchema, DataFusionError},
    logical_expr::{Expr, ExprSchemable as _, col, lit},
    physical_plan::PhysicalExpr,
    scalar::ScalarValue,
};
use tokio::sync::{mpsc, watch};
use tonic::Status;

use crate::{
    ingest::raised,
    query::{self, Engine, Session},
    store::{
        self, Chunk, POSITION, POSITION_INDEX, RAW_INDEX, Snapshot, Store, TableFile, end_position,
        fresh_columns, table_schema,
    },
};

/// Events and bytes of one response: far below the message limit, as one event may hold 2 MiB.
const PAGE_EVENTS: usize = 1024;
const PAGE_BYTES: usize = 1 << 20;
/// Rows read from files at once; bounds the memory of a reader of the past.
const WINDOW_ROWS: i64 = 16_384;
/// Responses waiting for a slow reader.
const PAGES: usize = 2;

pub type Responses = mpsc::Receiver<Result<TailResponse, Status>>;

struct Tail {
    engine: Arc<Engine>,
    store: Arc<Store>,
    filter: Option<Filter>,
    cursor: i64,
    /// Events at or before the cursor.
    seen: i64,
    /// Files of its past that cannot be served, until it is told.
    missing: Vec<TableFile>,
    sender: mpsc::Sender<Result<TailResponse, Status>>,
}

/// The reader's predicate, compiled once over the columns it uses.
struct Filter {
    expr: Expr,
    columns: Vec<usize>,
    physical: Arc<dyn PhysicalExpr>,
}

/// Why a walk ended.
enum End {
    Gone,
    Failed(Status),
    /// The store could not be read.
    Unread(DataFusionError),
}

impl From<DataFusionError> for End {
    fn from(error: DataFusionError) -> Self {
        Self::Unread(error)
    }
}

impl From<arrow::error::ArrowError> for End {
    fn from(error: arrow::error::ArrowError) -> Self {
        Self::Failed(Status::internal(error.to_string()))
    }
}

impl From<store::NotAnEvent> for End {
    fn from(error: store::NotAnEvent) -> Self {
        Self::Failed(Status::internal(error.to_string()))
    }
}

/// Starts a walk.
pub async fn start(
    request: TailRequest,
    engine: Arc<Engine>,
    store: Arc<Store>,
    mut stop: watch::Receiver<bool>,
) -> Result<Responses, Status> {
    let snapshot = store.snapshot();
    let now = *store.present().borrow();
    let (cursor, since) = if request.cursor.is_empty() {
        match request.since_time {
            Some(since) => (start_of(&snapshot, since, now), Some(since)),
            None => (now, None),
        }
    } else {
        let cursor = request
            .cursor
            .parse::<i64>()
            .ok()
            .filter(|c| *c >= 0)
            .ok_or_else(|| {
                Status::invalid_argument(format!(
                    "{:?} is not a cursor; pass one from a TailResponse, or an empty one",
                    request.cursor
                ))
            })?;
        if cursor > now {
            return Err(Status::out_of_range(format!(
                "cursor {cursor} is beyond the last stored event ({now}): it is of another collector"
            )));
        }
        (cursor, None)
    };
    let filter = Filter::new(&request.r#where, since, &engine).map_err(|e| query::status(&e))?;
    let seen = seen_at(&engine, &snapshot, cursor, now).await?;
    let missing = snapshot.missing.files().iter();
    let missing = missing
        .filter(|f| f.last_position > cursor && since.is_none_or(|since| f.last_time >= since))
        .cloned()
        .collect();
    let (sender, receiver) = mpsc::channel(PAGES);
    let mut tail = Tail {
        engine: engine.clone(),
        store,
        filter,
        cursor,
        seen,
        missing,
        sender,
    };
    let until = request.until_now.then_some(now);
    engine.threads().spawn(async move {
        let end = tokio::select! {
            end = tail.walk(until) => end,
            () = raised(&mut stop) => {
                Err(End::Failed(Status::unavailable("the collector is stopping; resume with the cursor")))
            }
        };
        let status = match end {
            Ok(()) | Err(End::Gone) => return,
            Err(End::Failed(status)) => status,
            Err(End::Unread(error)) => query::status(&error),
        };
        let _ = tail.sender.send(Err(status)).await;
    });
    Ok(receiver)
}

/// A cursor before every event that is not older than `since`.
fn start_of(snapshot: &Snapshot, since: i64, now: i64) -> i64 {
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
        .unwrap_or(now)
}

async fn seen_at(
    engine: &Engine,
    snapshot: &Snapshot,
    cursor: i64,
    now: i64,
) -> Result<i64, Status> {
    if cursor >= now {
        return Ok(snapshot.events);
    }
    let session = engine.session(false).map_err(|e| query::status(&e))?;
    let count = async {
        let frame = session.table("events").await?;
        frame
            .filter(col(POSITION).lt_eq(lit(cursor)))?
            .count()
            .await
    };
    let served = match count.await {
        Ok(count) => count as i64,
        Err(error) => return Err(session.status(&error).await),
    };
    let missing = snapshot.missing.files().iter();
    let missing = missing.filter(|f| f.last_position <= cursor);
    Ok(served + missing.map(|f| f.rows as i64).sum::<i64>())
}

impl Filter {
    fn new(
        sql: &str,
        since: Option<i64>,
        engine: &Engine,
    ) -> Result<Option<Self>, DataFusionError> {
        let session = engine.session(false)?;
        let schema = table_schema();
        let df_schema = DFSchema::try_from(schema.clone())?;
        let mut parts = Vec::new();
        if !sql.trim().is_empty() {
            let expr = session.state().create_logical_expr(sql, &df_schema)?;
            let ty = expr.get_type(&df_schema)?;
            if ty != arrow::datatypes::DataType::Boolean {
                return Err(DataFusionError::Plan(format!(
                    "`where` gives {ty} instead of true or false; example: kind = 'exec'"
                )));
            }
            parts.push(expr);
        }
        if let Some(since) = since {
            let since = ScalarValue::TimestampMicrosecond(Some(since), Some("+00:00".into()));
            parts.push(col("time").gt_eq(lit(since)));
        }
        let Some(expr) = parts.into_iter().reduce(Expr::and) else {
            return Ok(None);
        };
        let mut columns: Vec<usize> = expr
            .column_refs()
            .iter()
            .map(|column| schema.index_of(&column.name))
            .collect::<Result<_, _>>()?;
        columns.sort_unstable();
        let part = DFSchema::try_from(schema.project(&columns)?)?;
        let physical = session.create_physical_expr(expr.clone(), &part)?;
        Ok(Some(Self {
            expr,
            columns,
            physical,
        }))
    }

    /// Of the rows from `first` on, those that pass.
    fn rows(&self, chunk: &Chunk, first: usize) -> Result<Vec<usize>, DataFusionError> {
        let schema = table_schema();
        let arrays = fresh_columns(chunk, &schema, &self.columns)?;
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(chunk.rows));
        let part = Arc::new(Schema::project(&schema, &self.columns)?);
        let batch = RecordBatch::try_new_with_options(part, arrays, &options)?;
        let passed = self.physical.evaluate(&batch)?.into_array(chunk.rows)?;
        let passed = passed.as_boolean();
        Ok((first..chunk.rows)
            .filter(|&row| passed.is_valid(row) && passed.value(row))
            .collect())
    }
}

impl Tail {
    async fn walk(&mut self, until: Option<i64>) -> Result<(), End> {
        let mut present = self.store.present();
        loop {
            present.borrow_and_update();
            self.advance(until).await?;
            if until.is_some_and(|until| self.cursor >= until) {
                return Ok(());
            }
            tokio::select! {
                changed = present.changed() => changed.map_err(|_| End::Gone)?,
                () = self.sender.closed() => return Err(End::Gone),
            }
        }
    }

    /// To the present, or to `until`.
    async fn advance(&mut self, until: Option<i64>) -> Result<(), End> {
        loop {
            let snapshot = self.store.snapshot();
            let stop = until.unwrap_or(i64::MAX);
            if self.cursor >= stop {
                return Ok(());
            }
            if let Some(window) = self.next_window(&snapshot) {
                self.tell_missing(window.1).await?;
                self.read_files(window, stop).await?;
                continue;
            }
            self.tell_missing(stop).await?;
            let cursor = self.cursor;
            let chunks = snapshot.chunks.iter();
            let later: Vec<&Arc<Chunk>> = chunks
                .filter(|c| end_position(c.last_index()) > cursor)
                .collect();
            if later.is_empty() {
                if let Some(until) = until {
                    self.cursor = self.cursor.max(until);
                }
                return Ok(());
            }
            for chunk in later {
                self.read_chunk(chunk, stop).await?;
            }
        }
    }

    /// The next positions to read from files: (after, through).
    fn next_window(&self, snapshot: &Snapshot) -> Option<(i64, i64)> {
        let later = snapshot.files().filter(|f| f.last_position > self.cursor);
        let next = later.min_by_key(|f| f.first_position.max(self.cursor))?;
        let after = self.cursor.max(next.first_position - 1);
        let batches = next.batches.max(1) as i64;
        let mean = (next.rows as i64 / batches).max(1);
        let span = (WINDOW_ROWS / mean).max(1);
        let first_index = (after + 1) >> 20;
        Some((
            after,
            end_position((first_index + span - 1) as u64)
                .min(end_position(snapshot.manifest.compacted_through)),
        ))
    }

    /// What of it is missing up to `through` is said before what is there.
    async fn tell_missing(&mut self, through: i64) -> Result<(), End> {
        let here = self.missing.extract_if(.., |f| f.first_position <= through);
        let missing_events: i64 = here.map(|f| f.rows as i64).sum();
        if missing_events == 0 {
            return Ok(());
        }
        self.seen += missing_events;
        self.respond(Vec::new(), missing_events).await
    }

    async fn read_files(&mut self, window: (i64, i64), stop: i64) -> Result<(), End> {
        let session = self.engine.session(true)?;
        match self.read_window(&session, window, stop).await {
            Err(End::Unread(error)) => Err(End::Failed(session.status(&error).await)),
            read => read,
        }
    }

    async fn read_window(
        &mut self,
        session: &Session,
        (after, through): (i64, i64),
        stop: i64,
    ) -> Result<(), End> {
        let through = through.min(stop);
        let range = col(POSITION)
            .gt(lit(after))
            .and(col(POSITION).lt_eq(lit(through)));
        let table = session.table("events").await?.filter(range)?;
        let all = match &self.filter {
            Some(_) => Some(table.clone().count().await? as i64),
            None => None,
        };
        let table = match &self.filter {
            Some(filter) => table.filter(filter.expr.clone())?,
            None => table,
        };
        let batches = table
            .sort(vec![col(POSITION).sort(true, false)])?
            .collect()
            .await?;
        let rows: i64 = batches.iter().map(|b| b.num_rows() as i64).sum();
        self.seen += all.unwrap_or(rows);
        for batch in &batches {
            let positions = batch
                .column(POSITION_INDEX)
                .as_primitive::<Int64Type>()
                .values();
            self.send(
                file_events(batch)?
                    .into_iter()
                    .zip(positions.iter().copied()),
            )
            .await?;
        }
        self.cursor = self.cursor.max(through);
        Ok(())
    }

    async fn read_chunk(&mut self, chunk: &Chunk, stop: i64) -> Result<(), End> {
        let positions = chunk.positions.as_primitive::<Int64Type>().values();
        let first = positions.partition_point(|p| *p <= self.cursor);
        let beyond = positions.partition_point(|p| *p <= stop);
        let mut rows: Vec<usize> = match &self.filter {
            Some(filter) => filter.rows(chunk, first)?,
            None => (first..chunk.rows).collect(),
        };
        rows.retain(|row| *row < beyond);
        self.seen += (beyond - first) as i64;
        for page in rows.chunks(PAGE_EVENTS) {
            let events = store::events(&chunk.columns, page)?;
            let placed = page.iter().map(|row| positions[*row]);
            self.send(events.into_iter().zip(placed)).await?;
        }
        self.cursor = self.cursor.max(end_position(chunk.last_index()).min(stop));
        Ok(())
    }

    async fn send(&self, events: impl Iterator<Item = (Event, i64)>) -> Result<(), End> {
        let mut page = Vec::new();
        let mut bytes = 0;
        for (event, position) in events {
            bytes += event.encoded_len();
            page.push(TailEvent {
                event: Some(event),
                cursor: position.to_string(),
            });
            if page.len() >= PAGE_EVENTS || bytes >= PAGE_BYTES {
                self.send_page(std::mem::take(&mut page)).await?;
                bytes = 0;
            }
        }
        if page.is_empty() {
            Ok(())
        } else {
            self.send_page(page).await
        }
    }

    async fn send_page(&self, events: Vec<TailEvent>) -> Result<(), End> {
        self.respond(events, 0).await
    }

    async fn respond(&self, events: Vec<TailEvent>, missing_events: i64) -> Result<(), End> {
        let behind = (self.store.totals().events - self.seen).max(0);
        let response = TailResponse {
            events,
            behind,
            missing_events,
        };
        self.sender.send(Ok(response)).await.map_err(|_| End::Gone)
    }
}

fn file_events(batch: &RecordBatch) -> Result<Vec<Event>, End> {
    let columns: Vec<Option<ArrayRef>> = batch.columns()[..COLUMNS.len()]
        .iter()
        .map(|array| (array.null_count() < array.len()).then(|| array.clone()))
        .collect();
    let rows: Vec<usize> = (0..batch.num_rows()).collect();
    let mut events = store::events(&columns, &rows)?;
    let raw = batch.column(RAW_INDEX).as_binary::<i32>();
    for (row, event) in events
        .iter_mut()
        .enumerate()
        .filter(|(row, _)| raw.is_valid(*row))
    {
        *event = Event::decode(raw.value(row))
            .map_err(|error| End::Failed(Status::data_loss(error.to_string())))?;
    }
    Ok(events)
}
