//! Does the record add up? Bursts as fast as one core makes them; then the collector is asked how
//! much of them it has, and the sequence numbers are summed: stored + counted as lost = numbered.
//! With `--curve`: what is lost at which rate, beside the peers ([`curve`]).

mod curve;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{
    Common, interrupt, measure, mode,
    report::{grouped, table},
    storm::{self, Storm},
};
use crate::stack::{Options, Stack};

const EXECS: u64 = 20_000;
const OPENS: u64 = 500_000;
const CONNECTS: u64 = 50_000;
const QUICK_DIVISOR: u64 = 10;
/// What the rings, the queue and the collector hold after a burst is stored within this.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(120);

/// A bar for the resident size, in which ring pages count twice, because they are mapped twice. The
/// agent's own, as a cgroup counts it, is in tests/tests/memory.rs.
const MOST_AGENT_RSS_BYTES: u64 = 128 << 20;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// Exit with status 1 when anything was lost, even if counted
    #[arg(long)]
    check: bool,
    /// Instead of the bursts: opens at rates from 10,000 a second to the highest, in front of
    /// hostaudit, auditd and bpftrace, and what each of them lost
    #[arg(long, conflicts_with = "check")]
    curve: bool,
}

struct Burst {
    storm: Storm,
    class: &'static str,
    made: i64,
    stored: i64,
    ns_per_op: u64,
}

/// One sequence stream of the agent's run.
struct Stream {
    class: String,
    cpu: i64,
    last: i64,
    stored: i64,
    lost: i64,
}

impl Stream {
    fn unexplained(&self) -> i64 {
        self.last - self.stored - self.lost
    }
}

pub fn run(args: &Args) -> Result<ExitCode> {
    interrupt::catch();
    let divisor = if args.common.quick { QUICK_DIVISOR } else { 1 };
    let directory = tempfile::Builder::new()
        .prefix("hostaudit-bench-")
        .tempdir()?;
    // Paths are recorded resolved.
    let path: PathBuf = directory.path().canonicalize()?;
    storm::prepare(&path)?;
    let agent = mode::agent_binary(args.common.quick)?;
    if args.curve {
        let curve = curve::run(&path, &agent, divisor)?;
        args.common
            .write_json(&json!({ "bench": "loss", "curve": curve }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut stack = Stack::start(Options {
        agent_binary: Some(agent),
        ..Options::default()
    })?;
    let exec = burst(&mut stack, Storm::Exec, "process", EXECS / divisor, &path)?;
    let open = burst(&mut stack, Storm::Open, "file", OPENS / divisor, &path)?;
    let connect = burst(
        &mut stack,
        Storm::Connect,
        "network",
        CONNECTS / divisor,
        &path,
    )?;
    let streams = streams(&mut stack)?;
    let peak = measure::peak_rss_bytes(stack.agent_pid().context("no agent")?)?;
    let bursts = [exec, open, connect];
    let mut failures = judge(&bursts, &streams);
    failures.extend(judge_memory(peak));
    print(&bursts, &streams, peak);
    for failure in &failures {
        println!("FAILED: {failure}");
    }
    let lost: i64 = streams.iter().map(|stream| stream.lost).sum();
    if failures.is_empty() {
        println!(
            "The record adds up: {} lost, every one of them counted.",
            grouped(lost)
        );
    }
    args.common
        .write_json(&as_json(&bursts, &streams, peak, &failures))?;
    let failed = !failures.is_empty() || (args.check && lost > 0);
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn burst(
    stack: &mut Stack,
    storm: Storm,
    class: &'static str,
    count: u64,
    directory: &std::path::Path,
) -> Result<Burst> {
    interrupt::check()?;
    let (kind, column, path) = match storm {
        Storm::Exec => ("exec", "process_exe", storm::program(directory)),
        Storm::Connect => ("connect", "process_exe", std::env::current_exe()?),
        _ => ("open", "file_path", storm::opened_file(directory)),
    };
    let sql = format!(
        "select count(*) from events where kind = '{kind}' and {column} = '{}'",
        path.display()
    );
    // The preparation may have opened the file already.
    let before = stack.number(&sql)?;
    eprintln!("{storm}: {} times on CPU 0", grouped(i64::try_from(count)?));
    let told = storm::start(storm, count, directory, Some(0))?;
    let made = i64::try_from(told.ops)?;
    let lost = format!(
        "select sum(lost_count) from events where kind = 'lost' and lost_class = '{class}'"
    );
    stack.wait_until(
        "all of the burst is stored or counted as lost",
        DRAIN_TIMEOUT,
        |stack| {
            interrupt::check()?;
            let (stored, lost) = (stack.number(&sql)? - before, stack.number(&lost)?);
            std::thread::sleep(Duration::from_millis(200));
            Ok(stored + lost >= made)
        },
    )?;
    stack.barrier()?;
    let stored = stack.number(&sql)? - before;
    Ok(Burst {
        storm,
        class,
        made,
        stored,
        ns_per_op: told.wall_ns / told.ops,
    })
}

fn streams(stack: &mut Stack) -> Result<Vec<Stream>> {
    let sql = "
        select class, cpu, max(last) as last, sum(stored) as stored, sum(lost) as lost from (
            select class, cpu, sequence as last, 1 as stored, 0 as lost
            from events where sequence is not null
            union all
            select lost_class, lost_cpu, lost_last_sequence, 0, lost_count
            from events where kind = 'lost' and lost_last_sequence is not null)
        group by class, cpu order by class, cpu";
    let number = |row: &Value| row.as_i64().unwrap_or_default();
    let stream = |row: &crate::stack::Row| Stream {
        class: row["class"].as_str().unwrap_or_default().to_owned(),
        cpu: row.get("cpu").map_or(-1, number),
        last: number(&row["last"]),
        stored: number(&row["stored"]),
        lost: number(&row["lost"]),
    };
    // In one query, so that all numbers are of one moment.
    Ok(stack.query(sql)?.iter().map(stream).collect())
}

fn judge(bursts: &[Burst], streams: &[Stream]) -> Vec<String> {
    let mut failures = Vec::new();
    for stream in streams.iter().filter(|stream| stream.unexplained() != 0) {
        failures.push(format!(
            "class {} on CPU {}: {} numbers given, {} stored, {} counted as lost",
            stream.class, stream.cpu, stream.last, stream.stored, stream.lost
        ));
    }
    for burst in bursts {
        let lost: i64 = streams
            .iter()
            .filter(|s| s.class == burst.class)
            .map(|s| s.lost)
            .sum();
        let missing = burst.made - burst.stored;
        if !(0..=lost).contains(&missing) {
            failures.push(format!(
                "{}: {} made, {} stored, but only {lost} of class {} counted as lost",
                burst.storm, burst.made, burst.stored, burst.class
            ));
        }
    }
    failures
}

fn judge_memory(peak: u64) -> Option<String> {
    (peak > MOST_AGENT_RSS_BYTES).then(|| {
        format!(
            "the agent took {} MiB of memory; the bar is {}",
            peak >> 20,
            MOST_AGENT_RSS_BYTES >> 20
        )
    })
}

fn print(bursts: &[Burst], streams: &[Stream], peak: u64) {
    println!("\nBursts on one core, and what the collector has of them:");
    let rows: Vec<Vec<String>> = bursts
        .iter()
        .map(|b| {
            let made_per_s = 1_000_000_000 / b.ns_per_op.max(1);
            vec![
                b.storm.to_string(),
                grouped(b.made),
                grouped(i64::try_from(made_per_s).unwrap_or(i64::MAX)),
                grouped(b.stored),
                grouped(b.made - b.stored),
            ]
        })
        .collect();
    print!(
        "{}",
        table(&["burst", "made", "per second", "stored", "missing"], &rows)
    );
    println!("\nSequence numbers of everything this host did meanwhile:");
    let rows: Vec<Vec<String>> = streams
        .iter()
        .map(|s| {
            vec![
                s.class.clone(),
                s.cpu.to_string(),
                grouped(s.last),
                grouped(s.stored),
                grouped(s.lost),
                grouped(s.unexplained()),
            ]
        })
        .collect();
    print!(
        "{}",
        table(
            &[
                "class",
                "CPU",
                "given",
                "stored",
                "counted lost",
                "unexplained"
            ],
            &rows
        )
    );
    println!("\nhighest resident memory of the agent: {} MiB", peak >> 20);
}

fn as_json(bursts: &[Burst], streams: &[Stream], peak: u64, failures: &[String]) -> Value {
    json!({
        "bench": "loss",
        "bursts": bursts.iter().map(|b| json!({
            "storm": b.storm.to_string(), "made": b.made, "stored": b.stored, "ns_per_op": b.ns_per_op,
        })).collect::<Vec<_>>(),
        "streams": streams.iter().map(|s| json!({
            "class": s.class, "cpu": s.cpu, "given": s.last, "stored": s.stored, "lost": s.lost,
        })).collect::<Vec<_>>(),
        "agent_peak_rss_bytes": peak,
        "failures": failures,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(last: i64, stored: i64, lost: i64) -> Stream {
        Stream {
            class: "file".to_owned(),
            cpu: 0,
            last,
            stored,
            lost,
        }
    }

    fn burst(stored: i64) -> Burst {
        Burst {
            storm: Storm::Open,
            class: "file",
            made: 100,
            stored,
            ns_per_op: 1,
        }
    }

    #[test]
    fn memory_over_the_bar_fails() {
        assert_eq!(judge_memory(MOST_AGENT_RSS_BYTES), None);
        let failure = judge_memory(130 << 20).expect("over");
        assert!(failure.contains("130 MiB"), "{failure}");
    }

    #[test]
    fn a_record_adds_up_or_fails() {
        assert!(judge(&[burst(100)], &[stream(150, 150, 0)]).is_empty());
        assert!(
            judge(&[burst(60)], &[stream(150, 110, 40)]).is_empty(),
            "counted losses add up"
        );
        assert_eq!(
            judge(&[burst(100)], &[stream(150, 149, 0)]).len(),
            1,
            "a gap"
        );
        assert_eq!(
            judge(&[burst(59)], &[stream(150, 110, 40)]).len(),
            1,
            "one more missing than counted"
        );
        assert_eq!(
            judge(&[burst(101)], &[stream(150, 150, 0)]).len(),
            1,
            "one stored twice"
        );
    }
}
