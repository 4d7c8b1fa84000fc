//! One line of strace: a system call with its arguments, or the end of a thread.

use anyhow::{Context as _, Result, bail};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    Call {
        name: String,
        arguments: Vec<Value>,
        result: Value,
        /// Name of the error.
        error: Option<String>,
    },
    Exited(i64),
    Killed(String),
    /// A signal that arrived, and what else is no call.
    Other,
}

/// An argument or a result, as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value(pub String);

impl Line {
    pub fn parse(text: &str) -> Result<Self> {
        let (_, text) = text.split_once(' ').context("no time")?;
        let text = text.trim();
        if let Some(end) = text.strip_prefix("+++ ") {
            return ended(end.trim_end_matches(" +++"));
        }
        if text.starts_with("--- ") || text.starts_with("<... execve resumed>") {
            return Ok(Self::Other);
        }
        // Killed as it stopped before a call, which strace could not read then and the kernel did not begin.
        if text == "???( <unfinished ...>" {
            return Ok(Self::Other);
        }
        // A thread that is not the first becomes the process; it ends in the first one's file.
        let becomes = text.split_once(" <pid changed to ");
        // A signal to itself that killed before strace could see the call return; it had no error.
        let died = text
            .strip_suffix(" <unfinished ...>")
            .filter(|call| call.starts_with("kill(") || call.starts_with("tgkill("))
            .map(|call| (call, ""));
        let whole = becomes.or(died).map(|(call, _)| format!("{call}) = 0"));
        let text = whole.as_deref().unwrap_or(text);
        let (call, result) = text.rsplit_once(" = ").context("no result")?;
        let (name, arguments) = call.split_once('(').context("no arguments")?;
        let arguments = arguments.trim_end().strip_suffix(')').context("no end")?;
        let mut words = result.split(' ');
        let value = words.next().unwrap_or_default();
        let error = words.next().filter(|word| word.starts_with('E'));
        Ok(Self::Call {
            name: name.to_owned(),
            arguments: split(arguments).into_iter().map(Value).collect(),
            result: Value(value.to_owned()),
            error: error.map(str::to_owned),
        })
    }
}

fn ended(text: &str) -> Result<Line> {
    if let Some(code) = text.strip_prefix("exited with ") {
        return Ok(Line::Exited(code.parse()?));
    }
    if text.starts_with("superseded by execve") {
        return Ok(Line::Other);
    }
    match text.strip_prefix("killed by ") {
        Some(signal) => {
            let name = signal.split(' ').next().unwrap_or_default();
            Ok(Line::Killed(name.to_owned()))
        }
        None => bail!("an end that is not understood"),
    }
}

/// At commas that are in no bracket. Texts have none: all their bytes are in hexadecimal.
fn split(text: &str) -> Vec<String> {
    let (mut parts, mut part) = (Vec::new(), String::new());
    let (mut depth, mut before) = (0_i32, ' ');
    for c in text.chars() {
        match c {
            '(' | '[' | '{' | '<' => depth += 1,
            // Not of "->" between the ends of a connection, nor "=>" before what came back.
            '>' if before == '-' || before == '=' => {}
            ')' | ']' | '}' | '>' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(std::mem::take(&mut part).trim().to_owned());
                before = c;
                continue;
            }
            _ => {}
        }
        part.push(c);
        before = c;
    }
    if !part.trim().is_empty() {
        parts.push(part.trim().to_owned());
    }
    parts
}

impl Value {
    /// A number, or several joined by `|`; hexadecimal, octal, decimal.
    pub fn number(&self) -> Result<i64> {
        let text = self.0.split(['<', ' ']).next().unwrap_or_default();
        let mut sum = 0;
        for part in text.split('|') {
            let number = match part.strip_prefix("0x") {
                Some(digits) => u64::from_str_radix(digits, 16).map(|number| number as i64),
                None if part.len() > 1 && part.starts_with('0') => i64::from_str_radix(part, 8),
                None => part.parse(),
            };
            sum |= number.with_context(|| format!("{:?} is no number", self.0))?;
        }
        Ok(sum)
    }

    pub fn is_null(&self) -> bool {
        self.0 == "NULL"
    }

    /// The bytes of a text.
    pub fn text(&self) -> Result<Vec<u8>> {
        let quoted = self
            .0
            .strip_prefix('"')
            .and_then(|rest| rest.strip_suffix('"'));
        bytes(quoted.with_context(|| format!("{:?} is no whole text", self.0))?)
    }

    /// The texts of a list.
    pub fn texts(&self) -> Result<Vec<Vec<u8>>> {
        let list = self
            .0
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        let list = list.with_context(|| format!("{:?} is no list", self.0))?;
        split(list)
            .into_iter()
            .map(|text| Self(text).text())
            .collect()
    }

    /// What a descriptor stands for: what is in the brackets behind it.
    pub fn meaning(&self) -> &str {
        let inner = self.0.split_once('<').map_or("", |(_, rest)| rest);
        let inner = inner.strip_suffix("(deleted)").unwrap_or(inner);
        inner.strip_suffix('>').unwrap_or(inner)
    }

    /// The path of a descriptor's file.
    pub fn path(&self) -> Result<Vec<u8>> {
        // Of a device more follows: <char 1:3>.
        let meaning = self.meaning().split('<').next().unwrap_or_default();
        bytes(meaning).with_context(|| format!("{:?} has no path", self.0))
    }

    /// The value of a field in braces: `{sa_family=0x2, ...}`.
    pub fn field(&self, name: &str) -> Option<Self> {
        let inner = self.0.strip_prefix('{')?;
        let inner = inner.strip_suffix('}').unwrap_or(inner);
        let field = split(inner)
            .into_iter()
            .find_map(|field| Some(field.strip_prefix(name)?.strip_prefix('=')?.to_owned()));
        field.map(Self)
    }
}

fn bytes(text: &str) -> Result<Vec<u8>> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let digits = text.strip_prefix("\\x").context("not in hexadecimal")?;
    let bytes = digits.split("\\x").map(|byte| u8::from_str_radix(byte, 16));
    bytes
        .collect::<Result<_, _>>()
        .with_context(|| format!("{text:?} is not in hexadecimal"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_comes_apart() {
        let line = Line::parse(
            "1.2 accept4(3<TCP:[127.0.0.1:1->127.0.0.1:2]>, {sa_family=0x2, sin_port=\"\\xad\\xc4\"}, [128 => 16], 0x1|0x80000) = 5<\\x2f\\x61>",
        );
        let Line::Call {
            name,
            arguments,
            result,
            error,
        } = line.expect("understood")
        else {
            panic!("no call");
        };
        assert_eq!(
            (name.as_str(), arguments.len(), error),
            ("accept4", 4, None)
        );
        assert_eq!(arguments[3].number().expect("a number"), 0x80001);
        assert_eq!(arguments[0].meaning(), "TCP:[127.0.0.1:1->127.0.0.1:2]");
        let port = arguments[1].field("sin_port").expect("a port");
        assert_eq!(port.text().expect("bytes"), [0xad, 0xc4]);
        assert_eq!(result.path().expect("a path"), b"/a");
        assert_eq!(result.number().expect("a number"), 5);
    }

    #[test]
    fn errors_ends_and_lists_are_read() {
        let failed = Line::parse("1.2 rmdir(\"\\x61\") = -1 ENOENT (No such file or directory)");
        let Line::Call { error, .. } = failed.expect("understood") else {
            panic!("no call");
        };
        assert_eq!(error.as_deref(), Some("ENOENT"));
        let killed = Line::parse("1.2 +++ killed by SIGKILL +++").expect("understood");
        assert_eq!(killed, Line::Killed("SIGKILL".to_owned()));
        let list = Value("[\"\\x61\", \"\"]".to_owned());
        assert_eq!(list.texts().expect("texts"), [b"a".to_vec(), Vec::new()]);
        assert!(Value("\"\\x61\"...".to_owned()).text().is_err(), "cut");
        assert!(Line::parse("1.2 gibberish").is_err());
        let died = Line::parse("1.2 tgkill(7, 7, 9 <unfinished ...>").expect("understood");
        let returned = Line::parse("1.2 tgkill(7, 7, 9) = 0").expect("understood");
        assert_eq!(died, returned);
        assert!(Line::parse("1.2 unlink(\"\\x61\" <unfinished ...>").is_err());
        let never_begun = Line::parse("1.2 ???( <unfinished ...>").expect("understood");
        assert_eq!(never_begun, Line::Other);
        let becomes =
            Line::parse("1.2 execve(\"\\x61\", [], 0x7f /* 9 vars */ <pid changed to 7 ...>");
        let Line::Call { arguments, .. } = becomes.expect("understood") else {
            panic!("no call");
        };
        assert_eq!(arguments.len(), 3);
    }
}
