//! When did it happen, on the wall clock? The kernel stamps records with the boot clock; this
//! places that clock on the wall.

use rustix::time::{ClockId, clock_gettime};

/// A wall clock that moves by more than this against the boot clock was set, not slewed.
const JUMP_NS: i64 = 1_000_000_000;

/// Wall time minus boot time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    offset_ns: i64,
}

/// Microseconds since the Unix epoch, and the nanoseconds below them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WallTime {
    pub micros: i64,
    pub remainder_ns: i32,
}

impl Clock {
    pub fn from_offset(offset_ns: i64) -> Self {
        Self { offset_ns }
    }

    pub fn measure() -> Self {
        // The closest of three pairs: a preemption between the two readings would shift all times.
        let pair = || {
            let before = boot_time_ns();
            let wall = nanoseconds(clock_gettime(ClockId::Realtime));
            let after = boot_time_ns();
            (after - before, wall - (before + (after - before) / 2))
        };
        let (_, offset_ns) = [pair(), pair(), pair()]
            .into_iter()
            .min_by_key(|(width, _)| *width)
            .unwrap_or_default();
        Self { offset_ns }
    }

    /// Measures again; the number of nanoseconds by which the wall clock was set, if it was.
    pub fn refresh(&mut self) -> Option<i64> {
        let moved = Self::measure().offset_ns - self.offset_ns;
        self.offset_ns += moved;
        (moved.abs() > JUMP_NS).then_some(moved)
    }

    pub fn wall(&self, boot_time_ns: i64) -> WallTime {
        let wall = boot_time_ns.saturating_add(self.offset_ns);
        WallTime {
            micros: wall.div_euclid(1000),
            remainder_ns: wall.rem_euclid(1000) as i32,
        }
    }
}

/// The boot clock, suspended time included.
pub fn boot_time_ns() -> i64 {
    nanoseconds(clock_gettime(ClockId::Boottime))
}

fn nanoseconds(time: rustix::time::Timespec) -> i64 {
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_time_lands_on_the_wall() {
        let clock = Clock::from_offset(1_700_000_000_000_000_000);
        let wall = clock.wall(1_234_567);
        assert_eq!(
            (wall.micros, wall.remainder_ns),
            (1_700_000_000_001_234, 567)
        );
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .expect("after 1970")
            .as_micros() as i64;
        assert!((Clock::measure().wall(boot_time_ns()).micros - now).abs() < 1_000_000);
    }

    #[test]
    fn a_set_clock_is_noticed_and_a_slewed_one_is_not() {
        let mut set = Clock::from_offset(Clock::measure().offset_ns - 3_600_000_000_000);
        let moved = set.refresh().expect("an hour");
        assert!((moved - 3_600_000_000_000).abs() < JUMP_NS);
        assert_eq!(set.refresh(), None);
    }
}
