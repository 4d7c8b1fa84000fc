//! Is each bar met? The bars are ratios to auditd, measured in the same rounds.

use std::fmt;

use serde_json::{Value, json};

use super::{Measured, Sample};
use crate::bench::{mode::Mode, report::micros, storm::Storm};

/// Added CPU, of auditd's.
const CPU_BAR: f64 = 1.0 / 5.0;
/// Added wall time, of auditd's.
const WALL_BAR: f64 = 1.0 / 10.0;
/// What a system call that nobody audits costs more, of auditd's.
const NULL_BAR: f64 = 1.0 / 3.0;

pub struct Verdict {
    storm: Storm,
    measure: &'static str,
    ours_ns: f64,
    auditd_ns: f64,
    bar: f64,
    /// Judged with the collector's CPU on the same host, where that differs.
    with_collector_ns: Option<f64>,
    pub outcome: Outcome,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Met,
    Missed,
    /// What auditd adds is no more than two bare rounds differ by: no ratio to it means anything.
    Noise,
}

/// None where a mode is missing.
pub fn all(measured: &Measured, storms: &[Storm]) -> Vec<Verdict> {
    let both = |storm: &&Storm| {
        [Mode::Bare, Mode::Hostaudit, Mode::Auditd]
            .iter()
            .all(|m| measured.of(*m, **storm).next().is_some())
    };
    storms
        .iter()
        .filter(both)
        .flat_map(|storm| of_storm(measured, *storm))
        .collect()
}

fn of_storm(measured: &Measured, storm: Storm) -> Vec<Verdict> {
    let added = |mode, of: fn(&Sample) -> f64| measured.added(mode, storm, of);
    let verdict = |measure, of: fn(&Sample) -> f64, bar: f64| {
        let (ours_ns, auditd_ns) = (added(Mode::Hostaudit, of), added(Mode::Auditd, of));
        let outcome = if auditd_ns <= measured.spread(Mode::Bare, storm, of) {
            Outcome::Noise
        } else if ours_ns <= auditd_ns * bar {
            Outcome::Met
        } else {
            Outcome::Missed
        };
        Verdict {
            storm,
            measure,
            ours_ns,
            auditd_ns,
            bar,
            with_collector_ns: None,
            outcome,
        }
    };
    if storm == Storm::Null {
        return vec![verdict("wall", |s| s.wall_ns, NULL_BAR)];
    }
    let mut cpu = verdict("CPU", Sample::host_cpu_ns, CPU_BAR);
    cpu.with_collector_ns = Some(added(Mode::Hostaudit, Sample::all_cpu_ns));
    vec![cpu, verdict("wall", |s| s.wall_ns, WALL_BAR)]
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ratio = |ns: f64| format!("{:.0} %", 100.0 * ns / self.auditd_ns);
        write!(
            f,
            "{} {:<8} added {:<5} {:>8} us, auditd's {:>8} us: {:>6}, bar {:.0} %",
            match self.outcome {
                Outcome::Met => "met   ",
                Outcome::Missed => "MISSED",
                Outcome::Noise => "noise ",
            },
            self.storm,
            self.measure,
            micros(self.ours_ns),
            micros(self.auditd_ns),
            ratio(self.ours_ns),
            100.0 * self.bar,
        )?;
        match self.with_collector_ns {
            Some(ns) => write!(f, " (with the collector on this host too: {})", ratio(ns)),
            None => Ok(()),
        }
    }
}

impl Verdict {
    pub fn as_json(&self) -> Value {
        json!({
            "storm": self.storm.to_string(), "measure": self.measure, "ours_ns": self.ours_ns,
            "auditd_ns": self.auditd_ns, "ratio": self.ours_ns / self.auditd_ns, "bar": self.bar,
            "with_collector_ns": self.with_collector_ns,
            "outcome": format!("{:?}", self.outcome).to_lowercase(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(mode: Mode, wall_ns: f64, recorder_cpu_ns: f64) -> Sample {
        Sample {
            round: 1,
            mode,
            storm: Storm::Open,
            wall_ns,
            storm_cpu_ns: 1_000.0,
            recorder_cpu_ns,
            collector_cpu_ns: 0.0,
            system_cpu_ns: 0.0,
        }
    }

    #[test]
    fn bars_are_ratios_of_what_is_added_to_bare() {
        let measured = Measured {
            samples: vec![
                sample(Mode::Bare, 3_000.0, 0.0),
                sample(Mode::Hostaudit, 5_000.0, 3_000.0),
                sample(Mode::Auditd, 23_000.0, 12_000.0),
            ],
            ..Measured::default()
        };
        let verdicts = all(&measured, &[Storm::Open, Storm::Exec]);
        let found: Vec<_> = verdicts.iter().map(|v| (v.measure, v.outcome)).collect();
        // 3 of 12 us of CPU is more than a fifth; 2 of 20 us of wall time is a tenth.
        assert_eq!(found, [("CPU", Outcome::Missed), ("wall", Outcome::Met)]);
    }

    #[test]
    fn a_peer_within_the_noise_is_no_measure() {
        let mut samples = Vec::new();
        for (round, bare_ns) in [(1, 3_000.0), (2, 9_000.0), (3, 3_500.0), (4, 8_000.0)] {
            for (mode, added_ns) in [
                (Mode::Bare, 0.0),
                (Mode::Hostaudit, 100.0),
                (Mode::Auditd, 1_000.0),
            ] {
                samples.push(Sample {
                    round,
                    ..sample(mode, bare_ns + added_ns, 0.0)
                });
            }
        }
        let measured = Measured {
            samples,
            ..Measured::default()
        };
        let verdicts = all(&measured, &[Storm::Open]);
        let wall = verdicts.iter().find(|v| v.measure == "wall");
        assert_eq!(wall.map(|v| v.outcome), Some(Outcome::Noise));
    }
}
