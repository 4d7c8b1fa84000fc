//! The kernel as a [`Source`]: drains the rings, merges them by time, and knows what is missing.
//!
//! * Order: a round ends a little before the moment at which the draining began. Every record
//!   older than that is in the rings by then, so rounds follow each other in time; younger ones
//!   wait for the next round.
//! * Memory: a ring is drained by at most [`ROUND_BYTES`] in a round, and not at all while the
//!   round cannot reach what was taken of it before: a ring's worth of another cannot pile up here.
//! * Loss: a (cpu, class) counts without gaps, so a gap is a loss, and so is what the kernel has
//!   counted and no ring delivers while [`OVERDUE`] passes.

use std::{
    collections::BTreeMap,
    io, mem,
    os::fd::AsFd as _,
    sync::Arc,
    time::{Duration, Instant},
};

use audit_common::{class, config::Counters, record::Header};
use rustix::{
    event::{Timespec, epoll},
    time::{ClockId, clock_gettime},
};
use zerocopy::FromBytes as _;

use crate::{
    Config,
    policy::Policy,
    probe::{HookStatus, Probe, ProbeError, RINGS, Ring},
    source::{LeftOut, Loss, Round, Skip, Source},
};

/// A program takes microseconds from taking the time to the ring; an interrupt may come between.
const SETTLED_NS: u64 = 2_000_000;
/// Longest rest while the rings are nearly empty; the delay of a quiet host's events.
const REST: Duration = Duration::from_millis(10);
/// Counted by the kernel this long ago and still not in a ring: it never will be.
const OVERDUE: Duration = Duration::from_millis(250);
/// Taken of one ring in one round, so that a flood in one lane cannot hold up the others, and so
/// that a round's copies stay small. Some 1,500 records: enough to make the visit worth it.
const ROUND_BYTES: usize = 512 << 10;

/// The agent's source on a live host.
pub struct Reader {
    probe: Probe,
    epoll: rustix::fd::OwnedFd,
    /// Taken and too young to leave.
    held: Round,
    lanes: [Lane; RINGS],
    streams: [Stream; class::ALL.len()],
    /// What the kernel had counted at some moment, to be compared when it is overdue.
    claim: Option<(Instant, [Vec<Counters>; class::ALL.len()])>,
    /// A ring still had records when the last round ended: its records from here on were not seen.
    unfinished_ns: Option<u64>,
}

/// What is known of one ring.
#[derive(Debug, Default, Clone, Copy)]
struct Lane {
    /// Time of the youngest record taken.
    newest_ns: u64,
}

/// The last number seen of one class on each CPU.
#[derive(Default)]
struct Stream {
    last: Vec<u64>,
}

impl Reader {
    pub fn open(config: &Config) -> Result<Self, ProbeError> {
        Self::new(Probe::load(config)?).map_err(|error| ProbeError::Load(error.to_string()))
    }

    fn new(probe: Probe) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for (at, ring) in (0..).zip(&probe.rings) {
            // Edge-triggered: only the kernel's call ends a rest, not the first record.
            let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
            epoll::add(&epoll, ring.as_fd(), epoll::EventData::new_u64(at), flags)?;
        }
        Ok(Self {
            probe,
            epoll,
            held: Round::default(),
            lanes: [Lane::default(); RINGS],
            streams: Default::default(),
            claim: None,
            unfinished_ns: None,
        })
    }

    pub fn hooks(&self) -> &[HookStatus] {
        self.probe.hooks()
    }

    fn rest(&self, timeout: Duration) -> io::Result<()> {
        if self.unfinished_ns.is_some() || timeout.is_zero() {
            return Ok(());
        }
        let timeout = Timespec::try_from(timeout.min(REST)).map_err(io::Error::other)?;
        let mut events = Vec::with_capacity(self.probe.rings.len());
        epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut events),
            Some(&timeout),
        )?;
        Ok(())
    }

    fn drain(&mut self, round: &mut Round) {
        let settled = boot_ns().saturating_sub(SETTLED_NS);
        let before = self.unfinished_ns.take();
        // What was held back comes first; the empty round will hold back what is too young now.
        round.clear();
        mem::swap(round, &mut self.held);
        for (ring, lane) in self.probe.rings.iter_mut().zip(&mut self.lanes) {
            if !lane.is_ahead(before) && take(ring, lane, &mut self.streams, round) {
                continue;
            }
            // The rest of this ring is younger; nothing younger may leave yet.
            let unseen = self.unfinished_ns.unwrap_or(lane.newest_ns);
            self.unfinished_ns = Some(unseen.min(lane.newest_ns));
        }
        let horizon = self.unfinished_ns.map_or(settled, |ns| ns.min(settled));
        round.sort();
        round.hold_back(horizon, &mut self.held);
    }

    /// Numbers that the kernel gave out long ago and that no ring delivered.
    fn overdue(&mut self, round: &mut Round) -> io::Result<()> {
        let now = Instant::now();
        if let Some((since, counted)) = &self.claim {
            if now.duration_since(*since) < OVERDUE || self.unfinished_ns.is_some() {
                return Ok(());
            }
            for ((class, stream), counters) in
                class::ALL.into_iter().zip(&mut self.streams).zip(counted)
            {
                for (cpu, counters) in (0..).zip(counters) {
                    stream.reach(class, cpu, counters.sequence + 1, round);
                }
            }
        }
        let mut counted: [Vec<Counters>; class::ALL.len()] = Default::default();
        for (class, counted) in class::ALL.into_iter().zip(&mut counted) {
            *counted = self.probe.counters(class)?;
        }
        self.claim = Some((now, counted));
        self.probe
            .skipped(|hook, runs| round.push_skip(Skip { hook, runs }));
        Ok(())
    }
}

/// Moves a ring's records, at most [`ROUND_BYTES`] and one; false when more are there.
fn take(ring: &mut Ring, lane: &mut Lane, streams: &mut [Stream], fresh: &mut Round) -> bool {
    let start = fresh.bytes();
    while let Some(record) = ring.next() {
        // What is no header is passed on, for decode to count.
        let header = Header::read_from_prefix(&record)
            .ok()
            .map(|(header, _)| header);
        let time_ns = header.map_or(0, |header| header.time_ns);
        if let Some(header) = header {
            account(streams, &header, fresh);
        }
        lane.newest_ns = lane.newest_ns.max(time_ns);
        fresh.push(time_ns, &record);
        if fresh.bytes() - start > ROUND_BYTES {
            return false;
        }
    }
    true
}

impl Lane {
    /// What was taken of this ring could not leave yet, because another ring has older records.
    fn is_ahead(self, unfinished_ns: Option<u64>) -> bool {
        unfinished_ns.is_some_and(|unfinished| self.newest_ns > unfinished)
    }
}

fn account(streams: &mut [Stream], header: &Header, round: &mut Round) {
    let at = class::ALL.iter().position(|class| *class == header.class);
    let Some(stream) = at.and_then(|at| streams.get_mut(at)) else {
        return;
    };
    stream.reach(header.class, header.cpu, header.sequence, round);
    stream.set(header.cpu, header.sequence);
}

impl Stream {
    /// Everything before `sequence` should have come; reports what did not.
    fn reach(&mut self, class: u8, cpu: u32, sequence: u64, round: &mut Round) {
        let last = self.last.get(cpu as usize).copied().unwrap_or(0);
        if sequence > last + 1 {
            round.push_loss(Loss {
                class,
                cpu,
                first_sequence: last + 1,
                last_sequence: sequence - 1,
                cause: "the ring was full",
                place: "ring",
            });
            self.set(cpu, sequence - 1);
        }
    }

    fn set(&mut self, cpu: u32, sequence: u64) {
        let at = cpu as usize;
        if self.last.len() <= at {
            self.last.resize(at + 1, 0);
        }
        if let Some(last) = self.last.get_mut(at) {
            *last = sequence.max(*last);
        }
    }
}

impl Source for Reader {
    fn next(&mut self, timeout: Duration, round: &mut Round) -> io::Result<()> {
        let until = Instant::now() + timeout;
        loop {
            self.rest(until.saturating_duration_since(Instant::now()))?;
            self.drain(round);
            self.probe.forward_log();
            self.overdue(round)?;
            if !round.is_empty() || Instant::now() >= until {
                return Ok(());
            }
        }
    }

    fn counters(&self) -> [Counters; 4] {
        class::ALL.map(|class| {
            let mut total = Counters::default();
            // A counter that cannot be read is left out of the heartbeat's totals.
            for one in self.probe.counters(class).unwrap_or_default() {
                total.sequence += one.sequence;
                total.ring_full += one.ring_full;
                total.filtered += one.filtered;
                total.shed += one.shed;
                total.pending_full += one.pending_full;
            }
            total
        })
    }

    fn ignore(&mut self, pid: u32) -> io::Result<()> {
        self.probe.ignore(pid)
    }

    fn want(&mut self, policy: Arc<Policy>) {
        self.probe.rules.want(policy);
    }

    fn left_out(&mut self) -> io::Result<LeftOut> {
        let rules = &mut self.probe.rules;
        rules.refresh().map_err(io::Error::other)?;
        Ok(LeftOut {
            rules: rules.in_force(),
            shed: rules.shed().map_err(io::Error::other)?,
        })
    }

    fn hidden(&mut self) -> BTreeMap<String, u64> {
        self.probe.rules.hidden()
    }
}

fn boot_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_waits_while_another_is_behind_it() {
        let lane = Lane { newest_ns: 20 };
        assert!(lane.is_ahead(Some(19)));
        assert!(!lane.is_ahead(Some(20)), "the one that is behind goes on");
        assert!(!lane.is_ahead(None));
    }

    #[test]
    fn every_missing_number_is_in_exactly_one_loss() {
        let mut stream = Stream::default();
        let mut round = Round::default();
        for sequence in [1, 2, 5, 6, 10] {
            stream.reach(class::FILE, 3, sequence, &mut round);
            stream.set(3, sequence);
        }
        // The kernel has counted to 12, and nothing more came.
        stream.reach(class::FILE, 3, 13, &mut round);
        stream.reach(class::FILE, 3, 13, &mut round);
        let lost: Vec<_> = round
            .losses()
            .iter()
            .map(|loss| (loss.cpu, loss.first_sequence, loss.last_sequence))
            .collect();
        assert_eq!(lost, [(3, 3, 4), (3, 7, 9), (3, 11, 12)]);
    }
}
