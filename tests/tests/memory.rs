//! Does the agent keep to its memory? Under a hard limit that the kernel enforces: a byte more and it
//! is killed. The rings and maps in the kernel count, the collector does not.

use std::{
    fs::OpenOptions,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use audit_tests::{Options, Stack, memory::MemoryCgroup, stack};

const IDLE_BYTES: u64 = 64 << 20;
const FLOOD_BYTES: u64 = 128 << 20;
/// Loading needs some seconds more than attaching: types and programs are let go of.
const SETTLE: Duration = Duration::from_secs(3);
/// Several heartbeats' worth of nothing.
const IDLE: Duration = Duration::from_secs(12);
/// Two full queues and all rings: everything that has a bound reaches it.
const FLOOD: Duration = Duration::from_secs(4);

#[test]
fn the_agent_keeps_to_its_memory_idle_and_under_flood() -> Result<()> {
    if let Some(missing) = stack::missing_for_live_tests() {
        println!("SKIPPED: {missing}");
        return Ok(());
    }
    // Declared before the stack, so removed after it.
    let cgroup = match MemoryCgroup::new("hostaudit-test") {
        Ok(cgroup) => cgroup,
        Err(reason) => {
            println!("SKIPPED: {reason:#}");
            return Ok(());
        }
    };
    cgroup.limit(FLOOD_BYTES)?;
    let mut stack = Stack::start(Options {
        agent_cgroup: Some(cgroup.procs()),
        ..Options::default()
    })?;
    println!("highest while it started: {} MiB", highest(&cgroup));

    std::thread::sleep(SETTLE);
    cgroup.limit(IDLE_BYTES)?;
    std::thread::sleep(IDLE);
    keeps_running(&mut stack, &cgroup, "idle")?;

    cgroup.limit(FLOOD_BYTES)?;
    // Without a collector batches pile up: that is what the queue's bound is for.
    stack.kill_collector();
    flood(&cgroup)?;
    stack.start_collector()?;
    keeps_running(&mut stack, &cgroup, "under flood, without a collector")?;
    flood(&cgroup)?;
    keeps_running(&mut stack, &cgroup, "under flood")
}

fn highest(cgroup: &MemoryCgroup) -> String {
    cgroup
        .highest_bytes()
        .map_or("unknown".to_owned(), |bytes| (bytes >> 20).to_string())
}

fn keeps_running(stack: &mut Stack, cgroup: &MemoryCgroup, when: &str) -> Result<()> {
    println!(
        "{when}: {} MiB now, {} at most",
        cgroup.usage_bytes()? >> 20,
        highest(cgroup)
    );
    ensure!(
        cgroup.killed()? == 0,
        "{when}: the kernel killed the agent for its memory\n{}",
        stack.agent_log()
    );
    // It also still does its work.
    stack.barrier().with_context(|| when.to_owned())
}

/// Opens for writing, as fast as they go.
fn flood(cgroup: &MemoryCgroup) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("opened");
    let until = Instant::now() + FLOOD;
    let mut opens = 0_u64;
    while Instant::now() < until && cgroup.killed()? == 0 {
        for _ in 0..1000 {
            OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)?;
        }
        opens += 1000;
    }
    println!("{opens} opens; {} MiB", cgroup.usage_bytes()? >> 20);
    Ok(())
}
