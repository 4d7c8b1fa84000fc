//! `cargo xtask up`: from a fresh clone to events on the screen.

use std::{
    ffi::OsString,
    process::{Command, ExitCode},
};

use anyhow::Result;

use crate::{cargo, setup, steps::Progress};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Arguments of `hostaudit up`, for example: cargo xtask up -- --data /var/tmp/audit
    #[arg(last = true)]
    arguments: Vec<OsString>,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let mut progress = Progress::new(3);
    progress.step("toolchain for the kernel programs");
    setup::building()?;
    progress.step("building hostaudit (the first time some ten minutes on two cores: DataFusion)");
    cargo::run(&["build", "--package", "audit-cli"])?;
    progress.step("hostaudit up; Ctrl-C stops it");
    let mut command = Command::new(cargo::built("debug", "hostaudit"));
    command.arg("up").args(&args.arguments);
    cargo::become_program(command)
}
