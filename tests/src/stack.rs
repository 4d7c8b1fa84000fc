//! How does a test get a whole system? [`Stack::start`] runs the built `audit-collector` and
//! `audit-agent` on a temporary directory, connected by the collector's unix socket.
//!
//! Invariants: what a test learns it learns from the collector; dropping the stack ends both
//! programs; an error of a program comes with the end of its log; every deadline grows with
//! `HOSTAUDIT_TEST_SLOWNESS`.

mod daemon;
pub(crate) mod patience;
mod rows;

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use audit_proto::{
    MAX_MESSAGE_BYTES,
    v1::{QueryRequest, StatusRequest, StatusResponse, collector_client::CollectorClient},
};
use tonic::{
    codec::CompressionEncoding,
    transport::{Channel, Endpoint},
};

pub use daemon::{Daemon, binary};
pub use rows::Row;

/// An untuned virtual machine loads and attaches all programs in two seconds, under load in ten.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// What is in flight when a test ends fits in the agent's queue, which drains in seconds.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(60);
const STOP_TIMEOUT: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(50);

/// What to run. The default is an agent and a collector of the dev profile, on defaults.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Leave the agent out; [`Stack::start_agent`] may start it later.
    pub without_agent: bool,
    /// `key.sub=value`, as after `-o`.
    pub agent: Vec<String>,
    pub collector: Vec<String>,
    /// Words before the collector's command, such as `ip netns exec NAME`.
    pub collector_within: Vec<String>,
    /// Another agent binary, for example of the release profile.
    pub agent_binary: Option<PathBuf>,
    /// The agent's, from its first instruction on: a file that takes a pid, as `cgroup.procs`.
    pub agent_cgroup: Option<PathBuf>,
}

/// A running system. Its calls block; do not use it inside an asynchronous runtime.
pub struct Stack {
    directory: tempfile::TempDir,
    options: Options,
    collector: Option<Daemon>,
    agent: Option<Daemon>,
    runtime: tokio::runtime::Runtime,
    client: Option<CollectorClient<Channel>>,
    barriers: u64,
}

impl Stack {
    /// Returns when the collector answers and, with an agent, when a program started from here has
    /// been found in the store.
    pub fn start(options: Options) -> Result<Self> {
        // Of a thread of its own: one that only ran within calls would not answer the collector's
        // keepalive meanwhile, and lose its connection.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let directory = tempfile::Builder::new()
            .prefix("hostaudit-stack-")
            .tempdir()?;
        // Empty files, so that nothing under /etc/hostaudit is read.
        for name in ["agent.yaml", "collector.yaml"] {
            std::fs::write(directory.path().join(name), "{}\n")?;
        }
        let mut stack = Self {
            directory,
            options,
            collector: None,
            agent: None,
            runtime,
            client: None,
            barriers: 0,
        };
        stack.start_collector()?;
        if !stack.options.without_agent {
            stack.start_agent()?;
        }
        Ok(stack)
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("collector.sock")
    }

    /// The agent's.
    pub fn state_dir(&self) -> &Path {
        self.directory.path()
    }

    /// The collector's data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    pub fn start_collector(&mut self) -> Result<()> {
        self.spawn_collector()?;
        self.wait_until("the collector answers", START_TIMEOUT, |stack| {
            Ok(stack.status().is_ok())
        })
    }

    fn spawn_collector(&mut self) -> Result<()> {
        ensure!(self.collector.is_none(), "the collector runs already");
        let mut command = match self.options.collector_within.split_first() {
            Some((program, words)) => {
                let mut command = Command::new(program);
                command.args(words).arg(binary("audit-collector")?);
                command
            }
            None => Command::new(binary("audit-collector")?),
        };
        command
            .arg("--config")
            .arg(self.directory.path().join("collector.yaml"));
        command
            .arg("-o")
            .arg(format!("data_dir={}", self.data_dir().display()));
        command
            .arg("-o")
            .arg(format!("listen.unix={}", self.socket().display()));
        command.args(["-o", "listen.tcp="]);
        add_overrides(&mut command, &self.options.collector);
        self.collector = Some(Daemon::spawn("collector", command, self.directory.path())?);
        Ok(())
    }

    pub fn start_agent(&mut self) -> Result<()> {
        self.spawn_agent()?;
        self.barrier()
            .context("waiting for the agent's first event")
    }

    /// As a host that boots starts them: neither waits for the other.
    pub fn start_both(&mut self) -> Result<()> {
        self.spawn_agent()?;
        self.start_collector()?;
        self.barrier()
            .context("waiting for the agent's first event")
    }

    /// Does not wait for what it records to arrive, which may need more.
    pub fn spawn_agent(&mut self) -> Result<()> {
        ensure!(self.agent.is_none(), "the agent runs already");
        let path = match &self.options.agent_binary {
            Some(path) => path.clone(),
            None => binary("audit-agent")?,
        };
        let mut command = match &self.options.agent_cgroup {
            Some(procs) => within(procs, &path),
            None => Command::new(path),
        };
        command
            .arg("--config")
            .arg(self.directory.path().join("agent.yaml"));
        command
            .arg("-o")
            .arg(format!("server=unix://{}", self.socket().display()));
        command
            .arg("-o")
            .arg(format!("state_dir={}", self.directory.path().display()));
        add_overrides(&mut command, &self.options.agent);
        self.agent = Some(Daemon::spawn("agent", command, self.directory.path())?);
        Ok(())
    }

    /// What the next agent reads as its file.
    pub fn agent_config(&self, yaml: &str) -> Result<()> {
        Ok(std::fs::write(
            self.directory.path().join("agent.yaml"),
            yaml,
        )?)
    }

    /// Gives the running agent another configuration by SIGHUP; returns when it is in force.
    pub fn reload_agent(&mut self, yaml: &str) -> Result<()> {
        const RELOADS: &str = "select count(*) from events where agent_action = 'reload'";
        let before = self.number(RELOADS)?;
        self.hang_up_agent(yaml)?;
        self.wait_until(
            "the new configuration is in force",
            ARRIVAL_TIMEOUT,
            |stack| Ok(stack.number(RELOADS)? > before),
        )
    }

    /// The same, without a wait.
    pub fn hang_up_agent(&mut self, yaml: &str) -> Result<()> {
        self.agent_config(yaml)?;
        let pid = self.agent_pid().context("no agent runs")?;
        daemon::signal(pid, libc::SIGHUP)
    }

    /// What the next agent is started with, in place of [`Options::agent`].
    pub fn agent_options(&mut self, options: Vec<String>) {
        self.options.agent = options;
    }

    pub fn collector_pid(&self) -> Option<u32> {
        self.collector.as_ref().map(Daemon::pid)
    }

    pub fn agent_pid(&self) -> Option<u32> {
        self.agent.as_ref().map(Daemon::pid)
    }

    /// `kill -9`.
    pub fn kill_collector(&mut self) {
        self.client = None;
        self.collector = None;
    }

    /// `kill -9`.
    pub fn kill_agent(&mut self) {
        self.agent = None;
    }

    /// SIGTERM; an error when it does not end by itself, or not with success.
    pub fn stop_agent(&mut self) -> Result<()> {
        self.agent
            .take()
            .map_or(Ok(()), |daemon| daemon.stop(STOP_TIMEOUT))
    }

    pub fn stop_collector(&mut self) -> Result<()> {
        self.client = None;
        self.collector
            .take()
            .map_or(Ok(()), |daemon| daemon.stop(STOP_TIMEOUT))
    }

    pub fn agent_log(&self) -> String {
        daemon::log(self.directory.path(), "agent")
    }

    pub fn collector_log(&self) -> String {
        daemon::log(self.directory.path(), "collector")
    }

    /// The rows of a SQL query, as JSON objects by column name.
    pub fn query(&mut self, sql: &str) -> Result<Vec<Row>> {
        self.connect()?;
        let mut client = self
            .client
            .clone()
            .context("no connection to the collector")?;
        let request = QueryRequest {
            sql: sql.to_owned(),
            limit: 0,
        };
        let pieces = self.runtime.block_on(async move {
            let mut answer = client.query(request).await?.into_inner();
            let mut bytes = Vec::new();
            while let Some(piece) = answer.message().await? {
                bytes.extend_from_slice(&piece.arrow_ipc);
            }
            Ok::<_, tonic::Status>(bytes)
        });
        let bytes = pieces
            .map_err(|status| anyhow::anyhow!("{}", status.message()))
            .with_context(|| format!("query {sql:?}"))?;
        rows::decode(&bytes)
    }

    /// The one integer that a query answers; an absent one (a sum of nothing) is 0.
    pub fn number(&mut self, sql: &str) -> Result<i64> {
        let rows = self.query(sql)?;
        let [row] = rows.as_slice() else {
            bail!("{} rows for {sql:?}, not one", rows.len())
        };
        match row.values().next() {
            None | Some(serde_json::Value::Null) => Ok(0),
            Some(value) => value
                .as_i64()
                .with_context(|| format!("{value} is not an integer")),
        }
    }

    pub fn status(&mut self) -> Result<StatusResponse> {
        self.connect()?;
        let mut client = self
            .client
            .clone()
            .context("no connection to the collector")?;
        Ok(self
            .runtime
            .block_on(client.status(StatusRequest {}))?
            .into_inner())
    }

    /// Returns when everything that happened before this call is in the store: starts a program of
    /// a unique name and waits until the collector has seen it end.
    pub fn barrier(&mut self) -> Result<()> {
        self.barriers += 1;
        let path = self
            .directory
            .path()
            .join(format!("barrier-{}", self.barriers));
        std::os::unix::fs::symlink("/bin/true", &path)?;
        let invoked = path.display().to_string();
        let sql = format!(
            "select count(*) from events where kind = 'exec' and process_exe_invoked = '{invoked}'"
        );
        // Again and again: at first the programs may not be attached yet.
        self.wait_until(
            "a program started here is in the store",
            ARRIVAL_TIMEOUT,
            |stack| {
                let status = Command::new(&path).status()?;
                ensure!(status.success(), "{invoked}: {status}");
                std::thread::sleep(Duration::from_millis(150));
                Ok(stack.number(&sql)? > 0)
            },
        )
    }

    /// Polls; an error ends the wait, as does the end of one of the programs.
    pub fn wait_until(
        &mut self,
        what: &str,
        timeout: Duration,
        mut condition: impl FnMut(&mut Self) -> Result<bool>,
    ) -> Result<()> {
        let timeout = patience::stretched(timeout)?;
        let deadline = Instant::now() + timeout;
        loop {
            let met = condition(self);
            // Before an error that follows from it.
            for daemon in [&mut self.collector, &mut self.agent].into_iter().flatten() {
                daemon.check()?;
            }
            if met? {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!(
                    "{what}: not within {timeout:?}\n--- collector:\n{}\n--- agent:\n{}",
                    self.collector_log(),
                    self.agent_log()
                );
            }
            std::thread::sleep(POLL);
        }
    }

    fn connect(&mut self) -> Result<()> {
        if self.client.is_none() {
            let endpoint = Endpoint::from_shared(format!("unix://{}", self.socket().display()))?;
            let channel = self.runtime.block_on(endpoint.connect())?;
            let client = CollectorClient::new(channel)
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .accept_compressed(CompressionEncoding::Zstd);
            self.client = Some(client);
        }
        Ok(())
    }
}

/// A shell that goes into the cgroup itself before it becomes the program.
fn within(procs: &Path, program: &Path) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]);
    command.arg(procs).arg(program);
    command
}

fn add_overrides(command: &mut Command, overrides: &[String]) {
    for setting in overrides {
        command.arg("-o").arg(setting);
    }
}

/// Why live tests cannot run here; `None` when they can.
pub fn missing_for_live_tests() -> Option<&'static str> {
    // The owner of our own proc entry is our effective user.
    let root = std::fs::metadata("/proc/self")
        .is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    if !root {
        Some("not root")
    } else if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        Some("the kernel has no BTF (/sys/kernel/btf/vmlinux)")
    } else {
        None
    }
}
