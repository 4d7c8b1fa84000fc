//! Does a text match a pattern with `*` and `?`?

/// A piece of a pattern.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Token {
    /// Exactly this character.
    Char(char),
    /// `?`: any one character.
    One,
    /// `*`: any number of characters.
    Many,
}

/// Whether the whole of `text` matches. Goes back to the last `*` only, so the time is at most
/// the product of both lengths and nothing is allocated.
pub fn matches(pattern: &[Token], text: &str) -> bool {
    let (mut at, mut rest) = (0, text.chars());
    let mut retry: Option<(usize, std::str::Chars<'_>)> = None;
    loop {
        if pattern.get(at) == Some(&Token::Many) {
            at += 1;
            retry = Some((at, rest.clone()));
            continue;
        }
        let mut ahead = rest.clone();
        let step = match (pattern.get(at), ahead.next()) {
            (None, None) => return true,
            (Some(Token::One), Some(_)) => true,
            (Some(Token::Char(wanted)), Some(found)) => *wanted == found,
            (Some(_), None) => return false,
            _ => false,
        };
        if step {
            at += 1;
            rest = ahead;
            continue;
        }
        let Some((after, from)) = &mut retry else {
            return false;
        };
        if from.next().is_none() {
            return false;
        }
        at = *after;
        rest = from.clone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pattern: &str, text: &str) -> bool {
        let tokens: Vec<_> = pattern
            .chars()
            .map(|c| match c {
                '*' => Token::Many,
                '?' => Token::One,
                c => Token::Char(c),
            })
            .collect();
        matches(&tokens, text)
    }

    #[test]
    fn wildcards() {
        for (pattern, text) in [
            ("a*b", "ab"),
            ("a*b", "a--b-b"),
            ("*", ""),
            ("**x", "x"),
            ("?é?", "aéb"),
            ("a?*", "ab"),
        ] {
            assert!(check(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("a*b", "abc"),
            ("?", ""),
            ("a?", "a"),
            ("*ab*c", "ab"),
            ("", "x"),
            ("?", "ab"),
        ] {
            assert!(!check(pattern, text), "{pattern} {text}");
        }
    }
}
