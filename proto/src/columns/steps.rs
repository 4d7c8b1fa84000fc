//! In which steps is a row encoded as an event? So that columns can be written as events without making an
//! `Event` of each.

use super::*;

/// One step; a message whose columns are all absent is left out.
#[derive(Debug, Clone, Copy)]
pub enum Step {
    /// The fields up to the [`Step::Leave`] that belongs to it are a message of their own.
    Enter {
        key: u32,
    },
    Leave,
    /// `key` is the field's number and form, as on the wire; a list has one field per item.
    Field {
        column: usize,
        key: u32,
        form: Form,
    },
}

/// How a value that is there is written.
#[derive(Debug, Clone, Copy)]
pub enum Form {
    Always,
    /// A number that is left out where it is 0.
    Unless0,
    /// By the number of its name.
    Enum(fn(&str) -> Option<i32>),
}

include!(concat!(env!("OUT_DIR"), "/steps.rs"));
