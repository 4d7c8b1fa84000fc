//! When is a batch closed? At a number of events, of bytes, or after a delay. The reader's thread
//! collects here and passes what is full to the thread that seals.
//!
//! Invariant: events leave in the order in which they came; nothing after this point changes their
//! bytes.

use std::time::{Duration, Instant};

use audit_ledger::Frames;

use audit_proto::v1::{ClassCount, Event, Lost};

use crate::{seal::Handover, spool::Mark};

/// Numbers of classes, 0 included.
const CLASSES: usize = 6;

/// When a batch closes.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub events: usize,
    /// Of encoded events. One larger event goes alone.
    pub bytes: usize,
    pub delay: Duration,
}

/// The events of a batch, and the least and the greatest of their times.
#[derive(Debug)]
pub struct Filled {
    pub frames: Frames,
    pub first_time: i64,
    pub last_time: i64,
    pub classes: Vec<ClassCount>,
    pub losses: Vec<Lost>,
    /// No more will come.
    pub is_last: bool,
    /// This batch and those before it tell everything up to here. It may be empty, then.
    pub mark: Option<Box<Mark>>,
}

/// The open batch. Holds at most `limits.bytes` and one event.
#[derive(Debug)]
pub struct Open {
    limits: Limits,
    frames: Frames,
    times: Option<(i64, i64)>,
    opened: Option<Instant>,
    classes: [i64; CLASSES],
    losses: Vec<Lost>,
    next: Handover,
    /// Batches were passed on since the last mark.
    unmarked: bool,
    abandoned: u64,
}

impl Open {
    pub fn new(limits: Limits, next: Handover) -> Self {
        Self {
            limits,
            frames: Frames::default(),
            times: None,
            opened: None,
            classes: [0; CLASSES],
            losses: Vec::new(),
            next,
            unmarked: false,
            abandoned: 0,
        }
    }

    /// Adds an event and its encoding. Waits where the batch is full and sealing is behind.
    pub fn push(&mut self, event: &Event, encoded: &[u8], now: Instant) {
        if self.frames.bytes() + encoded.len() > self.limits.bytes {
            self.close();
        }
        self.frames.push(encoded);
        let class = usize::try_from(event.class).unwrap_or(0);
        if let Some(count) = self.classes.get_mut(class) {
            *count += 1;
        }
        self.losses.extend(event.lost.clone());
        let time = event.time;
        let (first, last) = self.times.unwrap_or((time, time));
        self.times = Some((first.min(time), last.max(time)));
        self.opened.get_or_insert(now);
        if self.frames.len() >= self.limits.events || self.frames.bytes() >= self.limits.bytes {
            self.close();
        }
    }

    /// When the batch must be closed at the latest.
    pub fn due(&self) -> Option<Instant> {
        self.opened.map(|opened| opened + self.limits.delay)
    }

    /// Passes on what is there.
    pub fn close(&mut self) {
        if self.times.is_some() {
            self.unmarked = true;
            self.pass(None, false);
        }
    }

    /// Passes on what is there, as the last batch of this run.
    pub fn end(&mut self) {
        self.unmarked = true;
        self.pass(None, true);
    }

    /// Were batches passed on since the last mark?
    pub fn is_unmarked(&self) -> bool {
        self.unmarked
    }

    /// Passes on what is there, if anything, with `mark`.
    pub fn mark(&mut self, mark: Mark) {
        self.unmarked = false;
        self.pass(Some(Box::new(mark)), false);
    }

    fn pass(&mut self, mark: Option<Box<Mark>>, is_last: bool) {
        let (first_time, last_time) = self.times.take().unwrap_or_default();
        self.opened = None;
        let counts = std::mem::take(&mut self.classes);
        let classes = (0..).zip(counts).filter(|(_, events)| *events > 0);
        let classes = classes.map(|(class, events)| ClassCount { class, events });
        let filled = Filled {
            frames: std::mem::take(&mut self.frames),
            first_time,
            last_time,
            classes: classes.collect(),
            losses: std::mem::take(&mut self.losses),
            is_last,
            mark,
        };
        let (spare, abandoned) = self.next.pass(filled);
        self.frames = spare;
        self.abandoned += abandoned;
    }

    /// Events that nobody was there to seal.
    pub fn abandoned(&self) -> u64 {
        self.abandoned
    }
}
