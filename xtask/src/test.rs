//! `cargo xtask test`: every check there is, in the order in which they are cheap. A step that fails
//! does not stop the others; the table at the end shows all.

use std::{
    collections::VecDeque,
    io::{self, BufRead as _, BufReader, Write as _},
    process::{Command, ExitCode, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::{
    cargo,
    check::{self, Step},
    setup,
    steps::{Outcome, Summary},
};

/// How long the output of a step that has ended is waited for.
const LEFT_BEHIND: Duration = Duration::from_secs(2);

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
    let mut ends = Vec::new();
    for (at, step) in steps.iter().enumerate() {
        eprintln!(
            "\n=== {}/{} {}: {}",
            at + 1,
            steps.len(),
            step.name,
            step.what
        );
        let began = Instant::now();
        let mut last = Last::default();
        let outcome = run_step(step, args.ci, &mut last);
        if matches!(outcome, Outcome::Failed(_)) {
            ends.push((step.name, last));
        }
        if let Outcome::Failed(reason) | Outcome::Skipped(reason) = &outcome {
            eprintln!("{}: {reason}", step.name);
        }
        summary.add(step.name, outcome, began.elapsed());
    }
    // Whoever keeps only the end of this output shall see why.
    for (name, last) in ends.iter().filter(|_| args.ci) {
        println!("\n=== {name} failed; the failures that it told, and the last that it said:");
        let lines = last.failures.iter().chain(&last.lines);
        lines.for_each(|line| println!("{line}"));
    }
    println!("\n{summary}");
    Ok(if summary.failed() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Of a step's output; with --ci alone, because a terminal is left to the step itself.
#[derive(Default)]
struct Last {
    lines: VecDeque<String>,
    /// Lines that tell a failure, with those after them: the tests behind it may have said much.
    failures: Vec<String>,
    /// So many more lines belong to a failure.
    following: usize,
}

impl Last {
    const LINES: usize = 60;
    const FAILURES: usize = 80;
    const FOLLOWING: usize = 5;

    fn push(&mut self, line: String) {
        let tells = ["FAILED", "panicked at", "Error: ", "error: "];
        if tells.iter().any(|word| line.contains(word)) {
            self.following = Self::FOLLOWING;
        }
        if self.following > 0 && self.failures.len() < Self::FAILURES {
            self.following -= 1;
            self.failures.push(line.clone());
        }
        if self.lines.len() == Self::LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }
}

fn run_step(step: &Step, ci: bool, last: &mut Last) -> Outcome {
    if let Some(reason) = (step.missing)() {
        return Outcome::Skipped(reason);
    }
    for command in &step.commands {
        if let Err(reason) = run_command(command, step.limit_s, ci, last) {
            return Outcome::Failed(reason);
        }
    }
    Outcome::Passed
}

/// Under coreutils' timeout, which also ends the children: 124 says that time was up.
fn run_command(words: &[String], limit_s: u32, ci: bool, last: &mut Last) -> Result<(), String> {
    let mut command = cargo::command("timeout");
    if ci {
        command
            .env("CARGO_TERM_COLOR", "never")
            .env("CARGO_TERM_PROGRESS_WHEN", "never")
            .stdin(Stdio::null());
    } else {
        // Keeps Ctrl-C working in a terminal.
        command.arg("--foreground");
    }
    command
        .args(["--kill-after=20", &limit_s.to_string()])
        .args(words);
    command.env("RUSTDOCFLAGS", "-D warnings");
    let status = match ci {
        true => pass_through(command, last),
        false => command.status(),
    };
    let status = status.map_err(|error| format!("cannot start timeout: {error}"))?;
    match status.code() {
        Some(0) => Ok(()),
        Some(124 | 137) => Err(format!("not done within {limit_s} s: {}", words.join(" "))),
        _ => Err(format!("{}: {status}", words.join(" "))),
    }
}

/// Runs it and keeps the last lines of what it says, in the order in which it says them.
fn pass_through(mut command: Command, last: &mut Last) -> io::Result<ExitStatus> {
    let (reader, writer) = io::pipe()?;
    command.stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn()?;
    // It has the other ends of the pipe.
    drop(command);
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        let mut reader = BufReader::new(reader);
        let mut line = Vec::new();
        while reader
            .read_until(b'\n', &mut line)
            .is_ok_and(|bytes| bytes > 0)
        {
            // An output that is gone is no reason to stop.
            let _ = io::stdout().write_all(&line);
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            line.clear();
            if sender.send(text).is_err() {
                break;
            }
        }
    });
    let status = child.wait()?;
    // What the step left running may hold the pipe for ever.
    while let Ok(line) = lines.recv_timeout(LEFT_BEHIND) {
        last.push(line);
    }
    Ok(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_what_a_failing_step_says_is_kept() {
        let mut last = Last::default();
        let script = "echo test a ... FAILED; seq 1 150; echo why >&2; exit 3";
        let words = ["sh", "-c", script].map(str::to_owned);
        let failed = run_command(&words, 20, true, &mut last).expect_err("it fails");
        assert!(failed.ends_with("exit status: 3"), "{failed}");
        assert_eq!(last.lines.len(), Last::LINES);
        assert_eq!(last.lines.back().map(String::as_str), Some("why"));
        assert_eq!(last.lines.front().map(String::as_str), Some("92"));
        assert_eq!(last.failures, ["test a ... FAILED", "1", "2", "3", "4"]);
    }
}
