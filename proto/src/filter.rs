//! How is an [`EventFilter`] written as text? One line, for `hostaudit tail --allow` and the
//! collector's `sinks.events_files`.
//!
//! Conditions are joined by `,` and must all hold: `kind=exec|fork,process_uid=0`. Values are
//! alternatives, joined by `|`. In a value `\,` `\|` `\\` stand for those characters; a regular
//! expression is taken as it is, but for `\,`. Whether a column exists is the collector's to say.

use crate::v1::{Condition, EventFilter};

/// Longest first where one begins with another.
const TESTS: [(&str, Test); 8] = [
    ("<<=", Test::Networks),
    (">=", Test::AtLeast),
    ("<=", Test::AtMost),
    ("^=", Test::Prefixes),
    ("$=", Test::Suffixes),
    ("*=", Test::Contains),
    ("~=", Test::Matches),
    ("=", Test::Equals),
];

#[derive(Debug, Clone, Copy)]
enum Test {
    Equals,
    Prefixes,
    Suffixes,
    Contains,
    Matches,
    Networks,
    AtLeast,
    AtMost,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAFilter {
    #[error("a filter is empty; write COLUMN=VALUE, for example kind=exec")]
    Empty,
    #[error("{0:?}: no column before the test; write COLUMN=VALUE, for example kind=exec")]
    NoColumn(String),
    #[error("{0:?}: there is no `!=`; put {1} into the list of what is denied")]
    Not(String, String),
    #[error("{text:?}: after the column {column} comes one of = ^= $= *= ~= <<= >= <=")]
    Test { text: String, column: String },
    #[error("{text:?}: {value:?} is not a whole number")]
    Number { text: String, value: String },
}

/// Reads one filter.
pub fn parse(text: &str) -> Result<EventFilter, NotAFilter> {
    let mut filter = EventFilter::default();
    for part in split(text, ',') {
        filter.conditions.push(condition(part.trim_start())?);
    }
    Ok(filter)
}

fn condition(text: &str) -> Result<Condition, NotAFilter> {
    if text.is_empty() {
        return Err(NotAFilter::Empty);
    }
    let (absent, rest) = match text.strip_prefix('!') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    let end = rest.find(|c| !plain(c)).unwrap_or(rest.len());
    let (column, test) = (rest[..end].to_owned(), rest[end..].trim_end_matches(' '));
    if column.is_empty() {
        return Err(NotAFilter::NoColumn(text.to_owned()));
    }
    if test.is_empty() {
        return Ok(Condition {
            column,
            present: Some(!absent),
            ..Condition::default()
        });
    }
    if let Some(value) = test.strip_prefix("!=") {
        let instead = format!("{column}={value}");
        return Err(NotAFilter::Not(text.to_owned(), instead));
    }
    // Spaces at the end of a value are the value's.
    let test = &rest[end..];
    let found = TESTS
        .iter()
        .find_map(|(sign, which)| Some((which, test.strip_prefix(sign)?)));
    match found {
        Some((which, value)) if !absent => tested(column, *which, value, text),
        _ => Err(NotAFilter::Test {
            text: text.to_owned(),
            column,
        }),
    }
}

fn tested(column: String, which: Test, value: &str, text: &str) -> Result<Condition, NotAFilter> {
    let mut condition = Condition {
        column,
        ..Condition::default()
    };
    let number = || {
        value.trim().parse().map_err(|_| NotAFilter::Number {
            text: text.to_owned(),
            value: value.to_owned(),
        })
    };
    let values = || split(value, '|').map(unescaped).collect();
    match which {
        Test::Equals => condition.equals = values(),
        Test::Prefixes => condition.prefixes = values(),
        Test::Suffixes => condition.suffixes = values(),
        Test::Contains => condition.contains = values(),
        Test::Networks => condition.networks = values(),
        Test::Matches => condition.matches = vec![value.replace("\\,", ",")],
        Test::AtLeast => condition.at_least = Some(number()?),
        Test::AtMost => condition.at_most = Some(number()?),
    }
    Ok(condition)
}

/// Parts between separators that no backslash precedes.
fn split(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let mut escaped = false;
    text.split(move |c: char| {
        let here = c == separator && !escaped;
        escaped = c == '\\' && !escaped;
        here
    })
}

fn unescaped(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let mut characters = value.chars().peekable();
    while let Some(c) = characters.next() {
        let special = characters.next_if(|next| c == '\\' && matches!(next, ',' | '|' | '\\'));
        out.push(special.unwrap_or(c));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Condition {
        let mut filter = parse(text).expect(text);
        assert_eq!(filter.conditions.len(), 1, "{text}");
        filter.conditions.remove(0)
    }

    #[test]
    fn each_test_has_its_sign() {
        assert_eq!(one("kind=exec|fork").equals, ["exec", "fork"]);
        assert_eq!(one("process_exe^=/usr/").prefixes, ["/usr/"]);
        assert_eq!(one("file_path$=.so|.a").suffixes, [".so", ".a"]);
        assert_eq!(one("process_argv*=x=y").contains, ["x=y"]);
        assert_eq!(one("process_argv~=a|b").matches, ["a|b"]);
        assert_eq!(
            one("socket_peer_address<<=10.0.0.0/8|::/0").networks,
            ["10.0.0.0/8", "::/0"]
        );
        assert_eq!(one("result_value>=-5").at_least, Some(-5));
        assert_eq!(one("socket_peer_port<=1023").at_most, Some(1023));
        assert_eq!(one("container_id").present, Some(true));
        assert_eq!(one("!container_id").present, Some(false));
        assert_eq!(one("process_exe=").equals, [""]);
    }

    #[test]
    fn a_comma_joins_conditions_and_a_backslash_takes_it_back() {
        let both = parse("kind=exec, process_uid=0").expect("a filter");
        let columns: Vec<&str> = both.conditions.iter().map(|c| &*c.column).collect();
        assert_eq!(columns, ["kind", "process_uid"]);
        assert_eq!(one("process_exe=/a\\,b\\|c\\\\").equals, ["/a,b|c\\"]);
        assert_eq!(one("process_argv~=^a{1\\,2}\\|$").matches, ["^a{1,2}\\|$"]);
        assert_eq!(one("process_name=\\xff").equals, ["\\xff"]);
    }

    #[test]
    fn what_is_no_filter_is_refused_by_name() {
        for (text, words) in [
            ("", "empty"),
            ("kind=exec,", "empty"),
            ("=exec", "no column"),
            ("kind!=exec", "kind=exec"),
            ("kind:exec", "after the column kind"),
            ("!kind=exec", "after the column kind"),
            ("process_uid>=root", "\"root\" is not a whole number"),
        ] {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
