//! The event as a flat row: which columns there are, how to read one and how to set one.
//! Of an encoded event they are read without decoding it ([`split`], [`part`]), and written in [`STEPS`].
//!
//! Invariant: for an event without empty sub-messages, setting every column that [`get`] returns
//! on a default event gives the same event, so its encoding too (the fuzz target `deliver`).

mod cells;
mod row;
mod steps;

use std::{borrow::Cow, ops::Range};

pub use cells::{Cell, Content, part, split};
pub use row::Row;
pub use steps::{Form, STEPS, Step};

use crate::v1::Event;

/// One leaf of `Event`.
#[derive(Debug)]
pub struct Column {
    /// The proto path joined by underscores: `process_exec_id`.
    pub name: &'static str,
    pub ty: ColumnType,
    /// Of which of [`PARTS`]; `None` for the event's own.
    pub part: Option<usize>,
    /// Of an enum, the names that there are.
    pub values: &'static [&'static str],
    /// The comment in the proto file.
    pub doc: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnType {
    /// 64-bit signed.
    Int,
    /// Microseconds since the Unix epoch, UTC.
    Time,
    Bool,
    Text,
    TextList,
    /// A number on the wire, its lower-case name in a row.
    Enum,
}

/// A borrowed cell.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    Int(i64),
    Bool(bool),
    Text(Cow<'a, str>),
    TextList(&'a [String]),
}

/// A cell on its way into an event.
#[derive(Debug, Clone, PartialEq)]
pub enum OwnedValue {
    Int(i64),
    Bool(bool),
    Text(String),
    TextList(Vec<String>),
}

impl Value<'_> {
    pub fn into_owned(self) -> OwnedValue {
        match self {
            Value::Int(v) => OwnedValue::Int(v),
            Value::Bool(v) => OwnedValue::Bool(v),
            Value::Text(v) => OwnedValue::Text(v.into_owned()),
            Value::TextList(v) => OwnedValue::TextList(v.to_vec()),
        }
    }
}

/// Position of the column called `name`.
pub fn index(name: &str) -> Option<usize> {
    COLUMNS.iter().position(|c| c.name == name)
}

/// The columns that `name` stands for: that column, or all those of that object ("process",
/// "socket_peer").
pub fn select(name: &str) -> Option<Vec<usize>> {
    if let Some(at) = index(name) {
        return Some(vec![at]);
    }
    let below = |column: &Column| {
        let rest = column.name.strip_prefix(name)?;
        rest.strip_prefix('_')
    };
    let of_object = |at: &usize| below(&COLUMNS[*at]).is_some();
    OBJECTS
        .contains(&name)
        .then(|| (0..COLUMNS.len()).filter(of_object).collect())
}

fn text(value: &str) -> Option<Cow<'_, str>> {
    (!value.is_empty()).then_some(Cow::Borrowed(value))
}

fn list(value: &[String]) -> Option<&[String]> {
    (!value.is_empty()).then_some(value)
}

include!(concat!(env!("OUT_DIR"), "/columns.rs"));

#[cfg(test)]
mod tests {
    use super::*;

    fn names(name: &str) -> Option<Vec<&'static str>> {
        let columns = select(name)?;
        Some(columns.into_iter().map(|at| COLUMNS[at].name).collect())
    }

    #[test]
    fn a_name_stands_for_a_column_or_for_all_of_an_object() {
        assert_eq!(names("process_exe"), Some(vec!["process_exe"]));
        let peer = names("socket_peer").expect("an object");
        assert_eq!(
            peer,
            [
                "socket_peer_address",
                "socket_peer_port",
                "socket_peer_name"
            ]
        );
        assert_eq!(names("process_effective"), None, "a part of a name is none");
        assert_eq!(names("process.exe"), None);
    }

    #[test]
    fn an_object_is_not_named_like_a_column_nor_like_the_beginning_of_anothers() {
        for object in OBJECTS {
            assert!(index(object).is_none(), "{object} is a column too");
            let columns = names(object).expect("an object");
            assert!(!columns.is_empty(), "{object}");
        }
    }

    #[test]
    fn an_enum_lists_its_names() {
        let kind = &COLUMNS[index("kind").expect("a column")];
        assert!(kind.values.contains(&"exec_failed"), "{:?}", kind.values);
        assert!(COLUMNS[0].values.is_empty());
    }
}
