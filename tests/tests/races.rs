//! A process that changes its arguments under the kernel's eyes: does the record say what the kernel
//! used? Ten thousand tries of each call.
//!
//! Opens, connects and execs are told by the file, socket and program that came of them, on every
//! kernel. What unlink and rename act on is seen by the BPF LSM or kprobes, or else told by the names
//! that the kernel has copied; a kernel that shows none of these can be lied to.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use audit_tests::{Options, Stack, stack, workload::Expectation};

/// What the agent can see here: what unlink and rename act on, and what they were given.
struct Seen {
    objects: bool,
    names: bool,
}

fn seen() -> Result<Seen> {
    let agent = stack::binary("audit-agent")?;
    let output = Command::new(agent).arg("--dry-run").output()?;
    ensure!(
        output.status.success(),
        "audit-agent --dry-run: {}",
        output.status
    );
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let unlink = text
        .lines()
        .find(|line| line.trim_start().starts_with("unlink "));
    let unlink = unlink.context("a line about unlink")?;
    Ok(Seen {
        objects: unlink.contains("objects by"),
        names: unlink.contains("names as the kernel copied them"),
    })
}

impl Seen {
    /// Why this cannot be told right here, if so.
    fn lacks(&self, action: &str) -> Option<&'static str> {
        let is = |what: &str| action.starts_with(what);
        if self.names || !(is("unlink") || is("rename") || is("refused")) {
            None
        } else if is("refused") || action.contains("races that were seen") {
            Some("the kernel's copies of names cannot be seen")
        } else if !self.objects {
            Some("neither objects nor the kernel's copies of names can be seen")
        } else {
            None
        }
    }
}

#[test]
fn the_record_says_what_the_kernel_used() -> Result<()> {
    if let Some(reason) = stack::missing_for_live_tests() {
        eprintln!("SKIPPED: {reason}");
        return Ok(());
    }
    let seen = seen()?;
    // The attacker and its victim take both CPUs of a small machine: what the agent cannot read
    // meanwhile has to wait. What is lost here would be told, but it would not show what was used.
    let mut stack = Stack::start(Options {
        agent: vec!["rings.file_bytes=67108864".to_owned()],
        ..Options::default()
    })?;
    let directory = tempfile::Builder::new()
        .prefix("hostaudit-races-")
        .tempdir()?;
    let output = Command::new(env!("CARGO_BIN_EXE_workload"))
        .arg("races")
        .arg(directory.path())
        .output()?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "workload: {errors}");
    stack.barrier()?;
    let mut lies = Vec::new();
    for line in String::from_utf8(output.stdout)?.lines() {
        let Expectation {
            action,
            sql,
            number,
        } = Expectation::parse(line)?;
        let found = stack.number(&sql)?;
        println!("{action}; recorded: {found}");
        if found == number {
            continue;
        }
        if let Some(reason) = seen.lacks(&action) {
            eprintln!("SKIPPED: {action}, but recorded {found}: on this kernel {reason}");
        } else {
            lies.push(format!("{action}, but recorded {found}"));
        }
    }
    let lost =
        stack.number("select coalesce(sum(lost_count), 0) from events where kind = 'lost'")?;
    ensure!(lies.is_empty(), "{} ({lost} events lost)", lies.join("\n"));
    Ok(())
}
