//! When is a batch closed, and what goes into it? Events are encoded once, here, in the order in
//! which they come; a batch closes at a number of events, of bytes, or after a delay.
//!
//! Invariant: nothing after this point changes an event's bytes.

use std::time::{Duration, Instant};

use audit_ledger::Sealer;
use audit_proto::{
    Message as _,
    v1::{Batch, Event},
};

use crate::identity::Identity;

/// When a batch closes.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub events: usize,
    /// Of encoded events. One larger event goes alone.
    pub bytes: usize,
    pub delay: Duration,
}

/// The open batch. Holds at most `limits.bytes` and one event.
#[derive(Debug)]
pub struct Seal {
    sealer: Sealer,
    limits: Limits,
    encoded: Vec<u8>,
    /// End of each event in `encoded`.
    ends: Vec<usize>,
    times: Option<(i64, i64)>,
    opened: Option<Instant>,
}

impl Seal {
    pub fn new(identity: &Identity, limits: Limits) -> Self {
        let Identity {
            host_id,
            boot_id,
            run,
            ..
        } = identity.clone();
        Self {
            sealer: Sealer::new(host_id, boot_id, run),
            limits,
            encoded: Vec::new(),
            ends: Vec::new(),
            times: None,
            opened: None,
        }
    }

    /// Adds an event; returns batches that it closed: the one before it, when it did not fit, and
    /// the one that it filled.
    pub fn push(&mut self, event: &Event, now: Instant) -> [Option<Batch>; 2] {
        let bytes = event.encoded_len();
        let full = !self.ends.is_empty() && self.encoded.len() + bytes > self.limits.bytes;
        let before = if full { self.close() } else { None };
        self.encoded.reserve(bytes);
        // A Vec grows as needed, so encoding cannot run out of room.
        event.encode_raw(&mut self.encoded);
        self.ends.push(self.encoded.len());
        let (first, last) = self.times.unwrap_or((event.time, event.time));
        self.times = Some((first.min(event.time), last.max(event.time)));
        self.opened.get_or_insert(now);
        let filled =
            self.ends.len() >= self.limits.events || self.encoded.len() >= self.limits.bytes;
        [before, if filled { self.close() } else { None }]
    }

    /// When the open batch must be closed at the latest.
    pub fn due(&self) -> Option<Instant> {
        self.opened.map(|opened| opened + self.limits.delay)
    }

    /// Seals what is there.
    pub fn close(&mut self) -> Option<Batch> {
        let (first_time, last_time) = self.times.take()?;
        let mut start = 0;
        let events: Vec<&[u8]> = self
            .ends
            .iter()
            .map(|end| {
                let event = &self.encoded[start..*end];
                start = *end;
                event
            })
            .collect();
        let batch = self.sealer.seal(&events, first_time, last_time);
        self.encoded.clear();
        // One huge event must not keep its memory for ever.
        self.encoded.shrink_to(self.limits.bytes);
        self.ends.clear();
        self.opened = None;
        Some(batch)
    }
}
