//! `cargo xtask chaos`: the chaos test, with as many rounds as asked for. CI runs a few.

use std::process::ExitCode;

use anyhow::Result;

use crate::{cargo, setup};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Kills and cuts, some two seconds each
    #[arg(long, default_value_t = 200)]
    rounds: u64,
    /// Which of them, in which order and after how long
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    setup::testing()?;
    cargo::run(&["build", "--workspace", "--bins"])?;
    let mut command = cargo::cargo();
    command
        .args(["test", "--package", "audit-tests", "--test", "chaos", "--"])
        .arg("--nocapture")
        .env("HOSTAUDIT_CHAOS_ROUNDS", args.rounds.to_string())
        .env("HOSTAUDIT_CHAOS_SEED", args.seed.to_string());
    cargo::become_program(command)
}
