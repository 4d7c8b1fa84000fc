//! Builds columns from events, most of which have most of their parts in common: the process, its parent,
//! the host, often the file. A part that comes again, byte for byte, is neither read nor kept again.

use std::sync::Arc;

use ahash::AHashMap;
use arrow::array::{
    Array as _, ArrayRef, BooleanBuilder, Int64Builder, ListBuilder, StringBuilder,
    TimestampMicrosecondBuilder, UInt32Array,
};
use audit_proto::{
    Message as _,
    columns::{COLUMNS, Cell, ColumnType, Content, PARTS, Row as _, part, split},
    v1::Event,
};

use super::{
    UTC,
    rows::{Keys, Rows},
};

/// What is not an event is refused, with its place among those that were given with it.
#[derive(Debug, thiserror::Error)]
#[error("event {at} is not an encoded Event: {source}")]
pub struct NotDecoded {
    pub at: usize,
    pub source: prost::DecodeError,
}

enum Builder {
    Int(Int64Builder),
    Time(TimestampMicrosecondBuilder),
    Bool(BooleanBuilder),
    Text(StringBuilder),
    List(ListBuilder<StringBuilder>),
}

impl Builder {
    fn new(ty: ColumnType, capacity: usize) -> Self {
        match ty {
            ColumnType::Int => Self::Int(Int64Builder::with_capacity(capacity)),
            ColumnType::Time => {
                Self::Time(TimestampMicrosecondBuilder::with_capacity(capacity).with_timezone(UTC))
            }
            ColumnType::Bool => Self::Bool(BooleanBuilder::with_capacity(capacity)),
            ColumnType::Text | ColumnType::Enum => {
                Self::Text(StringBuilder::with_capacity(capacity, capacity * 16))
            }
            ColumnType::TextList => {
                Self::List(ListBuilder::with_capacity(StringBuilder::new(), capacity))
            }
        }
    }

    fn len(&self) -> usize {
        use arrow::array::ArrayBuilder as _;
        match self {
            Self::Int(b) => b.len(),
            Self::Time(b) => b.len(),
            Self::Bool(b) => b.len(),
            Self::Text(b) => b.len(),
            Self::List(b) => b.len(),
        }
    }

    fn pad_to(&mut self, rows: usize) {
        let missing = rows - self.len();
        if missing == 0 {
            return;
        }
        match self {
            Self::Int(b) => b.append_nulls(missing),
            Self::Time(b) => b.append_nulls(missing),
            Self::Bool(b) => b.append_nulls(missing),
            Self::Text(b) => b.append_nulls(missing),
            Self::List(b) => b.append_nulls(missing),
        }
    }

    /// A value of another type than the column's cannot come out of `audit_proto::columns`.
    fn push(&mut self, content: Content<'_>) {
        match (self, content) {
            (Self::Int(b), Content::Int(v)) => b.append_value(v),
            (Self::Time(b), Content::Int(v)) => b.append_value(v),
            (Self::Bool(b), Content::Bool(v)) => b.append_value(v),
            (Self::Text(b), Content::Text(v)) => b.append_value(v),
            (Self::List(b), Content::Item(v)) => b.values().append_value(v),
            (_, content) => debug_assert!(false, "column type does not fit {content:?}"),
        }
    }

    /// After the items of a row's list.
    fn end_list(&mut self) {
        if let Self::List(b) = self {
            b.append(true);
        }
    }

    fn finish(mut self, rows: usize) -> ArrayRef {
        self.pad_to(rows);
        let mut array: ArrayRef = match self {
            Self::Int(mut b) => Arc::new(b.finish()),
            Self::Time(mut b) => Arc::new(b.finish()),
            Self::Bool(mut b) => Arc::new(b.finish()),
            Self::Text(mut b) => Arc::new(b.finish()),
            Self::List(mut b) => Arc::new(b.finish()),
        };
        array.shrink_to_fit();
        array
    }
}

/// Takes events one by one and gives [`Rows`]. Encoded ones are borrowed until then: parts are told apart by
/// their bytes.
pub struct RowsBuilder<'a> {
    /// By column. Those of a part have a value for each of its entries, others one for each row.
    columns: Vec<Option<Builder>>,
    /// By part.
    parts: Vec<Part<'a>>,
    rows: usize,
    capacity: usize,
    read: Read<'a>,
}

/// The distinct ones of one part.
#[derive(Default)]
struct Part<'a> {
    /// Which of them each row has, up to the last row that has one.
    keys: Vec<Option<u32>>,
    entries: u32,
    last: Option<(&'a [u8], u32)>,
    known: AHashMap<&'a [u8], u32>,
}

/// Of the event that is being read.
#[derive(Default)]
struct Read<'a> {
    parts: Vec<(usize, &'a [u8])>,
    keys: Vec<(usize, u32)>,
    own: Vec<Cell<'a>>,
    cells: Vec<Cell<'a>>,
}

impl<'a> RowsBuilder<'a> {
    pub fn new(capacity: usize) -> Self {
        Self {
            columns: COLUMNS.iter().map(|_| None).collect(),
            parts: PARTS.iter().map(|_| Part::default()).collect(),
            rows: 0,
            capacity,
            read: Read::default(),
        }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Encoded events, up to the first that is none.
    pub fn push_encoded(
        &mut self,
        events: impl Iterator<Item = &'a [u8]>,
    ) -> Result<(), NotDecoded> {
        for (at, encoded) in events.enumerate() {
            let mut read = std::mem::take(&mut self.read);
            let is_read = self.push_read(encoded, &mut read).is_some();
            self.read = read;
            if !is_read {
                let event = Event::decode(encoded);
                self.push(&event.map_err(|source| NotDecoded { at, source })?);
            }
        }
        Ok(())
    }

    /// `None`: it has to be decoded, and no row is added.
    fn push_read(&mut self, encoded: &'a [u8], read: &mut Read<'a>) -> Option<()> {
        split(encoded, &mut read.parts, &mut read.own)?;
        read.keys.clear();
        for &(at, bytes) in &read.parts {
            let key = match self.parts[at].find(bytes) {
                Some(key) => key,
                None => {
                    part(at, bytes, &mut read.cells)?;
                    let key = self.entry(at, &read.cells);
                    self.parts[at].remember(bytes, key);
                    key
                }
            };
            read.keys.push((at, key));
        }
        for &(at, key) in &read.keys {
            self.parts[at].set(self.rows, key);
        }
        push_cells(&mut self.columns, &read.own, self.rows, self.capacity);
        self.rows += 1;
        Some(())
    }

    /// A new one of part `at`.
    fn entry(&mut self, at: usize, cells: &[Cell<'_>]) -> u32 {
        let part = &mut self.parts[at];
        let key = part.entries;
        push_cells(&mut self.columns, cells, key as usize, 0);
        part.entries += 1;
        key
    }

    pub fn push(&mut self, event: &Event) {
        for (at, range) in PARTS.iter().enumerate() {
            if range.clone().any(|column| event.has(column)) {
                let key = self.parts[at].entries;
                range
                    .clone()
                    .for_each(|column| self.push_column(event, column, key as usize));
                self.parts[at].entries += 1;
                self.parts[at].set(self.rows, key);
            }
        }
        for (column, about) in COLUMNS.iter().enumerate() {
            if about.part.is_none() {
                self.push_column(event, column, self.rows);
            }
        }
        self.rows += 1;
    }

    fn push_column(&mut self, event: &Event, column: usize, place: usize) {
        let mut is_list = false;
        event.each(column, |content| {
            is_list = matches!(content, Content::Item(_));
            builder(&mut self.columns, column, place, self.capacity).push(content);
        });
        if is_list {
            builder(&mut self.columns, column, place, self.capacity).end_list();
        }
    }

    pub fn finish(self) -> Rows {
        let rows = self.rows;
        let lengths: Vec<usize> = self
            .parts
            .iter()
            .map(|part| part.entries as usize)
            .collect();
        let keys = self.parts.into_iter().map(|part| part.finish(rows));
        let values = self
            .columns
            .into_iter()
            .zip(&COLUMNS)
            .map(|(builder, about)| {
                let length = about.part.map_or(rows, |part| lengths[part]);
                builder.map(|b| b.finish(length))
            });
        Rows::new(rows, values.collect(), keys.collect())
    }
}

impl<'a> Part<'a> {
    fn find(&self, bytes: &[u8]) -> Option<u32> {
        match self.last {
            Some((last, key)) if last == bytes => Some(key),
            _ => self.known.get(bytes).copied(),
        }
    }

    fn remember(&mut self, bytes: &'a [u8], key: u32) {
        self.last = Some((bytes, key));
        self.known.insert(bytes, key);
    }

    fn set(&mut self, row: usize, key: u32) {
        self.keys.resize(row, None);
        self.keys.push(Some(key));
    }

    fn finish(mut self, rows: usize) -> Option<Keys> {
        if self.keys.is_empty() {
            return None;
        }
        self.keys.resize(rows, None);
        Some(Keys {
            of_rows: UInt32Array::from(self.keys),
            entries: self.entries as usize,
        })
    }
}

/// At one place of each column, which must not be before what the column has already.
fn push_cells(columns: &mut [Option<Builder>], cells: &[Cell<'_>], place: usize, capacity: usize) {
    for (at, cell) in cells.iter().enumerate() {
        let builder = builder(columns, cell.column, place, capacity);
        builder.push(cell.content);
        let next = cells.get(at + 1);
        if matches!(cell.content, Content::Item(_))
            && next.is_none_or(|next| next.column != cell.column)
        {
            builder.end_list();
        }
    }
}

/// Of a column, with nothing where earlier places have nothing.
fn builder(
    columns: &mut [Option<Builder>],
    column: usize,
    place: usize,
    capacity: usize,
) -> &mut Builder {
    let builder = columns[column].get_or_insert_with(|| Builder::new(COLUMNS[column].ty, capacity));
    builder.pad_to(place);
    builder
}
