//! What does recording cost? Storms in every mode, interleaved over rounds, and the ratios that the
//! project holds itself to.
//!
//! CPU is counted where it is spent: the storm's own (system calls that got longer), and that of
//! the programs that record, until they are idle again. What the rest of the system did meanwhile
//! is shown too, but not judged: it is not this bench's alone. Needs two CPUs: the storm stays on one;
//! the collector, which is usually on another host, gets the idle time of the other.

mod verdict;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use serde_json::{Value, json};

use super::{
    Common, interrupt, measure,
    mode::{self, Mode, Quiet, Running},
    report::{grouped, median, micros, table},
    storm::{self, Storm},
};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// Modes to measure; bare is always among them
    #[arg(long, value_delimiter = ',', value_name = "MODE,...")]
    modes: Option<Vec<Mode>>,
    /// Storms to run
    #[arg(long, value_delimiter = ',', value_name = "STORM,...")]
    storms: Option<Vec<Storm>>,
    /// Rounds of all modes [default: 9, with --quick 1]
    #[arg(long)]
    rounds: Option<u32>,
    /// Exit with status 1 when a bar is missed
    #[arg(long)]
    check: bool,
}

/// One storm in one mode, per operation.
#[derive(Debug, Clone, Copy)]
struct Sample {
    round: u32,
    mode: Mode,
    storm: Storm,
    wall_ns: f64,
    storm_cpu_ns: f64,
    recorder_cpu_ns: f64,
    collector_cpu_ns: f64,
    system_cpu_ns: f64,
}

impl Sample {
    /// What the host pays; a collector is usually elsewhere.
    fn host_cpu_ns(&self) -> f64 {
        self.storm_cpu_ns + self.recorder_cpu_ns
    }

    fn all_cpu_ns(&self) -> f64 {
        self.host_cpu_ns() + self.collector_cpu_ns
    }
}

#[derive(Debug, Default)]
struct Measured {
    samples: Vec<Sample>,
    skipped: Vec<(Mode, String)>,
    lost: Vec<(Mode, i64)>,
    agent_peak_rss_bytes: u64,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    interrupt::catch();
    let quick = args.common.quick;
    let rounds = args.rounds.unwrap_or(if quick { 1 } else { 9 });
    let storms = args.storms.clone().unwrap_or_else(|| Storm::ALL.to_vec());
    let mut modes = args.modes.clone().unwrap_or_else(|| Mode::ALL.to_vec());
    modes.push(Mode::Bare);
    modes.sort_unstable();
    modes.dedup();
    let directory = tempfile::Builder::new()
        .prefix("hostaudit-bench-")
        .tempdir()?;
    storm::prepare(directory.path())?;
    let mut measured = Measured::default();
    // Held to the end: its drop puts the host's audit back.
    let _quiet = match Quiet::take() {
        Ok(Some(quiet)) => Some(quiet),
        other => {
            let reason = other
                .err()
                .map_or("no auditctl: apt-get install auditd".to_owned(), |e| {
                    format!("{e:#}")
                });
            skip(&mut modes, &mut measured, Mode::Auditd, reason);
            None
        }
    };
    let setting = Setting {
        directory: directory.path().to_owned(),
        agent: mode::agent_binary(quick)?,
        quick,
    };
    println!("agent: {}\n", setting.agent.display());
    for round in 1..=rounds {
        for mode in modes.clone() {
            interrupt::check()?;
            eprintln!("round {round}/{rounds}  {mode}");
            if let Err(error) = one_mode(&setting, round, mode, &storms, &mut measured) {
                interrupt::check()?;
                skip(&mut modes, &mut measured, mode, format!("{error:#}"));
            }
        }
    }
    let verdicts = verdict::all(&measured, &storms);
    print(&measured, &modes, &storms, &verdicts);
    args.common
        .write_json(&as_json(&measured, &verdicts, &setting))?;
    let failed = args.check
        && verdicts
            .iter()
            .any(|verdict| verdict.outcome == verdict::Outcome::Missed);
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

struct Setting {
    directory: PathBuf,
    agent: PathBuf,
    quick: bool,
}

fn skip(modes: &mut Vec<Mode>, measured: &mut Measured, mode: Mode, reason: String) {
    if modes.contains(&mode) {
        modes.retain(|other| *other != mode);
        let first = reason.lines().next().unwrap_or_default();
        eprintln!("SKIPPED {mode}: {first}");
        measured.skipped.push((mode, reason));
    }
}

/// Up to three seconds of each storm, bare: on a machine that others use too, many rounds tell more than
/// long ones.
fn count(storm: Storm, quick: bool) -> u64 {
    let full = match storm {
        Storm::Exec => 4_000,
        Storm::Open => 100_000,
        Storm::Connect => 20_000,
        Storm::Null => 4_000_000,
        Storm::Compile => 40,
        Storm::Steady => 3_000,
    };
    if quick { (full / 10).max(2) } else { full }
}

fn one_mode(
    setting: &Setting,
    round: u32,
    mode: Mode,
    storms: &[Storm],
    measured: &mut Measured,
) -> Result<()> {
    let mut running = mode.start(&setting.directory, &setting.agent)?;
    running.settle()?;
    for storm in storms {
        interrupt::check()?;
        measured
            .samples
            .push(sample(setting, round, mode, &running, *storm)?);
    }
    if let Some(bytes) = running.agent_peak_rss_bytes() {
        measured.agent_peak_rss_bytes = measured.agent_peak_rss_bytes.max(bytes);
    }
    if let Some(lost) = running.lost()? {
        measured.lost.push((mode, lost));
    }
    Ok(())
}

fn sample(
    setting: &Setting,
    round: u32,
    mode: Mode,
    running: &Running,
    storm: Storm,
) -> Result<Sample> {
    let count = count(storm, setting.quick);
    // Files and pages that the first storm after a start would wait for.
    storm::start(
        storm,
        count.div_ceil(20),
        &setting.directory,
        Some(mode::STORM_CPU),
    )?;
    running.settle()?;
    let system = measure::system_cpu_ns()?;
    let (recorder, collector) = running.cpu_ns()?;
    let told = storm::start(storm, count, &setting.directory, Some(mode::STORM_CPU))?;
    running.settle()?;
    let (recorder_after, collector_after) = running.cpu_ns()?;
    let per_op = |ns: u64| ns as f64 / told.ops as f64;
    Ok(Sample {
        round,
        mode,
        storm,
        wall_ns: per_op(told.wall_ns),
        storm_cpu_ns: per_op(told.cpu_ns),
        recorder_cpu_ns: per_op(recorder_after - recorder),
        collector_cpu_ns: per_op(collector_after - collector),
        system_cpu_ns: per_op(measure::system_cpu_ns()? - system),
    })
}

impl Measured {
    /// Median over the rounds.
    fn median(&self, mode: Mode, storm: Storm, of: impl Fn(&Sample) -> f64) -> f64 {
        median(self.of(mode, storm).map(of).collect())
    }

    /// Median over the rounds of what the mode adds to the bare storm of the same round.
    fn added(&self, mode: Mode, storm: Storm, of: impl Fn(&Sample) -> f64) -> f64 {
        let bare = |round| self.of(Mode::Bare, storm).find(|s| s.round == round);
        let pairs = self
            .of(mode, storm)
            .filter_map(|sample| Some((sample, bare(sample.round)?)));
        median(pairs.map(|(sample, bare)| of(sample) - of(bare)).collect())
    }

    /// How far two rounds of the same typically are apart: the median distance from the median,
    /// twice.
    fn spread(&self, mode: Mode, storm: Storm, of: impl Fn(&Sample) -> f64) -> f64 {
        let middle = self.median(mode, storm, &of);
        let distances = self
            .of(mode, storm)
            .map(|sample| (of(sample) - middle).abs());
        2.0 * median(distances.collect())
    }

    fn of(&self, mode: Mode, storm: Storm) -> impl Iterator<Item = &Sample> {
        self.samples
            .iter()
            .filter(move |s| s.mode == mode && s.storm == storm)
    }
}

fn print(measured: &Measured, modes: &[Mode], storms: &[Storm], verdicts: &[verdict::Verdict]) {
    println!("Microseconds per operation, medians; `added` is over bare in the same round.");
    for storm in storms {
        println!("\n{storm}: {}", storm.what());
        let rows: Vec<Vec<String>> = modes
            .iter()
            .filter(|mode| measured.of(**mode, *storm).next().is_some())
            .map(|mode| row(measured, *mode, *storm))
            .collect();
        let header = [
            "mode",
            "wall",
            "added",
            "CPU of storm",
            "of recorder",
            "added",
            "of collector",
            "whole system",
        ];
        print!("{}", table(&header, &rows));
    }
    println!("\nmodes:");
    for mode in modes {
        println!("  {mode:<10} {}", mode.what());
    }
    for (mode, reason) in &measured.skipped {
        println!("  {mode:<10} SKIPPED: {reason}");
    }
    for mode in modes {
        let of: Vec<i64> = measured
            .lost
            .iter()
            .filter(|(m, _)| m == mode)
            .map(|(_, lost)| *lost)
            .collect();
        if !of.is_empty() {
            println!(
                "events lost by {mode}, all rounds: {}",
                grouped(of.iter().sum())
            );
        }
    }
    if measured.agent_peak_rss_bytes > 0 {
        println!(
            "highest resident memory of the agent: {} MiB",
            measured.agent_peak_rss_bytes >> 20
        );
    }
    println!();
    for verdict in verdicts {
        println!("{verdict}");
    }
}

fn row(measured: &Measured, mode: Mode, storm: Storm) -> Vec<String> {
    let show = |of: fn(&Sample) -> f64| micros(measured.median(mode, storm, of));
    let added = |of: fn(&Sample) -> f64| {
        if mode == Mode::Bare {
            String::new()
        } else {
            micros(measured.added(mode, storm, of))
        }
    };
    vec![
        mode.to_string(),
        show(|s| s.wall_ns),
        added(|s| s.wall_ns),
        show(|s| s.storm_cpu_ns),
        show(|s| s.recorder_cpu_ns),
        added(Sample::host_cpu_ns),
        show(|s| s.collector_cpu_ns),
        show(|s| s.system_cpu_ns),
    ]
}

fn as_json(measured: &Measured, verdicts: &[verdict::Verdict], setting: &Setting) -> Value {
    let samples: Vec<Value> = measured
        .samples
        .iter()
        .map(|s| {
            json!({
                "round": s.round, "mode": s.mode.to_string(), "storm": s.storm.to_string(),
                "wall_ns": s.wall_ns, "storm_cpu_ns": s.storm_cpu_ns,
                "recorder_cpu_ns": s.recorder_cpu_ns, "collector_cpu_ns": s.collector_cpu_ns,
                "system_cpu_ns": s.system_cpu_ns,
            })
        })
        .collect();
    let text = |path: &str| {
        std::fs::read_to_string(path)
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    json!({
        "bench": "overhead",
        "kernel": text("/proc/sys/kernel/osrelease"),
        "cpus": std::thread::available_parallelism().map_or(0, usize::from),
        "agent": setting.agent.display().to_string(),
        "quick": setting.quick,
        "per_operation": samples,
        "skipped": measured.skipped.iter().map(|(mode, reason)| json!({ "mode": mode.to_string(), "reason": reason })).collect::<Vec<_>>(),
        "lost": measured.lost.iter().map(|(mode, lost)| json!({ "mode": mode.to_string(), "events": lost })).collect::<Vec<_>>(),
        "agent_peak_rss_bytes": measured.agent_peak_rss_bytes,
        "verdicts": verdicts.iter().map(verdict::Verdict::as_json).collect::<Vec<_>>(),
    })
}
