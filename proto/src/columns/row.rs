//! What has columns? An event, and the cells of an encoded one; whoever only reads columns takes either.

use super::{COLUMNS, Cell, Content, Value, cells, get};
use crate::v1::Event;

pub trait Row {
    /// Gives what is in a column: nothing, a value, or the items of a list in order.
    fn each(&self, column: usize, sink: impl FnMut(Content<'_>));

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

/// The cells of one encoded event after the other, by column.
#[derive(Debug)]
pub struct Cells<'a> {
    all: Vec<Cell<'a>>,
    /// Of each column, the place of its first cell in `all`; of others, anything.
    first: [usize; COLUMNS.len()],
}

impl Default for Cells<'_> {
    fn default() -> Self {
        Self {
            all: Vec::new(),
            first: [0; COLUMNS.len()],
        }
    }
}

impl<'a> Cells<'a> {
    /// Those of this event, as [`cells()`]. After `None` there are none.
    pub fn read(&mut self, encoded: &'a [u8]) -> Option<()> {
        if cells(encoded, &mut self.all).is_none() {
            self.all.clear();
            return None;
        }
        for (at, cell) in self.all.iter().enumerate().rev() {
            self.first[cell.column] = at;
        }
        Some(())
    }
}

impl Row for Cells<'_> {
    fn each(&self, column: usize, mut sink: impl FnMut(Content<'_>)) {
        let from = self.all.get(self.first[column]..).unwrap_or_default();
        let of_column = from.iter().take_while(|cell| cell.column == column);
        of_column.for_each(|cell| sink(cell.content));
    }
}
