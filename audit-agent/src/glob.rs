//! Does a path match a pattern? `*` stands for any characters of one component, `?` for one.

/// True when the whole of `path` matches.
pub fn matches(pattern: &[u8], path: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where to go back to: behind the last star, and how much it has taken.
    let mut back: Option<(usize, usize)> = None;
    while t < path.len() {
        match pattern.get(p) {
            Some(b'*') => {
                back = Some((p + 1, t));
                p += 1;
                continue;
            }
            Some(b'?') if path[t] != b'/' => {
                p += 1;
                t += 1;
                continue;
            }
            Some(byte) if *byte == path[t] => {
                p += 1;
                t += 1;
                continue;
            }
            _ => {}
        }
        match back {
            Some((after, taken)) if path[taken] != b'/' => {
                back = Some((after, taken + 1));
                p = after;
                t = taken + 1;
            }
            _ => return false,
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// True when the text has a wildcard.
pub fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?'])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn stars_stay_within_their_component() {
        for (pattern, path, expected) in [
            ("/etc/shadow", "/etc/shadow", true),
            ("/etc/shadow", "/etc/shadow-", false),
            ("/etc/sudoers.d/*", "/etc/sudoers.d/x", true),
            ("/etc/sudoers.d/*", "/etc/sudoers.d/x/y", false),
            ("/home/*/.ssh/*", "/home/u/.ssh/id_rsa", true),
            ("/home/*/.ssh/*", "/home/u/v/.ssh/id_rsa", false),
            ("/etc/ssh/ssh_host_*_key", "/etc/ssh/ssh_host_rsa_key", true),
            (
                "/etc/ssh/ssh_host_*_key",
                "/etc/ssh/ssh_host_rsa_key.pub",
                false,
            ),
            ("/a?c", "/abc", true),
            ("/a?c", "/a/c", false),
            ("*", "", true),
            ("", "a", false),
        ] {
            assert_eq!(
                matches(pattern.as_bytes(), path.as_bytes()),
                expected,
                "{pattern} {path}"
            );
        }
    }

    /// The definition, without cleverness.
    fn naive(pattern: &[u8], path: &[u8]) -> bool {
        match (pattern.split_first(), path.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), _) => {
                naive(rest, path)
                    || path.first().is_some_and(|b| *b != b'/') && naive(pattern, &path[1..])
            }
            (Some((b'?', rest)), Some((byte, tail))) if *byte != b'/' => naive(rest, tail),
            (Some((a, rest)), Some((b, tail))) if a == b => naive(rest, tail),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn it_agrees_with_the_definition(pattern in "[ab/*?]{0,10}", path in "[ab/]{0,12}") {
            prop_assert_eq!(
                matches(pattern.as_bytes(), path.as_bytes()),
                naive(pattern.as_bytes(), path.as_bytes())
            );
        }
    }
}
