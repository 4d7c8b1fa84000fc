//! Which numbers of a history are missing, and did its agent say so?

use std::collections::BTreeSet;

use audit_proto::v1::BatchRange;

use crate::batch::Header;

/// Numbers that are missing before, between or, where one came late, beside sound batches.
#[derive(Debug, Clone)]
pub struct Hole {
    pub first: i64,
    pub last: i64,
    /// How many all batches before it have, and how many those before the next one.
    pub events: (i64, i64),
    /// Of the batches around it: when they were sealed, and with keys of which epochs. 0 before the
    /// first one.
    pub times: (i64, i64),
    pub epochs: (i64, i64),
}

impl Hole {
    /// Before a history's first batch.
    pub fn before(header: &Header) -> Self {
        let fields = &header.fields;
        Self {
            first: 1,
            last: fields.batch - 1,
            events: (0, fields.events_before),
            times: (0, fields.sealed_time),
            epochs: (0, fields.epoch),
        }
    }

    pub fn is_beginning(&self) -> bool {
        self.epochs.0 == 0
    }

    /// Is what follows signed by a key that the batch before it, or the agent's name, lets follow?
    pub fn is_proven(&self) -> bool {
        self.epochs.1 <= self.epochs.0.saturating_add(1)
    }

    /// What is left of it on both sides of a batch that belongs in it.
    pub fn without(&self, header: &Header) -> impl Iterator<Item = Self> + use<> {
        let fields = &header.fields;
        let behind = fields
            .events_before
            .saturating_add(fields.event_count.into());
        let left = Self {
            last: fields.batch - 1,
            events: (self.events.0, fields.events_before),
            times: (self.times.0, fields.sealed_time),
            epochs: (self.epochs.0, fields.epoch),
            ..self.clone()
        };
        let right = Self {
            first: fields.batch + 1,
            events: (behind, self.events.1),
            times: (fields.sealed_time, self.times.1),
            epochs: (fields.epoch, self.epochs.1),
            ..self.clone()
        };
        [left, right]
            .into_iter()
            .filter(|part| part.first <= part.last)
    }

    /// What is left of it where batches that are not sound have these numbers; how many events are
    /// missing there, nobody knows.
    pub fn apart_from(&self, unsound: &BTreeSet<i64>) -> Vec<(i64, i64, Option<i64>)> {
        let mut left = Vec::new();
        let mut first = self.first;
        // Beside a fork the sums need not fit.
        let missing = self.events.1.saturating_sub(self.events.0);
        let mut events = (missing >= 0).then_some(missing);
        for number in unsound.range(self.first..=self.last) {
            events = None;
            if first < *number {
                left.push((first, number - 1, None));
            }
            first = number + 1;
        }
        if first <= self.last {
            left.push((first, self.last, events));
        }
        left
    }
}

/// Numbers that an agent says nobody has any more.
#[derive(Debug, Default)]
pub struct Told(Vec<(i64, i64)>);

impl Told {
    /// As the header of batch `number` has them; only earlier ones can be known to be gone.
    pub fn add(&mut self, gaps: &[BatchRange], number: i64) {
        let ranges = gaps.iter().map(|gap| (gap.first_batch, gap.last_batch));
        let ranges = ranges.filter(|(first, last)| 1 <= *first && first <= last && *last < number);
        self.0.extend(ranges);
    }

    /// Joins what touches, so that one look tells whether several have a range together.
    pub fn join(&mut self) {
        self.0.sort_unstable();
        let mut joined: Vec<(i64, i64)> = Vec::new();
        for (first, last) in self.0.drain(..) {
            match joined.last_mut() {
                Some((_, end)) if first - 1 <= *end => *end = (*end).max(last),
                _ => joined.push((first, last)),
            }
        }
        self.0 = joined;
    }

    /// After [`Told::join`].
    pub fn has(&self, first: i64, last: i64) -> bool {
        self.0
            .iter()
            .any(|(from, to)| *from <= first && last <= *to)
    }
}
