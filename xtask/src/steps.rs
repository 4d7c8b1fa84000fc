//! Steps with names and times: what is going on, how long it took, and what came of it all.

use std::{
    fmt,
    time::{Duration, Instant},
};

/// Announces each step as it begins.
pub struct Progress {
    began: Instant,
    at: usize,
    of: usize,
}

impl Progress {
    pub fn new(of: usize) -> Self {
        Self {
            began: Instant::now(),
            at: 0,
            of,
        }
    }

    pub fn step(&mut self, what: impl fmt::Display) {
        self.at += 1;
        eprintln!(
            "[{}] {}/{} {what}",
            clock(self.began.elapsed()),
            self.at,
            self.of
        );
    }
}

/// Minutes and seconds.
pub fn clock(time: Duration) -> String {
    format!("{:02}:{:02}", time.as_secs() / 60, time.as_secs() % 60)
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    Failed(String),
    Skipped(String),
}

/// What came of each step.
#[derive(Debug, Default)]
pub struct Summary {
    rows: Vec<(String, Outcome, Duration)>,
}

impl Summary {
    pub fn add(&mut self, name: &str, outcome: Outcome, took: Duration) {
        self.rows.push((name.to_owned(), outcome, took));
    }

    pub fn failed(&self) -> bool {
        self.rows
            .iter()
            .any(|(_, outcome, _)| matches!(outcome, Outcome::Failed(_)))
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self
            .rows
            .iter()
            .map(|(name, ..)| name.len())
            .max()
            .unwrap_or(0);
        let mut counts = [0; 3];
        for (name, outcome, took) in &self.rows {
            let (word, reason, which) = match outcome {
                Outcome::Passed => ("passed", "", 0),
                Outcome::Failed(reason) => ("FAILED", reason.as_str(), 1),
                Outcome::Skipped(reason) => ("SKIPPED", reason.as_str(), 2),
            };
            counts[which] += 1;
            let line = format!(
                "  {name:<width$}  {:>6.1} s  {word:<7}  {reason}",
                took.as_secs_f64()
            );
            writeln!(f, "{}", line.trim_end())?;
        }
        let [passed, failed, skipped] = counts;
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_counts_and_gives_reasons() {
        let mut summary = Summary::default();
        summary.add("format", Outcome::Passed, Duration::from_millis(1234));
        assert!(!summary.failed());
        summary.add(
            "lints",
            Outcome::Failed("exit status: 101".into()),
            Duration::ZERO,
        );
        summary.add("live", Outcome::Skipped("not root".into()), Duration::ZERO);
        assert!(summary.failed());
        let text = summary.to_string();
        assert!(text.contains("format     1.2 s  passed\n"), "{text}");
        assert!(text.contains("FAILED   exit status: 101"), "{text}");
        assert!(text.ends_with("1 passed, 1 failed, 1 skipped"), "{text}");
    }
}
