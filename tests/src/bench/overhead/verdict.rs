//! Is each bar met? Most bars are ratios to another mode, measured in the same rounds.

use std::fmt;

use serde_json::{Value, json};

use super::{Measured, Sample};
use crate::bench::{mode::Mode, report::micros, storm::Storm};

/// What hostaudit is held to.
struct Bar {
    storms: &'static [Storm],
    measure: Measure,
    against: Against,
    /// At most so many times what it is held against.
    most: f64,
}

const AUDITED: &[Storm] = &[Storm::Exec, Storm::Open, Storm::Connect];
const REAL: &[Storm] = &[Storm::Exec, Storm::Open, Storm::Connect, Storm::Compile];
const BARS: &[Bar] = &[
    bar(REAL, Measure::Cpu, Against::Auditd, 1.0 / 5.0),
    bar(REAL, Measure::Wall, Against::Auditd, 1.0 / 10.0),
    bar(&[Storm::Null], Measure::Wall, Against::Auditd, 1.0 / 3.0),
    bar(&[Storm::Null], Measure::Wall, Against::Empty, 1.5),
    bar(AUDITED, Measure::Wall, Against::Empty, 3.0),
    bar(
        &[Storm::Open],
        Measure::Wall,
        Against::Fixed("2 us", 2_000.0),
        1.0,
    ),
    bar(&[Storm::Compile], Measure::Wall, Against::Bare, 0.03),
    // A core has a millisecond for each of a thousand a second.
    bar(
        &[Storm::Steady],
        Measure::Recorder,
        Against::Fixed("a core", 1_000_000.0),
        0.07,
    ),
];

const fn bar(storms: &'static [Storm], measure: Measure, against: Against, most: f64) -> Bar {
    Bar {
        storms,
        measure,
        against,
        most,
    }
}

#[derive(Clone, Copy)]
enum Measure {
    Wall,
    /// Of the storm and of the recorder.
    Cpu,
    /// CPU of the recorder alone.
    Recorder,
}

impl Measure {
    fn of(self) -> fn(&Sample) -> f64 {
        match self {
            Self::Wall => |sample| sample.wall_ns,
            Self::Cpu => Sample::host_cpu_ns,
            Self::Recorder => |sample| sample.recorder_cpu_ns,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Wall => "wall",
            Self::Cpu => "CPU",
            Self::Recorder => "recorder",
        }
    }
}

#[derive(Clone, Copy)]
enum Against {
    /// What we add, to what it adds.
    Auditd,
    /// The whole operation, to the same with empty programs.
    Empty,
    /// What we add, to the operation bare.
    Bare,
    /// What we add, to an amount.
    Fixed(&'static str, f64),
}

impl Against {
    fn mode(self) -> Option<Mode> {
        match self {
            Self::Auditd => Some(Mode::Auditd),
            Self::Empty => Some(Mode::Empty),
            Self::Bare | Self::Fixed(..) => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Auditd => "auditd's",
            Self::Empty => "with empty programs",
            Self::Bare => "bare",
            Self::Fixed(name, _) => name,
        }
    }
}

pub struct Verdict {
    storm: Storm,
    measure: &'static str,
    ours_ns: f64,
    against: &'static str,
    against_ns: f64,
    most: f64,
    /// Judged with the collector's CPU on the same host, where that differs.
    with_collector_ns: Option<f64>,
    pub outcome: Outcome,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Met,
    Missed,
    /// Two bare rounds differ by as much as is to be told: no ratio means anything.
    Noise,
}

/// None where a mode is missing.
pub fn all(measured: &Measured, storms: &[Storm]) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for storm in storms {
        let of_storm = BARS.iter().filter(|bar| bar.storms.contains(storm));
        let there = of_storm.filter(|bar| {
            let needed = [Some(Mode::Bare), Some(Mode::Hostaudit), bar.against.mode()];
            needed
                .into_iter()
                .flatten()
                .all(|mode| measured.of(mode, *storm).next().is_some())
        });
        verdicts.extend(there.map(|bar| judge(measured, *storm, bar)));
    }
    verdicts
}

fn judge(measured: &Measured, storm: Storm, bar: &Bar) -> Verdict {
    let of = bar.measure.of();
    let added = |mode| measured.added(mode, storm, of);
    let spread = measured.spread(Mode::Bare, storm, of);
    let (ours_ns, against_ns, told_ns) = match bar.against {
        Against::Auditd => {
            let auditd_ns = added(Mode::Auditd);
            (added(Mode::Hostaudit), auditd_ns, auditd_ns)
        }
        Against::Empty => {
            let whole = |mode| measured.median(mode, storm, of);
            (whole(Mode::Hostaudit), whole(Mode::Empty), f64::INFINITY)
        }
        Against::Bare => {
            let bare_ns = measured.median(Mode::Bare, storm, of);
            (added(Mode::Hostaudit), bare_ns, bare_ns * bar.most)
        }
        Against::Fixed(_, ns) => (added(Mode::Hostaudit), ns, f64::INFINITY),
    };
    let with_collector = matches!((bar.measure, bar.against), (Measure::Cpu, Against::Auditd));
    Verdict {
        storm,
        measure: bar.measure.name(),
        ours_ns,
        against: bar.against.name(),
        against_ns,
        most: bar.most,
        with_collector_ns: with_collector
            .then(|| measured.added(Mode::Hostaudit, storm, Sample::all_cpu_ns)),
        outcome: if told_ns <= spread {
            Outcome::Noise
        } else if ours_ns <= against_ns * bar.most {
            Outcome::Met
        } else {
            Outcome::Missed
        },
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ratio = |ns: f64| format!("{:.0} %", 100.0 * ns / self.against_ns);
        write!(
            f,
            "{} {:<8} {:<8} {:>8} us, {:>8} us {}: {}, bar {:.0} %",
            match self.outcome {
                Outcome::Met => "met   ",
                Outcome::Missed => "MISSED",
                Outcome::Noise => "noise ",
            },
            self.storm,
            self.measure,
            micros(self.ours_ns),
            micros(self.against_ns),
            self.against,
            ratio(self.ours_ns),
            100.0 * self.most,
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
            "against": self.against, "against_ns": self.against_ns,
            "ratio": self.ours_ns / self.against_ns, "bar": self.most,
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
        // 3 of 12 us of CPU is more than a fifth; 2 of 20 us of wall time is a tenth; and 2 us.
        assert_eq!(
            found,
            [
                ("CPU", Outcome::Missed),
                ("wall", Outcome::Met),
                ("wall", Outcome::Met)
            ]
        );
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
        let mut of_auditd = verdicts.iter().filter(|v| v.against == "auditd's");
        let wall = of_auditd.find(|v| v.measure == "wall");
        assert_eq!(wall.map(|v| v.outcome), Some(Outcome::Noise));
    }
}
