//! What does the agent say about itself? `lost`, `shed`, `heartbeat` and `agent` events, in a stream of
//! their own (class agent).

use audit_proto::v1::{Agent, Class, Event, Kind, Lost, Shed};

use crate::{
    clock::{Clock, boot_time_ns},
    container::Amended,
    ship::Gone,
    source::{Loss, ShedCount, Skip},
};

fn event(kind: Kind, clock: &Clock) -> Event {
    let boot_time_ns = boot_time_ns();
    let wall = clock.wall(boot_time_ns);
    Event {
        time: wall.micros,
        time_remainder_ns: wall.remainder_ns,
        boot_time_ns,
        kind: kind.into(),
        class: Class::Agent.into(),
        cpu: Some(0),
        via: "agent".to_owned(),
        ..Event::default()
    }
}

/// Records that are missing; `first` is the first number that they took in the stream of events.
pub fn lost(clock: &Clock, loss: &Loss, first: i64, count: i64) -> Event {
    Event {
        lost: Some(Lost {
            class: loss.class.into(),
            cpu: Some(loss.cpu as i32),
            first_sequence: Some(first),
            last_sequence: Some(first.saturating_add(count - 1)),
            count: Some(count),
            place: loss.place.to_owned(),
            cause: loss.cause.to_owned(),
        }),
        ..event(Kind::Lost, clock)
    }
}

/// Runs that the kernel left out; each would have been at most one event. Those of the dispatcher
/// are of any system call, also of such as nobody records.
pub fn skipped(clock: &Clock, skip: &Skip) -> Event {
    Event {
        lost: Some(Lost {
            count: Some(i64::try_from(skip.runs).unwrap_or(i64::MAX)),
            place: "hook".to_owned(),
            cause: format!(
                "the kernel skipped runs of {}, at most so many events",
                skip.hook
            ),
            ..Lost::default()
        }),
        ..event(Kind::Lost, clock)
    }
}

/// Records that a former agent may have had, of which nobody knows how many they were.
pub fn unknown(clock: &Clock, cause: &'static str) -> Event {
    Event {
        lost: Some(Lost {
            place: "agent".to_owned(),
            cause: cause.to_owned(),
            ..Lost::default()
        }),
        ..event(Kind::Lost, clock)
    }
}

/// Events that were sealed and that the collector will never have.
pub fn gone(clock: &Clock, gone: &Gone) -> Event {
    Event {
        lost: Some(Lost {
            class: gone.class,
            count: gone.events,
            place: gone.place.to_owned(),
            cause: gone.cause.clone(),
            ..Lost::default()
        }),
        ..event(Kind::Lost, clock)
    }
}

/// A record that could not be decoded, so that its stream is not known.
pub fn lost_without_stream(clock: &Clock, cause: &'static str) -> Event {
    Event {
        lost: Some(Lost {
            count: Some(1),
            place: "decode".to_owned(),
            cause: cause.to_owned(),
            ..Lost::default()
        }),
        ..event(Kind::Lost, clock)
    }
}

/// What a cgroup made beyond its budget.
pub fn shed(clock: &Clock, count: &ShedCount, cgroup: String) -> Event {
    let number = |count: u64| Some(i64::try_from(count).unwrap_or(i64::MAX));
    Event {
        shed: Some(Shed {
            class: count.class.into(),
            cgroup,
            cgroup_id: count.cgroup_id.and_then(number),
            count: number(count.shed),
            sampled: number(count.sampled),
        }),
        ..event(Kind::Shed, clock)
    }
}

/// What became known of events that have left.
pub fn amendment(clock: &Clock, amended: Amended) -> Event {
    Event {
        amendment: Some(amended.amendment),
        container: Some(amended.container),
        ..event(Kind::Amendment, clock)
    }
}

/// Totals for a heartbeat.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Totals {
    pub seen: u64,
    pub filtered: u64,
    pub lost: u64,
    pub sent: u64,
    pub classes: Vec<String>,
    pub filters: Vec<String>,
}

pub fn heartbeat(clock: &Clock, config_hash: &str, totals: Totals, detail: String) -> Event {
    let count = |total: u64| Some(i64::try_from(total).unwrap_or(i64::MAX));
    Event {
        agent: Some(Agent {
            seen: count(totals.seen),
            filtered: count(totals.filtered),
            lost: count(totals.lost),
            sent: count(totals.sent),
            class_totals: totals.classes,
            filter_totals: totals.filters,
            ..agent("heartbeat", config_hash, detail)
        }),
        ..event(Kind::Heartbeat, clock)
    }
}

/// "start", "stop", "clock", "ignore", "reload".
pub fn action(clock: &Clock, config_hash: &str, action: &str, detail: String) -> Event {
    Event {
        agent: Some(agent(action, config_hash, detail)),
        ..event(Kind::Agent, clock)
    }
}

fn agent(action: &str, config_hash: &str, detail: String) -> Agent {
    Agent {
        action: action.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        detail,
        config_hash: config_hash.to_owned(),
        ..Agent::default()
    }
}
