//! `hostaudit up`: collector and agent in this process, joined by the same socket that everybody
//! else would use, so what works here works apart.
//!
//! Ending: the agent stops first and delivers what it holds, then the collector drains. A second
//! signal ends at once.

mod watch;

use std::{
    fs,
    io::{self, IsTerminal as _},
    net::TcpListener,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use audit_proto::v1::{StatusRequest, StatusResponse};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch as flag,
    task::JoinHandle,
    time::sleep,
};

use crate::{
    client::{self, Address, Client, DEFAULT_DATA, SOCKET_NAME, Target},
    color::Style,
    display, host, probe, query, status,
    terminal::Terminal,
};

const EXAMPLES: &str = "\
Examples:
  sudo hostaudit up                             data in ./hostaudit-data
  sudo hostaudit up --data /var/tmp/audit
  sudo hostaudit up -o agent.batch.max_delay_ms=50 -o collector.listen.tcp=127.0.0.1:4700
  sudo hostaudit up -o 'collector.detect.rules_dirs=[./my-rules]'

For a permanent installation run audit-agent and audit-collector as services instead.";

/// From opening the store to answering; recovery of a long log is what takes time.
const COLLECTOR_START: Duration = Duration::from_secs(120);
/// From loading the kernel programs to the first batch stored.
/// The verifier of a busy small machine alone may take a minute.
const AGENT_START: Duration = Duration::from_secs(240);
/// A wait longer than this is told, so that nobody takes it for a hang.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(100);
/// A second signal counts from here on.
const AGAIN: Duration = Duration::from_millis(500);

/// Record this host: agent and collector in one process, until Ctrl-C
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Up {
    /// Set one configuration value: agent.KEY=VALUE or collector.KEY=VALUE
    #[arg(short, value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// What the agent and collector log: error, warn, info, debug (RUST_LOG wins)
    #[arg(long, default_value = "warn", value_name = "LEVEL")]
    log: String,
}

pub async fn run(args: &Up, target: &Target, terminal: &Terminal) -> Result<()> {
    if target.server.is_some() {
        bail!(
            "up starts a collector, so --server has no meaning here; --data DIR says where it keeps its data"
        );
    }
    if !host::is_root() {
        bail!("up loads programs into the kernel and must be root: sudo hostaudit up");
    }
    log_to_stderr(args)?;
    let mut signals = Signals::new()?;
    let steps = Steps {
        terminal: *terminal,
    };
    let data = data_dir(target.data.as_deref())?;
    let socket = data.join(SOCKET_NAME);
    free(&socket).await?;
    steps.say(
        "data",
        &format!("{}, only for root to read", data.display()),
    );
    let (agent, collector) = configure(args, &data, &steps)?;
    let mut running = Running::default();
    let outcome = tokio::select! {
        outcome = running.start_and_watch(agent, collector, &socket, &steps, terminal, target) => outcome,
        () = signals.next() => Ok(()),
    };
    eprintln!();
    steps.say(
        "stopping",
        "delivering and storing what is still on its way (again Ctrl-C: at once)",
    );
    let stopped = tokio::select! {
        stopped = running.stop(&socket) => stopped,
        () = signals.again() => {
            #[expect(clippy::exit, reason = "asked for twice: a drain must not hold a person up")]
            std::process::exit(130);
        }
    };
    if let Some(last) = &running.last {
        let events = display::plural(last.stored_events, "event");
        let batches = status::batches(last.stored_batches);
        let alerts = display::plural(last.alerts, "alert");
        let data = data.display();
        steps.say(
            "stored",
            &format!("{events} in {batches}, {alerts}; in {data}"),
        );
    }
    outcome.and(stopped)
}

/// Both halves on the data directory and its socket, whatever else was set.
fn configure(
    args: &Up,
    data: &Path,
    steps: &Steps,
) -> Result<(audit_agent::Config, audit_collector::Config)> {
    let socket = data.join(SOCKET_NAME);
    let (for_agent, for_collector) = split(&args.overrides)?;
    let mut agent = probe::agent_config(None, &for_agent).context("-o agent.…")?;
    agent.server = format!("unix://{}", socket.display());
    agent.state_dir = data.to_owned();
    let mut collector: audit_collector::Config =
        audit_config::load(None, None, &for_collector).context("-o collector.…")?;
    collector.data_dir = data.to_owned();
    collector.listen.unix = socket;
    without_taken_port(&mut collector, steps);
    Ok((agent, collector))
}

struct Steps {
    terminal: Terminal,
}

impl Steps {
    fn say(&self, what: &str, text: &str) {
        let what = format!("{what:<10}");
        eprintln!(
            "{} {text}",
            self.terminal.error_palette.paint(Style::Bold, &what)
        );
    }
}

/// SIGINT and SIGTERM alike.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let handle = |kind| signal(kind).context("cannot handle signals");
        Ok(Self {
            interrupt: handle(SignalKind::interrupt())?,
            terminate: handle(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// One more, by somebody who has seen what the first one did: some programs send one to the
    /// process and to its group.
    async fn again(&mut self) {
        tokio::time::sleep(AGAIN).await;
        for signal in [&mut self.interrupt, &mut self.terminate] {
            // Those until now are of the first one.
            let _ = tokio::time::timeout(Duration::ZERO, signal.recv()).await;
        }
        self.next().await;
    }
}

fn log_to_stderr(args: &Up) -> Result<()> {
    use tracing_subscriber::EnvFilter;
    let filter = match EnvFilter::try_from_default_env() {
        Ok(filter) => filter,
        Err(_) => EnvFilter::try_new(&args.log).with_context(|| {
            format!(
                "--log {:?}: write error, warn, info, debug or trace",
                args.log
            )
        })?,
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .init();
    Ok(())
}

/// Made where it does not exist, for its owner alone: the record holds other people's command lines.
fn data_dir(given: Option<&Path>) -> Result<PathBuf> {
    use std::os::unix::fs::DirBuilderExt as _;
    let path = given.unwrap_or(Path::new(DEFAULT_DATA));
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| {
            format!(
                "the data directory {} cannot be made; choose another with --data DIR",
                path.display()
            )
        })?;
    path.canonicalize()
        .with_context(|| format!("the data directory {}", path.display()))
}

/// An error where a collector already answers in this directory.
async fn free(socket: &Path) -> Result<()> {
    let Ok(mut client) = Address::Socket(socket.into()).connect().await else {
        return Ok(());
    };
    let pid = client
        .status(StatusRequest {})
        .await
        .map_or(0, |s| s.into_inner().pid);
    bail!(
        "a collector (pid {pid}) already uses this data directory; ask it with hostaudit tail, or choose another with --data DIR"
    )
}

/// The socket is enough for this host, so a port that is taken does not stop anything.
fn without_taken_port(config: &mut audit_collector::Config, steps: &Steps) {
    let Ok(Some(address)) = config.tcp_address() else {
        return;
    };
    if let Err(e) = TcpListener::bind(address) {
        steps.say("tcp", &format!("{address} is not free ({e}); only the socket answers (choose one: -o collector.listen.tcp=127.0.0.1:PORT)"));
        config.listen.tcp.clear();
    }
}

/// "agent.a=1" belongs to the agent, "collector.b=2" to the collector.
fn split(overrides: &[String]) -> Result<(Vec<String>, Vec<String>)> {
    let (mut agent, mut collector) = (Vec::new(), Vec::new());
    for text in overrides {
        if let Some(rest) = text.strip_prefix("agent.") {
            agent.push(rest.to_owned());
        } else if let Some(rest) = text.strip_prefix("collector.") {
            collector.push(rest.to_owned());
        } else {
            bail!(
                "-o {text:?}: begin it with agent. or collector., for example -o agent.batch.max_delay_ms=50"
            );
        }
    }
    Ok((agent, collector))
}

/// The two halves while they run; both are stopped in `stop`, whatever started.
#[derive(Default)]
struct Running {
    collector: Option<Half>,
    agent: Option<Half>,
    last: Option<StatusResponse>,
}

struct Half {
    stop: flag::Sender<bool>,
    task: JoinHandle<Result<()>>,
}

impl Half {
    fn start<F: Future<Output = Result<()>> + Send + 'static>(
        run: impl FnOnce(flag::Receiver<bool>) -> F,
    ) -> Self {
        let (stop, stopped) = flag::channel(false);
        Self {
            stop,
            task: tokio::spawn(run(stopped)),
        }
    }

    /// Why it ended by itself, as an error.
    async fn ended(&mut self, what: &str) -> anyhow::Error {
        match (&mut self.task).await {
            Ok(Ok(())) => anyhow!("the {what} ended by itself"),
            Ok(Err(e)) => e.context(format!("the {what} cannot run")),
            Err(panic) => anyhow!("the {what} failed: {panic}"),
        }
    }

    async fn finish(self, what: &str) -> Result<()> {
        if self.task.is_finished() {
            // Why was told when it ended.
            return Ok(());
        }
        // An error means that it has ended already.
        let _ = self.stop.send(true);
        self.task
            .await
            .with_context(|| format!("the {what} failed"))?
            .with_context(|| format!("stopping the {what}"))
    }
}

impl Running {
    async fn start_and_watch(
        &mut self,
        agent: audit_agent::Config,
        collector: audit_collector::Config,
        socket: &Path,
        steps: &Steps,
        terminal: &Terminal,
        target: &Target,
    ) -> Result<()> {
        let began = now_us();
        let tcp = collector.listen.tcp.clone();
        let half =
            Half::start(|stop| async move { Ok(audit_collector::run(collector, stop).await?) });
        let mut client = ready(self.collector.insert(half), socket).await?;
        let status = ask(&mut client).await?;
        steps.say(
            "collector",
            &format!(
                "{} stored; listens on {}{}",
                display::plural(status.stored_events, "event"),
                socket.display(),
                if tcp.is_empty() {
                    String::new()
                } else {
                    format!(" and {tcp}")
                }
            ),
        );
        steps.say(
            "rules",
            &format!(
                "{} loaded, {} of them cannot fire here (hostaudit status --rules)",
                status.rules_loaded,
                status.rules_idle.len()
            ),
        );
        steps.say(
            "agent",
            "loading kernel programs, reading the processes that already run",
        );
        let half = Half::start(|stop| async move {
            let ended = audit_agent::run(agent, stop).await?;
            if ended.abandoned > 0 {
                bail!(
                    "{} could not be kept, and are lost",
                    display::plural(ended.abandoned as i64, "event")
                );
            }
            Ok(())
        });
        let half = self.agent.insert(half);
        first_events(half, &mut client, status.stored_events, began, steps).await?;
        questions(terminal, target.data.as_deref());
        let (Some(collector), Some(agent)) = (&mut self.collector, &mut self.agent) else {
            return Ok(());
        };
        tokio::select! {
            error = collector.ended("collector") => Err(error),
            error = agent.ended("agent") => Err(error),
            outcome = watch::watch(client, terminal, began) => outcome,
        }
    }

    /// The agent first, so that what it still holds is stored.
    async fn stop(&mut self, socket: &Path) -> Result<()> {
        let agent = match self.agent.take() {
            Some(half) => half.finish("agent").await,
            None => Ok(()),
        };
        if let Ok(mut client) = Address::Socket(socket.into()).connect().await {
            self.last = ask(&mut client).await.ok();
        }
        let collector = match self.collector.take() {
            Some(half) => half.finish("collector").await,
            None => Ok(()),
        };
        agent.and(collector)
    }
}

async fn ask(client: &mut Client) -> Result<StatusResponse> {
    Ok(client
        .status(StatusRequest {})
        .await
        .map_err(|s| client::plain(&s))?
        .into_inner())
}

/// A client, as soon as the collector answers.
async fn ready(half: &mut Half, socket: &Path) -> Result<Client> {
    let began = Instant::now();
    loop {
        if half.task.is_finished() {
            return Err(half.ended("collector").await);
        }
        if let Ok(mut client) = Address::Socket(socket.into()).connect().await
            && ask(&mut client).await.is_ok()
        {
            return Ok(client);
        }
        if began.elapsed() > COLLECTOR_START {
            bail!(
                "the collector does not answer on {} after {} s",
                socket.display(),
                COLLECTOR_START.as_secs()
            );
        }
        sleep(POLL).await;
    }
}

/// Waits until events of this run are stored and says what the agent told about itself.
async fn first_events(
    half: &mut Half,
    client: &mut Client,
    before: i64,
    began: i64,
    steps: &Steps,
) -> Result<()> {
    let start = Instant::now();
    let mut told = start;
    let status = loop {
        if half.task.is_finished() {
            return Err(half.ended("agent").await);
        }
        let status = ask(client).await?;
        if status.stored_events > before {
            break status;
        }
        if told.elapsed() > PATIENCE {
            told = Instant::now();
            let waited = start.elapsed().as_secs();
            steps.say(
                "agent",
                &format!("still waiting for its first events ({waited} s)"),
            );
        }
        if start.elapsed() > AGENT_START {
            bail!(
                "the agent has delivered nothing after {} s; `hostaudit doctor` tells what this kernel allows",
                AGENT_START.as_secs()
            );
        }
        sleep(POLL).await;
    };
    let sql = format!(
        "select agent_action, agent_detail from events where kind = 'agent' and \
         cast(time as bigint) >= {} and agent_detail is not null order by time limit 8",
        // The kernel's clock and this one are read a moment apart.
        began - 1_000_000
    );
    for row in query::fetch(client, sql).await.unwrap_or_default() {
        let text = |name: &str| display::safe(row[name].as_str().unwrap_or_default()).into_owned();
        steps.say(
            "agent",
            &format!("{}: {}", text("agent_action"), text("agent_detail")),
        );
    }
    steps.say(
        "recording",
        &format!(
            "the first {} stored {} after the agent began",
            if status.stored_events - before == 1 {
                "event was"
            } else {
                "events were"
            },
            display::duration(start.elapsed().as_nanos() as i64)
        ),
    );
    Ok(())
}

fn questions(terminal: &Terminal, data: Option<&Path>) {
    let data = data
        .map(|d| format!(" --data {}", display::quote(&d.to_string_lossy())))
        .unwrap_or_default();
    let commands = [
        ("tail".to_owned(), "what happens now"),
        (
            "tail --since 10m --where \"kind = 'connect'\"".to_owned(),
            "who talked to whom",
        ),
        (
            "query \"select kind, count(*) from events group by kind order by 2 desc\"".to_owned(),
            "",
        ),
        ("tree --pid $$".to_owned(), "your shell and what it started"),
        ("alerts --follow".to_owned(), "what the rules found"),
        ("status".to_owned(), ""),
        ("doctor".to_owned(), "which hooks, and why not better ones"),
    ];
    eprintln!(
        "\nAsk from a second terminal{}:",
        if data.is_empty() {
            " in this directory"
        } else {
            ""
        }
    );
    for (command, why) in commands {
        let command = format!("hostaudit {command}{data}");
        let why = if why.is_empty() {
            String::new()
        } else {
            format!("   # {why}")
        };
        eprintln!(
            "  {}{}",
            terminal.error_palette.paint(Style::Cyan, &command),
            terminal.error_palette.paint(Style::Dim, &why)
        );
    }
    eprintln!("\nAlerts appear below. Ctrl-C stops.\n");
}

fn now_us() -> i64 {
    jiff::Timestamp::now().as_microsecond()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_override_names_its_half() {
        let split =
            |texts: &[&str]| split(&texts.iter().map(|&t| t.to_owned()).collect::<Vec<_>>());
        let (agent, collector) = split(&["agent.a.b=1", "collector.c=2"]).expect("both named");
        assert_eq!(
            (agent, collector),
            (vec!["a.b=1".to_owned()], vec!["c=2".to_owned()])
        );
        let error = split(&["rings.file_bytes=1"])
            .expect_err("neither")
            .to_string();
        assert!(
            error.contains("rings.file_bytes=1") && error.contains("agent."),
            "{error}"
        );
    }

    #[test]
    fn the_data_directory_is_made_for_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().expect("a directory");
        let made = data_dir(Some(&dir.path().join("a/b"))).expect("made");
        assert_eq!(
            made.metadata().expect("there").permissions().mode() & 0o777,
            0o700
        );
        fs::write(dir.path().join("file"), "").expect("written");
        let error = data_dir(Some(&dir.path().join("file")))
            .expect_err("a file")
            .to_string();
        assert!(error.contains("--data DIR"), "{error}");
    }
}
