//! Text from the kernel is bytes; the record is UTF-8. One reversible scheme joins them.
//!
//! A byte that is not part of valid UTF-8 becomes `\xHH` (lower-case digits) and a backslash
//! becomes `\\`; everything else, newlines included, stands for itself. So `unescape(escape(b))`
//! is `b` for all bytes, and text without backslashes is unchanged.

use std::borrow::Cow;

/// Bytes to text.
pub fn escape(bytes: &[u8]) -> Cow<'_, str> {
    if let Ok(plain) = std::str::from_utf8(bytes)
        && !bytes.contains(&b'\\')
    {
        return Cow::Borrowed(plain);
    }
    let mut out = String::with_capacity(bytes.len() + 16);
    for chunk in bytes.utf8_chunks() {
        for (at, part) in chunk.valid().split('\\').enumerate() {
            if at > 0 {
                out.push_str("\\\\");
            }
            out.push_str(part);
        }
        for byte in chunk.invalid() {
            out.push_str("\\x");
            for digit in [byte >> 4, byte & 15] {
                out.push(char::from_digit(digit.into(), 16).unwrap_or('0'));
            }
        }
    }
    Cow::Owned(out)
}

/// Text to bytes; `None` where a backslash is followed by neither `\` nor `xHH`.
pub fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        match bytes.next()? {
            b'\\' => out.push(b'\\'),
            b'x' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                let (high, low) = (digit()?, digit()?);
                out.push((high << 4 | low) as u8);
            }
            _ => return None,
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn plain_text_is_borrowed_and_unchanged() {
        assert!(matches!(
            escape("a b\nc é".as_bytes()),
            Cow::Borrowed("a b\nc é")
        ));
    }

    #[test]
    fn a_literal_escape_and_a_bad_byte_stay_different() {
        assert_eq!(escape(b"\\xff"), "\\\\xff");
        assert_eq!(escape(b"a\xff\\"), "a\\xff\\\\");
    }

    proptest! {
        #[test]
        fn unescape_inverts_escape(bytes: Vec<u8>) {
            let escaped = escape(&bytes);
            prop_assert_eq!(unescape(&escaped), Some(bytes.clone()));
        }

        #[test]
        fn unescape_never_panics(text: String) {
            let _ = unescape(&text);
        }
    }
}
