//! From which rate on does a recorder lose events? Opens at a pace, from slow to as fast as one core
//! makes them, in front of hostaudit and of each peer.
//!
//! A recorder that makes callers wait, as auditd does, loses nothing and shows in the rate that was
//! reached. Each step is a burst of a second, so what a recorder can buffer counts, as it does on a
//! host.

use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use super::super::{
    interrupt,
    mode::{Mode, Quiet},
    report::{grouped, table},
    storm::{self, Pace, Storm},
};

/// A second each. The last is without a pace.
const RATES: [Option<u64>; 9] = [
    Some(10_000),
    Some(25_000),
    Some(50_000),
    Some(100_000),
    Some(200_000),
    Some(300_000),
    Some(400_000),
    Some(500_000),
    None,
];
/// More than one core makes in a second, for the step without a pace.
const UNPACED: u64 = 2_000_000;
const RECORDERS: [Mode; 3] = [Mode::Hostaudit, Mode::Auditd, Mode::Bpftrace];

/// One recorder at one rate.
struct Step {
    mode: Mode,
    asked: Option<u64>,
    made: i64,
    made_per_s: u64,
    recorded: i64,
}

impl Step {
    fn lost(&self) -> i64 {
        self.made - self.recorded
    }

    fn lost_percent(&self) -> f64 {
        self.lost() as f64 * 100.0 / self.made as f64
    }
}

/// Measures and prints; the answer is for the JSON file.
pub fn run(directory: &Path, agent: &Path, divisor: u64) -> Result<Value> {
    // Held to the end: its drop puts the host's audit back.
    let quiet = Quiet::take();
    let mut steps = Vec::new();
    let mut skipped = Vec::new();
    for mode in RECORDERS {
        let missing = match &quiet {
            Ok(Some(_)) => None,
            _ if mode != Mode::Auditd => None,
            Ok(None) => Some("no auditctl: apt-get install auditd".to_owned()),
            Err(error) => Some(format!("{error:#}")),
        };
        let measured = match missing {
            Some(reason) => Err(anyhow::anyhow!(reason)),
            None => of_recorder(mode, directory, agent, divisor),
        };
        match measured {
            Ok(of_mode) => steps.extend(of_mode),
            Err(error) => {
                interrupt::check()?;
                println!("SKIPPED {mode}: {error:#}");
                skipped.push(json!({ "mode": mode.to_string(), "reason": format!("{error:#}") }));
            }
        }
    }
    print(&steps);
    Ok(json!({
        "steps": steps.iter().map(|step| json!({
            "mode": step.mode.to_string(), "asked_per_s": step.asked, "made": step.made,
            "made_per_s": step.made_per_s, "recorded": step.recorded,
        })).collect::<Vec<_>>(),
        "skipped": skipped,
    }))
}

fn of_recorder(mode: Mode, directory: &Path, agent: &Path, divisor: u64) -> Result<Vec<Step>> {
    let file = storm::opened_file(directory);
    let mut running = mode.start(directory, agent)?;
    running.settle()?;
    let mut before = running.opens_of(&file)?;
    let mut steps = Vec::new();
    for asked in RATES {
        interrupt::check()?;
        let told = asked.map_or("no pace".to_owned(), |rate| {
            format!("{rate} opens a second")
        });
        eprintln!("{mode}: {told}");
        let pace = Pace {
            rate: asked,
            seconds: Some(1.0 / divisor as f64),
        };
        let count = asked.unwrap_or(UNPACED) / divisor;
        let told = storm::start_at(Storm::Open, count, directory, Some(0), pace)?;
        running.settle()?;
        let all = running.opens_of(&file)?;
        steps.push(Step {
            mode,
            asked,
            made: i64::try_from(told.ops)?,
            made_per_s: u64::try_from(
                u128::from(told.ops) * 1_000_000_000 / u128::from(told.wall_ns.max(1)),
            )?,
            recorded: all - before,
        });
        before = all;
    }
    Ok(steps)
}

fn print(steps: &[Step]) {
    println!(
        "\nOpens from one core at a pace, a second each, and what each recorder lost of them:"
    );
    let number = |number: u64| grouped(i64::try_from(number).unwrap_or(i64::MAX));
    let rows: Vec<Vec<String>> = steps
        .iter()
        .map(|step| {
            vec![
                step.mode.to_string(),
                step.asked.map_or("no pace".to_owned(), number),
                number(step.made_per_s),
                grouped(step.recorded),
                grouped(step.lost()),
                format!("{:.1} %", step.lost_percent()),
            ]
        })
        .collect();
    let header = [
        "recorder",
        "asked for",
        "made a second",
        "recorded",
        "lost",
        "",
    ];
    print!("{}", table(&header, &rows));
}
