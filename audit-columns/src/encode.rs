//! Rows of a table file as encoded events, without making an `Event` of each: compaction does this to every
//! event, to prove that the file gives back what was sealed.
//!
//! Invariant: gives the bytes that encoding what [`super::events`] gives would.

use arrow::{
    array::{Array, ArrayRef, AsArray, BinaryArray, RecordBatch},
    buffer::NullBuffer,
};
use audit_proto::columns::{self, COLUMNS, Form, STEPS, Step};

use super::{
    NotAnEvent, RAW, not_an_event,
    values::{Values, values},
};

/// Gives the encoded event of each row of a table file, `raw` where that is kept.
pub fn encode(batch: &RecordBatch, mut sink: impl FnMut(&[u8])) -> Result<(), NotAnEvent> {
    let raw: Option<&BinaryArray> = match batch.column_by_name(RAW) {
        Some(raw) => Some(
            raw.as_binary_opt()
                .ok_or_else(|| NotAnEvent::new(RAW, raw))?,
        ),
        None => None,
    };
    let mut plan = plan(batch)?;
    let (mut bytes, mut open) = (Vec::new(), Vec::new());
    for row in 0..batch.num_rows() {
        if let Some(raw) = raw
            && raw.is_valid(row)
        {
            sink(raw.value(row));
            continue;
        }
        bytes.clear();
        for piece in &mut plan {
            piece.write(row, &mut bytes, &mut open)?;
        }
        sink(&bytes);
    }
    Ok(())
}

/// A field of the event itself, or one of its parts.
#[derive(Default)]
struct Piece<'a> {
    steps: Vec<Planned<'a>>,
    /// Of a part, the rows in which it is as in the row before; empty where that is rare.
    repeats: Vec<bool>,
    /// A part that the next row repeats, and of which row it is.
    last: (Vec<u8>, Option<usize>),
}

/// What is left to do of [`STEPS`] where most columns are empty.
enum Planned<'a> {
    Enter {
        key: u32,
    },
    Leave,
    Field {
        key: u32,
        form: Form,
        array: &'a ArrayRef,
        at: usize,
        nulls: Option<&'a NullBuffer>,
        values: Values<'a>,
    },
}

/// A message that is being written.
struct Open {
    /// Where its key and its length are.
    start: usize,
    /// Where its content begins, if the length takes one byte.
    content: usize,
    is_there: bool,
}

fn plan(batch: &RecordBatch) -> Result<Vec<Piece<'_>>, NotAnEvent> {
    let mut columns = [None; COLUMNS.len()];
    for (field, array) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        if let Some(at) = columns::index(field.name())
            && array.null_count() < array.len()
        {
            columns[at] = Some(array);
        }
    }
    let mut plan = Vec::new();
    let (mut piece, mut depth) = (Piece::default(), 0);
    for step in &STEPS {
        match *step {
            Step::Enter { key } => {
                piece.steps.push(Planned::Enter { key });
                depth += 1;
            }
            Step::Leave => {
                match piece.steps.last() {
                    Some(Planned::Enter { .. }) => drop(piece.steps.pop()),
                    _ => piece.steps.push(Planned::Leave),
                }
                depth -= 1;
            }
            Step::Field { column, key, form } => {
                if let Some(array) = columns[column] {
                    piece.steps.push(Planned::Field {
                        key,
                        form,
                        array,
                        at: column,
                        nulls: array.nulls(),
                        values: values(array).ok_or_else(|| not_an_event(column, array))?,
                    });
                }
            }
        }
        if depth == 0 && !piece.steps.is_empty() {
            let mut piece = std::mem::take(&mut piece);
            if matches!(step, Step::Leave) {
                piece.find_repeats(batch.num_rows());
            }
            plan.push(piece);
        }
    }
    Ok(plan)
}

impl Piece<'_> {
    fn find_repeats(&mut self, rows: usize) {
        let mut repeats = vec![true; rows];
        repeats[..rows.min(1)].fill(false);
        for step in &self.steps {
            let Planned::Field { values, nulls, .. } = step else {
                continue;
            };
            let here = &mut repeats[rows.min(1)..];
            values.keep_repeats(here);
            if let Some(nulls) = nulls {
                for (at, repeats) in here.iter_mut().enumerate() {
                    *repeats &= nulls.is_valid(at) == nulls.is_valid(at + 1);
                }
            }
            if here.iter().filter(|repeats| **repeats).count() < rows / 8 {
                return;
            }
        }
        self.repeats = repeats;
    }

    fn repeats(&self, row: usize) -> bool {
        self.repeats.get(row).copied().unwrap_or_default()
    }

    fn write(
        &mut self,
        row: usize,
        out: &mut Vec<u8>,
        open: &mut Vec<Open>,
    ) -> Result<(), NotAnEvent> {
        let (bytes, of_row) = &self.last;
        if self.repeats(row) && *of_row == Some(row - 1) {
            out.extend_from_slice(bytes);
            self.last.1 = Some(row);
            return Ok(());
        }
        let start = out.len();
        for step in &self.steps {
            step.write(row, out, open)?;
        }
        if self.repeats(row + 1) {
            let (bytes, of_row) = &mut self.last;
            bytes.clear();
            bytes.extend_from_slice(&out[start..]);
            *of_row = Some(row);
        }
        Ok(())
    }
}

impl Planned<'_> {
    fn write(&self, row: usize, out: &mut Vec<u8>, open: &mut Vec<Open>) -> Result<(), NotAnEvent> {
        match self {
            Self::Enter { key } => {
                let start = out.len();
                varint((*key).into(), out);
                out.push(0);
                open.push(Open {
                    start,
                    content: out.len(),
                    is_there: false,
                });
            }
            Self::Leave => {
                if let Some(message) = open.pop() {
                    message.end(out);
                    if let Some(around) = open.last_mut() {
                        around.is_there |= message.is_there;
                    }
                }
            }
            Self::Field {
                key,
                form,
                array,
                at,
                nulls,
                values,
            } => {
                if nulls.is_some_and(|nulls| nulls.is_null(row)) {
                    return Ok(());
                }
                if let Some(message) = open.last_mut() {
                    message.is_there = true;
                }
                values
                    .write(row, *key, *form, out)
                    .ok_or_else(|| not_an_event(*at, array))?;
            }
        }
        Ok(())
    }
}

impl Open {
    fn end(&self, out: &mut Vec<u8>) {
        if !self.is_there {
            out.truncate(self.start);
            return;
        }
        let length = out.len() - self.content;
        match u8::try_from(length) {
            Ok(length) if length < 0x80 => out[self.content - 1] = length,
            _ => {
                let mut header = Vec::with_capacity(10);
                varint(length as u64, &mut header);
                out.splice(self.content - 1..self.content, header);
            }
        }
    }
}

impl Values<'_> {
    /// Leaves true what is of a row (the first is the second) whose value is that of the row before.
    fn keep_repeats(&self, repeats: &mut [bool]) {
        fn of<T: PartialEq>(values: &[T], repeats: &mut [bool]) {
            for (repeats, pair) in repeats.iter_mut().zip(values.windows(2)) {
                *repeats &= pair[0] == pair[1];
            }
        }
        let mut each = |is_same: &dyn Fn(usize, usize) -> bool| {
            for (at, repeats) in repeats.iter_mut().enumerate() {
                *repeats = *repeats && is_same(at, at + 1);
            }
        };
        match self {
            Self::Int(values) => of(values, repeats),
            Self::Keyed(keys, _) => of(keys, repeats),
            Self::Bool(values) => each(&|a, b| values.value(a) == values.value(b)),
            Self::Text(values) => each(&|a, b| values.value(a) == values.value(b)),
            Self::List(offsets, values) => each(&|a, b| {
                let items = |row| (offsets[row]..offsets[row + 1]).map(|item| item as usize);
                items(a).len() == items(b).len()
                    && items(a)
                        .zip(items(b))
                        .all(|(a, b)| values.value(a) == values.value(b))
            }),
        }
    }

    /// `None`: no value of the column.
    fn write(&self, row: usize, key: u32, form: Form, out: &mut Vec<u8>) -> Option<()> {
        match (self, form) {
            (Self::Int(values), Form::Unless0) if values[row] == 0 => {}
            (Self::Int(values), _) => number(key, values[row], out),
            (Self::Bool(values), _) => number(key, values.value(row).into(), out),
            (Self::Text(values), _) => named(values.value(row), key, form, out)?,
            (Self::Keyed(keys, values), _) => {
                named(values.value(keys[row] as usize), key, form, out)?;
            }
            (Self::List(offsets, values), _) => {
                for item in offsets[row]..offsets[row + 1] {
                    text(key, values.value(item as usize), out);
                }
            }
        }
        Some(())
    }
}

/// A text, or the number that has it as its name.
fn named(value: &str, key: u32, form: Form, out: &mut Vec<u8>) -> Option<()> {
    match form {
        Form::Enum(of_name) => number(key, of_name(value)?.into(), out),
        _ if value.is_empty() => {}
        _ => text(key, value, out),
    }
    Some(())
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn number(key: u32, value: i64, out: &mut Vec<u8>) {
    varint(key.into(), out);
    varint(value as u64, out);
}

fn text(key: u32, value: &str, out: &mut Vec<u8>) {
    varint(key.into(), out);
    varint(value.len() as u64, out);
    out.extend_from_slice(value.as_bytes());
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::{
        array::{BinaryBuilder, Int64Array, StringArray},
        compute::cast,
    };
    use audit_proto::{
        Message as _,
        columns::{ColumnType, OwnedValue},
        v1::Event,
    };
    use proptest::prelude::*;

    use super::*;
    use crate::{RowsBuilder, file_schema};

    /// With the columns that the events have.
    fn table(events: &[Event], raw: &[Option<&[u8]>]) -> RecordBatch {
        let mut builder = RowsBuilder::new(events.len());
        events.iter().for_each(|event| builder.push(event));
        let mut kept = BinaryBuilder::new();
        raw.iter().for_each(|bytes| kept.append_option(*bytes));
        let positions = Int64Array::from_iter_values(0..events.len() as i64);
        let rows = builder.finish();
        let schema = file_schema();
        let array = |at| {
            let ty = schema.field(at).data_type();
            rows.array(at, 0..rows.len(), ty).expect("of its type")
        };
        let mut all: Vec<Option<ArrayRef>> = (0..COLUMNS.len()).map(array).collect();
        all.push(Some(Arc::new(positions)));
        all.push(Some(Arc::new(kept.finish())));
        let there: Vec<usize> = (0..all.len()).filter(|at| all[*at].is_some()).collect();
        let schema = schema.project(&there).expect("of the schema");
        let arrays = all.into_iter().flatten().collect();
        RecordBatch::try_new(Arc::new(schema), arrays).expect("as the schema says")
    }

    /// As files are read.
    fn keyed(table: &RecordBatch) -> RecordBatch {
        let schema = crate::keyed(&table.schema());
        let columns = table.columns().iter().zip(schema.fields());
        let columns = columns.map(|(array, field)| cast(array, field.data_type()).expect("casts"));
        RecordBatch::try_new(schema.clone(), columns.collect()).expect("as the schema says")
    }

    fn encoded(table: &RecordBatch) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        encode(table, |event| found.push(event.to_vec())).expect("events");
        found
    }

    fn value(column: usize, number: i32) -> OwnedValue {
        let text = |length: i32| "ä".repeat(length.rem_euclid(200) as usize + 1);
        let names = COLUMNS[column].values;
        match COLUMNS[column].ty {
            ColumnType::Int | ColumnType::Time => OwnedValue::Int(number.into()),
            ColumnType::Bool => OwnedValue::Bool(number % 2 == 0),
            ColumnType::Text => OwnedValue::Text(text(number)),
            ColumnType::TextList => {
                OwnedValue::TextList(vec![String::new(), text(number), "b".to_owned()])
            }
            ColumnType::Enum if number % 5 == 0 => {
                OwnedValue::Text(number.abs().max(1000).to_string())
            }
            ColumnType::Enum => {
                OwnedValue::Text(names[number.unsigned_abs() as usize % names.len()].to_owned())
            }
        }
    }

    fn event() -> impl Strategy<Value = Event> {
        let number = prop_oneof![Just(0), any::<i32>()];
        proptest::collection::vec((0..COLUMNS.len(), number), 0..40).prop_map(|cells| {
            let mut event = Event::default();
            for (column, number) in cells {
                columns::set(&mut event, column, value(column, number)).expect("of its type");
            }
            event
        })
    }

    proptest! {
        #[test]
        fn rows_encode_as_the_events_they_are_of(events in proptest::collection::vec(event(), 1..5)) {
            let table = table(&events, &vec![None; events.len()]);
            let expected: Vec<Vec<u8>> = events.iter().map(Event::encode_to_vec).collect();
            prop_assert_eq!(encoded(&table), expected.clone());
            prop_assert_eq!(encoded(&keyed(&table)), expected);
        }
    }

    proptest! {
        #[test]
        fn parts_that_repeat_are_written_in_each_row(
            distinct in proptest::collection::vec(event(), 3),
            runs in proptest::collection::vec((0..3usize, 0..3usize, 1..5usize), 1..12),
            raw_at in 0..20usize,
        ) {
            let rows = runs.iter().flat_map(|(own, process, length)| {
                let event = Event {
                    process: distinct[*process].process.clone(),
                    ..distinct[*own].clone()
                };
                vec![event; *length]
            });
            let rows: Vec<Event> = rows.collect();
            let mut expected: Vec<Vec<u8>> = rows.iter().map(Event::encode_to_vec).collect();
            let mut raw = vec![None; rows.len()];
            if let Some(bytes) = expected.get_mut(raw_at) {
                *bytes = b"as it was".to_vec();
                raw[raw_at] = Some(&b"as it was"[..]);
            }
            let table = table(&rows, &raw);
            prop_assert_eq!(encoded(&table), expected.clone());
            prop_assert_eq!(encoded(&keyed(&table)), expected);
        }
    }

    #[test]
    fn original_bytes_come_before_columns() {
        let events = [Event::default(), Event::default()];
        let table = table(&events, &[None, Some(b"as it was")]);
        assert_eq!(encoded(&table), [&b""[..], b"as it was"]);
    }

    #[test]
    fn a_name_without_a_number_is_told_with_its_column() {
        let event = Event {
            kind: 2,
            ..Event::default()
        };
        let table = table(&[event], &[None]);
        let kind = table.schema().index_of("kind").expect("a column");
        let mut arrays = table.columns().to_vec();
        arrays[kind] = Arc::new(StringArray::from(vec!["nonsense"]));
        let table = RecordBatch::try_new(table.schema(), arrays).expect("as the schema says");
        let error = encode(&table, |_| {}).expect_err("no kind");
        assert!(error.to_string().contains("kind"), "{error}");
    }
}
