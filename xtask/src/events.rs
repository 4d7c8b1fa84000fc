//! `cargo xtask events`: writes `docs/events.md`. The page is made where the tables are, by the test of
//! audit-agent that otherwise compares it; this only asks for it.

use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};

use crate::cargo;

/// With audit-cli, so that dependencies have the features that they have in every other build.
const TEST: [&str; 7] = [
    "test",
    "--quiet",
    "--package=audit-agent",
    "--package=audit-cli",
    "--lib",
    "--",
    "catalogue::the_page_about_events_is_what_the_tables_say",
];

pub fn run() -> Result<ExitCode> {
    let status = cargo::cargo()
        .args(TEST)
        .env("HOSTAUDIT_WRITE_EVENTS", "1")
        .status()
        .context("cannot start cargo")?;
    ensure!(status.success(), "cargo {}: {status}", TEST.join(" "));
    println!("docs/events.md is written");
    Ok(ExitCode::SUCCESS)
}
