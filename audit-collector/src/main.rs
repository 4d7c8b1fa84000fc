//! `audit-collector`: the collector as a daemon.

#![forbid(unsafe_code)]

use std::{io::IsTerminal as _, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use audit_collector::{
    Config,
    config::{DEFAULT_DROP_INS, DEFAULT_PATH, LogFormat},
};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Receives sealed batches of audit events, keeps them, and answers questions about them.
///
/// Agents deliver over gRPC and get their acknowledgement after fsync. `hostaudit query`, `tail`,
/// `alerts` and `status` ask this program.
#[derive(Parser)]
#[command(
    version,
    after_help = "Examples:
  audit-collector --dry-run                              check configuration, rules and directories
  audit-collector -o data_dir=/tmp/x -o listen.unix=/tmp/x/collector.sock -o listen.tcp=
  RUST_LOG=audit_collector=debug audit-collector         with more log than `log.level` says

Configuration: defaults, then --config, then collector.d/*.yaml beside it in name order, then -o.
Stop it with SIGTERM or Ctrl-C: it takes no more connections, writes what it has, and exits 0."
)]
struct Arguments {
    /// Configuration file [default: /etc/hostaudit/collector.yaml where it exists].
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Sets one key, for example -o table.compact_after_s=60; may be repeated.
    #[arg(short = 'o', long = "option", value_name = "KEY=VALUE")]
    options: Vec<String>,
    /// Checks configuration, rules and directories, says what would run, and exits.
    #[arg(long)]
    dry_run: bool,
}

fn main() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("audit-collector: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start() -> Result<()> {
    let arguments = Arguments::parse();
    let (main, drop_ins) = layers(arguments.config);
    let config: Config = audit_config::load(main.as_deref(), Some(&drop_ins), &arguments.options)?;
    config.validate()?;
    if arguments.dry_run {
        for line in audit_collector::check(&config).map_err(whole)? {
            println!("{line}");
        }
        return Ok(());
    }
    log(&config)?;
    audit_collector::give_way(config.nice);
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(serve(config))
}

/// The main file, where there is one, and the directory of drop-ins.
fn layers(given: Option<PathBuf>) -> (Option<PathBuf>, PathBuf) {
    match given {
        Some(path) => {
            let drop_ins = path.with_extension("d");
            (Some(path), drop_ins)
        }
        None => {
            let path = PathBuf::from(DEFAULT_PATH);
            (
                path.exists().then_some(path),
                PathBuf::from(DEFAULT_DROP_INS),
            )
        }
    }
}

fn log(config: &Config) -> Result<()> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(directives) => EnvFilter::try_new(directives).context("RUST_LOG")?,
        Err(_) => EnvFilter::try_new(&config.log.level)
            .context("configuration key `log.level`: use error, warn, info, debug or trace")?,
    };
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // The journal would store escape codes.
        .with_ansi(std::io::stderr().is_terminal());
    match config.log.format {
        LogFormat::Json => subscriber.json().init(),
        LogFormat::Text => subscriber.init(),
    }
    Ok(())
}

/// The collector's errors tell their cause themselves; the chain would tell it twice.
fn whole(error: audit_collector::CollectorError) -> anyhow::Error {
    anyhow::Error::msg(error.to_string())
}

async fn serve(config: Config) -> Result<()> {
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.send_replace(true);
        // Held, so that the collector sees a stop and not a closed channel.
        std::future::pending::<()>().await;
    });
    audit_collector::run(config, stopped).await.map_err(whole)?;
    Ok(())
}
