//! Does anything go missing or appear twice when a program is killed? Numbered actions run on while
//! agent or collector die and come back.

use std::{
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Result, ensure};
use audit_tests::{Options, Stack, stack};

/// Programs `true NAME 1`, `true NAME 2`, ... about 200 a second.
struct Actions {
    name: &'static str,
    done: Arc<AtomicI64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Actions {
    fn start(name: &'static str) -> Self {
        let (done, stop) = (
            Arc::new(AtomicI64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (number, stopped) = (done.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                let next = number.load(Ordering::Relaxed) + 1;
                let status = Command::new("/bin/true")
                    .args([name, &next.to_string()])
                    .status();
                assert!(status.is_ok_and(|status| status.success()));
                number.store(next, Ordering::Release);
                std::thread::sleep(Duration::from_millis(3));
            }
        });
        Self {
            name,
            done,
            stop,
            thread: Some(thread),
        }
    }

    fn done(&self) -> i64 {
        self.done.load(Ordering::Acquire)
    }

    fn finish(&mut self) -> i64 {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            assert!(thread.join().is_ok(), "an action failed");
        }
        self.done()
    }

    /// Events of these actions, as a SQL condition.
    fn condition(&self) -> String {
        format!("kind = 'exec' and process_argv[2] = '{}'", self.name)
    }

    fn found(&self, stack: &mut Stack) -> Result<(i64, i64)> {
        let condition = self.condition();
        let all = stack.number(&format!("select count(*) from events where {condition}"))?;
        let distinct = stack.number(&format!(
            "select count(distinct process_argv[3]) from events where {condition}"
        ))?;
        Ok((all, distinct))
    }
}

fn twice(stack: &mut Stack) -> Result<i64> {
    stack.number("select count(*) - count(distinct id) from events")
}

fn started() -> Result<Option<Stack>> {
    if let Some(reason) = stack::missing_for_live_tests() {
        eprintln!("SKIPPED: {reason}");
        return Ok(None);
    }
    Stack::start(Options::default()).map(Some)
}

#[test]
fn a_killed_collector_costs_nothing() -> Result<()> {
    let Some(mut stack) = started()? else {
        return Ok(());
    };
    let mut actions = Actions::start("while the collector dies");
    for round in 0..5 {
        std::thread::sleep(Duration::from_millis(300 + 70 * round));
        stack.kill_collector();
        std::thread::sleep(Duration::from_millis(50 * round));
        stack.start_collector()?;
    }
    std::thread::sleep(Duration::from_millis(300));
    let made = actions.finish();
    stack.barrier()?;
    let found = actions.found(&mut stack)?;
    ensure!(made > 200, "only {made} actions; the test says little");
    ensure!(
        found == (made, made),
        "{made} made; {} stored, {} different",
        found.0,
        found.1
    );
    let lost = stack.number("select sum(lost_count) from events where kind = 'lost'")?;
    ensure!(lost == 0, "{lost} lost");
    ensure!(twice(&mut stack)? == 0);
    Ok(())
}

/// What a killed agent had not delivered is gone with it (until it has a spool), but what was
/// acknowledged stays, once; and the record shows that a new run began.
#[test]
fn a_killed_agent_costs_nothing_that_was_acknowledged() -> Result<()> {
    let Some(mut stack) = started()? else {
        return Ok(());
    };
    let mut actions = Actions::start("while the agent dies");
    // Others' arguments are no numbers.
    let number = "try_cast(process_argv[3] as bigint)";
    let condition = actions.condition();
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(400));
        // What the collector answers from is on disk and acknowledged.
        let last = stack.number(&format!(
            "select max({number}) from events where {condition}"
        ))?;
        let up_to_last =
            format!("select count(*) from events where {condition} and {number} <= {last}");
        let before = stack.number(&up_to_last)?;
        stack.kill_agent();
        stack.start_agent()?;
        let after = stack.number(&up_to_last)?;
        ensure!(
            last > 0 && before > 0 && before == after,
            "of {last} actions {before} were stored, and {after} after the kill"
        );
    }
    let made = actions.finish();
    stack.barrier()?;
    let (all, distinct) = actions.found(&mut stack)?;
    ensure!(
        all == distinct && all <= made,
        "{made} made; {all} stored, {distinct} different"
    );
    ensure!(twice(&mut stack)? == 0);
    let runs = stack.number("select count(distinct host_run) from events")?;
    ensure!(runs == 4, "{runs} runs of the agent");
    Ok(())
}

#[test]
fn an_agent_that_is_asked_to_stop_delivers_first() -> Result<()> {
    let Some(mut stack) = started()? else {
        return Ok(());
    };
    let mut actions = Actions::start("before the stop");
    std::thread::sleep(Duration::from_millis(500));
    let made = actions.finish();
    stack.stop_agent()?;
    let found = actions.found(&mut stack)?;
    ensure!(found == (made, made), "{made} made, {found:?} stored");
    let stops = stack
        .number("select count(*) from events where kind = 'agent' and agent_action = 'stop'")?;
    ensure!(stops == 1, "{stops} events tell of the stop");
    Ok(())
}
