//! Does another witness tell the same? Known actions run under strace; every call of an audited kind
//! that strace saw must be in the record with the same result and the same path, and the record
//! must have nothing that strace did not see. What differs on purpose is counted by reason.

use std::{collections::BTreeMap, process::Command};

use anyhow::{Context as _, Result, ensure};
use audit_tests::{
    Options, Stack, stack, strace,
    witness::{Fact, Recorded, Verdict, recorded, seen, traced_calls},
};

/// Not those in which a process is traced (it has a tracer already), changes its root or its mounts
/// (strace's paths are not the process's), or runs a script or a memfd (whose arguments and name the
/// kernel changes).
const GROUPS: [&str; 13] = [
    "threads",
    "arguments",
    "compat",
    "paths",
    "opens",
    "files",
    "network",
    "sockets",
    "lives",
    "credentials",
    "signals",
    "namespaces",
    "kernel",
];

/// How often each.
type Counts<T> = BTreeMap<T, usize>;

#[derive(Default)]
struct Comparison {
    agreed: usize,
    /// strace saw it, the record does not have it.
    missing: Counts<Fact>,
    /// The record has it, strace did not see it.
    extra: Counts<Fact>,
    /// Differences by design.
    explained: Counts<&'static str>,
}

impl Comparison {
    fn of(witness: Vec<Verdict>, record: Vec<Recorded>) -> Self {
        let mut comparison = Self::default();
        let mut waiting: Counts<Fact> = BTreeMap::new();
        for row in record {
            match row {
                Recorded::Fact(fact) => *waiting.entry(fact).or_default() += 1,
                Recorded::Explained(reason) => {
                    *comparison.explained.entry(reason).or_default() += 1;
                }
            }
        }
        for verdict in witness {
            match verdict {
                Verdict::Recorded(fact) => match take(&mut waiting, &fact) {
                    true => comparison.agreed += 1,
                    false => *comparison.missing.entry(fact).or_default() += 1,
                },
                Verdict::LeftOut(reason) => {
                    *comparison.explained.entry(reason).or_default() += 1;
                }
            }
        }
        comparison.extra = waiting;
        comparison
    }

    fn add(&mut self, other: Self) {
        self.agreed += other.agreed;
        for (mine, theirs) in [
            (&mut self.missing, other.missing),
            (&mut self.extra, other.extra),
        ] {
            for (fact, count) in theirs {
                *mine.entry(fact).or_default() += count;
            }
        }
        for (reason, count) in other.explained {
            *self.explained.entry(reason).or_default() += count;
        }
    }

    fn differences(&self) -> String {
        let missing = self.missing.iter().map(|fact| ("only strace saw", fact));
        let extra = self.extra.iter().map(|fact| ("only the record has", fact));
        let lines = missing
            .chain(extra)
            .map(|(who, (fact, count))| format!("{who} {count} x {fact}"));
        lines.collect::<Vec<_>>().join("\n")
    }
}

fn take(facts: &mut Counts<Fact>, fact: &Fact) -> bool {
    let Some(count) = facts.get_mut(fact) else {
        return false;
    };
    *count -= 1;
    if *count == 0 {
        facts.remove(fact);
    }
    true
}

fn cannot_run() -> bool {
    let reason = stack::missing_for_live_tests().or_else(strace::missing);
    if let Some(reason) = reason {
        eprintln!("SKIPPED: {reason}");
    }
    reason.is_some()
}

/// Performs `group` under strace and asks the collector about the same threads.
fn compare(stack: &mut Stack, group: &str) -> Result<Comparison> {
    let directory = tempfile::Builder::new()
        .prefix("hostaudit-witness-")
        .tempdir()?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_workload"));
    command.arg(group).arg(directory.path());
    let traced = strace::run(&mut command, &traced_calls(), directory.path())?;
    // Links that were on the way are still there: the witness looks paths up now.
    let witness = seen(&traced)?;
    stack.barrier()?;
    let record = recorded(stack, &traced)?;
    Ok(Comparison::of(witness, record))
}

#[test]
fn the_record_agrees_with_strace_call_by_call() -> Result<()> {
    if cannot_run() {
        return Ok(());
    }
    let mut stack = Stack::start(Options::default())?;
    let mut all = Comparison::default();
    for group in GROUPS {
        let comparison = compare(&mut stack, group).with_context(|| group.to_owned())?;
        println!("{group:<12} {:>5} calls agree", comparison.agreed);
        all.add(comparison);
    }
    println!(
        "{:<12} {:>5} calls agree; differences by design:",
        "all", all.agreed
    );
    for (reason, count) in &all.explained {
        println!("{count:>6}  {reason}");
    }
    ensure!(
        all.missing.is_empty() && all.extra.is_empty(),
        "strace and the record differ:\n{}",
        all.differences()
    );
    ensure!(all.agreed > 500, "only {} calls were compared", all.agreed);
    ensure!(stack.number("select count(*) from events where kind = 'lost'")? == 0);
    Ok(())
}

/// That the comparison finds what a record lacks, and nothing else.
#[test]
fn what_the_record_lacks_is_found() -> Result<()> {
    if cannot_run() {
        return Ok(());
    }
    let mut stack = Stack::start(Options {
        agent: vec!["capture.off_kinds=[rename, memory_exec]".to_owned()],
        ..Options::default()
    })?;
    let comparison = compare(&mut stack, "paths")?;
    ensure!(!comparison.missing.is_empty(), "renames are not missed");
    let other = comparison.missing.keys().find(|fact| fact.kind != "rename");
    ensure!(
        other.is_none() && comparison.extra.is_empty(),
        "{}",
        comparison.differences()
    );
    Ok(())
}
