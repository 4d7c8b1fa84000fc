//! Where does a program read what a test found? `HOSTAUDIT_REPORT=FILE` gets one line for each
//! expectation, of these fields, separated by tabs: group, action, kinds of events (commas between
//! them), expected number, found number, `ok` or `failed`. `cargo xtask vm` makes a table of it.

use std::{fs::File, io::Write as _};

use anyhow::{Context as _, Result};

const VARIABLE: &str = "HOSTAUDIT_REPORT";

/// Does nothing when nobody asks.
pub struct Report {
    file: Option<File>,
}

impl Report {
    pub fn from_environment() -> Result<Self> {
        let file = match std::env::var_os(VARIABLE) {
            None => None,
            Some(path) => Some(
                File::create(&path)
                    .with_context(|| format!("{VARIABLE}: cannot write {}", path.display()))?,
            ),
        };
        Ok(Self { file })
    }

    /// What `sql` asked for and answered.
    pub fn add(
        &mut self,
        group: &str,
        action: &str,
        sql: &str,
        expected: i64,
        found: i64,
    ) -> Result<()> {
        self.write(&line(group, action, sql, expected, &found.to_string()))
    }

    /// The group could not be performed; nothing was found.
    pub fn not_performed(&mut self, group: &str, reason: &str) -> Result<()> {
        self.write(&line(group, reason, "", 1, "0"))
    }

    fn write(&mut self, line: &str) -> Result<()> {
        match &mut self.file {
            None => Ok(()),
            // At once: a test that is killed leaves what it knew.
            Some(file) => Ok(file.write_all(line.as_bytes())?),
        }
    }
}

fn line(group: &str, action: &str, sql: &str, expected: i64, found: &str) -> String {
    let action: String = action
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    let verdict = if expected.to_string() == found {
        "ok"
    } else {
        "failed"
    };
    let kinds = kinds(sql).join(",");
    format!("{group}\t{action}\t{kinds}\t{expected}\t{found}\t{verdict}\n")
}

/// Those that a question names: `kind = 'exec'`, `kind in ('connect', 'bind')`.
fn kinds(sql: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for (at, _) in sql.match_indices("kind ") {
        let rest = &sql[at + "kind ".len()..];
        let list = if let Some(rest) = rest.strip_prefix("in (") {
            rest.split(')').next()
        } else {
            rest.strip_prefix("= ")
                .and_then(|rest| rest.split(' ').next())
        };
        for kind in list.unwrap_or_default().split(',') {
            let kind = kind.trim().trim_end_matches(')').trim_matches('\'');
            if !kind.is_empty() && !found.contains(&kind) {
                found.push(kind);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_was_asked_and_found() {
        let sql = "select count(*) from events where kind in ('exec', 'exit') \
                   or (kind = 'fork' and x = 1) or y in (select y from events where kind = 'exec')";
        assert_eq!(kinds(sql), ["exec", "exit", "fork"]);
        assert_eq!(
            kinds("select sum(n) from events where kind = 'lost'"),
            ["lost"]
        );
        assert_eq!(
            line("lives", "an\texit", "... kind = 'exit' and", 1, "2"),
            "lives\tan exit\texit\t1\t2\tfailed\n"
        );
        assert!(line("lives", "x", "", 3, "3").ends_with("\tok\n"));
    }
}
