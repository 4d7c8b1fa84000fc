//! A process that changes its arguments under the kernel's eyes: does the record say what the kernel
//! used? Ten thousand tries of each call.
//!
//! Opens, connects and execs are told by the file, socket and program that came of them, on every
//! kernel. What unlink and rename act on can be seen only where kprobes can be attached.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use audit_tests::{Options, Stack, stack, workload::Expectation};

/// Can the agent see here what unlink and rename act on?
fn sees_objects() -> Result<bool> {
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
    Ok(unlink
        .context("a line about unlink")?
        .contains("objects by"))
}

#[test]
fn the_record_says_what_the_kernel_used() -> Result<()> {
    if let Some(reason) = stack::missing_for_live_tests() {
        eprintln!("SKIPPED: {reason}");
        return Ok(());
    }
    let sees_objects = sees_objects()?;
    let mut stack = Stack::start(Options::default())?;
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
        let unseen = action.starts_with("unlink") || action.starts_with("rename");
        if found != number && unseen && !sees_objects {
            eprintln!("SKIPPED: {action}, but recorded {found}: this kernel has no kprobes");
        } else if found != number {
            lies.push(format!("{action}, but recorded {found}"));
        }
    }
    ensure!(lies.is_empty(), "{}", lies.join("\n"));
    Ok(())
}
