//! What the collector answers about the same threads, in the witness's terms.

use anyhow::{Context as _, Result, bail};

use super::{Fact, addresses::internet};
use crate::{
    stack::{Row, Stack},
    strace::Traced,
};

#[derive(Debug)]
pub enum Recorded {
    Fact(Fact),
    /// No call could tell it.
    Explained(&'static str),
}

const COLUMNS: &str = "kind, process_pid, process_tid, process_exe_invoked, process_argv, \
    result_value, result_error, syscall_name, file_path, target_file_path, target_process_pid, \
    target_process_signal, exit_code, exit_signal, socket_inode, socket_outcome, socket_path, \
    file_new_mode, file_new_owner_uid, file_new_owner_gid, file_new_size_bytes, file_attribute, \
    target_file_link_text, bpf_command, socket_local_address, socket_local_port, socket_peer_address, socket_peer_port";

pub fn recorded(stack: &mut Stack, traced: &Traced) -> Result<Vec<Recorded>> {
    let mut pids: Vec<String> = traced
        .threads
        .iter()
        .map(|thread| thread.pid.to_string())
        .collect();
    pids.sort_unstable();
    pids.dedup();
    let sql = format!(
        "select {COLUMNS} from events where process_pid in ({}) order by position",
        pids.join(", ")
    );
    let rows = stack.query(&sql)?;
    let mut facts = Vec::new();
    for row in &rows {
        facts.push(of(&Columns(row)).with_context(|| format!("{row:?}"))?);
    }
    let own = format!(
        "select count(*) from events where process_pid = {}",
        traced.tracer
    );
    for _ in 0..stack.number(&own)? {
        facts.push(Recorded::Explained(
            "what strace itself did: ptrace, its files, its child",
        ));
    }
    Ok(facts)
}

/// A row, of which absent values are absent.
struct Columns<'a>(&'a Row);

impl Columns<'_> {
    fn text(&self, name: &str) -> &str {
        self.0
            .get(name)
            .and_then(|value| value.as_str())
            .unwrap_or("-")
    }

    fn number(&self, name: &str) -> Result<i64> {
        let value = self.0.get(name).and_then(serde_json::Value::as_i64);
        value.with_context(|| format!("no {name}"))
    }

    fn end(&self, side: &str) -> Result<String> {
        let address = self.text(&format!("socket_{side}_address")).parse();
        let port = self.number(&format!("socket_{side}_port"))?;
        Ok(internet(
            address.with_context(|| format!("no {side} address"))?,
            u16::try_from(port)?,
        ))
    }

    fn asked(&self) -> String {
        let owner = |of: &str| self.number(&format!("file_new_owner_{of}"));
        if let Ok(mode) = self.number("file_new_mode") {
            format!("mode {mode:o}")
        } else if let (Ok(uid), Ok(gid)) = (owner("uid"), owner("gid")) {
            format!("owner {uid}:{gid}")
        } else if let Ok(size) = self.number("file_new_size_bytes") {
            format!("size {size}")
        } else {
            let texts = ["file_attribute", "target_file_link_text"].map(|name| self.text(name));
            let text = texts.into_iter().find(|text| *text != "-");
            text.unwrap_or("-").to_owned()
        }
    }

    fn outcome(&self) -> Result<String> {
        Ok(match self.text("result_error") {
            "-" => self.number("result_value")?.to_string(),
            error => error.to_owned(),
        })
    }
}

/// Why strace cannot see what kinds of that name tell.
fn told_by_no_call(kind: &str) -> Option<&'static str> {
    Some(match kind {
        "close_flow" => "close_flow: a connection's end, which no call tells",
        "close_write" => {
            "close_write: the last of a file's holders let go, which no call tells; ground truth compares it"
        }
        "container" | "amendment" => "about a container, not by a call",
        "dns" => {
            "dns: what a call carried, of which strace tells the bytes; ground truth compares it"
        }
        _ => return None,
    })
}

fn of(row: &Columns<'_>) -> Result<Recorded> {
    let kind = row.text("kind");
    let is = |name: &str| row.0.get(name).and_then(serde_json::Value::as_bool) == Some(true);
    if let Some(why) = told_by_no_call(kind) {
        return Ok(Recorded::Explained(why));
    }
    if row.text("bpf_command").ends_with("_elem") {
        return Ok(Recorded::Explained(
            "bpf: a hand in a map of the agent's, which no argument tells apart",
        ));
    }
    if is("socket_outcome") {
        return Ok(Recorded::Explained(
            "how a connect that did not wait ended, which no call tells",
        ));
    }
    let what = match kind {
        "exec" => {
            let arguments = row.0.get("process_argv").and_then(|value| value.as_array());
            let arguments: Vec<&str> = arguments
                .into_iter()
                .flatten()
                .filter_map(|argument| argument.as_str())
                .collect();
            format!("{} {arguments:?}", row.text("process_exe_invoked"))
        }
        "fork" => format!("child {}", row.number("target_process_pid")?),
        "exit" => match row.number("exit_code") {
            Ok(code) => format!("code {code}"),
            Err(_) => format!("signal {}", row.number("exit_signal")?),
        },
        "signal" => {
            let (signal, target) = ("target_process_signal", "target_process_pid");
            let (signal, target) = (row.number(signal)?, row.number(target)?);
            format!("{signal} to {target} = {}", row.outcome()?)
        }
        "exec_failed" | "open" => format!("{} = {}", row.text("file_path"), row.outcome()?),
        "connect" | "accept" | "datagram" => format!("{} = {}", row.end("peer")?, row.outcome()?),
        "unix_connect" => format!("{} = {}", row.text("socket_path"), row.outcome()?),
        "bind" => format!(
            "socket {} = {}",
            row.number("socket_inode")?,
            row.outcome()?
        ),
        "listen" => format!("{} = {}", row.end("local")?, row.outcome()?),
        "socket_special" | "bpf" => row.outcome()?,
        "memfd" | "credentials" | "namespace" | "module" | "time_change" | "system" | "ptrace" => {
            format!("{} = {}", row.text("syscall_name"), row.outcome()?)
        }
        "unlink" | "rename" | "link" | "mkdir_mknod" | "mode" | "owner" | "truncate" | "xattr"
        | "mount" => format!(
            "{} {} {} {} = {}",
            row.text("syscall_name"),
            row.text("file_path"),
            row.text("target_file_path"),
            row.asked(),
            row.outcome()?
        ),
        other => bail!("the witness cannot compare {other} yet"),
    };
    let who = match kind {
        "exec" | "exit" => "process_pid",
        _ => "process_tid",
    };
    Ok(Recorded::Fact(Fact {
        kind: kind.to_owned(),
        who: row.number(who)?,
        what,
    }))
}
