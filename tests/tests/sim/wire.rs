//! What does a network do to a connection? It delivers in order or not at all; it breaks, and each end
//! notices in its own time. What was on its way when it broke may arrive, up to some message.

use std::collections::{BTreeMap, VecDeque};

use audit_proto::v1::{Batch, Hello, Welcome};
use audit_wal::simulated::Random;

#[derive(Debug)]
pub enum Request {
    Hello(Hello),
    Batch(Batch),
}

#[derive(Debug)]
pub enum Answer {
    Welcome(Welcome),
    Ack(i64),
    /// The collector ends the session; the batch that it will never take, if that is why.
    End {
        reason: String,
        refused: Option<i64>,
    },
}

/// Messages on their way that the windows of a connection allow.
const WINDOW: usize = 4;
const LATENCY_MS: u64 = 30;
/// Until the last end has noticed a break.
const NOTICE_MS: u64 = 40_000;

#[derive(Debug)]
struct Way<T> {
    /// With the time of arrival, which ascends.
    messages: VecDeque<(u64, T)>,
    /// When the receiver learns that nothing more comes.
    ends_at: Option<u64>,
}

impl<T> Default for Way<T> {
    fn default() -> Self {
        Self {
            messages: VecDeque::new(),
            ends_at: None,
        }
    }
}

impl<T> Way<T> {
    fn push(&mut self, at: u64, message: T) {
        let after = self.messages.back().map_or(0, |(at, _)| *at);
        if self.ends_at.is_none() {
            self.messages.push_back((at.max(after), message));
        }
    }

    fn pop(&mut self, now: u64) -> Option<T> {
        let due = self.messages.pop_front_if(|(at, _)| *at <= now);
        due.map(|(_, message)| message)
    }

    fn is_over(&self, now: u64) -> bool {
        self.messages.is_empty() && self.ends_at.is_some_and(|at| at <= now)
    }

    fn break_off(&mut self, ends_at: u64, random: &mut Random) {
        if self.ends_at.is_none() {
            let arrive = random.below(self.messages.len() as u64 + 1);
            self.messages.truncate(arrive as usize);
            self.ends_at = Some(ends_at);
        }
    }
}

#[derive(Debug, Default)]
struct Connection {
    host: usize,
    up: Way<Request>,
    down: Way<Answer>,
    /// The ends that are closed: the agent's and the collector's.
    closed: [bool; 2],
}

#[derive(Debug, Default)]
pub struct Wire {
    connections: BTreeMap<u64, Connection>,
    next: u64,
    /// Until when each host is cut off.
    cut: BTreeMap<usize, u64>,
}

/// Which end of a connection is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    Agent,
    Collector,
    Network,
}

impl Wire {
    pub fn is_cut(&self, host: usize, now: u64) -> bool {
        self.cut.get(&host).is_some_and(|until| now < *until)
    }

    pub fn connect(&mut self, host: usize) -> u64 {
        self.next += 1;
        let connection = Connection {
            host,
            ..Connection::default()
        };
        self.connections.insert(self.next, connection);
        self.next
    }

    pub fn has_room(&self, id: u64) -> bool {
        let connection = self.connections.get(&id);
        connection.is_some_and(|connection| connection.up.messages.len() < WINDOW)
    }

    pub fn send(&mut self, id: u64, request: Request, now: u64, random: &mut Random) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.up.push(now + random.below(LATENCY_MS), request);
        }
    }

    pub fn answer(&mut self, id: u64, answer: Answer, now: u64, random: &mut Random) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.down.push(now + random.below(LATENCY_MS), answer);
        }
    }

    pub fn request(&mut self, id: u64, now: u64) -> Option<Request> {
        self.connections.get_mut(&id)?.up.pop(now)
    }

    pub fn answered(&mut self, id: u64, now: u64) -> Option<Answer> {
        self.connections.get_mut(&id)?.down.pop(now)
    }

    pub fn agent_is_over(&self, id: u64, now: u64) -> bool {
        let connection = self.connections.get(&id);
        connection.is_none_or(|connection| connection.down.is_over(now))
    }

    pub fn collector_is_over(&self, id: u64, now: u64) -> bool {
        let connection = self.connections.get(&id);
        connection.is_none_or(|connection| connection.up.is_over(now))
    }

    /// Those that a collector may have to serve, oldest first.
    pub fn open(&self) -> Vec<u64> {
        self.connections.keys().copied().collect()
    }

    pub fn host(&self, id: u64) -> usize {
        self.connections
            .get(&id)
            .map_or(usize::MAX, |connection| connection.host)
    }

    /// One end closes, or dies.
    pub fn close(&mut self, id: u64, gone: Gone, now: u64, random: &mut Random) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let soon = now + random.below(LATENCY_MS);
        match gone {
            Gone::Agent => connection.up.break_off(soon, random),
            Gone::Collector => connection.down.break_off(soon, random),
            Gone::Network => {
                let (up, down) = (random.below(NOTICE_MS), random.below(NOTICE_MS));
                connection.up.break_off(now + up, random);
                connection.down.break_off(now + down, random);
            }
        }
        if gone == Gone::Collector {
            connection.up.messages.clear();
            connection.up.ends_at = Some(now);
        }
        connection.closed[0] |= gone == Gone::Agent;
        connection.closed[1] |= gone == Gone::Collector;
        if connection.closed == [true; 2] {
            self.connections.remove(&id);
        }
    }

    pub fn cut(&mut self, host: usize, now: u64, until: u64, random: &mut Random) {
        self.cut.insert(host, until);
        for id in self.open() {
            if self.host(id) == host {
                self.close(id, Gone::Network, now, random);
            }
        }
    }

    /// A collector that dies takes all with it.
    pub fn collector_dies(&mut self, now: u64, random: &mut Random) {
        for id in self.open() {
            self.close(id, Gone::Collector, now, random);
        }
    }
}
