//! How much had the kernel's verifier to check of each program, and how far is that from its limit?
//!
//! The verifier says so in its log, on every kernel; but a loader shows the log of a program that did
//! not load only. So each is loaded while no more descriptors are to be had: the kernel verifies it,
//! and fails at the very end, when it should hand it over.

use std::{collections::BTreeMap, io};

use aya::{Ebpf, VerifierLogLevel};

use super::{
    Kernel, ProbeError,
    attach::load,
    hooks::{
        DISPATCHER, HOOKS, LISTENER, NAME_FREED, OBJECT_RUNGS, OBJECTS, PROBE_DISPATCHER, Place,
        Rung,
    },
};
use crate::Config;

/// What the verifier said of one program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complexity {
    pub program: String,
    /// Instructions that it went through, and the most that it would; or why it did not take it.
    pub processed: Result<(u64, u64), String>,
}

/// Of every program that this kernel has a place for, by name.
pub fn complexity(config: &Config) -> Result<Vec<Complexity>, ProbeError> {
    let kernel = Kernel::running()?;
    let mut found = Vec::new();
    for rung in OBJECT_RUNGS {
        found.extend(of_object(&kernel, config, rung)?);
    }
    found.sort_by(|one, other| one.program.cmp(&other.program));
    Ok(found)
}

/// Of the object as it is for that rung: what it has in trampolines, or else the others.
fn of_object(kernel: &Kernel, config: &Config, rung: Rung) -> Result<Vec<Complexity>, ProbeError> {
    let mut plan = kernel.plan();
    plan.rung = Some(rung);
    // As a set that others may replace: so it has most to ask.
    let settings = kernel.settings(config, &plan, 1);
    let mut ebpf = kernel.load(&plan, config, &settings, None, VerifierLogLevel::STATS)?;
    let places = match rung {
        Rung::Kprobe => places(kernel, &mut ebpf),
        _ => of_objects(rung).collect(),
    };
    let none = Descriptors::none_left().map_err(|error| ProbeError::Load(error.to_string()))?;
    let found = places.into_iter().map(|(program, place)| {
        let processed = match load(&mut ebpf, &program, place, &kernel.btf) {
            Ok(_) => Err("it was loaded although it should not".to_owned()),
            Err(log) => processed(&log).ok_or(log),
        };
        Complexity { program, processed }
    });
    let found = found.collect();
    drop(none);
    Ok(found)
}

fn of_objects(rung: Rung) -> impl Iterator<Item = (String, Place)> {
    OBJECTS.iter().map(move |object| {
        let point = object.point(rung);
        (point.program.to_owned(), point.place)
    })
}

fn places(kernel: &Kernel, ebpf: &mut Ebpf) -> BTreeMap<String, Place> {
    let mut places: BTreeMap<String, Place> = BTreeMap::new();
    let points = HOOKS
        .iter()
        .flat_map(|hook| hook.points.iter().chain(hook.probes));
    for point in points.chain([&DISPATCHER, &PROBE_DISPATCHER, &LISTENER, &NAME_FREED]) {
        places.insert(point.program.to_owned(), point.place);
    }
    places.extend(of_objects(Rung::Kprobe));
    for hook in HOOKS {
        for row in hook.calls.iter().copied().flatten() {
            places.insert(row.program.to_owned(), DISPATCHER.place);
            places.insert(format!("{}_kprobe", row.program), PROBE_DISPATCHER.place);
        }
        // A kernel without such operations has no place for their programs.
        let points = kernel.uring.points(ebpf, hook.operations);
        for point in points.unwrap_or_default() {
            places.insert(point.program.to_owned(), point.place);
        }
    }
    places.insert("snapshot".to_owned(), Place::Iterator("task_file"));
    places
}

/// From "processed 5432 insns (limit 1000000) max_states_per_insn 4 ...", of a program that was
/// refused for nothing but the descriptor.
fn processed(log: &str) -> Option<(u64, u64)> {
    if !log.contains("(os error 24)") {
        return None;
    }
    let (_, rest) = log.rsplit_once("processed ")?;
    let (instructions, rest) = rest.split_once(" insns (limit ")?;
    let (limit, _) = rest.split_once(')')?;
    Some((instructions.parse().ok()?, limit.parse().ok()?))
}

/// While it lives, this process gets no new descriptor; those that it has go on working.
struct Descriptors(libc::rlimit);

#[expect(
    unsafe_code,
    reason = "no safe call for this limit without another feature"
)]
impl Descriptors {
    fn none_left() -> io::Result<Self> {
        let mut before = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: both take a struct of ours.
        let failed = unsafe {
            libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut before) != 0 || {
                let none = libc::rlimit {
                    rlim_cur: 0,
                    ..before
                };
                libc::setrlimit(libc::RLIMIT_NOFILE, &raw const none) != 0
            }
        };
        if failed {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(before))
    }
}

impl Drop for Descriptors {
    #[expect(unsafe_code, reason = "as above")]
    fn drop(&mut self) {
        // SAFETY: as above. What was allowed before is allowed again.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verifiers_last_words_are_read() {
        let log = "exec: the BPF_PROG_LOAD syscall returned Too many open files (os error 24). Verifier \
                   output: \
                   func#0 @0\nprocessed 5432 insns (limit 1000000) max_states_per_insn 4 \
                   total_states 120 peak_states 100 mark_read 20\n";
        assert_eq!(processed(log), Some((5432, 1_000_000)));
        let refused = log.replace("(os error 24)", "(os error 13)");
        assert_eq!(processed(&refused), None);
        assert_eq!(processed("exec: Invalid argument"), None);
    }
}
