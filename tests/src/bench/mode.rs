//! Who records while a storm runs? Each mode is started for a round and undone when dropped.

mod auditd;
mod bpftrace;

use std::{
    fmt,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use super::measure;
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
                Ok(Running::Hostaudit(Box::new(Stack::start(options)?)))
            }
            Mode::Auditd => Ok(Running::Auditd(auditd::Auditd::start(directory)?)),
            Mode::Bpftrace => Ok(Running::Bpftrace(bpftrace::start(directory)?)),
        }
    }
}

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
    Bpftrace(Daemon),
}

impl Running {
    /// CPU time of the programs that record, on the host itself and of the collector.
    pub fn cpu_ns(&self) -> Result<(u64, u64)> {
        let of = |pid: Option<u32>| pid.map_or(Ok(0), measure::process_cpu_ns);
        Ok(match self {
            Running::Bare => (0, 0),
            Running::Empty(daemon) | Running::Bpftrace(daemon) => (of(Some(daemon.pid()))?, 0),
            Running::Hostaudit(stack) => (of(stack.agent_pid())?, of(stack.collector_pid())?),
            Running::Auditd(auditd) => {
                (of(auditd.pid())? + of(measure::find_process("kauditd"))?, 0)
            }
        })
    }

    pub fn agent_peak_rss_bytes(&self) -> Option<u64> {
        match self {
            Running::Hostaudit(stack) => measure::peak_rss_bytes(stack.agent_pid()?).ok(),
            _ => None,
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
