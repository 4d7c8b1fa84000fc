use proptest::prelude::*;
use prost::Message as _;

use super::{
    super::{COLUMNS, ColumnType, OwnedValue, PARTS, Row, at, set},
    part, split,
};
use crate::v1::Event;

/// Everything in each column.
fn told(row: &impl Row) -> Vec<Vec<String>> {
    let of_column = |column| {
        let mut contents = Vec::new();
        row.each(column, |content| contents.push(format!("{content:?}")));
        contents
    };
    (0..COLUMNS.len()).map(of_column).collect()
}

/// What reading says, if it says something.
fn read(encoded: &[u8]) -> Option<Vec<Vec<String>>> {
    let (mut parts, mut cells) = (Vec::new(), Vec::new());
    split(encoded, &mut parts, &mut cells)?;
    let mut all = cells.clone();
    for (at, bytes) in parts {
        part(at, bytes, &mut cells)?;
        assert!(cells.iter().all(|cell| PARTS[at].contains(&cell.column)));
        all.extend(&cells);
    }
    let mut told = vec![Vec::new(); COLUMNS.len()];
    for cell in all {
        told[cell.column].push(format!("{:?}", cell.content));
    }
    Some(told)
}

#[test]
fn each_column_is_the_events_own_or_of_one_part() {
    for (at, column) in COLUMNS.iter().enumerate() {
        let of = (0..PARTS.len()).filter(|part| PARTS[*part].contains(&at));
        assert_eq!(of.collect::<Vec<_>>(), Vec::from_iter(column.part));
    }
    assert_eq!(COLUMNS[at::ID].part, None);
    let process = COLUMNS[at::PROCESS_EXE].part;
    assert!(process.is_some() && process == COLUMNS[at::PROCESS_PID].part);
}

fn value(column: usize) -> BoxedStrategy<OwnedValue> {
    let names = COLUMNS[column].values;
    match COLUMNS[column].ty {
        // What fits into 32 bits, because some columns do not take more.
        ColumnType::Int => any::<i32>().prop_map(|v| OwnedValue::Int(v.into())).boxed(),
        ColumnType::Time => any::<i64>().prop_map(OwnedValue::Int).boxed(),
        ColumnType::Bool => any::<bool>().prop_map(OwnedValue::Bool).boxed(),
        ColumnType::Text => ".{1,9}".prop_map(OwnedValue::Text).boxed(),
        ColumnType::TextList => proptest::collection::vec(".{0,5}", 1..5)
            .prop_map(OwnedValue::TextList)
            .boxed(),
        ColumnType::Enum => proptest::sample::select(names)
            .prop_map(|name| OwnedValue::Text(name.to_owned()))
            .boxed(),
    }
}

fn event() -> impl Strategy<Value = Event> {
    let cell = (0..COLUMNS.len()).prop_flat_map(|column| (Just(column), value(column)));
    proptest::collection::vec(cell, 0..40).prop_map(|cells| {
        let mut event = Event::default();
        for (column, value) in cells {
            set(&mut event, column, value).expect("of the column's type");
        }
        event
    })
}

proptest! {
    #[test]
    fn the_cells_of_what_encoders_write_are_those_of_the_decoded_event(event in event()) {
        prop_assert_eq!(read(&event.encode_to_vec()), Some(told(&event)));
    }

    #[test]
    fn of_other_bytes_there_is_the_same_answer_or_none(
        event in event(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        twice in any::<bool>(),
    ) {
        let mut bytes = event.encode_to_vec();
        if twice {
            bytes.extend(bytes.clone());
        }
        for (at, byte) in changes {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
        }
        if let Some(found) = read(&bytes) {
            let event = Event::decode(&bytes[..]);
            let event = event.map_err(|error| TestCaseError::fail(error.to_string()))?;
            prop_assert_eq!(found, told(&event));
        }
    }
}

#[test]
fn each_column_has_a_cell() {
    for (column, about) in COLUMNS.iter().enumerate() {
        let value = match about.ty {
            ColumnType::Int | ColumnType::Time => OwnedValue::Int(-7),
            ColumnType::Bool => OwnedValue::Bool(false),
            ColumnType::Text => OwnedValue::Text("text".to_owned()),
            ColumnType::TextList => OwnedValue::TextList(vec![String::new(), "b".to_owned()]),
            ColumnType::Enum => OwnedValue::Text(about.values[0].to_owned()),
        };
        let mut event = Event::default();
        set(&mut event, column, value).expect("of the column's type");
        let found = read(&event.encode_to_vec()).expect("as encoders write it");
        assert!(!found[column].is_empty(), "{}", about.name);
        assert_eq!(found, told(&event), "{}", about.name);
    }
}

#[test]
fn a_field_that_comes_twice_or_is_not_known_is_left_to_decoding() {
    let event = Event {
        id: "a".to_owned(),
        ..Event::default()
    };
    let once = event.encode_to_vec();
    assert!(read(&once).is_some());
    assert!(read(&once.repeat(2)).is_none());
    let unknown = [&once[..], &[0xf8, 0x7f, 1]].concat();
    assert!(Event::decode(&unknown[..]).is_ok());
    assert!(read(&unknown).is_none());
    let named = Event {
        kind: 4711,
        ..event
    };
    assert!(read(&named.encode_to_vec()).is_none());
    assert_eq!(told(&named)[at::KIND], ["Text(\"4711\")"]);
}
