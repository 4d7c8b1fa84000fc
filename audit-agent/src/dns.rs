//! What did programs ask the DNS, and which names belong to the addresses they connect to?
//!
//! [`Names`] takes what the kernel side captured of port 53, datagrams and pieces of TCP streams,
//! tells each message for its own event ([`summary`]) and keeps the answers for the connections
//! that follow ([`cache`], which also says what such a name is worth).
//!
//! ```text
//! datagram ----------> message -> summary -> event
//! piece -> stream ---^        \-> chain -> cache -> the name of a connection's peer
//! ```
//!
//! Invariants: only responses that a process *received* are learned, not those that a server on
//! this host sends; no bytes make it panic; what is not understood is counted.
//!
//! Memory, each at its bound at once:
//!
//! | what | bound | KiB | set by |
//! |---|---|---|---|
//! | entries and their index | 8,192 of 68 bytes | 544 | `cache::ENTRIES` |
//! | names | 512 KiB as allocated | 512 | `cache::NAMES_BYTES` |
//! | namespaces | 512 | 82 | `cache::NAMESPACES` |
//! | TCP messages not complete | 384 KiB; 128 streams | 421 | `stream::{BUFFERED_BYTES, STREAMS}` |
//! | one message being read | a name, 128 answers, 128 addresses | 7 | `chain` |
//! | sum | | 1566 | |

pub mod cache;
pub mod chain;
pub mod message;
pub mod name;
pub mod stream;
pub mod summary;
#[cfg(test)]
mod wire;

use std::net::IpAddr;

use cache::Cache;
use chain::Chain;
use message::{Flaw, Message};
use stream::{Key, Piece, Streams};

/// What DNS may take of the agent's memory.
pub const MEMORY_BYTES: usize = 2 << 20;
/// What allocators add to large pieces, and one piece that grows while it is copied.
const SPARE_BYTES: usize = 128 << 10;
const _: () = assert!(
    cache::MEMORY_BYTES + stream::MEMORY_BYTES + chain::MEMORY_BYTES + SPARE_BYTES <= MEMORY_BYTES
);

/// Whether the process that was captured read the bytes or wrote them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Received,
    Sent,
}

/// Totals since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    pub queries: u64,
    pub responses: u64,
    /// Not readable as far as the question.
    pub malformed: u64,
    /// Of the queries and responses, with fewer readable answers than they say.
    pub flawed: u64,
    pub cache: cache::Counters,
    pub stream: stream::Counters,
}

/// The DNS traffic of all namespaces of this host.
#[derive(Debug, Default)]
pub struct Names {
    streams: Streams,
    reader: Reader,
}

#[derive(Debug, Default)]
struct Reader {
    chain: Chain,
    cache: Cache,
    counters: Counters,
}

impl Names {
    /// Reads a datagram, or its captured beginning. `namespace` is the inode of the network
    /// namespace that the process's socket is in, `now_ns` any clock that only goes forward.
    pub fn datagram<'a>(
        &mut self,
        namespace: u32,
        way: Way,
        bytes: &'a [u8],
        now_ns: u64,
    ) -> Result<Message<'a>, Flaw> {
        self.reader.read((namespace, way), bytes, now_ns)
    }

    /// Takes a piece of a TCP stream and calls `each` with the messages that it ends. `socket` is
    /// whatever is another number for another socket.
    pub fn piece(
        &mut self,
        (namespace, way): (u32, Way),
        socket: u64,
        piece: &Piece<'_>,
        now_ns: u64,
        mut each: impl FnMut(&Message<'_>),
    ) {
        let sent = way == Way::Sent;
        let reader = &mut self.reader;
        self.streams.push(Key { socket, sent }, piece, |bytes| {
            if let Ok(message) = reader.read((namespace, way), bytes, now_ns) {
                each(&message);
            }
        });
    }

    /// A network namespace ended: its number may come again.
    pub fn ended(&mut self, namespace: u32) {
        self.reader.cache.forget(namespace);
    }

    /// For `socket.peer.name`: what was last asked in this namespace when an answer gave this
    /// address.
    pub fn name_of(&mut self, namespace: u32, address: IpAddr, now_ns: u64) -> Option<&str> {
        self.reader.cache.name_of(namespace, address, now_ns)
    }

    pub fn counters(&self) -> Counters {
        Counters {
            cache: self.reader.cache.counters(),
            stream: self.streams.counters(),
            ..self.reader.counters
        }
    }
}

/// For tests of what uses this: a message in the form that resolvers give it.
#[cfg(test)]
pub fn sample_answer(name: &str, address: IpAddr) -> Vec<u8> {
    wire::addresses(&[name], 60, &[address])
}

#[cfg(test)]
pub fn sample_query(name: &str) -> Vec<u8> {
    let mut encoder = wire::Encoder::new(7, wire::QUERY, true);
    encoder.question(&wire::labels(name), message::RecordType::A);
    encoder.bytes
}

impl Reader {
    fn read<'a>(
        &mut self,
        (namespace, way): (u32, Way),
        bytes: &'a [u8],
        now_ns: u64,
    ) -> Result<Message<'a>, Flaw> {
        let Self {
            chain,
            cache,
            counters,
        } = self;
        let message = Message::parse(bytes).inspect_err(|_| counters.malformed += 1)?;
        counters.flawed += u64::from(message.flaw.is_some());
        if message.response {
            counters.responses += 1;
        } else {
            counters.queries += 1;
        }
        if way == Way::Received {
            cache.learn(namespace, &chain.resolve(&message), now_ns);
        }
        Ok(message)
    }
}

#[cfg(test)]
mod tests;
