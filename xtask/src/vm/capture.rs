//! Does the record hold on another kernel? In one guest: what the agent attaches to
//! (`audit-agent --dry-run`), then the ground truth test with the whole stack.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use super::{
    guest::{Answer, Host, Order},
    kernel::Kernel,
};
use crate::cargo;

const TEST: &str = "ground_truth";
/// Written by the guest's shell and by the test, into /results.
const HOOKS: &str = "hooks";
const REPORT: &str = "report.tsv";

/// One kind of event, and how the agent gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    pub kind: String,
    /// What it attaches to, or why to nothing.
    pub rung: String,
}

/// One line of the test's report (tests/src/report.rs).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub group: String,
    pub action: String,
    pub kinds: Vec<String>,
    pub expected: String,
    pub found: String,
    pub met: bool,
}

/// What came of one kernel.
#[derive(Debug)]
pub struct Tested {
    /// With how it was started.
    pub name: String,
    pub release: String,
    pub hooks: Vec<Hook>,
    pub entries: Vec<Entry>,
    /// Why the test as a whole did not succeed.
    pub failure: Option<String>,
    pub took: Duration,
}

impl Tested {
    pub fn met(&self) -> usize {
        self.entries.iter().filter(|entry| entry.met).count()
    }
}

/// Builds the programs and the test; the path of the test.
pub fn build() -> Result<PathBuf> {
    cargo::run(&["build", "--workspace", "--bins"])?;
    let output = cargo::cargo()
        .args(["test", "--package", "audit-tests", "--test", TEST])
        .args(["--no-run", "--message-format=json-render-diagnostics"])
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    ensure!(output.status.success(), "cargo test: {}", output.status);
    let messages = String::from_utf8(output.stdout)?;
    executable(&messages, TEST).with_context(|| format!("cargo names no executable of test {TEST}"))
}

/// From cargo's messages, one JSON object a line.
fn executable(messages: &str, test: &str) -> Option<PathBuf> {
    const KEY: &str = "\"executable\":\"";
    let place = format!("/{test}-");
    messages.lines().find_map(|line| {
        let path = line.split_once(KEY)?.1.split('"').next()?;
        path.contains(&place).then(|| PathBuf::from(path))
    })
}

pub fn run(
    host: &Host<'_>,
    kernel: &Kernel,
    test: &Path,
    mut environment: Vec<(String, String)>,
    timeout: Duration,
) -> Result<Tested> {
    environment.push(("HOSTAUDIT_REPORT".to_owned(), format!("/results/{REPORT}")));
    let name = kernel.name();
    let script = format!(
        "'{}' --dry-run >/results/{HOOKS} 2>&1\ncat /results/{HOOKS}\nexec '{}' --nocapture",
        cargo::built("debug", "audit-agent").display(),
        test.display()
    );
    let order = Order {
        words: ["sh", "-c", &script].map(str::to_owned).to_vec(),
        environment,
        timeout,
        prefix: format!("{name:<4} | "),
    };
    let mut tested = Tested {
        name,
        release: kernel.release.name.clone(),
        hooks: Vec::new(),
        entries: Vec::new(),
        failure: None,
        took: Duration::ZERO,
    };
    match host.run(kernel, &order) {
        Ok(answer) => fill(&mut tested, &answer)?,
        Err(error) => tested.failure = Some(format!("{error:#}")),
    }
    Ok(tested)
}

fn fill(tested: &mut Tested, answer: &Answer) -> Result<()> {
    let read = |name: &str| fs::read_to_string(answer.results.join(name)).unwrap_or_default();
    tested.hooks = hooks(&read(HOOKS));
    tested.entries = read(REPORT)
        .lines()
        .map(entry)
        .collect::<Result<Vec<Entry>>>()?;
    tested.took = answer.took;
    let output = fs::read(&answer.output)?;
    let output = String::from_utf8_lossy(&output);
    tested.failure = if answer.status != 0 {
        Some(reason(&output, answer.status))
    } else if let Some(line) = output.lines().find(|line| line.starts_with("SKIPPED")) {
        // A test that skips itself says success.
        Some(line.to_owned())
    } else if tested.entries.is_empty() || tested.hooks.is_empty() {
        Some("the test succeeded, but reported nothing".to_owned())
    } else {
        None
    };
    Ok(())
}

/// The section "hooks" of `audit-agent --dry-run`: `  KIND  RUNG`. A reason may go on in lines that
/// are not indented.
fn hooks(text: &str) -> Vec<Hook> {
    let section = text.lines().skip_while(|line| *line != "hooks").skip(1);
    section
        .filter_map(|line| {
            let (kind, rung) = line.strip_prefix("  ")?.split_once(' ')?;
            (!kind.is_empty()).then(|| Hook {
                kind: kind.to_owned(),
                rung: rung.trim().to_owned(),
            })
        })
        .collect()
}

fn entry(line: &str) -> Result<Entry> {
    let fields: Vec<&str> = line.split('\t').collect();
    let [group, action, kinds, expected, found, verdict] = fields[..] else {
        anyhow::bail!("a report's line of {} fields: {line}", fields.len());
    };
    Ok(Entry {
        group: group.to_owned(),
        action: action.to_owned(),
        kinds: kinds
            .split(',')
            .filter(|kind| !kind.is_empty())
            .map(str::to_owned)
            .collect(),
        expected: expected.to_owned(),
        found: found.to_owned(),
        met: verdict == "ok",
    })
}

/// The first line of the test's error, which says what was waited for or how much is wrong.
fn reason(output: &str, status: i32) -> String {
    let error = output.lines().find_map(|line| line.strip_prefix("Error: "));
    let first = error.or_else(|| output.lines().rfind(|line| line.contains("panicked")));
    format!(
        "exit status {status}: {}",
        first.unwrap_or("see its output").trim_end_matches(':')
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_are_read_from_a_dry_run() {
        let text = "rings          process\n  by name      .ssh\nhooks\n  exec         tracepoint\n  \
                    open         not available: exit_open: EINVAL\nstack depth 0\n: Invalid\n  \
                    bind         tracepoint\n";
        let found: Vec<(String, String)> = hooks(text)
            .into_iter()
            .map(|hook| (hook.kind, hook.rung))
            .collect();
        let expected = [
            ("exec", "tracepoint"),
            ("open", "not available: exit_open: EINVAL"),
            ("bind", "tracepoint"),
        ];
        assert_eq!(
            found,
            expected.map(|(kind, rung)| (kind.to_owned(), rung.to_owned()))
        );
    }

    #[test]
    fn reports_messages_and_reasons_are_read() {
        let found = entry("lives\tan exit\texit,fork\t1\t2\tfailed").unwrap();
        assert!(!found.met);
        assert_eq!(found.kinds, ["exit", "fork"]);
        assert!(entry("lives\tan exit").is_err());
        let messages = "{\"reason\":\"x\",\"executable\":\"/t/debug/workload\"}\n\
                        {\"executable\":\"/t/debug/deps/ground_truth-01\",\"fresh\":true}\n";
        assert_eq!(
            executable(messages, TEST),
            Some(PathBuf::from("/t/debug/deps/ground_truth-01"))
        );
        let output = "Error: the collector answers: not within 4s\n--- collector:\nx\n";
        assert_eq!(
            reason(output, 101),
            "exit status 101: the collector answers: not within 4s"
        );
    }
}
