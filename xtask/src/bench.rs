//! `cargo xtask bench NAME`: builds what the bench runs, and runs it.
//!
//! The bench program and the collector are of the dev profile (optimised where events pass; a
//! release build of DataFusion would take longer than the bench). The agent and the rules, whose
//! cost is what is measured, are the release build, but not with --quick.

use std::{
    ffi::OsString,
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::Result;
use clap::ValueEnum;

use crate::{cargo, setup};

#[derive(Debug, clap::Args)]
pub struct Args {
    name: Name,
    /// A short run that shows that the bench works; its numbers are rough
    #[arg(long)]
    quick: bool,
    /// Write all measurements to this file too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Further arguments of the bench, for example: cargo xtask bench overhead -- --rounds 9
    #[arg(last = true)]
    arguments: Vec<OsString>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Name {
    /// What recording costs: bare, hostaudit, auditd, bpftrace and empty programs
    Overhead,
    /// Are execs, opens and connects at full speed all stored, or counted as lost? With -- --curve:
    /// what is lost at which rate, beside auditd and bpftrace
    Loss,
    /// Events per second through the compiled Sigma rules on one core
    Detect,
    /// Events per second that a collector stores and acknowledges
    Ingest,
    /// What does a collector that is away cost the host, and does everything arrive afterwards?
    Outage,
}

impl Name {
    pub fn as_str(self) -> &'static str {
        match self {
            Name::Overhead => "overhead",
            Name::Loss => "loss",
            Name::Detect => "detect",
            Name::Ingest => "ingest",
            Name::Outage => "outage",
        }
    }
}

pub fn run(args: &Args) -> Result<ExitCode> {
    setup::building()?;
    if matches!(args.name, Name::Overhead | Name::Loss | Name::Outage) {
        setup::testing()?;
    }
    setup::kernel_file_systems();
    build(args.name, args.quick)?;
    cargo::become_program(command(args))
}

fn build(name: Name, quick: bool) -> Result<()> {
    // `cargo bench` builds it.
    if name == Name::Detect {
        return Ok(());
    }
    if !quick && name != Name::Ingest {
        cargo::run(&["build", "--release", "--package", "audit-agent"])?;
    }
    cargo::run(&["build", "--workspace", "--bins"])
}

fn command(args: &Args) -> Command {
    let mut command = if args.name == Name::Detect {
        let mut command = cargo::cargo();
        // --quick takes what a build of everything has made.
        command.args(match args.quick {
            true => ["bench", "--profile", "dev", "--workspace"],
            false => ["bench", "--profile", "release", "--package=audit-detect"],
        });
        command.args(["--bench", "detect", "--"]);
        command
    } else {
        let mut command = Command::new(cargo::built("debug", "bench"));
        command.arg(args.name.as_str());
        command
    };
    if args.quick {
        command.arg("--quick");
    }
    if let Some(path) = &args.json {
        // Cargo runs a bench in the directory of its package.
        command
            .arg("--json")
            .arg(std::path::absolute(path).unwrap_or_else(|_| path.clone()));
    }
    command.args(&args.arguments);
    command
}
