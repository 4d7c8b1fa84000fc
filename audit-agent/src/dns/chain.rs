//! Which addresses does a response give for the name that was asked?
//!
//! Invariants: only those that the question's name leads to, through at most [`CHAIN`] CNAMEs of
//! this message, in any order; so nobody adds an address for a name that was not asked. The cost
//! is bounded: each name is read a fixed number of times, and names are compared by a keyed hash of
//! 64 bits, whose keys nobody outside knows.

use std::{fmt::Write as _, net::IpAddr};

use super::{
    message::{ANSWERS, Data, Message, RecordType, ResponseCode},
    name::{Name, PRESENTATION_BYTES},
};

/// CNAMEs followed; BIND follows 16.
pub const CHAIN: usize = 16;
/// Addresses of one response, hints of HTTPS records included.
pub const ADDRESSES: usize = 128;

/// Follows chains; keeps its room between messages.
#[derive(Debug)]
pub struct Chain {
    random: ahash::RandomState,
    /// Of each answer: its owner, and the target of a CNAME.
    links: Vec<(u64, Option<u64>)>,
    names: Vec<u64>,
    /// The question's name in presentation form.
    asked: String,
    addresses: Vec<(IpAddr, u32)>,
}

/// What the chain's room takes.
pub const MEMORY_BYTES: usize = PRESENTATION_BYTES
    + ANSWERS as usize * size_of::<(u64, Option<u64>)>()
    + (1 + CHAIN) * size_of::<u64>()
    + ADDRESSES * size_of::<(IpAddr, u32)>();

/// What a response gives for its question.
#[derive(Debug, Clone, Copy)]
pub struct Resolution<'a> {
    pub asked: &'a str,
    /// With the TTL in seconds.
    pub addresses: &'a [(IpAddr, u32)],
    /// Addresses of names that the question does not lead to.
    pub unrelated: u64,
    /// Addresses beyond [`ADDRESSES`].
    pub over_bound: u64,
}

impl Default for Chain {
    fn default() -> Self {
        Self {
            random: ahash::RandomState::new(),
            links: Vec::with_capacity(ANSWERS.into()),
            names: Vec::with_capacity(1 + CHAIN),
            asked: String::with_capacity(PRESENTATION_BYTES),
            addresses: Vec::with_capacity(ADDRESSES),
        }
    }
}

impl Chain {
    /// A query, an error and an answer to another kind of question give no addresses.
    pub fn resolve(&mut self, message: &Message<'_>) -> Resolution<'_> {
        self.asked.clear();
        self.addresses.clear();
        let (mut unrelated, mut over_bound) = (0, 0);
        let succeeded = message.response_code == ResponseCode::NO_ERROR;
        let is_answer = message.response && message.opcode == 0 && succeeded;
        let question = message.question.filter(|q| is_answer && q.is_internet());
        if let Some(question) = question {
            self.follow(question.name, message);
            for (answer, (owner, _)) in message.answers().zip(&self.links) {
                let related = self.names.contains(owner);
                let mut tell = |address| {
                    if !related {
                        unrelated += 1;
                    } else if self.addresses.len() == ADDRESSES {
                        over_bound += 1;
                    } else {
                        self.addresses.push((address, seconds(answer.ttl)));
                    }
                };
                match answer.data {
                    Data::Address(address) => tell(address),
                    Data::Service(service) => service.hints().for_each(tell),
                    Data::Target(_) | Data::Text(_) | Data::Other => {}
                }
            }
            if !self.addresses.is_empty() {
                // Into a String it cannot fail.
                let _ = write!(self.asked, "{}", question.name);
            }
        }
        Resolution {
            asked: &self.asked,
            addresses: &self.addresses,
            unrelated,
            over_bound,
        }
    }

    /// Collects the names that `asked` stands for, itself included.
    fn follow(&mut self, asked: Name<'_>, message: &Message<'_>) {
        let hash = |name: Name<'_>| self.random.hash_one(name);
        self.links.clear();
        self.links.extend(message.answers().map(|answer| {
            let target = match answer.data {
                Data::Target(name) if answer.record_type == RecordType::CNAME => Some(hash(name)),
                _ => None,
            };
            (hash(answer.name), target)
        }));
        let mut current = hash(asked);
        self.names.clear();
        self.names.push(current);
        while self.names.len() <= CHAIN {
            let mut links = self.links.iter();
            let next = links.find_map(|(owner, target)| target.filter(|_| *owner == current));
            match next {
                Some(next) if !self.names.contains(&next) => current = next,
                _ => break,
            }
            self.names.push(current);
        }
    }
}

/// RFC 2181, 8: the highest bit set means none.
fn seconds(ttl: u32) -> u32 {
    if ttl > i32::MAX as u32 { 0 } else { ttl }
}
