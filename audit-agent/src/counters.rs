//! How much was seen, left out, lost and sent? Read by heartbeats and by whoever embeds the agent.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Totals since the start of this run.
#[derive(Debug, Default)]
pub struct Counters {
    /// Records read from the source, continuations of argv included.
    pub records: AtomicU64,
    /// Events sealed, the agent's own included.
    pub sealed: AtomicU64,
    /// Events that the collector acknowledged as stored.
    pub sent: AtomicU64,
    /// Left out by the configuration, in user space.
    pub filtered: AtomicU64,
    /// Records that never became events: gaps in the rings and records that cannot be decoded. Each
    /// is named by a `lost` event.
    pub lost: AtomicU64,
    /// Of these, records that cannot be decoded.
    pub undecodable: AtomicU64,
    /// Second exits of one process, merged with the first.
    pub merged_exits: AtomicU64,
    /// Pieces of argv whose exec was lost (and told so) or filtered.
    pub orphan_arguments: AtomicU64,
    /// Records of DNS, and the messages in them, each of them an event or filtered: a piece of a
    /// stream may have none or several, and what is no message of DNS has none.
    pub dns_records: AtomicU64,
    pub dns_messages: AtomicU64,
    /// Cgroups that got their first process or lost their last, and are no container's.
    pub other_cgroups: AtomicU64,
    /// Times that sealed batches waited a second or longer because the spool was full, or its disk slow.
    /// The reader goes on for some batches, then waits too.
    pub spool_waits: AtomicU64,
    /// Sessions with the collector that began.
    pub sessions: AtomicU64,
    /// Of `filtered`, `lost` and `sealed`, what is of each class.
    classes: [OfClass; CLASSES],
}

/// Numbers of classes, 0 and the agent's own included.
const CLASSES: usize = 6;

#[derive(Debug, Default)]
pub struct OfClass {
    pub filtered: AtomicU64,
    pub lost: AtomicU64,
    pub sealed: AtomicU64,
}

impl Counters {
    /// Of a class; a number that is none counts with the first, which is no class either.
    pub fn of_class(&self, class: i32) -> &OfClass {
        let [first, ..] = &self.classes;
        let at = usize::try_from(class).ok();
        at.and_then(|at| self.classes.get(at)).unwrap_or(first)
    }

    pub fn add_filtered(&self, class: i32, count: u64) {
        add(&self.filtered, count);
        add(&self.of_class(class).filtered, count);
    }
}

/// Adds to a counter; nothing else is ordered by it.
pub fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Relaxed);
}

pub fn get(counter: &AtomicU64) -> u64 {
    counter.load(Relaxed)
}
