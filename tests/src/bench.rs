//! Which benches are there, and what do they share? The command line of `bench`.

mod ingest;
mod interrupt;
mod loss;
mod measure;
mod mode;
mod outage;
mod overhead;
mod report;
mod storm;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "bench", max_term_width = 100)]
/// Measures hostaudit on this host's live kernel. Needs root; a quiet machine gives steadier numbers.
struct Args {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// What recording costs: storms bare, with hostaudit, auditd, bpftrace and empty programs
    Overhead(overhead::Args),
    /// Are execs, opens and connects at full speed all stored, or counted as lost?
    Loss(loss::Args),
    /// Events per second that a collector stores and acknowledges
    Ingest(ingest::Args),
    /// What does a collector that is away cost the host, and does everything arrive afterwards?
    Outage(outage::Args),
    /// One storm alone, as the other benches start it
    #[command(hide = true)]
    Storm(storm::Args),
}

/// Options of every bench.
#[derive(Debug, Clone, clap::Args)]
struct Common {
    /// A short run that shows that the bench works; its numbers are rough
    #[arg(long)]
    quick: bool,
    /// Write all measurements to this file too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Common {
    fn write_json(&self, value: &serde_json::Value) -> Result<()> {
        if let Some(path) = &self.json {
            let text = serde_json::to_string_pretty(value)?;
            std::fs::write(path, text + "\n")
                .with_context(|| format!("cannot write {}", path.display()))?;
            println!("measurements: {}", path.display());
        }
        Ok(())
    }
}

pub fn main() -> Result<ExitCode> {
    match Args::parse().bench {
        Bench::Overhead(args) => overhead::run(&args),
        Bench::Loss(args) => loss::run(&args),
        Bench::Ingest(args) => ingest::run(&args),
        Bench::Outage(args) => outage::run(&args),
        Bench::Storm(args) => storm::run(&args),
    }
}
