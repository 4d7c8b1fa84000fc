//! How else may a literal be written in an event? Base64, UTF-16 and the dashes Windows accepts.

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Dashes that `windash` exchanges: hyphen, slash, en dash, em dash, horizontal bar.
pub const DASHES: [char; 5] = ['-', '/', '–', '—', '―'];

/// Base64 with padding.
pub fn base64(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word =
            chunk.iter().fold(0u32, |word, b| word << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            out.push(match digit <= chunk.len() {
                true => ALPHABET[(word >> (18 - 6 * digit)) as usize & 63],
                false => b'=',
            });
        }
    }
    out
}

/// The three ways in which `bytes` can appear inside base64 of a longer text: after 0, 1 or 2
/// unknown bytes, without the characters which those or what follows decide.
pub fn base64_offsets(bytes: &[u8]) -> [Vec<u8>; 3] {
    [0, 1, 2].map(|offset| {
        let mut shifted = vec![b' '; offset];
        shifted.extend_from_slice(bytes);
        let encoded = base64(&shifted);
        let skip = [0, 2, 3][offset];
        let whole_bits = shifted.len() * 8;
        encoded[skip..whole_bits / 6].to_vec()
    })
}

/// UTF-16 of `text`.
pub fn utf16(text: &str, big_endian: bool) -> Vec<u8> {
    text.encode_utf16()
        .flat_map(|unit| {
            if big_endian {
                unit.to_be_bytes()
            } else {
                unit.to_le_bytes()
            }
        })
        .collect()
}

/// Positions of the dashes in `text` that begin an option: before a word, not after one.
pub fn option_dashes(text: &str) -> Vec<usize> {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let mut before = None;
    let mut found = Vec::new();
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let starts_word = chars.peek().is_some_and(|(_, next)| word(*next));
        if matches!(c, '-' | '/') && !before.is_some_and(word) && starts_word {
            found.push(at);
        }
        before = Some(c);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_base64() {
        for (plain, encoded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), encoded.as_bytes());
        }
    }

    #[test]
    fn an_offset_form_is_in_the_base64_of_any_surrounding_text() {
        for (before, offset) in [("", 0), ("x", 1), ("xy", 2), ("xyz", 0)] {
            for after in ["", "q", "qr", "qrs"] {
                for needle in ["foo", "/bin/sh", "ab"] {
                    let whole = base64(format!("{before}{needle}{after}").as_bytes());
                    let form = &base64_offsets(needle.as_bytes())[offset];
                    assert!(
                        whole.windows(form.len()).any(|w| w == &form[..]),
                        "{before}{needle}{after}"
                    );
                }
            }
        }
    }

    #[test]
    fn dashes_that_begin_options() {
        assert_eq!(option_dashes("-a x-y /b - --long"), [0, 7, 13]);
    }
}
