//! What fired: the durable list of alerts, as a stream, as a SQL table and as JSON.
//!
//! An alert's number is its index in the log, so it grows by one and never changes. Sinks and
//! readers keep their own number and read on from it: none can lose or block another's alerts.

use std::{
    collections::HashSet,
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
};

use arrow::{
    array::{ArrayRef, Int64Array, RecordBatch, TimestampMicrosecondArray, new_null_array},
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use audit_columns::{POSITION, RowsBuilder, table_schema};
use audit_proto::{
    Message as _,
    columns::COLUMNS,
    v1::{Alert, Event},
};
use audit_wal::{Log, Options, WalError};
use datafusion::{
    catalog::{Session, TableProvider, streaming::StreamingTable},
    common::{DataFusionError, Result as SqlResult},
    datasource::TableType,
    execution::{SendableRecordBatchStream, TaskContext},
    logical_expr::Expr,
    physical_plan::{ExecutionPlan, stream::RecordBatchReceiverStream, streaming::PartitionStream},
};
use tokio::sync::watch;

/// One file of the log. Alerts are few; an alert with its event and ancestry is some kilobytes.
const SEGMENT_BYTES: u64 = 32 << 20;
const MAX_ALERT_BYTES: u32 = audit_proto::MAX_MESSAGE_BYTES as u32;
/// Alerts turned into columns at once.
const ROWS: usize = 512;

#[derive(Debug, thiserror::Error)]
pub enum AlertsError {
    #[error("alert log: {0}")]
    Wal(#[from] WalError),
    #[error("alert {number} in the log is not readable: {source}")]
    Decode {
        number: u64,
        source: prost::DecodeError,
    },
}

pub struct AlertLog {
    log: Mutex<Log>,
    last: watch::Sender<u64>,
}

impl std::fmt::Debug for AlertLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AlertLog")
            .field("last", &*self.last.borrow())
            .finish()
    }
}

impl AlertLog {
    pub fn open(data_dir: &Path) -> Result<(Arc<Self>, audit_wal::Recovery), AlertsError> {
        let options = Options {
            segment_bytes: SEGMENT_BYTES,
            max_record_bytes: MAX_ALERT_BYTES,
        };
        let (log, recovery) = Log::open(&data_dir.join("alerts"), options)?;
        let last = watch::Sender::new(log.next_index().saturating_sub(1));
        Ok((
            Arc::new(Self {
                log: Mutex::new(log),
                last,
            }),
            recovery,
        ))
    }

    fn lock(&self) -> MutexGuard<'_, Log> {
        self.log
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Numbers, stores and syncs; then readers see them.
    pub fn append(&self, alerts: Vec<Alert>) -> Result<(), AlertsError> {
        let mut log = self.lock();
        let numbered = (log.next_index()..).zip(alerts);
        let records: Vec<Vec<u8>> = numbered
            .map(|(number, mut alert)| {
                alert.number = number as i64;
                alert.encode_to_vec()
            })
            .collect();
        let records: Vec<&[u8]> = records.iter().map(Vec::as_slice).collect();
        log.append_all(&records)?;
        let last = log.next_index() - 1;
        drop(log);
        self.last.send_replace(last);
        Ok(())
    }

    /// The number of the last alert; changes when there are more.
    pub fn last(&self) -> watch::Receiver<u64> {
        self.last.subscribe()
    }

    /// Alerts after `number`, to the end of this moment.
    pub fn after(
        &self,
        number: u64,
    ) -> Result<impl Iterator<Item = Result<Alert, AlertsError>> + Send + use<>, AlertsError> {
        let last = *self.last.borrow();
        let log = self.lock();
        let reader = log.read_from((number + 1).max(log.first_index()))?;
        drop(log);
        Ok(reader
            .take_while(move |item| !matches!(item, Ok((index, _)) if *index > last))
            .map(|item| {
                let (number, bytes) = item?;
                Alert::decode(&bytes[..]).map_err(|source| AlertsError::Decode { number, source })
            }))
    }

    /// (event id, rule id) of the alerts on events after `position`.
    pub fn raised_after(&self, position: i64) -> Result<HashSet<(String, String)>, AlertsError> {
        let mut raised = HashSet::new();
        for alert in self.after(0)? {
            let alert = alert?;
            if alert
                .cursor
                .parse::<i64>()
                .is_ok_and(|cursor| cursor > position)
            {
                raised.insert(identity(&alert));
            }
        }
        Ok(raised)
    }
}

/// What makes an alert the same alert.
pub fn identity(alert: &Alert) -> (String, String) {
    let event = alert
        .event
        .as_ref()
        .map(|e| e.id.clone())
        .unwrap_or_default();
    let rule = alert
        .rule
        .as_ref()
        .map(|r| r.id.clone())
        .unwrap_or_default();
    (event, rule)
}

/// The alert as one JSON object: the event by column name, absent values left out.
pub fn to_json(alert: &Alert) -> serde_json::Value {
    use audit_proto::columns::{self, Value};
    let mut event = serde_json::Map::new();
    if let Some(of) = &alert.event {
        for (at, column) in COLUMNS.iter().enumerate() {
            let value = match columns::get(of, at) {
                Some(Value::Int(v)) => v.into(),
                Some(Value::Bool(v)) => v.into(),
                Some(Value::Text(v)) => v.into(),
                Some(Value::TextList(v)) => v.into(),
                None => continue,
            };
            event.insert(column.name.to_owned(), value);
        }
    }
    let rule = alert.rule.clone().unwrap_or_default();
    let ancestry: Vec<_> = alert
        .ancestry
        .iter()
        .map(|a| serde_json::json!({"exec_id": a.exec_id, "pid": a.pid, "exe": a.exe, "argv": a.argv}))
        .collect();
    serde_json::json!({
        "number": alert.number,
        "time": alert.time,
        "rule": {
            "id": rule.id, "title": rule.title, "author": rule.author, "level": rule.level,
            "tags": rule.tags, "link": rule.link, "description": rule.description,
        },
        "event": event,
        "cursor": alert.cursor,
        "ancestry": ancestry,
        "event_is_cut": alert.event_is_cut,
    })
}

/// Alert columns first, then the event's own under their names (its `id` as `event_id`).
pub fn alerts_schema() -> SchemaRef {
    let text = |name: &str| Field::new(name, DataType::Utf8View, true);
    let tags = DataType::List(Arc::new(Field::new_list_field(DataType::Utf8, true)));
    let mut fields = vec![Field::new("number", DataType::Int64, false)];
    let events = table_schema();
    let time = events.fields().iter().find(|f| f.name() == "time");
    fields.extend(time.map(|f| f.as_ref().clone()));
    fields.extend(["rule_id", "rule_title", "rule_level", "rule_author"].map(text));
    fields.push(Field::new("rule_tags", tags, true));
    fields.extend(["rule_link", "rule_description"].map(text));
    fields.push(Field::new(POSITION, DataType::Int64, true));
    for field in events.fields().iter().take(COLUMNS.len()) {
        match field.name().as_str() {
            "time" => {}
            "id" => fields.push(field.as_ref().clone().with_name("event_id")),
            _ => fields.push(field.as_ref().clone()),
        }
    }
    Arc::new(Schema::new(fields))
}

fn to_batch(alerts: &[Alert], schema: &SchemaRef) -> Result<RecordBatch, arrow::error::ArrowError> {
    use arrow::array::{ListBuilder, StringBuilder, StringViewArray};
    let rule = |get: fn(&audit_proto::v1::Rule) -> &str| -> ArrayRef {
        let values = alerts
            .iter()
            .map(|a| a.rule.as_ref().map(get).filter(|text| !text.is_empty()));
        Arc::new(StringViewArray::from_iter(values))
    };
    let mut tags = ListBuilder::new(StringBuilder::new());
    for alert in alerts {
        tags.append_value(alert.rule.iter().flat_map(|r| r.tags.iter().map(Some)));
    }
    let times = TimestampMicrosecondArray::from_iter_values(alerts.iter().map(|a| a.time));
    let mut arrays: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(
            alerts.iter().map(|a| a.number),
        )),
        Arc::new(times.with_timezone("+00:00")),
        rule(|r| &r.id),
        rule(|r| &r.title),
        rule(|r| &r.level),
        rule(|r| &r.author),
        Arc::new(tags.finish()),
        rule(|r| &r.link),
        rule(|r| &r.description),
        Arc::new(Int64Array::from_iter(
            alerts.iter().map(|a| a.cursor.parse::<i64>().ok()),
        )),
    ];
    let (mut builder, without) = (RowsBuilder::new(alerts.len()), Event::default());
    for alert in alerts {
        builder.push(alert.event.as_ref().unwrap_or(&without));
    }
    let rows = builder.finish();
    let of_event = (0..COLUMNS.len()).filter(|column| COLUMNS[*column].name != "time");
    for column in of_event {
        let ty = schema.field(arrays.len()).data_type();
        let array = rows.array(column, 0..alerts.len(), ty)?;
        arrays.push(array.unwrap_or_else(|| new_null_array(ty, alerts.len())));
    }
    RecordBatch::try_new(schema.clone(), arrays)
}

/// The table `alerts` for DataFusion, read from the log as far as a query needs.
#[derive(Debug)]
pub struct AlertsTable {
    schema: SchemaRef,
    alerts: Arc<AlertLog>,
}

impl AlertsTable {
    pub fn new(alerts: Arc<AlertLog>) -> Self {
        Self {
            schema: alerts_schema(),
            alerts,
        }
    }
}

#[derive(Debug)]
struct AlertRows {
    schema: SchemaRef,
    alerts: Arc<AlertLog>,
}

impl PartitionStream for AlertRows {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let mut builder = RecordBatchReceiverStream::builder(self.schema.clone(), 2);
        let (sender, alerts, schema) = (builder.tx(), self.alerts.clone(), self.schema.clone());
        builder.spawn_blocking(move || {
            let external = |error: AlertsError| DataFusionError::External(Box::new(error));
            let mut rest = alerts.after(0).map_err(external)?;
            loop {
                let part: Vec<Alert> = rest
                    .by_ref()
                    .take(ROWS)
                    .collect::<Result<_, _>>()
                    .map_err(external)?;
                if part.is_empty() || sender.blocking_send(Ok(to_batch(&part, &schema)?)).is_err() {
                    return Ok(());
                }
            }
        });
        builder.build()
    }
}

#[async_trait::async_trait]
impl TableProvider for AlertsTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> SqlResult<Arc<dyn ExecutionPlan>> {
        let rows = AlertRows {
            schema: self.schema.clone(),
            alerts: self.alerts.clone(),
        };
        let table = StreamingTable::try_new(self.schema.clone(), vec![Arc::new(rows)])?;
        table.scan(state, projection, filters, limit).await
    }
}
