//! How text that came from a host becomes text for a terminal: nothing in it can move the cursor,
//! start a new line or reorder what is read, and it is cut by columns, not bytes.
//!
//! Event text has already gone through `audit_proto::text` (`\` is `\\`, a bad byte is `\xHH`), so
//! the escapes made here cannot be confused with what the host wrote.

use std::{borrow::Cow, fmt::Write as _};

use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

/// The few characters that are drawn differently where the locale is not UTF-8.
#[derive(Debug, Clone, Copy)]
pub struct Glyphs {
    pub ellipsis: &'static str,
    pub from: &'static str,
    pub to: &'static str,
    pub branch: &'static str,
    pub last: &'static str,
    pub bar: &'static str,
    pub rule: &'static str,
}

pub const UNICODE: Glyphs = Glyphs {
    ellipsis: "…",
    from: "←",
    to: "→",
    branch: "├─ ",
    last: "└─ ",
    bar: "│  ",
    rule: "─",
};

pub const ASCII: Glyphs = Glyphs {
    ellipsis: "...",
    from: "<-",
    to: "->",
    branch: "|- ",
    last: "`- ",
    bar: "|  ",
    rule: "-",
};

impl Glyphs {
    /// By the locale, in the order that the C library asks the variables.
    pub fn of_locale(variable: impl Fn(&str) -> Option<String>) -> Self {
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
            .iter()
            .find_map(|name| variable(name).filter(|value| !value.is_empty()));
        match locale.map(|l| l.to_ascii_lowercase()) {
            // No locale at all is a container more often than an old terminal.
            None => UNICODE,
            Some(l) if l.contains("utf-8") || l.contains("utf8") => UNICODE,
            Some(_) => ASCII,
        }
    }
}

/// Escapes every character that could act on a terminal or hide what is there.
pub fn safe(text: &str) -> Cow<'_, str> {
    if !text.chars().any(acts) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        push_safe(&mut out, c);
    }
    Cow::Owned(out)
}

fn push_safe(out: &mut String, c: char) {
    let done = match c {
        '\n' => out.write_str("\\n"),
        '\t' => out.write_str("\\t"),
        '\r' => out.write_str("\\r"),
        c if (c as u32) < 0x20 || c as u32 == 0x7f => write!(out, "\\x{:02x}", c as u32),
        c if acts(c) => write!(out, "\\u{{{:x}}}", c as u32),
        c => out.write_char(c),
    };
    debug_assert!(done.is_ok(), "writing to a String does not fail");
}

/// Control characters, and the invisible ones that reorder, join or break text.
fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e0fff}')
}

/// One argument as a shell would need it: plain, in quotes, or as `$'…'` with escapes.
pub fn quote(argument: &str) -> Cow<'_, str> {
    let plain = |c: char| c.is_alphanumeric() || "_@%+=:,./-^~".contains(c);
    if !argument.is_empty() && argument.chars().all(plain) {
        return Cow::Borrowed(argument);
    }
    if argument.contains('\\') || argument.chars().any(acts) {
        // Event text's own escapes are those of $'…', so they pass as they are.
        return Cow::Owned(format!("$'{}'", safe(&argument.replace('\'', "\\'"))));
    }
    Cow::Owned(format!("'{}'", argument.replace('\'', r"'\''")))
}

/// An argument list as one line that a shell would read back as the same list.
pub fn command_line(argv: &[String]) -> String {
    argv.iter().map(|a| quote(a)).collect::<Vec<_>>().join(" ")
}

/// Columns that `text` takes on a terminal.
pub fn width(text: &str) -> usize {
    text.width()
}

/// `text` in at most `columns`, ending in the ellipsis where something was cut.
pub fn fit<'a>(text: &'a str, columns: usize, ellipsis: &str) -> Cow<'a, str> {
    // A text takes at least a column for every four bytes, so most are measured cheaply.
    if text.len() <= columns || (text.len() / 4 <= columns && text.width() <= columns) {
        return Cow::Borrowed(text);
    }
    let room = columns.saturating_sub(ellipsis.width());
    let mut used = 0;
    let mut end = 0;
    for (at, c) in text.char_indices() {
        let next = used + c.width().unwrap_or(0);
        if next > room {
            break;
        }
        used = next;
        end = at + c.len_utf8();
    }
    Cow::Owned(format!("{}{ellipsis}", &text[..end]))
}

/// 1234567 as "1,234,567".
pub fn count(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut out = String::from(if number < 0 { "-" } else { "" });
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// "1 event", "2 events".
pub fn plural(number: i64, thing: &str) -> String {
    let s = if number == 1 { "" } else { "s" };
    format!("{} {thing}{s}", count(number))
}

/// 1536 as "1.5 KiB".
pub fn bytes(number: i64) -> String {
    let mut value = number as f64;
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if value.abs() < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit == "B" {
        return format!("{number} B");
    }
    format!("{value:.1} {unit}")
}

/// Nanoseconds as people say them: "310 us", "0.3 s", "4 min 10 s", "3 h 05 min".
pub fn duration(ns: i64) -> String {
    let seconds = ns as f64 / 1e9;
    match ns {
        ..1_000_000 => format!("{} us", ns / 1000),
        1_000_000..100_000_000 => format!("{:.1} ms", ns as f64 / 1e6),
        100_000_000..10_000_000_000 => format!("{seconds:.1} s"),
        10_000_000_000..60_000_000_000 => format!("{seconds:.0} s"),
        60_000_000_000..3_600_000_000_000 => format!(
            "{} min {:02} s",
            ns / 60_000_000_000,
            ns / 1_000_000_000 % 60
        ),
        3_600_000_000_000..172_800_000_000_000 => format!(
            "{} h {:02} min",
            ns / 3_600_000_000_000,
            ns / 60_000_000_000 % 60
        ),
        _ => format!("{} days", ns / 86_400_000_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_acts_on_a_terminal_survives() {
        assert_eq!(
            safe("a\nb\x1b[31m\x7f\u{9b}2J\u{202e}x"),
            "a\\nb\\x1b[31m\\x7f\\u{9b}2J\\u{202e}x"
        );
        assert!(matches!(safe("plain é 漢"), Cow::Borrowed(_)));
        for c in (0..=0x10ffff_u32)
            .filter_map(char::from_u32)
            .filter(|c| c.is_control())
        {
            let text = c.to_string();
            assert!(!safe(&text).chars().any(char::is_control), "{c:?}");
            assert!(!quote(&text).chars().any(char::is_control), "{c:?}");
        }
    }

    #[test]
    fn arguments_are_quoted_as_a_shell_reads_them() {
        let argv = ["sh", "-c", "echo it's", "", "a\nb", "caf\\xe9", "$HOME"].map(str::to_owned);
        assert_eq!(
            command_line(&argv),
            r"sh -c 'echo it'\''s' '' $'a\nb' $'caf\xe9' '$HOME'"
        );
    }

    #[test]
    fn text_is_cut_by_columns() {
        assert_eq!(fit("hello", 5, "…"), "hello");
        assert_eq!(fit("hello", 4, "…"), "hel…");
        assert_eq!(fit("漢字漢字", 8, "…"), "漢字漢字");
        assert_eq!(fit("漢字漢字", 6, "…"), "漢字…");
        assert_eq!(fit("hello world", 6, "..."), "hel...");
        assert_eq!(fit("é".repeat(100).as_str(), 100, "…").width(), 100);
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!(count(-1234567), "-1,234,567");
        assert_eq!(count(999), "999");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(12), "12 B");
        let said: Vec<_> = [
            310_000,
            12_300_000,
            300_000_000,
            42_000_000_000,
            250_000_000_000,
            11_100_000_000_000,
            i64::MAX,
        ]
        .map(duration)
        .into();
        assert_eq!(
            said,
            [
                "310 us",
                "12.3 ms",
                "0.3 s",
                "42 s",
                "4 min 10 s",
                "3 h 05 min",
                "106751 days"
            ]
        );
    }

    #[test]
    fn the_locale_chooses_the_glyphs() {
        let with = |value: &'static str| {
            Glyphs::of_locale(move |name| (name == "LANG").then(|| value.to_owned()))
        };
        assert_eq!(with("de_DE.UTF-8").ellipsis, "…");
        assert_eq!(with("C").ellipsis, "...");
        assert_eq!(with("").ellipsis, "…");
    }
}
