//! `cargo xtask new-event`: writes a new kind of event into each place that knows kinds, so that the
//! tree compiles and its tests say what is left to do.
//!
//! Invariant: either every place is changed or none; a name, number, call or tracepoint that is
//! taken is refused by naming who has it.

mod numbers;
mod places;
mod tree;

#[cfg(test)]
mod tests;

use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;

use crate::cargo;
use numbers::Call;
use tree::Tree;

#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "\
Examples:
  cargo xtask new-event chroot --number 50 --class file --call chroot
  cargo xtask new-event accounting --number 16 --class process --call acct \\
      --means 'Process accounting was switched on or off.'
  cargo xtask new-event oom_kill --number 17 --class process --tracepoint mark_victim

What is told by the arguments of a system call needs no kernel program: its row in
audit-agent/src/calls.rs says which argument is a path, a descriptor or a text. A tracepoint gets a
program of its own, a payload, and a decoder for it. Both get a workload that fails until it
performs the action and says what the record must have.")]
pub struct Args {
    /// Its name in the record, for example mkdir_mknod
    name: String,
    /// Its number, for ever: a free one of enum Kind in proto/audit/v1/event.proto
    #[arg(long)]
    number: u16,
    /// The lane: what a flood of other lanes must not push out
    #[arg(long, value_enum)]
    class: Class,
    /// System calls that tell it; where the headers lack one: NAME=X86_64,ARM64,I386 (0 for none)
    #[arg(long, value_name = "SYSCALL", num_args = 1.., required_unless_present = "tracepoint")]
    call: Vec<String>,
    /// The kernel tracepoint that tells it, as in /sys/kernel/tracing/available_events
    #[arg(long, value_name = "NAME", conflicts_with = "call")]
    tracepoint: Option<String>,
    /// One sentence for the table of kinds and for docs/events.md
    #[arg(long, value_name = "TEXT")]
    means: Option<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Class {
    Process,
    Network,
    File,
}

impl Class {
    fn constant(self) -> &'static str {
        match self {
            Self::Process => "PROCESS",
            Self::Network => "NETWORK",
            Self::File => "FILE",
        }
    }
}

/// What tells the new kind.
#[derive(Debug)]
enum Source {
    Calls(Vec<Call>),
    Tracepoint(String),
}

/// A new kind, in the spellings that the places need.
#[derive(Debug)]
struct Kind {
    /// mkdir_mknod
    name: String,
    /// MKDIR_MKNOD
    constant: String,
    /// MkdirMknod
    ty: String,
    number: u16,
    class: Class,
    means: String,
    source: Source,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let kind = Kind::new(args)?;
    let mut tree = Tree::new(cargo::root());
    let left = places::write(&kind, &mut tree)?;
    let changed = tree.save()?;
    format(&changed);
    println!("`{}` is kind {}. Changed:", kind.name, kind.number);
    for path in &changed {
        println!("  {}", path.display());
    }
    println!("\nLeft to do:");
    for (at, step) in left.iter().enumerate() {
        println!("  {}. {step}", at + 1);
    }
    Ok(ExitCode::SUCCESS)
}

impl Kind {
    fn new(args: &Args) -> Result<Self> {
        let name = &args.name;
        let is_name = name.starts_with(|c: char| c.is_ascii_lowercase())
            && name
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        ensure!(
            is_name,
            "{name:?} is no name of a kind: lower-case letters, digits and _, for example mkdir_mknod"
        );
        // Above that, numbers are parts of events: see kind::EXEC_ARGS.
        ensure!(
            (1..0x8000).contains(&args.number),
            "{} is not a number of a kind: 1 to 32767",
            args.number
        );
        let source = match &args.tracepoint {
            Some(tracepoint) => Source::Tracepoint(tracepoint.clone()),
            None => {
                let calls = args.call.iter().map(|text| Call::find(text));
                Source::Calls(calls.collect::<Result<_>>()?)
            }
        };
        let means = match &args.means {
            Some(text) => text.trim_end_matches('.').to_owned() + ".",
            None => format!("DESCRIBE what `{name}` means."),
        };
        Ok(Self {
            constant: name.to_uppercase(),
            ty: camel(name),
            name: name.clone(),
            number: args.number,
            class: args.class,
            means,
            source,
        })
    }
}

fn camel(name: &str) -> String {
    let words = name.split('_').filter(|word| !word.is_empty());
    words
        .map(|word| word[..1].to_uppercase() + &word[1..])
        .collect()
}

/// As `cargo fmt` would; a tree without rustfmt stays as it was written.
fn format(changed: &[std::path::PathBuf]) {
    let rust = changed
        .iter()
        .filter(|path| path.extension().is_some_and(|end| end == "rs"));
    let formatted = Command::new("rustfmt")
        .args(["--edition", "2024"])
        .args(rust)
        .current_dir(cargo::root())
        .status()
        .context("cannot start rustfmt");
    if !formatted.is_ok_and(|status| status.success()) {
        eprintln!("xtask: rustfmt did not run; `cargo fmt --all` before you commit");
    }
}
