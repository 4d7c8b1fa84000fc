//! How is a long argv put together? Its exec record holds the beginning; EXEC_ARGS records bring
//! the rest, usually in the same round.
//!
//! Invariants: an exec leaves here exactly once: complete, or after [`PATIENCE`] rounds without a piece, or when
//! room is needed, with what arrived in one piece and `argv_truncated_bytes` for the rest.

use std::collections::VecDeque;

use audit_proto::v1::Event;

use crate::decode::split_arguments;

/// Rounds that an exec waits for its next piece: this one, the next, and the one after that.
const PATIENCE: u8 = 2;
/// Execs waiting at a time; each CPU writes one argv after the other, so more than CPUs is rare.
const WAITING: usize = 256;
/// Bytes of argv waiting: what xargs makes (128 KiB) on 64 CPUs at once, or four of the largest.
const WAITING_BYTES: usize = 8 << 20;

/// Execs whose argv is not complete.
#[derive(Debug, Default)]
pub struct Arguments {
    waiting: VecDeque<Waiting>,
    bytes: usize,
}

#[derive(Debug)]
struct Waiting {
    cpu: u32,
    sequence: u64,
    event: Event,
    argv: Vec<u8>,
    argv_bytes: u64,
    rounds: u8,
}

/// What became of a continuation.
#[derive(Debug)]
pub enum Joined {
    /// An exec leaves: this one, complete, or the oldest, for room.
    Leaves(Box<Event>),
    Waiting,
    /// No exec waits for it: lost, or given up.
    Orphan,
}

impl Arguments {
    /// Keeps an exec until its argv is complete; returns one that had to give way.
    pub fn hold(
        &mut self,
        (cpu, sequence): (u32, u64),
        event: Event,
        argv: &[u8],
        argv_bytes: u64,
    ) -> Option<Event> {
        self.bytes += argv.len();
        self.waiting.push_back(Waiting {
            cpu,
            sequence,
            event,
            argv: argv.to_vec(),
            argv_bytes,
            rounds: 0,
        });
        self.relieve()
    }

    /// Adds a piece that begins at `offset` of the whole argv of exec `sequence` on `cpu`.
    pub fn join(&mut self, cpu: u32, sequence: u64, offset: u64, piece: &[u8]) -> Joined {
        let found = self
            .waiting
            .iter()
            .position(|waiting| waiting.cpu == cpu && waiting.sequence == sequence);
        let Some(at) = found else {
            return Joined::Orphan;
        };
        let waiting = &mut self.waiting[at];
        // A piece behind a gap cannot be placed: what is kept stays the beginning, whole.
        if offset == waiting.argv.len() as u64 {
            waiting.argv.extend_from_slice(piece);
            waiting.rounds = 0;
            self.bytes += piece.len();
        }
        if (waiting.argv.len() as u64) < waiting.argv_bytes {
            return self
                .relieve()
                .map_or(Joined::Waiting, |event| Joined::Leaves(Box::new(event)));
        }
        match self.waiting.remove(at) {
            Some(waiting) => Joined::Leaves(Box::new(self.finish(waiting))),
            None => Joined::Orphan,
        }
    }

    /// Ends a round; returns an exec that waited long enough. Call until it returns none, then
    /// [`Arguments::next_round`].
    pub fn give_up(&mut self) -> Option<Event> {
        let at = self
            .waiting
            .iter()
            .position(|waiting| waiting.rounds >= PATIENCE)?;
        let waiting = self.waiting.remove(at)?;
        Some(self.finish(waiting))
    }

    pub fn next_round(&mut self) {
        for waiting in &mut self.waiting {
            waiting.rounds = waiting.rounds.saturating_add(1);
        }
    }

    /// At the end: what waits leaves as it is.
    pub fn drain(&mut self) -> Option<Event> {
        let waiting = self.waiting.pop_front()?;
        Some(self.finish(waiting))
    }

    /// True when nothing can be waiting for more than this round's records.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    fn relieve(&mut self) -> Option<Event> {
        if self.waiting.len() <= WAITING && self.bytes <= WAITING_BYTES {
            return None;
        }
        self.drain()
    }

    fn finish(&mut self, waiting: Waiting) -> Event {
        self.bytes = self.bytes.saturating_sub(waiting.argv.len());
        let Waiting {
            mut event,
            argv,
            argv_bytes,
            ..
        } = waiting;
        let process = event.process.get_or_insert_default();
        let missing = argv_bytes.saturating_sub(argv.len() as u64);
        process.argv = split_arguments(&argv);
        process.argv_truncated_bytes = (missing > 0).then_some(missing as i64);
        event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argv(event: &Event) -> (String, Option<i64>) {
        let process = event.process.as_ref().expect("process");
        (process.argv.join(" "), process.argv_truncated_bytes)
    }

    #[test]
    fn pieces_in_order_make_the_whole() {
        let mut arguments = Arguments::default();
        assert!(
            arguments
                .hold((0, 7), Event::default(), b"a\0b", 7)
                .is_none()
        );
        assert!(arguments.hold((1, 7), Event::default(), b"x", 9).is_none());
        assert!(matches!(arguments.join(0, 7, 3, b"c\0"), Joined::Waiting));
        let Joined::Leaves(event) = arguments.join(0, 7, 5, b"d\0") else {
            panic!("complete");
        };
        assert_eq!(argv(&event), ("a bc d".to_owned(), None));
        assert!(matches!(arguments.join(0, 7, 7, b"e"), Joined::Orphan));
    }

    #[test]
    fn an_argv_that_keeps_coming_may_take_many_rounds() {
        let mut arguments = Arguments::default();
        assert!(arguments.hold((0, 7), Event::default(), b"a", 21).is_none());
        for at in 1..20 {
            assert!(matches!(arguments.join(0, 7, at, b"a"), Joined::Waiting));
            assert!(arguments.give_up().is_none());
            arguments.next_round();
        }
        let Joined::Leaves(event) = arguments.join(0, 7, 20, b"\0") else {
            panic!("complete");
        };
        assert_eq!(argv(&event), ("a".repeat(20), None));
    }

    #[test]
    fn after_a_gap_the_beginning_leaves_and_the_rest_is_counted() {
        let mut arguments = Arguments::default();
        assert!(
            arguments
                .hold((0, 7), Event::default(), b"a\0", 10)
                .is_none()
        );
        assert!(matches!(arguments.join(0, 7, 6, b"late"), Joined::Waiting));
        for _ in 0..PATIENCE {
            assert!(arguments.give_up().is_none());
            arguments.next_round();
        }
        let event = arguments.give_up().expect("given up");
        assert_eq!(argv(&event), ("a".to_owned(), Some(8)));
        assert!(arguments.is_empty() && arguments.bytes == 0);
    }

    #[test]
    fn what_waits_is_bounded_and_leaves_exactly_once() {
        let mut arguments = Arguments::default();
        let mut left = 0;
        for sequence in 0..1000 {
            let piece = vec![b'x'; 100_000];
            left += usize::from(
                arguments
                    .hold((0, sequence), Event::default(), &piece, 1 << 20)
                    .is_some(),
            );
            assert!(
                arguments.waiting.len() <= WAITING
                    && arguments.bytes <= WAITING_BYTES + piece.len()
            );
        }
        while arguments.drain().is_some() {
            left += 1;
        }
        assert_eq!((left, arguments.bytes), (1000, 0));
    }
}
