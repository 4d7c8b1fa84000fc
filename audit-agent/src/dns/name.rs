//! Which domain name stands at a place of a DNS message? Names are compressed: a name may go on
//! elsewhere in the message, behind a pointer.
//!
//! Invariants: a pointer leads strictly backwards, before the labels that led to it, so reading
//! ends; a name has at most [`NAME_BYTES`] bytes and [`JUMPS`] pointers. Names are equal whatever
//! the case of their ASCII letters, and are told in lower case: resolvers mix the case at random
//! (draft "0x20") so that forgers have more to guess.

use std::{
    fmt::{self, Write as _},
    hash::{Hash, Hasher},
};

use super::message::Flaw;

/// Of a name in the message, length bytes and the root included (RFC 1035, 2.3.4).
pub const NAME_BYTES: usize = 255;
/// Pointers in one name: more labels than this do not fit in it, and each may stand elsewhere.
pub const JUMPS: u8 = 127;
/// The longest presentation: 250 bytes in four labels, each written as `\DDD`, and three dots.
pub const PRESENTATION_BYTES: usize = 1003;
/// Of one label (RFC 1035, 2.3.4).
const LABEL_BYTES: usize = 63;

/// A name in a message, read whole once by [`Name::read`].
///
/// Its presentation has no final dot, but the root is "."; a byte that is no printable ASCII is
/// `\DDD` (decimal), and `"().;\@$` within a label have a backslash before them, as dig has it.
#[derive(Clone, Copy)]
pub struct Name<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Name<'a> {
    /// The name at `at`, and where what follows it begins. Each label is taken off `work`.
    pub(super) fn read(bytes: &'a [u8], at: usize, work: &mut u32) -> Result<(Self, usize), Flaw> {
        let mut walk = Walk::new(bytes, at);
        while walk.step()?.is_some() {
            *work = work.checked_sub(1).ok_or(Flaw::Bound)?;
        }
        Ok((Self { bytes, at }, walk.after.unwrap_or(at)))
    }

    /// The same for a name that was read before.
    pub(super) fn again(bytes: &'a [u8], at: usize) -> Result<(Self, usize), Flaw> {
        Ok((Self { bytes, at }, Self::skip(bytes, at)?))
    }

    /// Where what follows the name at `at` begins, whatever the name is.
    pub(super) fn skip(bytes: &[u8], mut at: usize) -> Result<usize, Flaw> {
        loop {
            let head = *bytes.get(at).ok_or(Flaw::Short)?;
            match head >> 6 {
                0 if head == 0 => return Ok(at + 1),
                0 => at += 1 + usize::from(head),
                3 => return Ok(at + 2),
                _ => return Err(Flaw::Label),
            }
        }
    }

    pub fn labels(self) -> impl Iterator<Item = &'a [u8]> {
        let mut walk = Walk::new(self.bytes, self.at);
        // Cannot fail where `read` did not.
        std::iter::from_fn(move || walk.step().ok().flatten())
    }
}

impl fmt::Display for Name<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut is_root = true;
        for label in self.labels() {
            if !is_root {
                out.write_char('.')?;
            }
            is_root = false;
            present(label, out)?;
        }
        if is_root { out.write_char('.') } else { Ok(()) }
    }
}

fn present(label: &[u8], out: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut lower = [0; LABEL_BYTES];
    if label.iter().all(|byte| is_plain(*byte))
        && let Some(lower) = lower_case(label, &mut lower)
        && let Ok(text) = std::str::from_utf8(lower)
    {
        return out.write_str(text);
    }
    for &byte in label {
        match byte {
            b'"' | b'(' | b')' | b'.' | b';' | b'\\' | b'@' | b'$' => {
                out.write_char('\\')?;
                out.write_char(byte.into())?;
            }
            b'!'..=b'~' => out.write_char(byte.to_ascii_lowercase().into())?,
            _ => write!(out, "\\{byte:03}")?,
        }
    }
    Ok(())
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'
}

fn lower_case<'b>(label: &[u8], buffer: &'b mut [u8; LABEL_BYTES]) -> Option<&'b [u8]> {
    let lower = buffer.get_mut(..label.len())?;
    lower.copy_from_slice(label);
    lower.make_ascii_lowercase();
    Some(lower)
}

impl fmt::Debug for Name<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Name({self})")
    }
}

impl PartialEq for Name<'_> {
    fn eq(&self, other: &Name<'_>) -> bool {
        let mut others = other.labels();
        let same = self.labels().all(|label| {
            others
                .next()
                .is_some_and(|other| label.eq_ignore_ascii_case(other))
        });
        same && others.next().is_none()
    }
}

impl Eq for Name<'_> {}

impl Hash for Name<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let mut buffer = [0; LABEL_BYTES];
        for label in self.labels() {
            state.write_u8(label.len() as u8);
            state.write(lower_case(label, &mut buffer).unwrap_or_default());
        }
        state.write_u8(0);
    }
}

struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Where the labels began that are being read: the next pointer must lead before them.
    run: usize,
    jumps: u8,
    length: usize,
    /// What follows the name: behind its root, or behind its first pointer.
    after: Option<usize>,
}

impl<'a> Walk<'a> {
    fn new(bytes: &'a [u8], at: usize) -> Self {
        Self {
            bytes,
            at,
            run: at,
            jumps: 0,
            length: 1,
            after: None,
        }
    }

    /// The next label; none at the root.
    fn step(&mut self) -> Result<Option<&'a [u8]>, Flaw> {
        loop {
            let head = *self.bytes.get(self.at).ok_or(Flaw::Short)?;
            match head >> 6 {
                0 if head == 0 => {
                    self.after.get_or_insert(self.at + 1);
                    return Ok(None);
                }
                0 => {
                    let start = self.at + 1;
                    let end = start + usize::from(head);
                    let label = self.bytes.get(start..end).ok_or(Flaw::Short)?;
                    self.length += end - self.at;
                    if self.length > NAME_BYTES {
                        return Err(Flaw::LongName);
                    }
                    self.at = end;
                    return Ok(Some(label));
                }
                3 => self.jump(head)?,
                _ => return Err(Flaw::Label),
            }
        }
    }

    fn jump(&mut self, head: u8) -> Result<(), Flaw> {
        let low = *self.bytes.get(self.at + 1).ok_or(Flaw::Short)?;
        self.after.get_or_insert(self.at + 2);
        let target = usize::from(u16::from_be_bytes([head & 0x3f, low]));
        if target >= self.run || self.jumps == JUMPS {
            return Err(Flaw::Pointer);
        }
        self.jumps += 1;
        self.run = target;
        self.at = target;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(bytes: &[u8], at: usize) -> Result<(String, usize), Flaw> {
        Name::read(bytes, at, &mut 128).map(|(name, after)| (name.to_string(), after))
    }

    #[test]
    fn labels_are_joined_lowered_and_escaped() {
        assert_eq!(told(b"\0", 0), Ok((".".into(), 1)));
        assert_eq!(
            told(b"\x03wWw\x07eXample\0", 0),
            Ok(("www.example".into(), 13))
        );
        assert_eq!(
            told(b"\x09a.\\\"B \xff@\0\x01-\0", 0),
            Ok(("a\\.\\\\\\\"b\\032\\255\\@\\000.-".into(), 13))
        );
        let mut longest = Vec::new();
        for label in [63, 63, 63, 61] {
            longest.push(label);
            longest.resize(longest.len() + usize::from(label), 0xff);
        }
        longest.push(0);
        assert_eq!(longest.len(), NAME_BYTES);
        let (text, after) = told(&longest, 0).expect("allowed");
        assert_eq!((text.len(), after), (PRESENTATION_BYTES, NAME_BYTES));
        longest[189 + 3] = 62;
        longest.insert(195, b'x');
        assert_eq!(told(&longest, 0), Err(Flaw::LongName));
    }

    #[test]
    fn pointers_lead_backwards_only() {
        let bytes = b"\x01b\x01c\0\x01a\xc0\x00\xc0\x05";
        assert_eq!(told(bytes, 5), Ok(("a.b.c".into(), 9)));
        assert_eq!(told(bytes, 9), Ok(("a.b.c".into(), 11)));
        for (bytes, flaw) in [
            (&b"\xc0\x00"[..], Flaw::Pointer),
            (b"\x01a\xc0\x00", Flaw::Pointer),
            (b"\xc0\x02\0", Flaw::Pointer),
            (b"\xc0", Flaw::Short),
            (b"\x03ab", Flaw::Short),
            (b"\x01a", Flaw::Short),
            (b"", Flaw::Short),
            (b"\x40a\0", Flaw::Label),
            (b"\x80a\0", Flaw::Label),
        ] {
            assert_eq!(told(bytes, 0), Err(flaw), "{bytes:?}");
        }
    }

    #[test]
    fn a_chain_of_pointers_ends() {
        let mut bytes = vec![0];
        let mut target = 0_u16;
        for jumps in 1..=u16::from(JUMPS) + 1 {
            let at = bytes.len();
            bytes.extend_from_slice(&(0xc000 | target).to_be_bytes());
            target = at as u16;
            let expected = if jumps <= u16::from(JUMPS) {
                Ok((".".into(), at + 2))
            } else {
                Err(Flaw::Pointer)
            };
            assert_eq!(told(&bytes, at), expected);
        }
    }

    #[test]
    fn case_and_place_make_no_difference() {
        let bytes = b"\x01b\0\x01A\xc0\x00\x01a\x01B\0\x02ab\0";
        let name = |at| Name::read(bytes, at, &mut 9).expect("name").0;
        let hash = |name| ahash::RandomState::with_seeds(1, 2, 3, 4).hash_one(name);
        assert_eq!(name(3), name(7));
        assert_eq!(hash(name(3)), hash(name(7)));
        for other in [0, 9, 12] {
            assert_ne!(name(3), name(other));
            assert_ne!(hash(name(3)), hash(name(other)));
        }
    }
}
