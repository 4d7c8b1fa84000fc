//! Where do records come from? From the kernel's rings, or from a file ([`crate::replay`]).
//!
//! Invariant: within one [`Round`] records are in the order of their time, and every record that
//! the source knows to be missing is a [`Loss`] in the same round.

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use audit_common::config::Counters;

use crate::{policy::Policy, spool::Mark};

/// What one visit to the source brought.
#[derive(Debug, Default)]
pub struct Round {
    bytes: Vec<u8>,
    index: Vec<Entry>,
    losses: Vec<Loss>,
    skips: Vec<Skip>,
    unknown: Option<&'static str>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    time_ns: u64,
    start: usize,
    end: usize,
}

/// Records of one (cpu, class) that never arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    pub class: u8,
    pub cpu: u32,
    /// In the kernel's count; both included.
    pub first_sequence: u64,
    pub last_sequence: u64,
    pub cause: &'static str,
    pub place: &'static str,
}

/// Runs of a kernel program that the kernel left out, before anything was counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skip {
    pub hook: String,
    pub runs: u64,
}

impl Round {
    pub fn records(&self) -> impl Iterator<Item = &[u8]> {
        self.index
            .iter()
            .map(|entry| &self.bytes[entry.start..entry.end])
    }

    /// The time of the last record.
    pub fn last_ns(&self) -> Option<u64> {
        self.index.last().map(|entry| entry.time_ns)
    }

    pub fn losses(&self) -> &[Loss] {
        &self.losses
    }

    pub fn skips(&self) -> &[Skip] {
        &self.skips
    }

    /// Why an unknown number of records may be missing.
    pub fn unknown(&self) -> Option<&'static str> {
        self.unknown
    }

    pub fn push_unknown(&mut self, cause: &'static str) {
        self.unknown = Some(cause);
    }

    pub fn len(&self) -> usize {
        self.index.len()
    }

    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
            && self.losses.is_empty()
            && self.skips.is_empty()
            && self.unknown.is_none()
    }

    /// Bytes of records held; the source bounds it.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Forgets everything and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.index.clear();
        self.losses.clear();
        self.skips.clear();
        self.unknown = None;
    }

    pub fn push(&mut self, time_ns: u64, record: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(record);
        self.index.push(Entry {
            time_ns,
            start,
            end: self.bytes.len(),
        });
    }

    pub fn push_loss(&mut self, loss: Loss) {
        self.losses.push(loss);
    }

    pub fn push_skip(&mut self, skip: Skip) {
        self.skips.push(skip);
    }

    /// Copies what is younger than `horizon_ns` into `younger`, in order, and keeps the rest, with
    /// the losses. The round must be sorted.
    pub fn hold_back(&mut self, horizon_ns: u64, younger: &mut Self) {
        let first = self
            .index
            .partition_point(|entry| entry.time_ns <= horizon_ns);
        for entry in self.index.drain(first..) {
            younger.push(entry.time_ns, &self.bytes[entry.start..entry.end]);
        }
    }

    /// By time; records of the same time keep the order in which they came.
    pub fn sort(&mut self) {
        // Rings deliver long ascending runs, which a stable merge sort takes in one pass.
        self.index.sort_by_key(|entry| entry.time_ns);
    }
}

/// Records beyond the budget of a cgroup, since the last time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShedCount {
    pub class: u8,
    /// `None` for the sum of those beyond the cgroups that are told apart.
    pub cgroup_id: Option<u64>,
    pub shed: u64,
    /// Told nevertheless, as a sample.
    pub sampled: u64,
}

/// What a source leaves out by configuration.
#[derive(Debug, Default)]
pub struct LeftOut {
    /// The rules in force, by the generation that is in records.
    pub rules: Option<(u32, Arc<Policy>)>,
    pub shed: Vec<ShedCount>,
}

/// A supplier of rounds. Blocking: it is read by a thread of its own.
pub trait Source: Send {
    /// Fills `round`, which the caller has cleared, and sorts it; leaves it empty when nothing came
    /// within `timeout`.
    fn next(&mut self, timeout: Duration, round: &mut Round) -> io::Result<()>;
    /// Kernel counters since the start, one per class in the order of [`audit_common::class::ALL`].
    fn counters(&mut self) -> [Counters; 4];
    /// Leaves a process out of the record from now on.
    fn ignore(&mut self, pid: u32) -> io::Result<()>;
    /// Rules and budgets for all that follows, in force within two calls of [`Self::left_out`].
    fn want(&mut self, _: Arc<Policy>) {}
    /// To be called once a second: puts into force what is wanted.
    fn left_out(&mut self) -> io::Result<LeftOut> {
        Ok(LeftOut::default())
    }
    /// By rule, what each has hidden since the start.
    fn hidden(&mut self) -> BTreeMap<String, u64> {
        BTreeMap::new()
    }

    /// Everything that was handed out so far is told by the events so far. What was handed out since
    /// the last mark that was kept is handed out again to the next agent.
    fn mark(&mut self) -> Option<Mark> {
        None
    }

    /// Will it give marks?
    fn is_marked(&self) -> bool {
        false
    }

    /// Goes on where a former agent's run ended, so that nothing between the two is missing.
    fn takes_over(&self) -> bool {
        false
    }

    /// This process is to end; what is there by now is still read.
    fn stop(&mut self) {}
}

impl<S: Source + ?Sized> Source for Box<S> {
    fn next(&mut self, timeout: Duration, round: &mut Round) -> io::Result<()> {
        (**self).next(timeout, round)
    }

    fn counters(&mut self) -> [Counters; 4] {
        (**self).counters()
    }

    fn ignore(&mut self, pid: u32) -> io::Result<()> {
        (**self).ignore(pid)
    }

    fn want(&mut self, policy: Arc<Policy>) {
        (**self).want(policy);
    }

    fn left_out(&mut self) -> io::Result<LeftOut> {
        (**self).left_out()
    }

    fn hidden(&mut self) -> BTreeMap<String, u64> {
        (**self).hidden()
    }

    fn mark(&mut self) -> Option<Mark> {
        (**self).mark()
    }

    fn is_marked(&self) -> bool {
        (**self).is_marked()
    }

    fn takes_over(&self) -> bool {
        (**self).takes_over()
    }

    fn stop(&mut self) {
        (**self).stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_is_read_by_time_and_then_by_arrival() {
        let mut round = Round::default();
        for (time, record) in [(5, b"c"), (1, b"a"), (5, b"d"), (3, b"b")] {
            round.push(time, record);
        }
        round.sort();
        assert_eq!(round.records().collect::<Vec<_>>().concat(), b"abcd");
        round.clear();
        assert!(round.is_empty());
    }

    #[test]
    fn what_is_held_back_comes_with_the_next_round() {
        let (mut round, mut held) = (Round::default(), Round::default());
        for (time, record) in [(5, b"c"), (1, b"a"), (6, b"d"), (3, b"b")] {
            round.push(time, record);
        }
        round.sort();
        round.hold_back(3, &mut held);
        assert_eq!(round.records().collect::<Vec<_>>().concat(), b"ab");
        assert_eq!(held.records().collect::<Vec<_>>().concat(), b"cd");
    }
}
