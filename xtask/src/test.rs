//! `cargo xtask test`: every check there is, in the order in which they are cheap. A step that fails
//! does not stop the others; the table at the end shows all.

use std::{process::ExitCode, time::Instant};

use anyhow::Result;

use crate::{
    cargo,
    check::{self, Step},
    setup,
    steps::{Outcome, Summary},
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// As in continuous integration: no colours, nothing that waits for a terminal
    #[arg(long)]
    ci: bool,
    /// Only the steps whose name contains this; see them with --list
    filter: Option<String>,
    /// List the steps and end
    #[arg(long)]
    list: bool,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let wanted = |step: &Step| {
        args.filter
            .as_ref()
            .is_none_or(|filter| step.name.contains(filter.as_str()))
    };
    let steps: Vec<Step> = check::steps().into_iter().filter(wanted).collect();
    if args.list || steps.is_empty() {
        for step in check::steps() {
            println!("{:<14} {}", step.name, step.what);
        }
        return Ok(if args.list {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        });
    }
    setup::building()?;
    setup::testing()?;
    let mut summary = Summary::default();
    for (at, step) in steps.iter().enumerate() {
        eprintln!(
            "\n=== {}/{} {}: {}",
            at + 1,
            steps.len(),
            step.name,
            step.what
        );
        let began = Instant::now();
        let outcome = run_step(step, args.ci);
        if let Outcome::Failed(reason) | Outcome::Skipped(reason) = &outcome {
            eprintln!("{}: {reason}", step.name);
        }
        summary.add(step.name, outcome, began.elapsed());
    }
    println!("\n{summary}");
    Ok(if summary.failed() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn run_step(step: &Step, ci: bool) -> Outcome {
    if let Some(reason) = (step.missing)() {
        return Outcome::Skipped(reason);
    }
    for command in &step.commands {
        if let Err(reason) = run_command(command, step.limit_s, ci) {
            return Outcome::Failed(reason);
        }
    }
    Outcome::Passed
}

/// Under coreutils' timeout, which also ends the children: 124 says that time was up.
fn run_command(words: &[String], limit_s: u32, ci: bool) -> Result<(), String> {
    let mut command = cargo::command("timeout");
    if ci {
        command
            .env("CARGO_TERM_COLOR", "never")
            .env("CARGO_TERM_PROGRESS_WHEN", "never")
            .stdin(std::process::Stdio::null());
    } else {
        // Keeps Ctrl-C working in a terminal.
        command.arg("--foreground");
    }
    command
        .args(["--kill-after=20", &limit_s.to_string()])
        .args(words);
    command.env("RUSTDOCFLAGS", "-D warnings");
    let status = command
        .status()
        .map_err(|error| format!("cannot start timeout: {error}"))?;
    match status.code() {
        Some(0) => Ok(()),
        Some(124 | 137) => Err(format!("not done within {limit_s} s: {}", words.join(" "))),
        _ => Err(format!("{}: {status}", words.join(" "))),
    }
}
