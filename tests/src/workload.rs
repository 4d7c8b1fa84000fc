//! Known actions, each with the question whose answer proves that the collector has it, once and
//! exact. The program `workload` performs one group a run and prints what it expects, as JSON lines;
//! actions and expectations stand side by side.

mod compat;
mod dns;
mod exec;
mod files;
mod identity;
mod network;
mod paths;
mod places;
mod processes;
mod races;
mod ring_sockets;
mod rings;
mod sockets;
mod system;
mod written;
mod x32;

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use audit_proto::text;
use serde_json::{Value, json};

pub use exec::exec_from_thread;

/// What can be asked for on the command line.
pub const GROUPS: [&str; 23] = [
    "arguments",
    "programs",
    "lives",
    "threads",
    "paths",
    "opens",
    "closes",
    "identity",
    "mounts",
    "root",
    "container",
    "network",
    "files",
    "credentials",
    "signals",
    "tracing",
    "namespaces",
    "kernel",
    "sockets",
    "dns",
    "compat",
    "x32",
    "io_uring",
];

/// One question to the collector and its only right answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expectation {
    pub action: String,
    /// Selects one integer.
    pub sql: String,
    pub number: i64,
}

impl Expectation {
    pub fn parse(line: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(line)?;
        let text = |key: &str| value[key].as_str().map(str::to_owned);
        Ok(Self {
            action: text("action").context("action")?,
            sql: text("sql").context("sql")?,
            number: value["number"].as_i64().context("number")?,
        })
    }
}

/// Where a group works, and what it expects so far.
pub struct Workload {
    pub directory: PathBuf,
    expected: Vec<Expectation>,
}

impl Workload {
    /// Performs `group` in the empty `directory`.
    pub fn perform(group: &str, directory: &Path) -> Result<Vec<Expectation>> {
        let mut work = Self {
            directory: directory.canonicalize()?,
            expected: Vec::new(),
        };
        match group {
            "arguments" => exec::arguments(&mut work)?,
            "programs" => exec::programs(&mut work)?,
            "lives" => exec::lives(&mut work)?,
            "threads" => exec::threads(&mut work)?,
            "paths" => paths::paths(&mut work)?,
            "opens" => paths::opens(&mut work)?,
            "closes" => written::closes(&mut work)?,
            "identity" => identity::identity(&mut work)?,
            "mounts" => places::mounts(&mut work)?,
            "root" => places::root(&mut work)?,
            "container" => places::container(&mut work)?,
            // Not one of GROUPS: what `container` runs inside.
            "container-inside" => places::container_inside(&mut work)?,
            "network" => network::network(&mut work)?,
            "files" => files::files(&mut work)?,
            "credentials" => processes::credentials(&mut work)?,
            "signals" => processes::signals(&mut work)?,
            "tracing" => processes::tracing(&mut work)?,
            "namespaces" => processes::namespaces(&mut work)?,
            "kernel" => processes::kernel(&mut work)?,
            "sockets" => sockets::sockets(&mut work)?,
            "dns" => dns::dns(&mut work)?,
            "compat" => compat::compat(&mut work)?,
            "x32" => x32::x32(&mut work)?,
            // Not one of GROUPS: what can be told of a race depends on the kernel.
            "races" => races::races(&mut work)?,
            "io_uring" => rings::io_uring(&mut work)?,
            other => bail!("no group {other}; there are {}", GROUPS.join(", ")),
        }
        Ok(work.expected)
    }

    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.directory.join(name)
    }

    /// Exactly one event for which `condition` holds.
    fn once(&mut self, action: impl Into<String>, condition: impl AsRef<str>) {
        self.number(action, condition, 1);
    }

    fn number(&mut self, action: impl Into<String>, condition: impl AsRef<str>, number: i64) {
        let sql = format!("select count(*) from events where {}", condition.as_ref());
        self.answer(action, sql, number);
    }

    fn answer(&mut self, action: impl Into<String>, sql: String, number: i64) {
        self.expected.push(Expectation {
            action: action.into(),
            sql,
            number,
        });
    }
}

/// A line for the program that asked.
pub fn line(expectation: &Expectation) -> String {
    let Expectation {
        action,
        sql,
        number,
    } = expectation;
    json!({ "action": action, "sql": sql, "number": number }).to_string()
}

/// As the record has a text, as a SQL literal.
fn quoted(text: impl AsRef<OsStr>) -> String {
    let text = text::escape(text.as_ref().as_bytes());
    format!("'{}'", text.replace('\'', "''"))
}

/// As a SQL list of texts.
fn list<T: AsRef<OsStr>>(texts: impl IntoIterator<Item = T>) -> String {
    let texts: Vec<String> = texts.into_iter().map(quoted).collect();
    format!("[{}]", texts.join(", "))
}

/// Of this process.
fn ours() -> String {
    format!("process_pid = {}", std::process::id())
}
