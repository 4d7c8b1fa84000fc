//! A reader's walk through the store by position: first files, then fresh rows, then waiting.
//!
//! Invariant: the cursor only grows, and everything stored between two values of it was examined,
//! so a reader that stops and resumes with its cursor sees each event once. There is no queue per
//! reader that could overflow: a slow one is simply further back, and is told so.

mod begin;
mod lag;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch},
    datatypes::Int64Type,
};
use audit_columns::{POSITION, RAW_INDEX};
use audit_proto::{
    Message as _,
    columns::COLUMNS,
    v1::{Event, Lagged, TailEvent, TailRequest, TailResponse},
};
use datafusion::{
    common::DataFusionError,
    logical_expr::{col, lit},
    prelude::DataFrame,
};
use tokio::sync::{mpsc, watch};
use tonic::Status;

use crate::{
    filter::{self, Filter, FilterError, Wanted},
    ingest::raised,
    query::{self, Engine, Session},
    store::{Chunk, Snapshot, Store, TableFile, end_position},
};
use begin::Begin;
use lag::Lag;

/// Events and bytes of one response: far below the message limit, as one event may hold 2 MiB.
const PAGE_EVENTS: usize = 1024;
const PAGE_BYTES: usize = 1 << 20;
/// Rows read from files at once; bounds the memory of a reader of the past.
const WINDOW_ROWS: i64 = 16_384;
/// Rows tried at once for a reader whose filter passes few of them.
const WIDEST_WINDOW_ROWS: i64 = 1 << 20;
/// Responses waiting for a slow reader.
const PAGES: usize = 2;
/// How often a reader is told its cursor while everything is passed over.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

pub type Responses = mpsc::Receiver<Result<TailResponse, Status>>;

struct Tail {
    engine: Arc<Engine>,
    store: Arc<Store>,
    filter: Option<Filter>,
    /// Columns to send, where not all are wanted.
    mask: Option<Vec<usize>>,
    cursor: i64,
    /// Events at or before the cursor.
    seen: i64,
    /// Rows that the next window shall have.
    window_rows: i64,
    /// Files of its past that cannot be served, until it is told.
    missing: Vec<TableFile>,
    lag: Lag,
    /// The last cursor that was sent, and when.
    told: (i64, Instant),
    sender: mpsc::Sender<Result<TailResponse, Status>>,
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

impl From<audit_columns::NotAnEvent> for End {
    fn from(error: audit_columns::NotAnEvent) -> Self {
        Self::Failed(Status::internal(error.to_string()))
    }
}

fn refused(error: FilterError) -> Status {
    match error {
        FilterError::Invalid(error) => Status::invalid_argument(error.to_string()),
        FilterError::Sql(error) => query::status(&error),
    }
}

/// Starts a walk.
pub async fn start(
    request: TailRequest,
    engine: Arc<Engine>,
    store: Arc<Store>,
    mut stop: watch::Receiver<bool>,
) -> Result<Responses, Status> {
    let present = *store.present().borrow();
    let since = request.since_time.filter(|_| request.cursor.is_empty());
    let wanted = Wanted {
        allow: &request.allow,
        deny: &request.deny,
        sql: &request.r#where,
        since,
    };
    let session = engine.session(false).map_err(|e| query::status(&e))?;
    let filter = Filter::new(&wanted, &session).map_err(refused)?;
    let mask = filter::mask(&request.fields).map_err(|e| refused(e.into()))?;
    let lag = Lag::new(request.lagged_events, request.until_now)?;
    let begin = Begin::find(&request, filter.as_ref(), &engine, &store, present).await?;
    let (sender, receiver) = mpsc::channel(PAGES);
    let mut tail = Tail {
        engine: engine.clone(),
        store,
        filter,
        mask,
        cursor: begin.cursor,
        seen: begin.seen,
        window_rows: WINDOW_ROWS,
        missing: begin.missing,
        lag,
        told: (begin.cursor, Instant::now()),
        sender,
    };
    let until = request.until_now.then_some(present);
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

impl Tail {
    async fn walk(&mut self, until: Option<i64>) -> Result<(), End> {
        let mut present = self.store.present();
        loop {
            present.borrow_and_update();
            self.advance(until).await?;
            if until.is_some_and(|until| self.cursor >= until) {
                return self.progress().await;
            }
            if let Some(over) = self.lag.at_present() {
                self.respond(Vec::new(), 0, Some(over)).await?;
            }
            tokio::select! {
                changed = present.changed() => changed.map_err(|_| End::Gone)?,
                () = tokio::time::sleep(PROGRESS_EVERY), if self.passed_over() => {
                    self.progress().await?;
                }
                () = self.sender.closed() => return Err(End::Gone),
            }
            self.lag.was_at_present();
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
                self.regular_progress().await?;
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
                self.regular_progress().await?;
            }
        }
    }

    /// Whether the reader does not know how far it was examined for it.
    fn passed_over(&self) -> bool {
        self.filter.is_some() && self.cursor > self.told.0
    }

    async fn progress(&mut self) -> Result<(), End> {
        match self.passed_over() {
            true => self.respond(Vec::new(), 0, None).await,
            false => Ok(()),
        }
    }

    async fn regular_progress(&mut self) -> Result<(), End> {
        match self.told.1.elapsed() >= PROGRESS_EVERY {
            true => self.progress().await,
            false => Ok(()),
        }
    }

    /// The next positions to read from files: (after, through).
    fn next_window(&self, snapshot: &Snapshot) -> Option<(i64, i64)> {
        let later = snapshot.files().filter(|f| f.last_position > self.cursor);
        let next = later.min_by_key(|f| f.first_position.max(self.cursor))?;
        let after = self.cursor.max(next.first_position - 1);
        let batches = next.batches.max(1) as i64;
        let mean = (next.rows as i64 / batches).max(1);
        let span = (self.window_rows / mean).max(1);
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
        self.respond(Vec::new(), missing_events, None).await
    }

    async fn read_files(&mut self, window: (i64, i64), stop: i64) -> Result<(), End> {
        // A masked event is not made whole from its raw bytes.
        let session = self.engine.session(self.mask.is_none())?;
        match self.read_window(&session, window, stop).await {
            Err(End::Unread(error)) => Err(End::Failed(session.status(&error).await)),
            read => read,
        }
    }

    /// Of a window that was widened at most [`WINDOW_ROWS`] events; the next begins behind them.
    async fn read_window(
        &mut self,
        session: &Session,
        (after, through): (i64, i64),
        stop: i64,
    ) -> Result<(), End> {
        let through = through.min(stop);
        let within = |through: i64| {
            let from = col(POSITION).gt(lit(after));
            from.and(col(POSITION).lt_eq(lit(through)))
        };
        let events = session.table("events").await?;
        let batches = self.passed(events.clone().filter(within(through))?).await?;
        let rows: i64 = batches.iter().map(|b| b.num_rows() as i64).sum();
        let cut = self.window_rows > WINDOW_ROWS && rows >= WINDOW_ROWS;
        let reached = match batches.iter().rfind(|b| b.num_rows() > 0) {
            Some(last) if cut => positions(last)?[last.num_rows() - 1],
            _ => through,
        };
        let examined = match self.filter {
            Some(_) => events.filter(within(reached))?.count().await? as i64,
            None => rows,
        };
        if cut {
            self.window_rows = WINDOW_ROWS;
        } else if self.filter.is_some() && rows < WINDOW_ROWS / 8 {
            self.window_rows = (self.window_rows * 2).min(WIDEST_WINDOW_ROWS);
        }
        let mut placed = Vec::with_capacity(rows as usize);
        for batch in &batches {
            let events = self.file_events(batch)?;
            placed.extend(events.into_iter().zip(positions(batch)?.iter().copied()));
        }
        drop(batches);
        self.send(placed, examined).await?;
        self.cursor = self.cursor.max(reached);
        Ok(())
    }

    /// Of `events`, what passes, in order, with the columns that are sent.
    async fn passed(&self, events: DataFrame) -> Result<Vec<RecordBatch>, DataFusionError> {
        let mut passed = events;
        if let Some(filter) = &self.filter {
            passed = passed.filter(filter.expr.clone())?;
        }
        if let Some(mask) = &self.mask {
            let names = mask.iter().map(|at| COLUMNS[*at].name);
            passed = passed.select_columns(&names.chain([POSITION]).collect::<Vec<_>>())?;
        }
        passed = passed.sort(vec![col(POSITION).sort(true, false)])?;
        if self.window_rows > WINDOW_ROWS {
            passed = passed.limit(0, Some(WINDOW_ROWS as usize))?;
        }
        passed.collect().await
    }

    async fn read_chunk(&mut self, chunk: &Chunk, stop: i64) -> Result<(), End> {
        let positions = chunk.positions.as_primitive::<Int64Type>().values();
        let first = positions.partition_point(|p| *p <= self.cursor);
        let beyond = positions.partition_point(|p| *p <= stop);
        let mut rows: Vec<usize> = match &self.filter {
            Some(filter) => filter.rows(chunk, first)?,
            None => (first..chunk.rows()).collect(),
        };
        rows.retain(|row| *row < beyond);
        let mask = self.mask.clone();
        let wanted = |column| mask.as_ref().is_none_or(|mask| mask.contains(&column));
        let mut examined = beyond.saturating_sub(first) as i64;
        for page in rows.chunks(PAGE_EVENTS) {
            let events = chunk.columns.events(page, wanted)?;
            let placed = events
                .into_iter()
                .zip(page.iter().map(|row| positions[*row]));
            let last = page.last() == rows.last();
            let of_page = if last { examined } else { page.len() as i64 };
            examined -= of_page;
            self.send(placed.collect(), of_page).await?;
        }
        self.seen += examined;
        self.cursor = self.cursor.max(end_position(chunk.last_index()).min(stop));
        Ok(())
    }

    /// Sends what passed of so many events that were examined.
    async fn send(&mut self, events: Vec<(Event, i64)>, examined: i64) -> Result<(), End> {
        let all = self.seen + examined;
        let mut page = Vec::new();
        let mut bytes = 0;
        for (event, position) in events {
            bytes += event.encoded_len();
            page.push(TailEvent {
                event: Some(event),
                cursor: position.to_string(),
                masked: self.mask.is_some(),
            });
            self.cursor = self.cursor.max(position);
            if page.len() >= PAGE_EVENTS || bytes >= PAGE_BYTES {
                self.seen += page.len() as i64;
                self.respond(std::mem::take(&mut page), 0, None).await?;
                bytes = 0;
            }
        }
        self.seen = all;
        match page.is_empty() {
            true => Ok(()),
            false => self.respond(page, 0, None).await,
        }
    }

    async fn respond(
        &mut self,
        events: Vec<TailEvent>,
        missing_events: i64,
        lagged: Option<Lagged>,
    ) -> Result<(), End> {
        let behind = (self.store.totals().events - self.seen).max(0);
        let response = TailResponse {
            events,
            behind,
            missing_events,
            cursor: self.cursor.to_string(),
            lagged: lagged.or_else(|| self.lag.behind(behind)),
        };
        self.told = (self.cursor, Instant::now());
        self.sender.send(Ok(response)).await.map_err(|_| End::Gone)
    }

    fn file_events(&self, batch: &RecordBatch) -> Result<Vec<Event>, End> {
        let present = |array: &ArrayRef| (array.null_count() < array.len()).then(|| array.clone());
        let Some(mask) = &self.mask else {
            let columns: Vec<Option<ArrayRef>> = batch.columns()[..COLUMNS.len()]
                .iter()
                .map(present)
                .collect();
            let mut events = audit_columns::events(&columns, batch.num_rows())?;
            restore(&mut events, batch)?;
            return Ok(events);
        };
        let mut columns: Vec<Option<ArrayRef>> = vec![None; COLUMNS.len()];
        for (at, array) in mask.iter().zip(batch.columns()) {
            columns[*at] = present(array);
        }
        Ok(audit_columns::events(&columns, batch.num_rows())?)
    }
}

fn positions(batch: &RecordBatch) -> Result<&[i64], DataFusionError> {
    let column = batch.column_by_name(POSITION);
    let values = column.and_then(|c| c.as_primitive_opt::<Int64Type>());
    let values =
        values.ok_or_else(|| DataFusionError::Internal("rows have no position".to_owned()))?;
    Ok(values.values())
}

/// Where columns would not give the bytes that were sealed, the row has them.
fn restore(events: &mut [Event], batch: &RecordBatch) -> Result<(), End> {
    let raw = batch.column(RAW_INDEX).as_binary::<i32>();
    for (row, event) in events.iter_mut().enumerate() {
        if raw.is_valid(row) {
            *event = Event::decode(raw.value(row))
                .map_err(|error| End::Failed(Status::data_loss(error.to_string())))?;
        }
    }
    Ok(())
}
