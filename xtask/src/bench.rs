//! `cargo xtask bench NAME`: builds what the bench runs, and runs it.
//!
//! What is measured is the release build, but not with --quick: the agent for overhead, loss and outage,
//! the rules for detect, and the collector, whose build takes three quarters of an hour on two cores, for
//! ingest. The rest is of the dev profile, optimised where events pass.

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
    match (name, quick) {
        (Name::Ingest, false) => {
            let packages = ["--package", "audit-collector", "--package", "audit-tests"];
            return cargo::run(&[&["build", "--release", "--bins"], &packages[..]].concat());
        }
        (_, false) => cargo::run(&["build", "--release", "--package", "audit-agent"])?,
        (_, true) => {}
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
        let profile = match args.name == Name::Ingest && !args.quick {
            true => "release",
            false => "debug",
        };
        let mut command = Command::new(cargo::built(profile, "bench"));
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
