//! What has columns? An event, and whatever else holds one; who only reads columns takes any.

use super::{Content, Value, get};
use crate::v1::Event;

pub trait Row {
    /// Gives what is in a column: nothing, a value, or the items of a list in order.
    fn each(&self, column: usize, sink: impl FnMut(Content<'_>));

    /// Rows that are read one after the other and give the same number have the same in all columns of that
    /// one of [`super::PARTS`]. `None`: nothing is known about it.
    fn same(&self, part: usize) -> Option<u32> {
        let _ = part;
        None
    }

    fn has(&self, column: usize) -> bool {
        let mut found = false;
        self.each(column, |_| found = true);
        found
    }
}

impl Row for Event {
    fn each(&self, column: usize, mut sink: impl FnMut(Content<'_>)) {
        match get(self, column) {
            Some(Value::Int(value)) => sink(Content::Int(value)),
            Some(Value::Bool(value)) => sink(Content::Bool(value)),
            Some(Value::Text(text)) => sink(Content::Text(&text)),
            Some(Value::TextList(items)) => items.iter().for_each(|item| sink(Content::Item(item))),
            None => {}
        }
    }
}
