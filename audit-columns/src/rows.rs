//! Some events as columns in memory: by row what each has of its own, and once for all rows that share it
//! each of its parts (`audit_proto::columns::PARTS`), with a number in the rows that says which.

use std::ops::Range;

use arrow::{
    array::{Array, ArrayRef, UInt32Array, UInt32Builder, new_null_array},
    compute::{cast, concat, take},
    datatypes::DataType,
    error::ArrowError,
};
use audit_proto::{
    columns::{COLUMNS, PARTS},
    v1::Event,
};

use super::{NotAnEvent, fill};

#[derive(Debug)]
pub struct Rows {
    len: usize,
    /// By column; `None` where no event has a value, which is most columns of most batches.
    values: Vec<Option<ArrayRef>>,
    /// By part; `None` where no event has it, and then its columns have no values.
    keys: Vec<Option<Keys>>,
}

/// Which of a part's values the rows have.
#[derive(Debug)]
pub(crate) struct Keys {
    pub of_rows: UInt32Array,
    /// How many values each of the part's columns has.
    pub entries: usize,
}

impl Rows {
    pub(crate) fn new(len: usize, values: Vec<Option<ArrayRef>>, keys: Vec<Option<Keys>>) -> Self {
        Self { len, values, keys }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether an event has a value in this column.
    pub fn has(&self, column: usize) -> bool {
        self.values[column].is_some()
    }

    /// What there is in a column, in no order and less often than rows have it.
    pub fn values(&self, column: usize) -> Option<&ArrayRef> {
        self.values[column].as_ref()
    }

    pub(crate) fn keys(&self, part: usize) -> Option<&UInt32Array> {
        self.keys[part].as_ref().map(|keys| &keys.of_rows)
    }

    /// A column of some rows as an array of type `ty`; `None` where no event has a value.
    pub fn array(
        &self,
        column: usize,
        rows: Range<usize>,
        ty: &DataType,
    ) -> Result<Option<ArrayRef>, ArrowError> {
        let Some(values) = &self.values[column] else {
            return Ok(None);
        };
        let values = match values.data_type() == ty {
            true => values.clone(),
            false => cast(values, ty)?,
        };
        let keys = COLUMNS[column].part.and_then(|part| self.keys(part));
        Ok(Some(match keys {
            Some(keys) => take(&values, &keys.slice(rows.start, rows.len()), None)?,
            None => values.slice(rows.start, rows.len()),
        }))
    }

    /// The events of some rows, with the columns that are wanted.
    pub fn events(
        &self,
        rows: &[usize],
        wanted: impl Fn(usize) -> bool,
    ) -> Result<Vec<Event>, NotAnEvent> {
        let mut events = vec![Event::default(); rows.len()];
        for (at, values) in self.values.iter().enumerate() {
            let Some(values) = values.as_ref().filter(|_| wanted(at)) else {
                continue;
            };
            let places = rows.iter().copied();
            match COLUMNS[at].part.and_then(|part| self.keys(part)) {
                Some(keys) => {
                    let key = |row| keys.is_valid(row).then(|| keys.value(row) as usize);
                    fill(&mut events, at, values, places.map(key))?;
                }
                None => fill(&mut events, at, values, places.map(Some))?,
            }
        }
        Ok(events)
    }

    /// One after the other.
    pub fn join(all: &[&Self]) -> Result<Self, ArrowError> {
        let mut values = Vec::with_capacity(COLUMNS.len());
        for (at, column) in COLUMNS.iter().enumerate() {
            let arrays = all.iter().map(|rows| {
                let length = match column.part {
                    Some(part) => rows.keys[part].as_ref().map_or(0, |keys| keys.entries),
                    None => rows.len,
                };
                (rows.values[at].as_ref(), length)
            });
            values.push(joined(arrays)?);
        }
        Ok(Self {
            len: all.iter().map(|rows| rows.len).sum(),
            values,
            keys: (0..PARTS.len())
                .map(|part| joined_keys(all, part))
                .collect(),
        })
    }

    pub fn memory_bytes(&self) -> usize {
        let arrays = self.values.iter().flatten();
        let keys = self.keys.iter().flatten();
        arrays.map(Array::get_array_memory_size).sum::<usize>()
            + keys
                .map(|keys| keys.of_rows.get_array_memory_size())
                .sum::<usize>()
            + size_of_val(&self.values[..])
    }
}

/// Arrays of one column or, where one is absent, as many nulls.
fn joined<'a>(
    arrays: impl Iterator<Item = (Option<&'a ArrayRef>, usize)> + Clone,
) -> Result<Option<ArrayRef>, ArrowError> {
    let Some(ty) = arrays
        .clone()
        .find_map(|(array, _)| Some(array?.data_type()))
    else {
        return Ok(None);
    };
    let arrays: Vec<ArrayRef> = arrays
        .map(|(array, length)| array.cloned().unwrap_or_else(|| new_null_array(ty, length)))
        .collect();
    let arrays: Vec<&dyn Array> = arrays.iter().map(AsRef::as_ref).collect();
    concat(&arrays).map(Some)
}

fn joined_keys(all: &[&Rows], part: usize) -> Option<Keys> {
    all.iter().find(|rows| rows.keys[part].is_some())?;
    let mut of_rows = UInt32Builder::with_capacity(all.iter().map(|rows| rows.len).sum());
    let mut entries = 0;
    for rows in all {
        match &rows.keys[part] {
            Some(keys) => {
                of_rows.extend(keys.of_rows.iter().map(|key| Some(key? + entries as u32)));
                entries += keys.entries;
            }
            None => of_rows.append_nulls(rows.len),
        }
    }
    Some(Keys {
        of_rows: of_rows.finish(),
        entries,
    })
}
