//! `hostaudit`: what a person types. Each subcommand is a file; what they share is here:
//!
//! * [`client`]: which collector, and how to reach it;
//! * [`compact`], [`json`], [`table`]: events and rows as text;
//! * [`display`], [`color`], [`terminal`], [`output`], [`when`]: text that is safe on a terminal,
//!   cut to its width, in its colours; times as typed and as read.

mod alerts;
mod cli;
mod client;
mod color;
mod compact;
mod display;
mod export;
mod host;
mod json;
mod output;
mod pki;
mod probe;
mod query;
mod status;
mod table;
mod tail;
mod terminal;
mod tree;
mod verify;
mod when;

mod doctor;
mod rules;
mod up;

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser as _;

use crate::{
    cli::{Cli, Command},
    terminal::Terminal,
};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let terminal = Terminal::detect(cli.color);
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the runtime does not start")
        .and_then(|runtime| runtime.block_on(run(&cli, &terminal)));
    match outcome {
        Ok(code) => code,
        Err(error) if output::is_closed(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let label = terminal
                .error_palette
                .paint(color::Style::Alarm, "hostaudit:");
            eprintln!("{label} {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: &Cli, terminal: &Terminal) -> Result<ExitCode> {
    let target = &cli.target;
    match &cli.command {
        Command::Up(args) => up::run(args, target, terminal).await?,
        Command::Tail(args) => tail::run(args, target, terminal).await?,
        Command::Query(args) => query::run(args, target, terminal).await?,
        Command::Tree(args) => tree::run(args, target, terminal).await?,
        Command::Alerts(args) => alerts::run(args, target, terminal).await?,
        Command::Verify(args) => return Ok(verify::run(args, target, terminal).await),
        Command::Export(args) => export::run(args, target, terminal).await?,
        Command::Rules(args) => return rules::run(args, terminal),
        Command::Pki(args) => pki::run(args, target, terminal).await?,
        Command::Status(args) => return status::run(args, target, terminal).await,
        Command::Doctor(args) => return doctor::run(args, target, terminal).await,
    }
    Ok(ExitCode::SUCCESS)
}
