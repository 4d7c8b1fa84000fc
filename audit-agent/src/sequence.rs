//! Which number does an event get? The kernel numbers records; events are numbered here, per
//! (class, cpu), because a record may be filtered, merged or joined to another without loss.
//!
//! Invariant: numbers of a stream are given once, ascending, to an event or to a `lost` event. So a
//! number that a reader of the stream sees neither way is a loss after this point.

use ahash::AHashMap;

/// Next numbers. One entry per (class, cpu): bounded by 5 classes x the CPUs, see
/// [`crate::decode::MAX_CPUS`].
#[derive(Debug, Default)]
pub struct Sequences {
    given: AHashMap<(i32, i32), i64>,
}

impl Sequences {
    /// The next number of the stream.
    pub fn take(&mut self, class: i32, cpu: i32) -> i64 {
        self.skip(class, cpu, 1)
    }

    /// Gives out `count` numbers; returns the first.
    pub fn skip(&mut self, class: i32, cpu: i32, count: i64) -> i64 {
        let given = self.given.entry((class, cpu)).or_default();
        let first = *given + 1;
        *given = given.saturating_add(count);
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_count_for_themselves_and_losses_take_their_numbers() {
        let mut sequences = Sequences::default();
        assert_eq!(sequences.take(1, 0), 1);
        assert_eq!(sequences.skip(1, 0, 5), 2);
        assert_eq!(sequences.take(1, 0), 7);
        assert_eq!(sequences.take(1, 1), 1);
        assert_eq!(sequences.take(3, 0), 1);
    }
}
