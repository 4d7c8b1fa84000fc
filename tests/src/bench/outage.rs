//! What does an outage of the collector cost the host, and does everything arrive afterwards? A paced
//! workload, whose operations are timed, before the agent runs, with the collector and without it; then
//! the collector comes back, and everything is counted.

use std::{
    fs::File,
    path::Path,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::{
    Common, interrupt, mode,
    report::{grouped, median, micros, table},
};
use crate::stack::{Options, Row, Stack};

/// Of one operation: a file is made, closed and removed.
const EVENTS: u64 = 3;
/// Operations are begun in groups, so that waiting does not cost more than working.
const PACE: Duration = Duration::from_millis(2);
/// When nothing has arrived for so long, nothing will.
const SETTLED: Duration = Duration::from_secs(60);
/// What an outage may add to the cost of an operation.
const MOST_ADDED: f64 = 0.05;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// How long the collector is away [default: 600, with --quick 15]
    #[arg(long)]
    seconds: Option<u64>,
    /// Events that the workload makes in a second
    #[arg(long, default_value_t = 20_000)]
    rate: u64,
}

/// The workload for some time.
struct Phase {
    name: &'static str,
    operations: u64,
    took: Duration,
    /// Median time of an operation, of each second.
    seconds_ns: Vec<f64>,
    /// Resident memory of the agent, at the beginning, the most, and at the end.
    agent_bytes: Option<[u64; 3]>,
}

impl Phase {
    fn operation_ns(&self) -> f64 {
        median(self.seconds_ns.clone())
    }

    fn rate(&self) -> f64 {
        (self.operations * EVENTS) as f64 / self.took.as_secs_f64()
    }
}

pub fn run(args: &Args) -> Result<ExitCode> {
    interrupt::catch();
    let quick = args.common.quick;
    let seconds = args.seconds.unwrap_or(if quick { 15 } else { 600 });
    let beside = Duration::from_secs(seconds.clamp(5, 60));
    let directory = tempfile::Builder::new()
        .prefix("hostaudit-bench-")
        .tempdir()?;
    let mut work = Work {
        directory: directory.path().canonicalize()?,
        made: 0,
        rate: args.rate,
    };
    let mut phases = vec![work.phase("without an agent", beside, None)?];
    let unseen = work.made;
    let mut stack = Stack::start(Options {
        agent_binary: Some(mode::agent_binary(quick)?),
        ..Options::default()
    })?;
    let agent = stack.agent_pid();
    phases.push(work.phase("with a collector", beside, agent)?);
    stack.stop_collector()?;
    let outage = work.phase("without one", Duration::from_secs(seconds), agent)?;
    phases.push(outage);
    let spool_bytes = directory_bytes(&stack.state_dir().join("spool"))?;
    let began = Instant::now();
    stack.start_collector()?;
    let wanted = i64::try_from((work.made - unseen) * EVENTS)?;
    let stored = arrives(&mut stack, &work.directory, wanted)?;
    let drained = began.elapsed();
    let lost = stack.number("select count(*) from events where kind = 'lost'")?;
    report(args, &phases, stored, spool_bytes, drained)?;
    ensure!(lost == 0, "{lost} losses are told");
    ensure!(
        stored == wanted,
        "{wanted} events were made, {stored} are stored; of this process: {:?}",
        of_process(&mut stack, std::process::id())?
    );
    judge(&phases, quick)
}

/// Waits until each operation is stored three times, or nothing comes any more; how many events are there.
fn arrives(stack: &mut Stack, directory: &Path, wanted: i64) -> Result<i64> {
    let sql = format!(
        "select count(*) from events where kind in ('open', 'close_write', 'unlink') and file_path like '{}/%'",
        directory.display()
    );
    let (mut stored, mut since) = (0, Instant::now());
    while stored < wanted && since.elapsed() < SETTLED {
        interrupt::check()?;
        thread::sleep(Duration::from_millis(500));
        let now = stack.number(&sql)?;
        if now != stored {
            (stored, since) = (now, Instant::now());
        }
    }
    Ok(stored)
}

/// What is there of each kind, with a path and without: to see what is missing.
fn of_process(stack: &mut Stack, pid: u32) -> Result<Vec<Row>> {
    stack.query(&format!(
        "select kind, file_path is null as no_path, count(*) from events where process_pid = {pid} group by 1, 2"
    ))
}

struct Work {
    directory: std::path::PathBuf,
    made: u64,
    rate: u64,
}

impl Work {
    fn phase(&mut self, name: &'static str, long: Duration, agent: Option<u32>) -> Result<Phase> {
        eprintln!("{name}: {} s", long.as_secs());
        let per_second = self.rate / EVENTS;
        let began = Instant::now();
        let (mut done, mut seconds_ns, mut second) = (0, Vec::new(), Vec::new());
        let mut memory: Option<[u64; 3]> = None;
        while began.elapsed() < long {
            let due = (began.elapsed().as_secs_f64() * per_second as f64) as u64;
            while done < due {
                second.push(self.operation()?);
                done += 1;
            }
            if began.elapsed().as_secs() as usize > seconds_ns.len() {
                interrupt::check()?;
                seconds_ns.push(median(std::mem::take(&mut second)));
                if let Some(pid) = agent {
                    let now = resident_bytes(pid)?;
                    let [first, most, _] = memory.unwrap_or([now; 3]);
                    memory = Some([first, most.max(now), now]);
                }
            }
            thread::sleep(PACE);
        }
        Ok(Phase {
            name,
            operations: done,
            took: began.elapsed(),
            seconds_ns,
            agent_bytes: memory,
        })
    }

    fn operation(&mut self) -> Result<f64> {
        self.made += 1;
        let path = self.directory.join(format!("f{}", self.made));
        let began = Instant::now();
        drop(File::create(&path)?);
        std::fs::remove_file(&path)?;
        Ok(began.elapsed().as_nanos() as f64)
    }
}

fn resident_bytes(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let line = line.context("no VmRSS")?.trim();
    Ok(line.trim_end_matches("kB").trim().parse::<u64>()? << 10)
}

fn directory_bytes(directory: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let data = entry.metadata()?;
        bytes += match data.is_dir() {
            true => directory_bytes(&entry.path())?,
            false => data.len(),
        };
    }
    Ok(bytes)
}

fn report(
    args: &Args,
    phases: &[Phase],
    stored: i64,
    spool_bytes: u64,
    drained: Duration,
) -> Result<()> {
    let mib = |bytes: u64| (bytes >> 20).to_string();
    let rows: Vec<Vec<String>> = phases
        .iter()
        .map(|phase| {
            let memory = phase
                .agent_bytes
                .map_or([const { String::new() }; 3], |bytes| bytes.map(mib));
            let mut row = vec![
                phase.name.to_owned(),
                grouped(phase.rate() as i64),
                micros(phase.operation_ns()),
            ];
            row.extend(memory);
            row
        })
        .collect();
    let header = [
        "",
        "events/s",
        "operation",
        "agent MiB at first",
        "at most",
        "at last",
    ];
    println!("{}", table(&header, &rows));
    println!(
        "{} events stored; {} MiB of spool, the last stored {:.0} s after the collector was started again",
        grouped(stored),
        spool_bytes >> 20,
        drained.as_secs_f64()
    );
    let phases: Vec<_> = phases
        .iter()
        .map(|phase| {
            json!({
                "name": phase.name, "events_per_second": phase.rate(),
                "operation_ns": phase.operation_ns(), "agent_bytes": phase.agent_bytes,
            })
        })
        .collect();
    args.common.write_json(&json!({
        "bench": "outage", "events": stored, "phases": phases, "spool_bytes": spool_bytes,
        "drained_s": drained.as_secs_f64(),
    }))
}

/// A short run is too noisy to fail for its times.
fn judge(phases: &[Phase], quick: bool) -> Result<ExitCode> {
    let [_, with, without] = phases else {
        return Ok(ExitCode::FAILURE);
    };
    let added = without.operation_ns() / with.operation_ns() - 1.0;
    println!(
        "an operation costs {:+.1} % while the collector is away (bar: {:.0} % more)",
        added * 100.0,
        MOST_ADDED * 100.0
    );
    Ok(match added > MOST_ADDED && !quick {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}
