//! `hostaudit tree`: a process, everything above it and everything it started, from the record.

mod draw;
mod family;

use anyhow::{Result, anyhow, bail};
use serde_json::Value;

use crate::{
    client::{Client, Target},
    display,
    output::Output,
    query,
    terminal::Terminal,
    when::{Clock, Micros},
};

use family::Family;

const EXAMPLES: &str = "\
Examples:
  hostaudit tree --pid $$                          this shell, what started it, what it started
  hostaudit tree --pid 4242 --at '2026-05-01 08:00'   the process that had this pid then
  hostaudit tree 3f9a21c0be44-4242-8123456789      by exec id (from tail -o json or a query)

Processes that began before the agent are known as far as /proc told at its start.";

/// More ancestors than this is a loop in the data, not a process tree.
const MAX_ANCESTORS: usize = 128;
/// A screen of a build farm's make is some thousands; more is a case for a query.
const MAX_PROCESSES: usize = 5000;
/// Exec ids in one query.
const IDS_PER_QUERY: usize = 200;

const COLUMNS: &str = "kind, cast(time as bigint) as at, host_name, \
    process_exec_id, process_pid, process_name, process_exe, process_argv, process_user, \
    process_effective_user, parent_exec_id, parent_pid, parent_name, parent_exe, parent_argv, \
    parent_user, target_process_exec_id, target_process_pid, exit_code, exit_signal, \
    exit_core_dumped, exit_duration_ns";

/// Show a process with its ancestors and descendants
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
#[command(group(clap::ArgGroup::new("subject").required(true).args(["exec_id", "pid"])))]
pub struct Tree {
    /// The process by its unique id
    #[arg(value_name = "EXEC_ID")]
    exec_id: Option<String>,
    /// The process by its pid: the one that had it last, or at the time of --at
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// When the pid was that process's: 10m, 2h, RFC 3339 or local time
    #[arg(long, value_name = "TIME", requires = "pid")]
    at: Option<String>,
    /// The host, where several deliver to this collector
    #[arg(long, value_name = "NAME", requires = "pid")]
    host: Option<String>,
}

pub async fn run(args: &Tree, target: &Target, terminal: &Terminal) -> Result<()> {
    let clock = Clock::system();
    let at = args
        .at
        .as_deref()
        .map(|text| clock.parse(text))
        .transpose()
        .map_err(|e| anyhow!("--at {e}"))?;
    let mut client = target.connect().await?;
    let subject = match (&args.exec_id, args.pid) {
        (Some(id), _) => id.clone(),
        (None, Some(pid)) => by_pid(&mut client, pid, at, args.host.as_deref()).await?,
        (None, None) => bail!("name a process: an exec id or --pid N"),
    };
    let mut family = Family::default();
    ancestors(&mut client, &subject, &mut family).await?;
    if !family.knows(&subject) {
        bail!(
            "no process {subject:?} in the record; `hostaudit tail -o json` shows exec ids as process_exec_id"
        );
    }
    let complete = descendants(&mut client, &subject, &mut family).await?;
    let mut out = Output::new();
    out.text(&draw::draw(&family, &subject, terminal, &clock))?;
    out.flush()?;
    if !complete {
        eprintln!(
            "hostaudit: only the first {} are shown; narrow it to a descendant",
            display::plural(MAX_PROCESSES as i64, "process")
        );
    }
    Ok(())
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// The exec id of the latest process known under `pid` up to `at`.
async fn by_pid(
    client: &mut Client,
    pid: u32,
    at: Option<Micros>,
    host: Option<&str>,
) -> Result<String> {
    let mut when = String::new();
    if let Some(at) = at {
        when += &format!(" and cast(time as bigint) <= {at}");
    }
    if let Some(host) = host {
        when += &format!(" and host_name = {}", quoted(host));
    }
    // A process that has done nothing yet is known as somebody's parent or child.
    let part = |role: &str| {
        format!(
            "select host_name, {role}_exec_id as id, max(cast(time as bigint)) as at from events \
         where {role}_pid = {pid}{when} group by host_name, {role}_exec_id"
        )
    };
    let sql = format!(
        "select host_name, id, max(at) as at from ({} union all {} union all {}) \
         where id is not null group by host_name, id order by at desc",
        part("process"),
        part("parent"),
        part("target_process"),
    );
    let rows = query::fetch(client, sql).await?;
    let text = |row: &Value, name: &str| row[name].as_str().unwrap_or_default().to_owned();
    let mut hosts: Vec<String> = rows.iter().map(|row| text(row, "host_name")).collect();
    hosts.sort();
    hosts.dedup();
    if hosts.len() > 1 {
        bail!(
            "pid {pid} is known on several hosts: {}; choose one with --host NAME",
            hosts.join(", ")
        );
    }
    rows.first().map(|row| text(row, "id")).ok_or_else(|| {
        let until = if at.is_some() { " up to that time" } else { " yet" };
        anyhow!("nothing in the record by a process with pid {pid}{until}; it may have done nothing that is audited since the agent started")
    })
}

async fn ancestors(client: &mut Client, subject: &str, family: &mut Family) -> Result<()> {
    let mut id = subject.to_owned();
    for _ in 0..MAX_ANCESTORS {
        let own = quoted(&id);
        let sources = [
            format!(
                "(process_exec_id = {own} and kind in ('exec', 'exit')) or target_process_exec_id = {own}"
            ),
            format!("process_exec_id = {own}"),
            format!("parent_exec_id = {own}"),
        ];
        for (at, condition) in sources.iter().enumerate() {
            let limit = if at == 0 { IDS_PER_QUERY } else { 1 };
            let sql = format!(
                "select {COLUMNS} from events where {condition} order by time limit {limit}"
            );
            for row in query::fetch(client, sql).await? {
                family.add(&row);
            }
            if family.parent(&id).is_some() {
                break;
            }
        }
        let Some(parent) = family.parent(&id) else {
            break;
        };
        id = parent.to_owned();
    }
    Ok(())
}

/// False when there were too many.
async fn descendants(client: &mut Client, subject: &str, family: &mut Family) -> Result<bool> {
    let mut level = vec![subject.to_owned()];
    while !level.is_empty() {
        for ids in level.chunks(IDS_PER_QUERY) {
            let ids = ids
                .iter()
                .map(|id| quoted(id))
                .collect::<Vec<_>>()
                .join(", ");
            let sql = format!(
                "select {COLUMNS} from events where kind in ('exec', 'fork', 'exit') \
                 and (process_exec_id in ({ids}) or parent_exec_id in ({ids})) order by time limit {}",
                MAX_PROCESSES * 4
            );
            for row in query::fetch(client, sql).await? {
                family.add(&row);
            }
        }
        if family.len() > MAX_PROCESSES {
            return Ok(false);
        }
        level = family.children_not_asked(&level);
    }
    Ok(true)
}
