//! What was there when the agent began? Runs the iterator over every process's open files
//! (`audit-ebpf/src/snapshot.rs`): it has the programs follow old connections, and tells listeners.

use std::io::{self, Read as _};

use aya::{
    Btf, Ebpf,
    programs::{Iter, Program},
};

use super::{
    chain,
    hooks::{HookStatus, Rung, SNAPSHOT_NEEDS},
};
use crate::Config;

const PROGRAM: &str = "snapshot";
/// Of what was there, the first this many: some 60,000 listeners.
const MOST_BYTES: u64 = 16 << 20;
/// Kinds that it tells, or without which nobody asks.
const KINDS: [&str; 3] = ["listen", "close_flow", "dns"];

/// How it went, and the records of what it found.
pub(super) fn take(
    ebpf: &mut Ebpf,
    config: &Config,
    kernel: &Btf,
    missing: &[&'static str],
) -> (HookStatus, Vec<u8>) {
    let mut status = HookStatus {
        name: PROGRAM,
        kinds: vec!["listen"],
        attached: None,
        off: KINDS.iter().all(|name| config.capture.is_off(name)),
        objects: None,
        texts: None,
        tried: Vec::new(),
    };
    let mut found = Vec::new();
    if status.off {
        return (status, found);
    }
    let needs = |path: &&&str| {
        let of = path.split('.').next().unwrap_or_default();
        SNAPSHOT_NEEDS.iter().any(|group| group.contains(&of))
    };
    let run = match missing.iter().find(needs) {
        Some(path) => Err(format!("this kernel has no field {path}")),
        None => run(ebpf, kernel, &mut found),
    };
    match run {
        Ok(()) => status.attached = Some(Rung::Iterator),
        Err(reason) => {
            tracing::warn!(reason, "what listened before the agent is not known");
            status.tried.push((Rung::Iterator, reason));
        }
    }
    (status, found)
}

fn run(ebpf: &mut Ebpf, kernel: &Btf, found: &mut Vec<u8>) -> Result<(), String> {
    let read = |file: std::fs::File, found: &mut Vec<u8>| -> io::Result<()> {
        let bytes = file.take(MOST_BYTES).read_to_end(found)?;
        if bytes as u64 == MOST_BYTES {
            tracing::warn!("more listeners than the snapshot has room for; the rest is not told");
        }
        Ok(())
    };
    let Some(Program::Iter(program)) = ebpf.program_mut(PROGRAM) else {
        return Err(format!("the object has no program {PROGRAM}"));
    };
    let program: &mut Iter = program;
    let link = program
        .load("task_file", kernel)
        .and_then(|()| program.attach())
        .and_then(|link| program.take_link(link))
        .map_err(|error| chain(&error))?;
    let file = link.into_file().map_err(|error| chain(&error))?;
    read(file, found).map_err(|error| error.to_string())
}
