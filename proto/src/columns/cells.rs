//! What are the cells of an encoded event? Without making an `Event` of it, which costs an allocation
//! for each text; and part by part, because events that follow one another have most of their parts in
//! common, which then need not be read again.
//!
//! Invariant: where [`split`] and [`part`] of each part answer, the answers together are what decoding the
//! event and reading each column gives. They answer for events in the form that encoders write: fields in
//! the order of their numbers, known ones only, each once. Of others, sound or not, they do not know.

use std::borrow::Cow;

/// One column of one event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cell<'a> {
    /// Index into [`super::COLUMNS`].
    pub column: usize,
    pub content: Content<'a>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content<'a> {
    Int(i64),
    Bool(bool),
    Text(&'a str),
    /// Of a list: its other items are in the cells before and after.
    Item(&'a str),
}

/// Replaces `cells` by an encoded event's own, in any order of columns, and `parts` by its parts: the place
/// of each in [`super::PARTS`], and its bytes. `None`: decode it.
pub fn split<'a>(
    encoded: &'a [u8],
    parts: &mut Vec<(usize, &'a [u8])>,
    cells: &mut Vec<Cell<'a>>,
) -> Option<()> {
    cells.clear();
    parts.clear();
    generated::split(encoded, parts, cells)
}

/// Replaces `cells` by those of a part. `None`: decode the event.
pub fn part<'a>(part: usize, bytes: &'a [u8], cells: &mut Vec<Cell<'a>>) -> Option<()> {
    cells.clear();
    generated::part(part, bytes, cells)
}

/// The fields of an encoded message that are not read yet.
struct Encoded<'a> {
    rest: &'a [u8],
    /// Of the last field.
    key: u32,
    /// The last field may come again.
    is_list: bool,
}

impl<'a> Encoded<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes,
            key: 0,
            is_list: false,
        }
    }

    /// The key of the next field: its number and, in the lowest three bits, its form.
    fn key(&mut self) -> Option<Option<u32>> {
        if self.rest.is_empty() {
            return Some(None);
        }
        let key = u32::try_from(self.varint()?).ok()?;
        if key < self.key || (key == self.key && !self.is_list) {
            return None;
        }
        (self.key, self.is_list) = (key, false);
        Some(Some(key))
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for (at, &byte) in self.rest.iter().enumerate().take(10) {
            if at == 9 && byte > 1 {
                return None;
            }
            value |= u64::from(byte & 0x7f) << (at * 7);
            if byte < 0x80 {
                self.rest = &self.rest[at + 1..];
                return Some(value);
            }
        }
        None
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.varint()?).ok()?;
        let (bytes, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(bytes)
    }

    fn text(&mut self, column: usize, cells: &mut Vec<Cell<'a>>) -> Option<()> {
        let text = str::from_utf8(self.bytes()?).ok()?;
        if !text.is_empty() {
            let content = Content::Text(text);
            cells.push(Cell { column, content });
        }
        Some(())
    }

    fn item(&mut self, column: usize, cells: &mut Vec<Cell<'a>>) -> Option<()> {
        self.is_list = true;
        let content = Content::Item(str::from_utf8(self.bytes()?).ok()?);
        cells.push(Cell { column, content });
        Some(())
    }
}

/// The name of an enum's number, which is absent for 0; numbers without a name are rare and decoded.
fn name(column: usize, name: Option<Cow<'static, str>>, cells: &mut Vec<Cell<'_>>) -> Option<()> {
    match name {
        Some(Cow::Borrowed(text)) => {
            let content = Content::Text(text);
            cells.push(Cell { column, content });
            Some(())
        }
        Some(Cow::Owned(_)) => None,
        None => Some(()),
    }
}

mod generated {
    #![expect(clippy::identity_op, reason = "a column plus its place")]

    use super::{super::*, Cell, Content, Encoded, name};

    include!(concat!(env!("OUT_DIR"), "/cells.rs"));
}

#[cfg(test)]
mod tests;
