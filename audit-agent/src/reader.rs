//! The kernel as a [`Source`]: drains the rings, merges them by time, and knows what is missing.
//!
//! * Order: a round ends a little before the moment at which the draining began. Every record
//!   older than that is in the rings by then, so rounds follow each other in time; younger ones
//!   wait for the next round.
//! * Memory: a ring is drained by at most [`ROUND_BYTES`] in a round, and not at all while the
//!   round cannot reach what was taken of it before: a ring's worth of another cannot pile up here.
//! * Loss: a (cpu, class) counts without gaps, so a gap is a loss, and so is what the kernel has
//!   counted and no ring delivers while [`OVERDUE`] passes.
//! * Restart: where capture outlives the agent ([`crate::probe`]), room in a ring is given back when
//!   what was taken of it is in sealed batches that outlive it too ([`crate::spool`]). Sets of
//!   programs that were replaced are read to their end, one after the other, before the live one.

use std::{
    collections::{BTreeMap, VecDeque},
    io, mem,
    os::fd::AsFd as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use audit_common::{class, config::Counters, record::Header};
use rustix::{
    event::{Timespec, epoll},
    time::{ClockId, clock_gettime},
};
use zerocopy::FromBytes as _;

use crate::{
    AgentError, Config,
    identity::boot_id,
    policy::Policy,
    probe::{self, HookStatus, Lanes, Probe, ProbeError, RINGS, Ring},
    source::{LeftOut, Loss, Round, Skip, Source},
    spool::{Mark, SetState, State, Told},
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

const RING_FULL: Cause = Cause {
    cause: "the ring was full, or the last close of a file was not seen",
    place: "ring",
};
const OTHER_LAYOUT: Cause = Cause {
    cause: "written by the programs of a version that this one does not understand",
    place: "decode",
};

/// The agent's source on a live host.
pub struct Reader {
    probe: Probe,
    epoll: rustix::fd::OwnedFd,
    /// Oldest first; the last is live, those before it are detached.
    feeds: VecDeque<Feed>,
    /// Read to the end, and kept until what they held is safe.
    ended: Vec<Feed>,
    /// The spool says how far a former agent had got in them.
    takes_over: bool,
    keeping: Option<Keeping>,
    /// What the live set had counted when this agent began, or when a former one last told it.
    baseline: [Counters; class::ALL.len()],
    /// The same, when this agent last told it.
    told: [Counters; class::ALL.len()],
    /// What sets that were replaced had counted beyond what a former agent told.
    of_replaced: [Counters; class::ALL.len()],
}

/// Sees to it that what was taken outlives this process.
struct Keeping {
    boot_id: String,
    /// Number of the last mark that the spool has.
    kept: Arc<AtomicU64>,
    last: u64,
    marked: VecDeque<Marked>,
}

/// Of one set, up to where its rings are free when a mark is kept.
struct Progress {
    generation: u32,
    positions: [u64; RINGS],
    /// The whole set is read.
    ended: bool,
}

struct Marked {
    number: u64,
    sets: Vec<Progress>,
}

/// What one set of programs delivers.
struct Feed {
    lanes: Lanes,
    /// Taken and too young to leave.
    held: Round,
    tracks: [Lane; RINGS],
    streams: [Stream; class::ALL.len()],
    /// What the kernel had counted at some moment, to be compared when it is overdue.
    claim: Option<(Instant, Counted)>,
    /// A ring still had records when the last round ended: its records from here on were not seen.
    unfinished_ns: Option<u64>,
    /// Where each draining ended, while something of it has not left.
    taken: VecDeque<Taken>,
    /// Up to where everything has left.
    handed: [u64; RINGS],
    /// A former agent read here, and nobody knows how far it got.
    blind: bool,
    blind_untold: bool,
    /// Of a replaced set, what was told of each program's skipped runs, and of each class's filtered
    /// and shed: kept with its numbers, so that nobody tells it again. The live set's is the reader's.
    told_skips: BTreeMap<String, u64>,
    told_left_out: Vec<[u64; 2]>,
}

type Counted = [Vec<Counters>; class::ALL.len()];

struct Taken {
    /// Of the youngest record so far.
    newest_ns: u64,
    positions: [u64; RINGS],
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

#[derive(Clone, Copy)]
struct Cause {
    cause: &'static str,
    place: &'static str,
}

impl Reader {
    /// `state` is what the spool says: up to where batches tell everything.
    pub fn open(config: &Config, state: Option<State>) -> Result<Self, AgentError> {
        let boot_id = boot_id()?;
        let state = state.filter(|state| state.boot_id == boot_id);
        let state = state.unwrap_or_default();
        let (probe, lanes) = Probe::load(config, &state)?;
        // Not where the host has no place for pins.
        let pinned = lanes.iter().any(|lanes| lanes.set.is_some());
        let keeping = pinned.then(|| Keeping {
            boot_id,
            kept: Arc::default(),
            last: 0,
            marked: VecDeque::new(),
        });
        let opened = Self::new(probe, lanes, keeping, &state);
        opened.map_err(|error| ProbeError::Load(error.to_string()).into())
    }

    fn new(
        mut probe: Probe,
        lanes: Vec<Lanes>,
        keeping: Option<Keeping>,
        state: &State,
    ) -> io::Result<Self> {
        let before = probe.take_before();
        let known = |lanes: &Lanes| {
            let mut sets = state.sets.iter();
            sets.find(|set| set.generation == lanes.generation())
        };
        let takes_over = lanes.iter().any(|lanes| known(lanes).is_some());
        let former = lanes.last().and_then(known);
        if let Some(set) = former {
            probe.told_skips(|name| set.skipped.get(name).copied().unwrap_or(0));
        }
        let mut feeds: VecDeque<Feed> = VecDeque::new();
        for lanes in lanes {
            let known = known(&lanes).cloned();
            feeds.push_back(Feed::new(lanes, known));
        }
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut baseline = [Counters::default(); class::ALL.len()];
        if let Some(live) = feeds.back_mut() {
            for (at, ring) in (0..).zip(&live.lanes.rings) {
                // Edge-triggered: only the kernel's call ends a rest, not the first record.
                let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
                epoll::add(&epoll, ring.as_fd(), epoll::EventData::new_u64(at), flags)?;
            }
            live.recall(&before);
            baseline = live.totals();
            for (totals, stream) in baseline.iter_mut().zip(&live.streams) {
                // What waits in the rings is this agent's to see.
                totals.sequence = stream.last.iter().sum();
            }
            let left_out = former.iter().flat_map(|set| &set.left_out);
            for (totals, [filtered, shed]) in baseline.iter_mut().zip(left_out) {
                (totals.filtered, totals.shed) = (*filtered, *shed);
            }
        }
        let mut of_replaced = [Counters::default(); class::ALL.len()];
        for feed in feeds.iter().rev().skip(1) {
            feed.add_untold(&mut of_replaced);
        }
        Ok(Self {
            probe,
            epoll,
            feeds,
            ended: Vec::new(),
            takes_over,
            keeping,
            told: baseline,
            of_replaced,
            baseline,
        })
    }

    /// Empty when the programs are a former agent's.
    pub fn hooks(&self) -> &[HookStatus] {
        self.probe.hooks()
    }

    fn rest(&self, timeout: Duration) -> io::Result<()> {
        let busy = |feed: &Feed| feed.unfinished_ns.is_some();
        if self.feeds.len() > 1 || self.feeds.front().is_some_and(busy) || timeout.is_zero() {
            return Ok(());
        }
        let timeout = Timespec::try_from(timeout.min(REST)).map_err(io::Error::other)?;
        let mut events = Vec::with_capacity(RINGS);
        epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut events),
            Some(&timeout),
        )?;
        Ok(())
    }

    /// One visit to the set that is being read.
    fn visit(&mut self, round: &mut Round) -> io::Result<()> {
        let is_live = self.feeds.len() == 1;
        let Some(feed) = self.feeds.front_mut() else {
            return Ok(());
        };
        if is_live || feed.lanes.is_understood() {
            feed.drain(round);
        }
        if mem::take(&mut feed.blind_untold) {
            round.push_unknown(
                "nothing says how far a former agent had got: events may be missing, or told twice",
            );
        }
        if is_live {
            feed.overdue(round)?;
            self.probe.skipped(|hook, runs| {
                round.push_skip(Skip {
                    hook: hook.to_owned(),
                    runs,
                });
            });
        } else if feed.is_read() {
            feed.finish(round)?;
            for (hook, skipped) in probe::skips_of(&feed.lanes) {
                let told = feed.told_skips.insert(hook.clone(), skipped).unwrap_or(0);
                let runs = skipped.saturating_sub(told);
                if runs > 0 {
                    round.push_skip(Skip { hook, runs });
                }
            }
            self.ended.extend(self.feeds.pop_front());
        }
        Ok(())
    }

    /// Gives back what is safe by now.
    fn release(&mut self) {
        let Some(keeping) = &mut self.keeping else {
            return;
        };
        let kept = keeping.kept.load(Ordering::Acquire);
        while keeping
            .marked
            .front()
            .is_some_and(|marked| marked.number <= kept)
            && let Some(marked) = keeping.marked.pop_front()
        {
            for set in marked.sets {
                let is_it = |feed: &Feed| feed.lanes.generation() == set.generation;
                if let Some(feed) = self.feeds.iter_mut().find(|feed| is_it(feed)) {
                    feed.release(set.positions);
                }
                if set.ended {
                    for feed in self.ended.extract_if(.., |feed| is_it(feed)) {
                        self.probe.forget(&feed.lanes);
                    }
                }
            }
        }
    }

    /// Up to where everything was handed out.
    fn state(&self, boot_id: &str) -> State {
        let skipped = self.probe.skips();
        let skipped = skipped
            .map(|(name, runs)| (name.to_owned(), runs))
            .collect();
        let feeds = self.ended.iter().chain(&self.feeds);
        let mut sets: Vec<SetState> = feeds.map(Feed::state).collect();
        if let Some(live) = sets.last_mut() {
            live.skipped = skipped;
            live.left_out = left_out(&self.told);
        }
        State {
            boot_id: boot_id.to_owned(),
            sets,
            told: Told {
                rules: self.probe.rules.told(),
            },
        }
    }
}

impl Feed {
    fn new(lanes: Lanes, known: Option<SetState>) -> Self {
        let was_read = lanes.rings.iter().any(Ring::was_read);
        let blind = known.is_none() && was_read;
        let mut streams: [Stream; class::ALL.len()] = Default::default();
        let known = known.unwrap_or_default();
        for (stream, last) in streams.iter_mut().zip(known.numbers) {
            stream.last = last;
        }
        Self {
            handed: lanes.rings.each_ref().map(Ring::position),
            lanes,
            held: Round::default(),
            tracks: [Lane::default(); RINGS],
            streams,
            claim: None,
            unfinished_ns: None,
            taken: VecDeque::new(),
            blind,
            blind_untold: blind,
            told_skips: known.skipped,
            told_left_out: known.left_out,
        }
    }

    /// Takes in records that came another way: one after the other, without numbers.
    fn recall(&mut self, mut records: &[u8]) {
        while let Ok((header, _)) = Header::read_from_prefix(records) {
            let Some((record, rest)) = records.split_at_checked(header.size as usize) else {
                return;
            };
            if record.is_empty() {
                return;
            }
            self.held.push(header.time_ns, record);
            records = rest;
        }
    }

    fn drain(&mut self, round: &mut Round) {
        let settled = boot_ns().saturating_sub(SETTLED_NS);
        let before = self.unfinished_ns.take();
        // What was held back comes first; the empty round will hold back what is too young now.
        round.clear();
        mem::swap(round, &mut self.held);
        for (ring, lane) in self.lanes.rings.iter_mut().zip(&mut self.tracks) {
            if !lane.is_ahead(before) && take(ring, lane, &mut self.streams, self.blind, round) {
                continue;
            }
            // The rest of this ring is younger; nothing younger may leave yet.
            let unseen = self.unfinished_ns.unwrap_or(lane.newest_ns);
            self.unfinished_ns = Some(unseen.min(lane.newest_ns));
        }
        self.taken.push_back(Taken {
            newest_ns: self
                .tracks
                .iter()
                .map(|lane| lane.newest_ns)
                .max()
                .unwrap_or(0),
            positions: self.lanes.rings.each_ref().map(Ring::position),
        });
        let horizon = self.unfinished_ns.map_or(settled, |ns| ns.min(settled));
        round.sort();
        round.hold_back(horizon, &mut self.held);
        while self
            .taken
            .front()
            .is_some_and(|taken| taken.newest_ns <= horizon)
            && let Some(taken) = self.taken.pop_front()
        {
            self.handed = taken.positions;
        }
    }

    /// Numbers that the kernel gave out long ago and that no ring delivered.
    fn overdue(&mut self, round: &mut Round) -> io::Result<()> {
        let now = Instant::now();
        if let Some((since, counted)) = &self.claim {
            if now.duration_since(*since) < OVERDUE || self.unfinished_ns.is_some() {
                return Ok(());
            }
            let counted = counted.clone();
            self.reach_all(&counted, RING_FULL, round);
        }
        self.claim = Some((now, self.counted()?));
        Ok(())
    }

    /// A set that nobody writes to any more has nothing left to take.
    fn is_read(&self) -> bool {
        let empty = self.lanes.rings.iter().all(Ring::is_empty);
        !self.lanes.is_understood() || empty && self.held.is_empty()
    }

    /// What it had counted and not delivered will not come.
    fn finish(&mut self, round: &mut Round) -> io::Result<()> {
        let cause = if self.lanes.is_understood() {
            RING_FULL
        } else {
            OTHER_LAYOUT
        };
        let counted = self.counted()?;
        self.reach_all(&counted, cause, round);
        self.handed = self.lanes.rings.each_ref().map(Ring::position);
        Ok(())
    }

    fn reach_all(&mut self, counted: &Counted, cause: Cause, round: &mut Round) {
        let streams = class::ALL.into_iter().zip(&mut self.streams);
        for ((class, stream), counters) in streams.zip(counted) {
            for (cpu, counters) in (0..).zip(counters) {
                if self.blind && stream.of(cpu) == 0 {
                    stream.set(cpu, counters.sequence);
                }
                stream.reach(class, cpu, counters.sequence + 1, cause, round);
            }
        }
    }

    fn counted(&self) -> io::Result<Counted> {
        let mut counted = Counted::default();
        for (class, counted) in class::ALL.into_iter().zip(&mut counted) {
            *counted = self.lanes.counters(class)?;
        }
        Ok(counted)
    }

    /// Over all CPUs; a counter that cannot be read is left out of the heartbeat's totals.
    fn totals(&self) -> [Counters; class::ALL.len()] {
        class::ALL.map(|class| {
            let mut total = Counters::default();
            for one in self.lanes.counters(class).unwrap_or_default() {
                total.sequence += one.sequence;
                total.ring_full += one.ring_full;
                total.filtered += one.filtered;
                total.shed += one.shed;
                total.pending_full += one.pending_full;
            }
            total
        })
    }

    /// Of a set that has ended: what it counted since a former agent last told it, if that is known.
    fn add_untold(&self, sum: &mut [Counters; class::ALL.len()]) {
        if self.blind {
            return;
        }
        let mut left_out = self.told_left_out.iter();
        for ((sum, total), stream) in sum.iter_mut().zip(self.totals()).zip(&self.streams) {
            let [filtered, shed] = left_out.next().copied().unwrap_or_default();
            sum.sequence += total.sequence.saturating_sub(stream.last.iter().sum());
            sum.filtered += total.filtered.saturating_sub(filtered);
            sum.shed += total.shed.saturating_sub(shed);
        }
    }

    fn state(&self) -> SetState {
        let mut numbers: Vec<Vec<u64>> = self
            .streams
            .iter()
            .map(|stream| stream.last.clone())
            .collect();
        // In order of time, and so of numbers: what comes first lowers it most.
        for record in self.held.records() {
            let Ok((header, _)) = Header::read_from_prefix(record) else {
                continue;
            };
            let at = class::ALL.iter().position(|class| *class == header.class);
            let last = at.and_then(|at| numbers.get_mut(at)?.get_mut(header.cpu as usize));
            if let (Some(last), Some(before)) = (last, header.sequence.checked_sub(1)) {
                *last = before.min(*last);
            }
        }
        SetState {
            generation: self.lanes.generation(),
            numbers,
            skipped: self.told_skips.clone(),
            left_out: self.told_left_out.clone(),
        }
    }

    fn progress(&self, ended: bool) -> Progress {
        Progress {
            generation: self.lanes.generation(),
            positions: self.handed,
            ended,
        }
    }

    fn release(&mut self, positions: [u64; RINGS]) {
        for (ring, position) in self.lanes.rings.iter_mut().zip(positions) {
            ring.release(position);
        }
    }
}

fn left_out(totals: &[Counters]) -> Vec<[u64; 2]> {
    let of_class = |of: &Counters| [of.filtered, of.shed];
    totals.iter().map(of_class).collect()
}

/// Moves a ring's records, at most [`ROUND_BYTES`] and one; false when more are there.
fn take(
    ring: &mut Ring,
    lane: &mut Lane,
    streams: &mut [Stream],
    blind: bool,
    fresh: &mut Round,
) -> bool {
    let start = fresh.bytes();
    while let Some(record) = ring.next() {
        // What is no header is passed on, for decode to count.
        let header = Header::read_from_prefix(record)
            .ok()
            .map(|(header, _)| header);
        let time_ns = header.map_or(0, |header| header.time_ns);
        lane.newest_ns = lane.newest_ns.max(time_ns);
        if header.is_some_and(|header| !account(streams, &header, blind, fresh)) {
            continue;
        }
        fresh.push(time_ns, record);
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

/// False for a record that was handed out before.
fn account(streams: &mut [Stream], header: &Header, blind: bool, round: &mut Round) -> bool {
    let at = class::ALL.iter().position(|class| *class == header.class);
    let Some(stream) = at.and_then(|at| streams.get_mut(at)) else {
        return true;
    };
    let last = stream.of(header.cpu);
    if header.sequence <= last {
        return false;
    }
    if !blind || last > 0 {
        stream.reach(header.class, header.cpu, header.sequence, RING_FULL, round);
    }
    stream.set(header.cpu, header.sequence);
    true
}

impl Stream {
    fn of(&self, cpu: u32) -> u64 {
        self.last.get(cpu as usize).copied().unwrap_or(0)
    }

    /// Everything before `sequence` should have come; reports what did not.
    fn reach(&mut self, class: u8, cpu: u32, sequence: u64, cause: Cause, round: &mut Round) {
        let last = self.of(cpu);
        if sequence > last + 1 {
            let Cause { cause, place } = cause;
            round.push_loss(Loss {
                class,
                cpu,
                first_sequence: last + 1,
                last_sequence: sequence - 1,
                cause,
                place,
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
            self.release();
            self.visit(round)?;
            self.probe.forward_log();
            if !round.is_empty() || Instant::now() >= until {
                return Ok(());
            }
        }
    }

    fn counters(&mut self) -> [Counters; 4] {
        let mut totals = self.feeds.back().map_or(self.baseline, Feed::totals);
        self.told = totals;
        // A heartbeat tells these too.
        let replaced = self.feeds.iter_mut().rev().skip(1);
        for feed in replaced.chain(&mut self.ended) {
            feed.told_left_out = left_out(&feed.totals());
        }
        let befores = self.baseline.iter().zip(&self.of_replaced);
        for (total, (before, replaced)) in totals.iter_mut().zip(befores) {
            total.sequence = total.sequence.saturating_sub(before.sequence) + replaced.sequence;
            total.ring_full = total.ring_full.saturating_sub(before.ring_full);
            total.filtered = total.filtered.saturating_sub(before.filtered) + replaced.filtered;
            total.shed = total.shed.saturating_sub(before.shed) + replaced.shed;
            total.pending_full = total.pending_full.saturating_sub(before.pending_full);
        }
        totals
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

    fn mark(&mut self) -> Option<Mark> {
        let state = self.state(&self.keeping.as_ref()?.boot_id);
        let ended = self.ended.iter().map(|feed| feed.progress(true));
        let going = self.feeds.iter().map(|feed| feed.progress(false));
        let sets = ended.chain(going).collect();
        let keeping = self.keeping.as_mut()?;
        keeping.last += 1;
        let number = keeping.last;
        keeping.marked.push_back(Marked { number, sets });
        let kept = Arc::clone(&keeping.kept);
        Some(Mark {
            number,
            state,
            kept,
        })
    }

    fn is_marked(&self) -> bool {
        self.keeping.is_some()
    }

    fn takes_over(&self) -> bool {
        self.takes_over
    }

    fn stop(&mut self) {
        self.probe.stop();
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
            stream.reach(class::FILE, 3, sequence, RING_FULL, &mut round);
            stream.set(3, sequence);
        }
        // The kernel has counted to 12, and nothing more came.
        stream.reach(class::FILE, 3, 13, RING_FULL, &mut round);
        stream.reach(class::FILE, 3, 13, RING_FULL, &mut round);
        let lost: Vec<_> = round
            .losses()
            .iter()
            .map(|loss| (loss.cpu, loss.first_sequence, loss.last_sequence))
            .collect();
        assert_eq!(lost, [(3, 3, 4), (3, 7, 9), (3, 11, 12)]);
    }
}
