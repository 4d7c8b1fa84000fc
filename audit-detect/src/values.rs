//! The texts one field of one event has, as written and folded for comparison.
//!
//! Folding is Unicode lower case, one character at a time, so that `?` and literals mean the same
//! in rule and event. Host text arrives with backslashes doubled (`audit_proto::text`); it is
//! compared with them single, as the host's user saw it. Bytes that are not UTF-8 stay `\xHH`.

/// A buffer that had to grow beyond this for one event (the kernel allows 2 MiB of argv) is given
/// back after it, so that one giant does not stay in memory for ever.
const KEEP_BYTES: usize = 256 << 10;

/// Zero or more texts. Reused from event to event.
#[derive(Debug, Default)]
pub struct Values {
    raw: Buffer,
    folded: Buffer,
}

#[derive(Debug, Default)]
struct Buffer {
    text: String,
    ends: Vec<usize>,
}

impl Buffer {
    fn clear(&mut self) {
        self.text.clear();
        self.ends.clear();
        if self.text.capacity() > KEEP_BYTES {
            self.text.shrink_to(KEEP_BYTES);
        }
    }

    fn last_end(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    fn iter(&self) -> impl Iterator<Item = &str> {
        let mut start = 0;
        self.ends.iter().map(move |&end| {
            let text = &self.text[start..end];
            start = end;
            text
        })
    }
}

impl Values {
    pub fn clear(&mut self) {
        self.raw.clear();
        self.folded.clear();
    }

    pub fn is_empty(&self) -> bool {
        self.raw.ends.is_empty()
    }

    /// As the event has them.
    pub fn raw(&self) -> impl Iterator<Item = &str> {
        self.raw.iter()
    }

    /// In lower case, in the same order.
    pub fn folded(&self) -> impl Iterator<Item = &str> {
        self.folded.iter()
    }

    /// Adds host text.
    pub fn push(&mut self, text: &str) {
        append(text, &mut self.raw.text);
        self.close();
    }

    /// Adds host text, unless it is the last one added.
    pub fn push_other(&mut self, text: &str) {
        let before = self.raw.last_end();
        append(text, &mut self.raw.text);
        let start = self
            .raw
            .ends
            .len()
            .checked_sub(2)
            .map_or(0, |at| self.raw.ends[at]);
        if self.raw.text[start..before] == self.raw.text[before..] {
            self.raw.text.truncate(before);
        }
        self.close();
    }

    /// Adds host texts joined by one space: what `parts` gives to the function that it gets.
    pub fn push_joined(&mut self, parts: impl FnOnce(&mut dyn FnMut(&str))) {
        let text = &mut self.raw.text;
        let mut is_first = true;
        parts(&mut |part| {
            if !std::mem::take(&mut is_first) {
                text.push(' ');
            }
            append(part, text);
        });
        self.close();
    }

    pub fn push_number(&mut self, number: i64) {
        use std::fmt::Write as _;
        // Writing to a String cannot fail.
        let _ = write!(self.raw.text, "{number}");
        self.close();
    }

    fn close(&mut self) {
        let text = &self.raw.text[self.raw.last_end()..];
        if text.is_empty() {
            return;
        }
        fold(text, &mut self.folded.text);
        self.raw.ends.push(self.raw.text.len());
        self.folded.ends.push(self.folded.text.len());
    }
}

fn append(text: &str, out: &mut String) {
    // Nearly no text has one, and looking for a byte is cheap.
    let mut rest = text;
    if !text.as_bytes().contains(&b'\\') {
        out.push_str(rest);
        return;
    }
    while let Some(at) = rest.find("\\\\") {
        out.push_str(&rest[..=at]);
        rest = &rest[at + 2..];
    }
    out.push_str(rest);
}

/// Appends `text` in lower case.
pub fn fold(text: &str, out: &mut String) {
    if text.is_ascii() {
        let start = out.len();
        out.push_str(text);
        out[start..].make_ascii_lowercase();
    } else {
        out.extend(text.chars().flat_map(char::to_lowercase));
    }
}

/// `text` in lower case.
pub fn folded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    fold(text, &mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_kept_apart_and_folded() {
        let mut values = Values::default();
        values.push("/usr/bin/Ünder");
        values.push("");
        values.push_joined(|part| ["A", "", "c\\\\d"].into_iter().for_each(part));
        values.push_number(-1);
        assert_eq!(
            values.raw().collect::<Vec<_>>(),
            ["/usr/bin/Ünder", "A  c\\d", "-1"]
        );
        assert_eq!(
            values.folded().collect::<Vec<_>>(),
            ["/usr/bin/ünder", "a  c\\d", "-1"]
        );
    }

    #[test]
    fn a_giant_does_not_stay() {
        let mut values = Values::default();
        values.push(&"x".repeat(KEEP_BYTES * 4));
        values.clear();
        assert!(values.raw.text.capacity() <= KEEP_BYTES * 2);
    }
}
