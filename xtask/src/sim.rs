//! `cargo xtask sim`: the simulation of delivery, with as many seeds as asked for. CI runs a few.

use std::process::ExitCode;

use anyhow::Result;

use crate::{cargo, setup};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Seeds, of which each is a minute of trouble on up to three hosts
    #[arg(long, default_value_t = 2000)]
    seeds: u64,
    /// The first of them; one that failed says its number and what happened
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    setup::testing()?;
    let mut command = cargo::cargo();
    command
        .args(["test", "--package", "audit-tests", "--test", "sim", "--"])
        .args(["--nocapture", "what_is_recorded"])
        .env("HOSTAUDIT_SIM_SEEDS", args.seeds.to_string())
        .env("HOSTAUDIT_SIM_SEED", args.seed.to_string());
    cargo::become_program(command)
}
