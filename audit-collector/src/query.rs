//! SQL over `events` and `alerts`: what is allowed, how much it may cost, and what is said when it
//! is wrong.
//!
//! Queries run on threads of their own, so that a heavy one does not delay ingest. Bounds: memory
//! (then spill, then an error), rows, time, and the number of queries at once.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use arrow::{
    datatypes::SchemaRef, error::ArrowError, ipc::writer::StreamWriter, record_batch::RecordBatch,
};
use audit_proto::{columns::COLUMNS, v1::QueryResponse};
use bytes::Bytes;
use datafusion::{
    common::{DataFusionError, SchemaError},
    error::Result as SqlResult,
    execution::{
        SendableRecordBatchStream,
        disk_manager::{DiskManagerBuilder, DiskManagerMode},
        memory_pool::FairSpillPool,
        runtime_env::{RuntimeEnv, RuntimeEnvBuilder},
    },
    logical_expr::LogicalPlan,
    prelude::{DataFrame, SQLOptions, SessionConfig, SessionContext},
};
use futures::{FutureExt as _, StreamExt as _};
use parquet::errors::ParquetError;
use tokio::sync::{Semaphore, mpsc};
use tonic::Status;

use crate::{
    alerts::{AlertLog, AlertsTable},
    config,
    store::{EventsTable, Reading, Store},
};

/// A piece of a result on the wire, far below the message limit.
const PIECE_BYTES: usize = 1 << 20;
/// Pieces waiting for a slow reader.
const PIECES: usize = 4;

/// Tables as of one moment, and what reading them met.
pub struct Session {
    context: SessionContext,
    reading: Arc<Reading>,
}

impl std::ops::Deref for Session {
    type Target = SessionContext;

    fn deref(&self) -> &SessionContext {
        &self.context
    }
}

impl Session {
    /// DataFusion's error for the person who asked; one of a file says of which.
    pub async fn status(&self, error: &DataFusionError) -> Status {
        if !of_a_file(error) {
            return status(error);
        }
        let reading = self.reading.clone();
        let damaged = tokio::task::spawn_blocking(move || reading.damaged()).await;
        match damaged.ok().flatten() {
            Some((path, reason)) => {
                let path = path.display();
                tracing::error!(%path, reason, "table file is damaged");
                Status::data_loss(format!(
                    "{path}: the file is damaged ({reason}); put it back from a backup. Questions about \
                     other times are answered"
                ))
            }
            None => status(error),
        }
    }
}

/// What a decoder may do with damaged bytes; nobody else has been seen to.
fn panicked() -> DataFusionError {
    let message = "the query panicked, see the collector's log".to_owned();
    DataFusionError::ParquetError(Box::new(ParquetError::General(message)))
}

/// Whether it may come of what a table file holds, and not of the question.
fn of_a_file(error: &DataFusionError) -> bool {
    match error.find_root() {
        DataFusionError::ParquetError(_)
        | DataFusionError::ObjectStore(_)
        | DataFusionError::IoError(_)
        | DataFusionError::External(_) => true,
        DataFusionError::ArrowError(error, _) => matches!(
            **error,
            ArrowError::ParquetError(_) | ArrowError::ExternalError(_) | ArrowError::IoError(..)
        ),
        _ => false,
    }
}

pub struct Engine {
    config: config::Query,
    runtime_env: Arc<RuntimeEnv>,
    slots: Arc<Semaphore>,
    threads: tokio::runtime::Handle,
    store: Arc<Store>,
    alerts: Arc<AlertLog>,
}

impl Engine {
    pub fn new(
        config: config::Query,
        threads: tokio::runtime::Handle,
        store: Arc<Store>,
        alerts: Arc<AlertLog>,
    ) -> SqlResult<Self> {
        let spill = DiskManagerBuilder::default()
            .with_mode(DiskManagerMode::Directories(vec![store.dir().join("tmp")]))
            .with_max_temp_directory_size(config.spill_bytes);
        let runtime_env = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(FairSpillPool::new(config.memory_bytes)))
            .with_disk_manager_builder(spill)
            .build_arc()?;
        Ok(Self {
            slots: Arc::new(Semaphore::new(config.concurrent)),
            config,
            runtime_env,
            threads,
            store,
            alerts,
        })
    }

    pub fn threads(&self) -> &tokio::runtime::Handle {
        &self.threads
    }

    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// A session over this moment's rows.
    pub fn session(&self, raw: bool) -> SqlResult<Session> {
        let config = SessionConfig::new()
            .with_information_schema(true)
            .with_default_catalog_and_schema("hostaudit", "public")
            .set_bool("datafusion.execution.parquet.pushdown_filters", false);
        let context = SessionContext::new_with_config_rt(config, self.runtime_env.clone());
        let reading = Arc::new(Reading::default());
        let snapshot = self.store.snapshot();
        let events = if raw {
            EventsTable::with_raw(snapshot, reading.clone())
        } else {
            EventsTable::new(snapshot, reading.clone())
        };
        context.register_table("events", Arc::new(events))?;
        context.register_table("alerts", Arc::new(AlertsTable::new(self.alerts.clone())))?;
        Ok(Session { context, reading })
    }

    /// Starts a query; the receiver ends with its last piece or an error.
    pub fn run(
        &self,
        sql: String,
        limit: i64,
    ) -> Result<mpsc::Receiver<Result<QueryResponse, Status>>, Status> {
        let rows = match usize::try_from(limit) {
            Ok(0) => self.config.max_rows,
            Ok(limit) => limit.min(self.config.max_rows),
            Err(_) => {
                return Err(Status::invalid_argument(format!(
                    "limit {limit} is negative"
                )));
            }
        };
        let session = self.session(false).map_err(|error| status(&error))?;
        let slots = self.slots.clone();
        let timeout_s = self.config.timeout_s;
        let (sender, receiver) = mpsc::channel(PIECES);
        self.threads.spawn(async move {
            let Ok(_slot) = slots.acquire_owned().await else {
                return;
            };
            let work = AssertUnwindSafe(answer(&session, &sql, rows, &sender)).catch_unwind();
            let outcome = tokio::select! {
                outcome = tokio::time::timeout(Duration::from_secs(timeout_s), work) => outcome,
                () = sender.closed() => return,
            };
            let failure = match outcome {
                Ok(Ok(Ok(()))) => return,
                Ok(Ok(Err(error))) => session.status(&error).await,
                Ok(Err(_)) => session.status(&panicked()).await,
                Err(_) => Status::deadline_exceeded(format!(
                    "the query took longer than {timeout_s} s; narrow it, for example with \
                     `time > now() - interval '1 hour'`, or raise `query.timeout_s`"
                )),
            };
            let _ = sender.send(Err(failure)).await;
        });
        Ok(receiver)
    }
}

const WRITING: [&str; 12] = [
    "insert", "update", "delete", "merge", "create", "drop", "alter", "truncate", "copy", "set",
    "begin", "commit",
];

fn only_reading() -> DataFusionError {
    DataFusionError::Plan(
        "only statements that read can be run here (SELECT, EXPLAIN, DESCRIBE, SHOW TABLES): the \
         record is not changed by hand"
            .to_owned(),
    )
}

/// Plans a statement that only reads.
pub async fn plan(session: &SessionContext, sql: &str) -> SqlResult<DataFrame> {
    // Told before planning, which would complain about something else first.
    let first = sql
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .to_lowercase();
    if WRITING.contains(&first.as_str()) {
        return Err(only_reading());
    }
    let plan = session.state().create_logical_plan(sql).await?;
    let reading = SQLOptions::new()
        .with_allow_ddl(false)
        .with_allow_dml(false)
        .with_allow_statements(false);
    if reading.verify_plan(&plan).is_err() || matches!(plan, LogicalPlan::Copy(_)) {
        return Err(only_reading());
    }
    session.execute_logical_plan(plan).await
}

async fn answer(
    session: &Session,
    sql: &str,
    rows: usize,
    sender: &mpsc::Sender<Result<QueryResponse, Status>>,
) -> SqlResult<()> {
    let mut frame = plan(session, sql).await?;
    // An explanation must be the whole of a plan; it has a few rows.
    let explains = matches!(
        frame.logical_plan(),
        LogicalPlan::Explain(_) | LogicalPlan::Analyze(_)
    );
    if !explains {
        // One row more than wanted tells whether the limit cut something.
        frame = frame.limit(0, Some(rows + 1))?;
    }
    let stream = frame.execute_stream().await?;
    send(stream, rows, &session.reading, sender).await
}

async fn send(
    mut stream: SendableRecordBatchStream,
    mut left: usize,
    reading: &Reading,
    sender: &mpsc::Sender<Result<QueryResponse, Status>>,
) -> SqlResult<()> {
    let schema: SchemaRef = stream.schema();
    let mut writer = StreamWriter::try_new(Vec::new(), &schema)?;
    let mut limited = false;
    while let Some(batch) = stream.next().await {
        let batch: RecordBatch = batch?;
        let kept = batch.num_rows().min(left);
        limited |= kept < batch.num_rows();
        left -= kept;
        if kept > 0 {
            writer.write(&batch.slice(0, kept))?;
        }
        if writer.get_ref().len() >= PIECE_BYTES {
            let bytes = std::mem::take(writer.get_mut());
            if !pieces(bytes, sender).await {
                return Ok(());
            }
        }
        if limited {
            break;
        }
    }
    writer.finish()?;
    let bytes = std::mem::take(writer.get_mut());
    if pieces(bytes, sender).await {
        let last = QueryResponse {
            arrow_ipc: Default::default(),
            limited,
            missing_events: reading.missing_events(),
        };
        let _ = sender.send(Ok(last)).await;
    }
    Ok(())
}

/// False when nobody listens any more.
async fn pieces(bytes: Vec<u8>, sender: &mpsc::Sender<Result<QueryResponse, Status>>) -> bool {
    let bytes = Bytes::from(bytes);
    for start in (0..bytes.len()).step_by(PIECE_BYTES) {
        let piece = bytes.slice(start..bytes.len().min(start + PIECE_BYTES));
        let response = QueryResponse {
            arrow_ipc: piece.to_vec(),
            ..QueryResponse::default()
        };
        if sender.send(Ok(response)).await.is_err() {
            return false;
        }
    }
    true
}

/// DataFusion's error for the person who typed the query.
pub fn status(error: &DataFusionError) -> Status {
    let root = error.find_root();
    match root {
        DataFusionError::SchemaError(schema_error, _) => {
            if let SchemaError::FieldNotFound {
                field,
                valid_fields,
            } = &**schema_error
            {
                let names: Vec<&str> = valid_fields.iter().map(|f| f.name.as_str()).collect();
                return Status::invalid_argument(unknown_column(&field.name, &names));
            }
            Status::invalid_argument(schema_error.to_string())
        }
        DataFusionError::ResourcesExhausted(message) => Status::resource_exhausted(format!(
            "the query needs more memory than `query.memory_bytes` allows; narrow it or aggregate: \
             {message}"
        )),
        DataFusionError::IoError(_)
        | DataFusionError::ObjectStore(_)
        | DataFusionError::ParquetError(_)
        | DataFusionError::Internal(_) => {
            tracing::warn!(%error, "query failed");
            Status::internal(root.strip_backtrace())
        }
        _ => {
            let message = root.strip_backtrace();
            if let Some(name) = missing_table(&message) {
                return Status::invalid_argument(unknown("table", name, &["events", "alerts"]));
            }
            Status::invalid_argument(message)
        }
    }
}

/// The name in "table 'hostaudit.public.NAME' not found".
fn missing_table(message: &str) -> Option<&str> {
    let (_, rest) = message.split_once("table 'hostaudit.public.")?;
    rest.split_once("' not found").map(|(name, _)| name)
}

/// A word without quotes is a column to SQL, whatever was meant.
fn unknown_column(name: &str, known: &[&str]) -> String {
    let is_value = COLUMNS.iter().any(|column| column.values.contains(&name));
    let message = unknown("column", name, known);
    let near = message.contains("did you mean");
    match is_value || !near {
        true => format!("{message}; text is written in single quotes: '{name}'"),
        false => message,
    }
}

fn unknown(what: &str, name: &str, known: &[&str]) -> String {
    match audit_config::nearest(name, known.iter().copied()) {
        Some(near) => format!("no {what} `{name}`; did you mean `{near}`?"),
        None if known.len() <= 8 => format!("no {what} `{name}`; there are: {}", known.join(", ")),
        None => format!(
            "no {what} `{name}`; `describe events`, as a query, lists the columns (`hostaudit query --columns`)"
        ),
    }
}
