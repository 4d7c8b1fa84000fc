//! `audit-agent`: records what happens on this host and delivers it to a collector.

mod dry_run;
mod spool_report;

use std::{
    io::{self, IsTerminal as _, Write as _},
    path::PathBuf,
    process::ExitCode,
    sync::mpsc,
};

use anyhow::{Context as _, Result, ensure};
use audit_agent::{Config, Control, replay::Replay};
use clap::{Parser, Subcommand, ValueEnum};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tracing_subscriber::EnvFilter;

/// Records from a file are taken so many at a time.
const REPLAY_ROUND: usize = 1024;

/// Records who ran, touched and talked to what on this host, and delivers it to a collector.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, after_long_help = AFTER_HELP)]
struct Args {
    /// Configuration file. Also read: the files *.yaml in the directory beside it whose name ends
    /// in .d instead of .yaml.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        long_help = "Configuration file [default: /etc/hostaudit/agent.yaml if it exists, else built-in defaults].\nAlso read, in name order: *.yaml in the directory beside it whose name ends in .d instead of .yaml."
    )]
    config: Option<PathBuf>,

    /// Set one value, over all files; may be repeated.
    #[arg(short = 'o', global = true, value_name = "KEY=VALUE")]
    overrides: Vec<String>,

    /// Check the configuration and what this kernel allows, print what would run, and end.
    #[arg(long)]
    dry_run: bool,

    /// Detach and remove what an agent has pinned (capture.pin.directory), and end. What was captured
    /// and not delivered is lost.
    #[arg(long)]
    unpin: bool,

    /// Load every program and print how much the kernel's verifier had to check.
    #[arg(long, hide = true)]
    verifier_stats: bool,

    /// Read records from a file instead of the kernel: each after its length as a little-endian u32.
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,

    /// Attach programs that do nothing instead, until stopped: what watching costs at the least.
    #[arg(long, hide = true)]
    empty_programs: bool,

    #[command(subcommand)]
    command: Option<Command>,

    /// How log lines look. RUST_LOG sets what is logged, for example RUST_LOG=debug.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum Command {
    /// Look into the spool, where batches wait for the collector (state_dir/spool). The agent must not run
    #[command(subcommand)]
    Spool(Spool),
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum Spool {
    /// What waits there, of which history
    Stat,
    /// Is it sound? Exit status 1 if not
    Fsck,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

const AFTER_HELP: &str = "\
Examples:
  audit-agent                                   run with /etc/hostaudit/agent.yaml
  audit-agent --dry-run                         check that file and this kernel, record nothing
  audit-agent -o server=http://127.0.0.1:4620   deliver to another collector
  audit-agent spool stat                        what waits for the collector, while no agent runs
  audit-agent -o batch.max_delay_ms=1000 -o 'capture.watch_reads=[/etc/shadow]'

It needs root, a kernel of 5.10 or later with BTF (/sys/kernel/btf/vmlinux). Batches are signed and
kept in state_dir/spool until the collector has them, also while it is away or the agent is not
running. When the spool is full (spool.max_bytes) the oldest events are dropped, and told in `lost`
events; their signed headers stay. `audit-agent spool stat` and `spool fsck` look into it.

Filters (capture.filters) hide events before they cost more than a look: by kind, system call,
program, user, cgroup and path. All but path is decided in the kernel always; a path where the
kernel knows it, else by the agent. Budgets (capture.budgets) bound what one cgroup may have recorded
of a class. exec, fork, exit and container are never left out. What is left out is counted
(hostaudit status).

With capture.pin.directory capture goes on while no agent runs, and the next one loses nothing that
the rings had room for; deploy/agent.yaml says more.

Signals: SIGTERM and SIGINT empty the rings, deliver what is left within 5 seconds, and end. SIGHUP
reads the configuration again and puts capture.filters and capture.budgets into force within two
seconds, without a gap; if it cannot work, the old one stays and the log says why.
Exit status: 0 after a signal, 1 when it could not start or could not go on, 2 for wrong arguments.";

/// From this size on, memory is taken from the kernel one by one, and goes back to it when freed.
const LARGE_BYTES: libc::c_int = 128 << 10;

/// Keeps freed buffers from staying with the process. glibc begins with this same limit, but
/// raises it to the size of whatever is freed, and from then on carves batches and messages out of
/// heaps that it seldom returns. In `bench loss` this halves what is resident (docs/benchmarks.md).
#[cfg(target_env = "gnu")]
fn give_memory_back() {
    #[expect(unsafe_code, reason = "no safe call for malloc's settings")]
    // SAFETY: no memory arguments; called before there is a second thread.
    let set = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BYTES) };
    if set != 1 {
        tracing::debug!("malloc keeps its own limit for large blocks");
    }
}

/// Loading the programs takes some MiB that are free again once everything is attached.
#[cfg(target_env = "gnu")]
fn give_loading_back() {
    #[expect(unsafe_code, reason = "no safe call for malloc_trim")]
    // SAFETY: no memory arguments; the allocator locks what it looks at.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(not(target_env = "gnu"))]
fn give_memory_back() {}
#[cfg(not(target_env = "gnu"))]
fn give_loading_back() {}

fn main() -> ExitCode {
    give_memory_back();
    let args = Args::parse();
    log_to_stderr(args.log_format);
    match start(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("audit-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn log_to_stderr(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
}

fn start(args: &Args) -> Result<()> {
    let config = Config::load(args.config.as_deref(), &args.overrides)?;
    if let Some(Command::Spool(command)) = args.command {
        let report = spool_report::read(&config)?;
        return match command {
            Spool::Stat => show(&report.stat()),
            Spool::Fsck => {
                show(&report.fsck())?;
                ensure!(report.is_sound(), "the spool is not sound");
                Ok(())
            }
        };
    }
    if args.dry_run {
        return show(&dry_run::describe(&config)?);
    }
    if args.verifier_stats {
        return verifier_stats(&config);
    }
    if args.unpin {
        return unpin(&config);
    }
    config.validate()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("ship")
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    runtime.block_on(run(args, config))
}

async fn run(args: &Args, config: Config) -> Result<()> {
    let (sender, stop) = watch::channel(false);
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping: emptying the rings and delivering what is left");
        // Nobody listens when the agent has just ended by itself.
        let _ = sender.send(true);
    });
    let reload = Some(reload_on_hangup(args)?);
    if args.empty_programs {
        let probe = audit_agent::probe::EmptyProbe::load()?;
        tracing::info!("empty programs attached");
        let mut stop = stop;
        // An error means that the sender is gone, which is a stop too.
        let _ = stop.wait_for(|stop| *stop).await;
        drop(probe);
        return Ok(());
    }
    let ended = match &args.replay {
        Some(path) => {
            let source = Replay::open(path, REPLAY_ROUND).context("cannot replay")?;
            let agent = audit_agent::open_source(source, &config)?;
            agent.run(Control { stop, reload }).await?
        }
        None => {
            let agent = audit_agent::open(&config)?;
            give_loading_back();
            agent.run(Control { stop, reload }).await?
        }
    };
    tracing::info!(sent = ended.sent, waiting = ended.unsent, "stopped");
    Ok(())
}

/// Reads the configuration again on each SIGHUP.
fn reload_on_hangup(args: &Args) -> Result<mpsc::Receiver<Config>> {
    let (file, overrides) = (args.config.clone(), args.overrides.clone());
    let (sender, receiver) = mpsc::channel();
    let mut hangup = signal(SignalKind::hangup()).context("cannot handle SIGHUP")?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            let loaded = Config::load(file.as_deref(), &overrides).map_err(anyhow::Error::from);
            let checked = loaded.and_then(|config| {
                config.validate()?;
                Ok(config)
            });
            match checked {
                Ok(config) => {
                    if sender.send(config).is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::error!("not reloaded, the configuration in force stays: {error:#}");
                }
            }
        }
    });
    Ok(receiver)
}

fn unpin(config: &Config) -> Result<()> {
    let directory = &config.capture.pin.directory;
    ensure!(
        !directory.as_os_str().is_empty(),
        "capture.pin.directory is not set: name what to remove with -o capture.pin.directory=DIR"
    );
    let directory = directory.display();
    if audit_agent::probe::unpin(config)? {
        show(&format!("{directory}: detached and removed\n"))
    } else {
        show(&format!("{directory}: nothing is pinned\n"))
    }
}

/// To stdout; a reader that has seen enough (`head`) is no error.
fn show(text: &str) -> Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// For `cargo xtask ebpf --stats`: program, instructions, limit, separated by tabs; instead of the
/// numbers a reason.
fn verifier_stats(config: &Config) -> Result<()> {
    for one in audit_agent::probe::complexity(config)? {
        match one.processed {
            Ok((instructions, limit)) => println!("{}\t{instructions}\t{limit}", one.program),
            Err(reason) => println!("{}\t{}", one.program, reason.replace(['\t', '\n'], " ")),
        }
    }
    Ok(())
}
