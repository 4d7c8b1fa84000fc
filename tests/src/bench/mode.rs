//! Who records while a storm runs? Each mode is started for a round and undone when dropped.

mod auditd;
mod bpftrace;
mod tally;

use std::{
    fmt,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{interrupt, measure};
use crate::stack::{Daemon, Options, Stack, binary};

pub use auditd::Quiet;

/// A mode in order of the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Mode {
    Bare,
    Empty,
    Hostaudit,
    Auditd,
    Bpftrace,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Mode::Bare => "bare",
            Mode::Empty => "empty",
            Mode::Hostaudit => "hostaudit",
            Mode::Auditd => "auditd",
            Mode::Bpftrace => "bpftrace",
        })
    }
}

impl Mode {
    pub const ALL: [Mode; 5] = [
        Mode::Bare,
        Mode::Empty,
        Mode::Hostaudit,
        Mode::Auditd,
        Mode::Bpftrace,
    ];

    pub fn what(self) -> &'static str {
        match self {
            Mode::Bare => "nobody records",
            Mode::Empty => "empty programs on hostaudit's attach points: the limit",
            Mode::Hostaudit => "audit-agent, delivering to audit-collector on this host",
            Mode::Auditd => "the kernel's audit with equivalent rules, auditd writing its log",
            Mode::Bpftrace => "a bpftrace script that prints the same facts to a file",
        }
    }

    pub fn start(self, directory: &Path, agent: &Path) -> Result<Running> {
        match self {
            Mode::Bare => Ok(Running::Bare),
            Mode::Empty => Ok(Running::Empty(start_empty(directory, agent)?)),
            Mode::Hostaudit => {
                let options = Options {
                    agent_binary: Some(agent.to_owned()),
                    ..Options::default()
                };
                let stack = Stack::start(options)?;
                let collector = stack.collector_pid().context("the collector has ended")?;
                measure::set_aside(collector, COLLECTOR_CPU)?;
                Ok(Running::Hostaudit(Box::new(stack)))
            }
            Mode::Auditd => Ok(Running::Auditd(auditd::Auditd::start(directory)?)),
            Mode::Bpftrace => Ok(Running::Bpftrace(bpftrace::start(directory)?)),
        }
    }
}

/// Storms stay on one CPU. The collector, which is usually on another host, gets what nobody wants of
/// another, and takes no time from what is measured. Recorders run where the scheduler puts them.
pub const STORM_CPU: usize = 0;
const COLLECTOR_CPU: usize = 1;

/// Recorders may work for a while on what a storm left them.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);
const SETTLE_POLL: Duration = Duration::from_millis(300);
/// Below this in one poll a recorder is idle: one tick of the scheduler's clock.
const IDLE_NS: u64 = 10_000_000;

/// What the agent logs once its empty programs are attached.
const EMPTY_READY: &str = "empty programs attached";
const EMPTY_TIMEOUT: Duration = Duration::from_secs(60);

fn start_empty(directory: &Path, agent: &Path) -> Result<Daemon> {
    let mut command = Command::new(agent);
    command.arg("--empty-programs").env("RUST_LOG", "info");
    let mut daemon = Daemon::spawn("empty", command, directory)?;
    let deadline = Instant::now() + EMPTY_TIMEOUT;
    while !daemon.log().contains(EMPTY_READY) {
        daemon.check()?;
        ensure!(
            Instant::now() < deadline,
            "not within {EMPTY_TIMEOUT:?}: {EMPTY_READY}"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(daemon)
}

/// A mode in force.
pub enum Running {
    Bare,
    Empty(Daemon),
    Hostaudit(Box<Stack>),
    Auditd(auditd::Auditd),
    Bpftrace(bpftrace::Bpftrace),
}

impl Running {
    /// CPU time of the programs that record, on the host itself and of the collector.
    pub fn cpu_ns(&self) -> Result<(u64, u64)> {
        let of = |pid: Option<u32>| pid.map_or(Ok(0), measure::process_cpu_ns);
        Ok(match self {
            Running::Bare => (0, 0),
            Running::Empty(daemon) => (of(Some(daemon.pid()))?, 0),
            Running::Bpftrace(bpftrace) => (of(Some(bpftrace.pid()))?, 0),
            Running::Hostaudit(stack) => (of(stack.agent_pid())?, of(stack.collector_pid())?),
            Running::Auditd(auditd) => {
                (of(auditd.pid())? + of(measure::find_process("kauditd"))?, 0)
            }
        })
    }

    /// Waits until the recorders are idle.
    pub fn settle(&self) -> Result<()> {
        if matches!(self, Running::Bare) {
            return Ok(());
        }
        let deadline = Instant::now() + SETTLE_TIMEOUT;
        let mut before = self.cpu_ns()?;
        loop {
            std::thread::sleep(SETTLE_POLL);
            interrupt::check()?;
            let now = self.cpu_ns()?;
            if (now.0 + now.1) - (before.0 + before.1) <= IDLE_NS {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "the recorder is still busy {SETTLE_TIMEOUT:?} after a storm"
            );
            before = now;
        }
    }

    pub fn agent_peak_rss_bytes(&self) -> Option<u64> {
        match self {
            Running::Hostaudit(stack) => measure::peak_rss_bytes(stack.agent_pid()?).ok(),
            _ => None,
        }
    }

    /// How many opens of `file` it has recorded since its start; 0 of a mode that records nothing.
    /// What recorders buffer comes later: ask when they are idle.
    pub fn opens_of(&mut self, file: &Path) -> Result<i64> {
        match self {
            Running::Bare | Running::Empty(_) => Ok(0),
            Running::Hostaudit(stack) => {
                stack.barrier()?;
                stack.number(&format!(
                    "select count(*) from events where kind = 'open' and file_path = '{}'",
                    file.display()
                ))
            }
            Running::Auditd(auditd) => auditd.opens_of(file),
            Running::Bpftrace(bpftrace) => bpftrace.opens_of(file),
        }
    }

    /// How many events of what happened since its start the mode did not record, where it can tell.
    pub fn lost(&mut self) -> Result<Option<i64>> {
        Ok(match self {
            Running::Hostaudit(stack) => {
                stack.barrier()?;
                Some(stack.number("select sum(lost_count) from events where kind = 'lost'")?)
            }
            Running::Auditd(auditd) => Some(auditd.lost()?),
            _ => None,
        })
    }
}

/// The agent to measure: the release build where there is one, as users run it.
pub fn agent_binary(quick: bool) -> Result<std::path::PathBuf> {
    let dev = binary("audit-agent")?;
    let release = dev
        .parent()
        .and_then(Path::parent)
        .map(|target| target.join("release/audit-agent"));
    Ok(release
        .filter(|path| !quick && path.is_file())
        .unwrap_or(dev))
}
