//! The event as a flat row: which columns there are, how to read one and how to set one.
//!
//! Invariant: for an event without empty sub-messages, setting every column that [`get`] returns
//! on a default event gives the same event, so its encoding too (tests/columns.rs).

use std::borrow::Cow;

use crate::v1::Event;

/// One leaf of `Event`.
#[derive(Debug)]
pub struct Column {
    /// The proto path joined by underscores: `process_exec_id`.
    pub name: &'static str,
    pub ty: ColumnType,
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

fn text(value: &str) -> Option<Cow<'_, str>> {
    (!value.is_empty()).then_some(Cow::Borrowed(value))
}

fn list(value: &[String]) -> Option<&[String]> {
    (!value.is_empty()).then_some(value)
}

include!(concat!(env!("OUT_DIR"), "/columns.rs"));
