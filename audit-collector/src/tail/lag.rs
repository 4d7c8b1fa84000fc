//! When is a reader told that it is behind? Once when it is further than it allows, once when it has
//! caught up.

use std::time::{SystemTime, UNIX_EPOCH};

use audit_proto::v1::Lagged;
use tonic::Status;

/// Where the reader does not say: less than a second of a busy host.
const DEFAULT_EVENTS: i64 = 10_000;

#[derive(Debug)]
pub struct Lag {
    /// `None` for a reader of the past, which knows that it is.
    allowed: Option<i64>,
    /// When it was last at the present; when it began.
    since: i64,
    told: bool,
}

fn now_us() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    i64::try_from(now.unwrap_or_default().as_micros()).unwrap_or(i64::MAX)
}

impl Lag {
    pub fn new(lagged_events: i64, until_now: bool) -> Result<Self, Status> {
        let allowed = match lagged_events {
            0 => DEFAULT_EVENTS,
            events if events > 0 => events,
            events => {
                let message = format!("lagged_events = {events} is negative");
                return Err(Status::invalid_argument(message));
            }
        };
        Ok(Self {
            allowed: (!until_now).then_some(allowed),
            since: now_us(),
            told: false,
        })
    }

    /// So many events are still to be sent.
    pub fn behind(&mut self, events: i64) -> Option<Lagged> {
        if self.told || self.allowed.is_none_or(|allowed| events <= allowed) {
            return None;
        }
        self.told = true;
        Some(Lagged {
            events,
            since_time: self.since,
            over: false,
        })
    }

    /// Everything stored was sent.
    pub fn at_present(&mut self) -> Option<Lagged> {
        let since_time = std::mem::replace(&mut self.since, now_us());
        std::mem::take(&mut self.told).then_some(Lagged {
            events: 0,
            since_time,
            over: true,
        })
    }

    /// It waited there for what came just now.
    pub fn was_at_present(&mut self) {
        self.since = now_us();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn falling_behind_is_told_once_and_so_is_catching_up() {
        let mut lag = Lag::new(100, false).expect("valid");
        assert_eq!(lag.behind(100), None);
        let told = lag.behind(101).expect("told");
        assert_eq!((told.events, told.over), (101, false));
        assert_eq!(lag.behind(500), None, "once");
        let over = lag.at_present().expect("told");
        assert_eq!((over.events, over.over), (0, true));
        assert_eq!(over.since_time, told.since_time);
        assert_eq!(lag.at_present(), None, "once");
        assert!(lag.behind(101).is_some(), "again");
    }

    #[test]
    fn a_reader_of_the_past_knows_that_it_is() {
        let mut lag = Lag::new(1, true).expect("valid");
        assert_eq!(lag.behind(1_000_000), None);
        assert!(Lag::new(-1, false).is_err());
    }
}
