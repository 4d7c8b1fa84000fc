//! Events as columns and back: the only place that knows both forms.
//!
//! Invariant: [`events`] of what [`RowsBuilder`] built gives the same events, for events without
//! empty sub-messages (`audit_proto::columns`); compaction proves it for each batch.
//!
//! There is no code per event kind or field: columns derive from `audit_proto::columns::COLUMNS`.

mod builder;
mod encode;
mod rows;
mod values;
mod view;

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray},
    datatypes::{
        DataType, Field, Int64Type, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType,
    },
};
use audit_proto::{
    columns::{self, COLUMNS, ColumnType, OwnedValue},
    v1::Event,
};

pub use builder::{NotDecoded, RowsBuilder};
pub use encode::encode;
pub use rows::Rows;
pub use view::View;

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

/// The same columns with text as numbers of texts, as files have them too, for whoever reads every row: but
/// for `id`, of which each is another.
pub fn keyed(schema: &Schema) -> SchemaRef {
    let keyed = |field: &Arc<Field>| match field.data_type() {
        DataType::Utf8 if field.name() != COLUMNS[columns::at::ID].name => {
            let ty = DataType::Dictionary(DataType::Int32.into(), DataType::Utf8.into());
            Arc::new(field.as_ref().clone().with_data_type(ty))
        }
        _ => field.clone(),
    };
    let fields: Vec<Arc<Field>> = schema.fields().iter().map(keyed).collect();
    Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()))
}

/// A column that does not hold what the schema says.
#[derive(Debug, thiserror::Error)]
#[error("column {column} holds a value of type {found} that is not an event's")]
pub struct NotAnEvent {
    column: &'static str,
    found: DataType,
}

/// Rebuilds the events of so many rows; `columns[i]` belongs to `COLUMNS[i]`.
pub fn events(columns: &[Option<ArrayRef>], rows: usize) -> Result<Vec<Event>, NotAnEvent> {
    let mut events = vec![Event::default(); rows];
    for (at, array) in columns.iter().take(COLUMNS.len()).enumerate() {
        if let Some(array) = array {
            fill(&mut events, at, array, (0..rows).map(Some))?;
        }
    }
    Ok(events)
}

/// Sets column `at` of some events; where in `array` each one's value is, or that it has none.
fn fill(
    events: &mut [Event],
    at: usize,
    array: &ArrayRef,
    places: impl Iterator<Item = Option<usize>>,
) -> Result<(), NotAnEvent> {
    let cell = reader(array).ok_or_else(|| not_an_event(at, array))?;
    for (event, place) in events.iter_mut().zip(places) {
        if let Some(place) = place.filter(|place| array.is_valid(*place)) {
            columns::set(event, at, cell(place)).ok_or_else(|| not_an_event(at, array))?;
        }
    }
    Ok(())
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
    use audit_proto::{
        Message as _,
        v1::{Class, Kind, Lost, Process, Socket},
    };

    use super::*;

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

    /// Its host is read before it shows that it has to be decoded.
    #[test]
    fn an_event_with_a_part_in_another_form_is_whole_and_spoils_no_other() {
        let host = Some(audit_proto::v1::Host {
            name: "a".into(),
            ..Default::default()
        });
        let of_later_version = Event {
            host: host.clone(),
            lost: Some(Lost {
                class: 4711,
                ..Lost::default()
            }),
            ..Event::default()
        };
        let plain = Event {
            host,
            ..Event::default()
        };
        let events_in = [of_later_version, plain];
        let encoded: Vec<Vec<u8>> = events_in.iter().map(Event::encode_to_vec).collect();
        let mut builder = RowsBuilder::new(2);
        let pushed = builder.push_encoded(encoded.iter().map(Vec::as_slice));
        pushed.expect("encoded events");
        let rows = builder.finish();
        let events = rows.events(&[0, 1], |_| true).expect("events");
        assert_eq!(events, events_in);
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
        let all = |_| true;
        assert_eq!(columns.events(&rows, all).expect("events"), events_in);
        let absent = columns::index("exit_code").expect("a column");
        assert!(!columns.has(absent), "no event has an exit code");
        let argv = columns::index("process_argv").expect("a column");
        let argv = columns.values(argv).expect("some have one");
        assert_eq!(argv.len(), 1, "a part that comes again is there once");

        let mut single = RowsBuilder::new(1);
        single.push(&events_in[0]);
        let single = single.finish();
        let joined = Rows::join(&[&single, &columns, &single]).expect("joins");
        let back = joined.events(&[0, 1, 100, 101], all).expect("events");
        let first = &events_in[0];
        assert_eq!(
            back,
            [first, first, &events_in[99], first].map(Event::clone)
        );
        let pids = columns::index("process_pid").expect("a column");
        let pids = joined.array(pids, 1..4, &DataType::Int64).expect("of rows");
        let pids = pids.expect("some have one");
        let pids: Vec<Option<i64>> = pids.as_primitive::<Int64Type>().iter().collect();
        assert_eq!(pids, [Some(7), None, None]);
    }
}
