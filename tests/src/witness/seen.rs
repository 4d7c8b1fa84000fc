//! From strace's calls to what the record must have; and what it need not have, with the reason.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail};
use audit_proto::text::escape;

use super::{
    Fact,
    addresses::{self, Address},
    names, promised,
};
use crate::strace::{Call, End, Thread, Traced};

#[derive(Debug)]
pub enum Verdict {
    Recorded(Fact),
    /// The record leaves it out on purpose.
    LeftOut(&'static str),
}

use Verdict::{LeftOut, Recorded};

pub fn seen(traced: &Traced) -> Result<Vec<Verdict>> {
    let mut witness = Witness {
        kinds: promised(),
        peers: BTreeSet::new(),
    };
    let mut verdicts = Vec::new();
    for thread in &traced.threads {
        for call in &thread.calls {
            let verdict = witness.verdict(thread, call);
            verdicts.extend(verdict.with_context(|| format!("{call:?}"))?);
        }
        if thread.tid == thread.pid {
            let what = match thread.end.as_ref().context("a process without an end")? {
                End::Exited(code) => format!("code {code}"),
                End::Killed(signal) => format!("signal {}", signal_number(signal)?),
            };
            verdicts.push(fact("exit", thread.pid, what));
        }
    }
    Ok(verdicts)
}

fn fact(kind: &str, who: i64, what: String) -> Verdict {
    Recorded(Fact {
        kind: kind.to_owned(),
        who,
        what,
    })
}

fn signal_number(name: &str) -> Result<i64> {
    let names = [
        ("SIGHUP", 1),
        ("SIGINT", 2),
        ("SIGKILL", 9),
        ("SIGTERM", 15),
    ];
    let found = names.iter().find(|(known, _)| *known == name);
    Ok(found
        .with_context(|| format!("which number has {name}?"))?
        .1)
}

struct Witness {
    kinds: BTreeMap<&'static str, &'static str>,
    /// To whom datagrams were sent already.
    peers: BTreeSet<(i64, String, String)>,
}

/// The error's name, or what was returned.
fn outcome(call: &Call) -> Result<String> {
    Ok(match &call.error {
        Some(error) => error.clone(),
        None => call.result.number()?.to_string(),
    })
}

/// Commands of bpf(2): map_create, prog_load, prog_attach, prog_detach, raw_tracepoint_open,
/// link_create, link_detach.
const MADE_OR_ATTACHED: [i64; 7] = [0, 5, 8, 9, 17, 28, 34];

impl Witness {
    fn verdict(&mut self, thread: &Thread, call: &Call) -> Result<Option<Verdict>> {
        let name = call.name.as_str();
        if let Some((child, is_thread)) = call.child()? {
            return Ok(Some(match is_thread {
                true => LeftOut("a thread was made, not a process"),
                false => fact("fork", thread.tid, format!("child {child}")),
            }));
        }
        // An end of the process, and what only says where names begin.
        let Some(kind) = self.kinds.get(name).copied() else {
            return Ok(None);
        };
        let who = thread.tid;
        Ok(Some(match kind {
            "exec_failed" => exec(thread, call)?,
            "open" => open(who, call)?,
            "signal" => signal(thread, call)?,
            "connect" => connect(who, call)?,
            "accept" => accept(who, call)?,
            "bind" | "listen" => own_address(who, call)?,
            "datagram" => self.datagram(thread, call)?,
            "socket_special" => socket(who, call)?,
            // The groups that strace runs talk to no resolver; ground truth has one.
            "dns" => LeftOut("a transfer that is not of port 53"),
            // Which maps are the agent's own, no argument tells.
            "bpf" if !MADE_OR_ATTACHED.contains(&call.argument(0)?.number()?) => {
                LeftOut("a look at BPF objects, or a hand in a map")
            }
            "close_write" => LeftOut("bytes that are counted for the close of a file"),
            "bpf" => fact(kind, who, outcome(call)?),
            "memfd" if call.error.is_some() => LeftOut("a memfd that was not made"),
            "memfd" | "credentials" | "namespace" | "module" | "time_change" | "system"
            | "ptrace" => fact(kind, who, format!("{name} = {}", outcome(call)?)),
            "unlink" | "rename" | "link" | "mkdir_mknod" | "mode" | "owner" | "truncate"
            | "xattr" | "mount" => {
                let (file, target) = names::files(call)?;
                let asked = asked(call)?;
                let what = format!("{name} {file} {target} {asked} = {}", outcome(call)?);
                fact(kind, who, what)
            }
            other => bail!("the witness cannot compare {other} yet"),
        }))
    }

    fn datagram(&mut self, thread: &Thread, call: &Call) -> Result<Verdict> {
        if call.name != "sendto" {
            bail!("the witness can compare sendto only");
        }
        let address = call.argument(4)?;
        if address.is_null() {
            return Ok(LeftOut("a message on a connected socket"));
        }
        let meaning = call.argument(0)?.meaning();
        let protocol = meaning.split(':').next().unwrap_or_default();
        let Address::Internet(peer) = Address::of(address)? else {
            return Ok(LeftOut("a message that is not of IPv4 or IPv6"));
        };
        if call.error.is_some() {
            return Ok(LeftOut("a datagram that was not sent"));
        }
        let key = (thread.pid, protocol.to_owned(), peer.clone());
        Ok(match self.peers.insert(key) {
            true => fact(
                "datagram",
                thread.tid,
                format!("{peer} = {}", outcome(call)?),
            ),
            false => LeftOut("a further datagram to the same peer within the minute"),
        })
    }
}

/// What the call is to make of the file: mode, owner, size, attribute, text; "-" for nothing.
fn asked(call: &Call) -> Result<String> {
    let number = |at: usize| call.argument(at)?.number();
    let text = |at: usize| anyhow::Ok(escape(&call.argument(at)?.text()?).into_owned());
    Ok(match call.name.as_str() {
        "chmod" | "fchmod" | "mkdir" | "mknod" => format!("mode {:o}", number(1)?),
        "fchmodat" | "mkdirat" | "mknodat" => format!("mode {:o}", number(2)?),
        "chown" | "lchown" | "fchown" => format!("owner {}:{}", number(1)?, number(2)?),
        "fchownat" => format!("owner {}:{}", number(2)?, number(3)?),
        "truncate" | "ftruncate" => format!("size {}", number(1)?),
        name if name.ends_with("xattr") => text(1)?,
        "symlink" | "symlinkat" => text(0)?,
        _ => "-".to_owned(),
    })
}

fn exec(thread: &Thread, call: &Call) -> Result<Verdict> {
    if call.error.is_some() {
        let (file, _) = names::files(call)?;
        return Ok(fact(
            "exec_failed",
            thread.tid,
            format!("{file} = {}", outcome(call)?),
        ));
    }
    let invoked = call.argument(0)?.text()?;
    let arguments = call.argument(1)?.texts()?;
    let arguments: Vec<_> = arguments.iter().map(|bytes| escape(bytes)).collect();
    let what = format!("{} {arguments:?}", escape(&invoked));
    Ok(fact("exec", thread.pid, what))
}

fn open(who: i64, call: &Call) -> Result<Verdict> {
    const ACCESS: i64 = 3;
    const CREATE: i64 = 0o100;
    const TRUNCATE: i64 = 0o1000;
    const PATH: i64 = 0o10_000_000;
    /// Of the configuration's `capture.watch_reads`, what the workload reads.
    const WATCHED: &[u8] = b"/etc/shadow";
    let flags = match call.name.as_str() {
        "open" => call.argument(1)?.number()?,
        "openat" => call.argument(2)?.number()?,
        "openat2" => {
            let how = call.argument(2)?.field("flags");
            how.context("no flags")?.number()?
        }
        "creat" => CREATE | TRUNCATE | 1,
        other => bail!("the witness cannot compare {other} yet"),
    };
    if let Some(error) = &call.error {
        return Ok(match error.as_str() {
            "EACCES" | "EPERM" => {
                let (file, _) = names::files(call)?;
                fact("open", who, format!("{file} = {error}"))
            }
            _ => LeftOut("an open that failed, but not with EACCES or EPERM"),
        });
    }
    let path = call.result.path()?;
    if flags & PATH != 0 {
        return Ok(LeftOut("an open with O_PATH"));
    }
    if flags & (ACCESS | CREATE | TRUNCATE) == 0 && path != WATCHED {
        return Ok(LeftOut("a read that is not in capture.watch_reads"));
    }
    Ok(fact(
        "open",
        who,
        format!("{} = {}", escape(&path), outcome(call)?),
    ))
}

fn signal(thread: &Thread, call: &Call) -> Result<Verdict> {
    let at = match call.name.as_str() {
        "kill" | "tkill" => 1,
        "tgkill" => 2,
        other => bail!("the witness cannot compare {other} yet"),
    };
    let (target, number) = (call.argument(0)?.number()?, call.argument(at)?.number()?);
    if target == thread.pid {
        return Ok(LeftOut("a signal to oneself"));
    }
    Ok(fact(
        "signal",
        thread.tid,
        format!("{number} to {target} = {}", outcome(call)?),
    ))
}

fn connect(who: i64, call: &Call) -> Result<Verdict> {
    let outcome = outcome(call)?;
    Ok(match Address::of(call.argument(1)?)? {
        Address::Internet(peer) => fact("connect", who, format!("{peer} = {outcome}")),
        Address::Unix(name) => fact(
            "unix_connect",
            who,
            format!("{} = {outcome}", escape(&name)),
        ),
        Address::Other(_) => LeftOut("a socket of another family"),
    })
}

fn accept(who: i64, call: &Call) -> Result<Verdict> {
    if call.error.is_some() {
        return Ok(LeftOut("an accept without a connection"));
    }
    let meaning = call.result.meaning();
    Ok(match addresses::peer(meaning) {
        Some(peer) => fact("accept", who, format!("{peer} = {}", outcome(call)?)),
        None if meaning.starts_with("UNIX") => LeftOut("a unix socket that is no connect"),
        None => bail!("which connection is {meaning:?}?"),
    })
}

/// bind is told by the socket, because the kernel chooses the port; listen by its address.
fn own_address(who: i64, call: &Call) -> Result<Verdict> {
    let meaning = call.argument(0)?.meaning();
    let outcome = outcome(call)?;
    let what = match call.name.as_str() {
        "bind" => addresses::inode(meaning).map(|inode| format!("socket {inode} = {outcome}")),
        _ => addresses::local(meaning).map(|local| format!("{local} = {outcome}")),
    };
    Ok(match what {
        Some(what) => fact(&call.name, who, what),
        None if meaning.starts_with("UNIX") => LeftOut("a unix socket that is no connect"),
        None if meaning.starts_with("NETLINK") => LeftOut("a socket of another family"),
        None => bail!("which socket is {meaning:?}?"),
    })
}

fn socket(who: i64, call: &Call) -> Result<Verdict> {
    const UNIX: i64 = 1;
    const NETLINK: i64 = 16;
    const AUDIT: i64 = 9;
    const SPECIAL: [i64; 3] = [17, 38, 40]; // packet, alg, vsock
    const RAW: i64 = 3;
    let family = call.argument(0)?.number()?;
    let ty = call.argument(1)?.number()? & 0xf;
    let special = match family {
        NETLINK => call.argument(2)?.number()? == AUDIT,
        family => SPECIAL.contains(&family) || (ty == RAW && family != UNIX),
    };
    Ok(match special {
        true => fact("socket_special", who, outcome(call)?),
        false => LeftOut("an ordinary socket was made"),
    })
}
