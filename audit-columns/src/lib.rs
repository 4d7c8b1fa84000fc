//! Events as columns and back: the only place that knows both forms.
//!
//! Invariant: [`events`] of what [`RowsBuilder`] built gives the same events, for events without
//! empty sub-messages (`audit_proto::columns`); compaction proves it for each batch.
//!
//! There is no code per event kind or field: columns derive from `audit_proto::columns::COLUMNS`.

mod encode;

use std::sync::Arc;

use arrow::{
    array::{
        Array, ArrayRef, AsArray, BooleanBuilder, Int64Builder, ListBuilder, StringBuilder,
        TimestampMicrosecondBuilder, new_null_array,
    },
    compute::concat,
    datatypes::{
        DataType, Field, Int64Type, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType,
    },
    error::ArrowError,
};
use audit_proto::{
    Message as _,
    columns::{self, COLUMNS, Cell, ColumnType, Content, OwnedValue, Row as _},
    v1::Event,
};

pub use encode::encode;

/// The event's place in this collector, after the event's own columns.
pub const POSITION: &str = "position";
/// The encoded event, where its columns would not give the same bytes; only in files.
pub const RAW: &str = "raw";

/// Index of `position` in every schema of `events`.
pub const POSITION_INDEX: usize = COLUMNS.len();
pub const RAW_INDEX: usize = COLUMNS.len() + 1;

/// Offset form, because arrow knows named zones only with a time zone database compiled in.
const UTC: &str = "+00:00";

fn data_type(ty: ColumnType, text: DataType) -> DataType {
    match ty {
        ColumnType::Int => DataType::Int64,
        ColumnType::Time => DataType::Timestamp(TimeUnit::Microsecond, Some(UTC.into())),
        ColumnType::Bool => DataType::Boolean,
        ColumnType::Text | ColumnType::Enum => text,
        ColumnType::TextList => {
            DataType::List(Arc::new(Field::new_list_field(DataType::Utf8, true)))
        }
    }
}

fn fields(text: &DataType) -> Vec<Field> {
    let mut fields: Vec<Field> = COLUMNS
        .iter()
        .map(|c| Field::new(c.name, data_type(c.ty, text.clone()), true))
        .collect();
    fields.push(Field::new(POSITION, DataType::Int64, false));
    fields
}

/// What SQL sees: text as views, which DataFusion filters and groups fastest.
pub fn table_schema() -> SchemaRef {
    Arc::new(Schema::new(fields(&DataType::Utf8View)))
}

/// What memory and files hold: text as offsets, 4 bytes a row instead of 16. A file has those columns in
/// which it has values; where no event's bytes are kept, `raw` is not there either.
pub fn file_schema() -> SchemaRef {
    let mut fields = fields(&DataType::Utf8);
    fields.push(Field::new(RAW, DataType::Binary, true));
    Arc::new(Schema::new(fields))
}

/// Columns of some events; `None` where no event has a value, which is most columns of most batches.
pub type Columns = Vec<Option<ArrayRef>>;

/// What is not an event is refused, with its place among those that were given with it.
#[derive(Debug, thiserror::Error)]
#[error("event {at} is not an encoded Event: {source}")]
pub struct NotDecoded {
    pub at: usize,
    pub source: prost::DecodeError,
}

enum Builder {
    Int(Int64Builder),
    Time(TimestampMicrosecondBuilder),
    Bool(BooleanBuilder),
    Text(StringBuilder),
    List(ListBuilder<StringBuilder>),
}

impl Builder {
    fn new(ty: ColumnType, capacity: usize) -> Self {
        match ty {
            ColumnType::Int => Self::Int(Int64Builder::with_capacity(capacity)),
            ColumnType::Time => {
                Self::Time(TimestampMicrosecondBuilder::with_capacity(capacity).with_timezone(UTC))
            }
            ColumnType::Bool => Self::Bool(BooleanBuilder::with_capacity(capacity)),
            ColumnType::Text | ColumnType::Enum => {
                Self::Text(StringBuilder::with_capacity(capacity, capacity * 16))
            }
            ColumnType::TextList => {
                Self::List(ListBuilder::with_capacity(StringBuilder::new(), capacity))
            }
        }
    }

    fn len(&self) -> usize {
        use arrow::array::ArrayBuilder as _;
        match self {
            Self::Int(b) => b.len(),
            Self::Time(b) => b.len(),
            Self::Bool(b) => b.len(),
            Self::Text(b) => b.len(),
            Self::List(b) => b.len(),
        }
    }

    fn pad_to(&mut self, rows: usize) {
        let missing = rows - self.len();
        if missing == 0 {
            return;
        }
        match self {
            Self::Int(b) => b.append_nulls(missing),
            Self::Time(b) => b.append_nulls(missing),
            Self::Bool(b) => b.append_nulls(missing),
            Self::Text(b) => b.append_nulls(missing),
            Self::List(b) => b.append_nulls(missing),
        }
    }

    /// A value of another type than the column's cannot come out of `audit_proto::columns`.
    fn push(&mut self, content: Content<'_>) {
        match (self, content) {
            (Self::Int(b), Content::Int(v)) => b.append_value(v),
            (Self::Time(b), Content::Int(v)) => b.append_value(v),
            (Self::Bool(b), Content::Bool(v)) => b.append_value(v),
            (Self::Text(b), Content::Text(v)) => b.append_value(v),
            (Self::List(b), Content::Item(v)) => b.values().append_value(v),
            (_, content) => debug_assert!(false, "column type does not fit {content:?}"),
        }
    }

    /// After the items of a row's list.
    fn end_list(&mut self) {
        if let Self::List(b) = self {
            b.append(true);
        }
    }

    fn finish(mut self, rows: usize) -> ArrayRef {
        self.pad_to(rows);
        let mut array: ArrayRef = match self {
            Self::Int(mut b) => Arc::new(b.finish()),
            Self::Time(mut b) => Arc::new(b.finish()),
            Self::Bool(mut b) => Arc::new(b.finish()),
            Self::Text(mut b) => Arc::new(b.finish()),
            Self::List(mut b) => Arc::new(b.finish()),
        };
        array.shrink_to_fit();
        array
    }
}

/// Builds columns from events.
pub struct RowsBuilder {
    builders: Vec<Option<Builder>>,
    rows: usize,
    capacity: usize,
}

impl RowsBuilder {
    pub fn new(capacity: usize) -> Self {
        Self {
            builders: COLUMNS.iter().map(|_| None).collect(),
            rows: 0,
            capacity,
        }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Encoded events, up to the first that is none.
    pub fn push_encoded<'a>(
        &mut self,
        events: impl Iterator<Item = &'a [u8]>,
    ) -> Result<(), NotDecoded> {
        let mut cells = Vec::new();
        for (at, encoded) in events.enumerate() {
            if columns::cells(encoded, &mut cells).is_some() {
                self.push_cells(&cells);
                continue;
            }
            match Event::decode(encoded) {
                Ok(event) => self.push(&event),
                Err(source) => return Err(NotDecoded { at, source }),
            }
        }
        Ok(())
    }

    pub fn push(&mut self, event: &Event) {
        for column in 0..COLUMNS.len() {
            let mut is_list = false;
            event.each(column, |content| {
                is_list = matches!(content, Content::Item(_));
                self.builder(column).push(content);
            });
            if is_list {
                self.builder(column).end_list();
            }
        }
        self.rows += 1;
    }

    fn push_cells(&mut self, cells: &[Cell<'_>]) {
        for (at, cell) in cells.iter().enumerate() {
            let builder = self.builder(cell.column);
            builder.push(cell.content);
            let next = cells.get(at + 1);
            if matches!(cell.content, Content::Item(_))
                && next.is_none_or(|next| next.column != cell.column)
            {
                builder.end_list();
            }
        }
        self.rows += 1;
    }

    /// Of a column, with nothing where earlier rows have nothing.
    fn builder(&mut self, column: usize) -> &mut Builder {
        let builder = self.builders[column]
            .get_or_insert_with(|| Builder::new(COLUMNS[column].ty, self.capacity));
        builder.pad_to(self.rows);
        builder
    }

    pub fn finish(self) -> Columns {
        let rows = self.rows;
        self.builders
            .into_iter()
            .map(|builder| builder.map(|b| b.finish(rows)))
            .collect()
    }
}

/// The same columns of consecutive parts, as one.
pub fn concat_columns(parts: &[(&Columns, usize)]) -> Result<Columns, ArrowError> {
    (0..COLUMNS.len())
        .map(|at| {
            let Some(ty) = parts
                .iter()
                .find_map(|(c, _)| Some(c[at].as_ref()?.data_type().clone()))
            else {
                return Ok(None);
            };
            let arrays: Vec<ArrayRef> = parts
                .iter()
                .map(|(c, rows)| c[at].clone().unwrap_or_else(|| new_null_array(&ty, *rows)))
                .collect();
            let refs: Vec<&dyn Array> = arrays.iter().map(AsRef::as_ref).collect();
            concat(&refs).map(Some)
        })
        .collect()
}

/// A column that does not hold what the schema says.
#[derive(Debug, thiserror::Error)]
#[error("column {column} holds a value of type {found} that is not an event's")]
pub struct NotAnEvent {
    column: &'static str,
    found: DataType,
}

/// Rebuilds the events `rows` of some columns; `columns[i]` belongs to `COLUMNS[i]`.
pub fn events(columns: &[Option<ArrayRef>], rows: &[usize]) -> Result<Vec<Event>, NotAnEvent> {
    let mut events: Vec<Event> = rows.iter().map(|_| Event::default()).collect();
    for (at, array) in columns.iter().take(COLUMNS.len()).enumerate() {
        let Some(array) = array else { continue };
        let cell = reader(array).ok_or_else(|| not_an_event(at, array))?;
        for (event, &row) in events.iter_mut().zip(rows) {
            if array.is_null(row) {
                continue;
            }
            columns::set(event, at, cell(row)).ok_or_else(|| not_an_event(at, array))?;
        }
    }
    Ok(events)
}

impl NotAnEvent {
    fn new(column: &'static str, array: &ArrayRef) -> Self {
        Self {
            column,
            found: array.data_type().clone(),
        }
    }
}

fn not_an_event(at: usize, array: &ArrayRef) -> NotAnEvent {
    NotAnEvent::new(COLUMNS[at].name, array)
}

type CellReader<'a> = Box<dyn Fn(usize) -> OwnedValue + 'a>;

fn reader(array: &ArrayRef) -> Option<CellReader<'_>> {
    Some(match array.data_type() {
        DataType::Int64 => {
            let values = array.as_primitive::<Int64Type>();
            Box::new(|row| OwnedValue::Int(values.value(row)))
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            let values = array.as_primitive::<TimestampMicrosecondType>();
            Box::new(|row| OwnedValue::Int(values.value(row)))
        }
        DataType::Boolean => {
            let values = array.as_boolean();
            Box::new(|row| OwnedValue::Bool(values.value(row)))
        }
        DataType::Utf8 => {
            let values = array.as_string::<i32>();
            Box::new(|row| OwnedValue::Text(values.value(row).to_owned()))
        }
        DataType::Utf8View => {
            let values = array.as_string_view();
            Box::new(|row| OwnedValue::Text(values.value(row).to_owned()))
        }
        DataType::List(_) => {
            let lists = array.as_list::<i32>();
            let values = lists.values().as_string_opt::<i32>()?;
            Box::new(|row| {
                let offsets = lists.value_offsets();
                let items = offsets[row] as usize..offsets[row + 1] as usize;
                OwnedValue::TextList(items.map(|i| values.value(i).to_owned()).collect())
            })
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use audit_proto::v1::{Class, Kind, Lost, Process, Socket};

    fn samples() -> Vec<Event> {
        let plain = Event {
            id: "a-1".into(),
            time: 1_700_000_000_000_001,
            kind: Kind::Exec.into(),
            class: Class::Process.into(),
            process: Some(Process {
                pid: Some(7),
                argv: vec!["sh".into(), String::new(), "-c".into()],
                loginuid: Some(-1),
                exe_deleted: Some(false),
                ..Process::default()
            }),
            ..Event::default()
        };
        let later = Event {
            id: "a-2".into(),
            kind: 4711,
            socket: Some(Socket {
                peer: Some(audit_proto::v1::Endpoint {
                    address: "::1".into(),
                    port: Some(0),
                    ..Default::default()
                }),
                ..Socket::default()
            }),
            ..Event::default()
        };
        let lost = Event {
            lost: Some(Lost {
                class: Class::File.into(),
                count: Some(i64::MAX),
                ..Lost::default()
            }),
            ..Event::default()
        };
        (0..100)
            .map(|i| [&plain, &later, &lost][i % 3].clone())
            .collect()
    }

    #[test]
    fn what_is_not_an_event_is_refused_with_its_place() {
        let event = samples()[0].encode_to_vec();
        let mut builder = RowsBuilder::new(2);
        let pushed = builder.push_encoded([&event[..], &event[1..]].into_iter());
        let refused = pushed.expect_err("not an event");
        assert_eq!(refused.at, 1);
        assert_eq!(builder.rows(), 1);
    }

    #[test]
    fn events_come_back_from_columns_and_from_joined_columns() {
        let events_in = samples();
        let mut builder = RowsBuilder::new(8);
        let encoded: Vec<Vec<u8>> = events_in.iter().map(Event::encode_to_vec).collect();
        let pushed = builder.push_encoded(encoded.iter().map(Vec::as_slice));
        pushed.expect("encoded events");
        let columns = builder.finish();
        let rows: Vec<usize> = (0..events_in.len()).collect();
        assert_eq!(events(&columns, &rows).expect("events"), events_in);
        let absent = columns::index("exit_code").expect("a column");
        assert!(columns[absent].is_none(), "no event has an exit code");

        let mut single = RowsBuilder::new(1);
        single.push(&events_in[0]);
        let single = single.finish();
        let joined = concat_columns(&[(&single, 1), (&columns, 100)]).expect("joins");
        let back = events(&joined, &[0, 1, 100]).expect("events");
        assert_eq!(
            back,
            [
                events_in[0].clone(),
                events_in[0].clone(),
                events_in[99].clone()
            ]
        );
    }
}
