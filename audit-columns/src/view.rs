//! Rows one by one, for whoever looks into each: without making an event or an array of it.

use arrow::{
    array::{Array as _, UInt32Array},
    buffer::NullBuffer,
};
use audit_proto::columns::{COLUMNS, Content, PARTS, Row};

use super::{
    Rows,
    values::{Values, values},
};

/// One row of some rows; which one can be changed.
pub struct View<'a> {
    columns: Vec<Option<Column<'a>>>,
    parts: Vec<Option<&'a UInt32Array>>,
    row: usize,
}

struct Column<'a> {
    nulls: Option<&'a NullBuffer>,
    values: Values<'a>,
}

impl<'a> View<'a> {
    /// Of the first row, if there is one.
    pub fn new(rows: &'a Rows) -> Self {
        let column = |at| {
            let array = rows.values(at)?;
            Some(Column {
                nulls: array.nulls(),
                values: values(array)?,
            })
        };
        Self {
            columns: (0..COLUMNS.len()).map(column).collect(),
            parts: (0..PARTS.len()).map(|part| rows.keys(part)).collect(),
            row: 0,
        }
    }

    pub fn set_row(&mut self, row: usize) {
        self.row = row;
    }
}

impl Row for View<'_> {
    fn each(&self, column: usize, mut sink: impl FnMut(Content<'_>)) {
        let Some(found) = &self.columns[column] else {
            return;
        };
        let at = match COLUMNS[column].part {
            Some(part) => match self.same(part) {
                Some(key) => key as usize,
                None => return,
            },
            None => self.row,
        };
        if found.nulls.is_some_and(|nulls| nulls.is_null(at)) {
            return;
        }
        match &found.values {
            Values::Int(values) => sink(Content::Int(values[at])),
            Values::Bool(values) => sink(Content::Bool(values.value(at))),
            Values::Text(values) => sink(Content::Text(values.value(at))),
            Values::Keyed(keys, values) => sink(Content::Text(values.value(keys[at] as usize))),
            Values::List(offsets, values) => {
                for item in offsets[at]..offsets[at + 1] {
                    sink(Content::Item(values.value(item as usize)));
                }
            }
        }
    }

    /// A row without the part has nothing in common with others either: it has none of its columns.
    fn same(&self, part: usize) -> Option<u32> {
        let keys = self.parts[part]?;
        keys.is_valid(self.row).then(|| keys.value(self.row))
    }
}
