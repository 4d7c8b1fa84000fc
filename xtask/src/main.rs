//! `cargo xtask`: what a developer types. Depends on next to nothing, so that it builds in seconds;
//! the heavy builds that it starts are then its own steps, with progress.

mod bench;
mod cargo;
mod chaos;
mod check;
mod ebpf;
mod events;
mod fuzz;
mod new_event;
mod setup;
mod sim;
mod steps;
mod test;
mod up;
mod verifier;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Builds, runs, tests and measures hostaudit from this source tree.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Record this host: make the toolchain, build, and run `hostaudit up`
    Up(up::Args),
    /// Install what building (and with --test: testing) needs; does nothing when it is all there
    Setup(setup::Args),
    /// Write docs/events.md from the tables of kinds, calls, hooks and columns
    Events,
    /// Write a new kind of event into every place that knows kinds
    NewEvent(new_event::Args),
    /// Build the kernel programs and show their sizes, or how much a kernel's verifier has to check
    Ebpf(ebpf::Args),
    /// Every check there is: format, lints, docs, tests, live tests, benches, deployment files
    Test(test::Args),
    /// Measure this host: overhead, loss, detect, ingest, outage
    Bench(bench::Args),
    /// Kill agent and collector and cut the network between them, under a counted workload
    Chaos(chaos::Args),
    /// Simulate agents, collector, disks and network by seed, with everything that may fail
    Sim(sim::Args),
    /// Run the fuzz targets of what decodes bytes from outside, and keep what they learn
    Fuzz(fuzz::Args),
    /// Run the capture tests, or any command, on other kernels in QEMU
    Vm(vm::Args),
}

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Up(args) => up::run(&args),
        Command::Setup(args) => setup::run(&args),
        Command::Events => events::run(),
        Command::NewEvent(args) => new_event::run(&args),
        Command::Ebpf(args) => ebpf::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Chaos(args) => chaos::run(&args),
        Command::Sim(args) => sim::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Vm(args) => vm::run(&args),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
