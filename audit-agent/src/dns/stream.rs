//! Which DNS messages are in the pieces of a TCP stream (RFC 1035, 4.2.2: each behind its length)?
//!
//! Invariants: at most [`STREAMS`] streams are followed and [`BUFFERED_BYTES`] kept in all; of a
//! message at most [`MESSAGE_BYTES`], and its beginning is told when the rest is not to be had.
//! Where bytes are missing, the stream goes on at the next message whose place is certain: behind
//! the message that the gap is in, else at a piece that consists of whole messages. Never is a
//! message put together across a gap. A stream seen for the first time is believed to begin with a
//! message. Everything not told is counted. A stream ends only by giving way to others: a
//! connection's end says nothing of what its process has yet to read.

use ahash::AHashMap;

use super::message::HEADER_BYTES;

/// Streams followed at a time; the longest unused gives way. A program has one for some
/// milliseconds when an answer is too large for UDP; resolvers keep some.
pub const STREAMS: usize = 128;
/// Of one message; what a resolver answers by TCP is rarely above 4 KiB, only zone transfers are.
pub const MESSAGE_BYTES: usize = 16 << 10;
/// Of all messages that are not complete.
pub const BUFFERED_BYTES: usize = 384 << 10;

/// A piece that is farther from its place belongs to another stream: no socket buffers so much
/// of DNS.
const FAR_BYTES: u32 = 1 << 20;

/// What the streams take at most; a hash table may have four places for an entry.
pub const MEMORY_BYTES: usize = BUFFERED_BYTES + 4 * STREAMS * (size_of::<(Key, Stream)>() + 1);

/// One direction of one socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    /// Whatever is another number for another socket while streams are remembered.
    pub socket: u64,
    pub sent: bool,
}

/// Bytes that a process read or wrote in one call.
#[derive(Debug, Clone, Copy)]
pub struct Piece<'a> {
    /// Where the piece begins: TCP's sequence number, or a count of the stream's bytes; modulo
    /// 2^32. None where the capture does not know; then the piece is believed to follow.
    pub sequence: Option<u32>,
    pub bytes: &'a [u8],
    /// The piece's whole length, of which `bytes` is the beginning.
    pub wire_bytes: u32,
}

impl<'a> Piece<'a> {
    pub fn whole(sequence: Option<u32>, bytes: &'a [u8]) -> Self {
        Self {
            sequence,
            bytes,
            wire_bytes: bytes.len() as u32,
        }
    }
}

/// Totals since the start, and how much there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    pub streams: u64,
    pub buffered_bytes: u64,
    pub messages: u64,
    /// Of these, told without their end.
    pub cut: u64,
    /// Too short for a message.
    pub runts: u64,
    /// Places where bytes of a stream are missing.
    pub gaps: u64,
    /// Gaps behind which no message could be found at once.
    pub lost_places: u64,
    /// Bytes passed over until a message was found again.
    pub skipped_bytes: u64,
    /// Streams that went on so far away that they must be others, under a number used again.
    pub restarted: u64,
    /// Bytes that were read twice (MSG_PEEK).
    pub repeated_bytes: u64,
    /// Streams given up for others, with what they had of a message.
    pub evicted: u64,
}

#[derive(Debug, Default)]
struct Stream {
    /// Where the next piece should begin.
    next: Option<u32>,
    /// The open message's length (or half of it) and beginning.
    kept: Vec<u8>,
    /// Bytes of the open message to come.
    missing: usize,
    /// The open message was told; its bytes to come are of no use.
    told: bool,
    /// It is not known where the next message begins.
    lost: bool,
    used: u64,
}

#[derive(Debug, Default)]
pub struct Streams {
    streams: AHashMap<Key, Stream>,
    /// Capacity of the streams' buffers.
    buffered: usize,
    clock: u64,
    counters: Counters,
}

impl Streams {
    /// Takes a piece and calls `message` with each message that it completes, or cuts.
    pub fn push(&mut self, key: Key, piece: &Piece<'_>, mut message: impl FnMut(&[u8])) {
        self.clock += 1;
        if !self.streams.contains_key(&key) {
            while self.streams.len() >= STREAMS && self.evict(None) {}
        }
        let stream = self.streams.entry(key).or_default();
        stream.used = self.clock;
        let before = stream.kept.capacity();
        stream.take(piece, &mut self.counters, &mut message);
        self.buffered = self.buffered + stream.kept.capacity() - before;
        while self.buffered > BUFFERED_BYTES && self.evict(Some(key)) {}
    }

    pub fn counters(&self) -> Counters {
        Counters {
            streams: self.streams.len() as u64,
            buffered_bytes: self.buffered as u64,
            ..self.counters
        }
    }

    /// Gives the longest unused stream up, but not `kept`; false when there is no other.
    fn evict(&mut self, kept: Option<Key>) -> bool {
        let others = self.streams.iter().filter(|(key, _)| Some(**key) != kept);
        let Some((&key, _)) = others.min_by_key(|(_, stream)| stream.used) else {
            return false;
        };
        if let Some(stream) = self.streams.remove(&key) {
            self.buffered -= stream.kept.capacity();
            self.counters.evicted += 1;
        }
        true
    }
}

impl Stream {
    fn take(&mut self, piece: &Piece<'_>, counters: &mut Counters, message: &mut dyn FnMut(&[u8])) {
        let mut bytes = piece.bytes;
        let mut wire_bytes = (piece.wire_bytes as usize).max(bytes.len());
        let mut begins = piece.sequence.or(self.next);
        if let (Some(next), Some(sequence)) = (self.next, piece.sequence) {
            // Half of the numbers are before, half behind.
            let ahead = sequence.wrapping_sub(next).cast_signed();
            let distance = ahead.unsigned_abs();
            if distance > FAR_BYTES {
                self.restart(counters, message);
            } else if ahead > 0 {
                self.gap(distance as usize, counters, message);
            } else {
                let repeated = (distance as usize).min(wire_bytes);
                counters.repeated_bytes += repeated as u64;
                bytes = bytes.get(repeated..).unwrap_or_default();
                wire_bytes -= repeated;
                begins = Some(next);
            }
        }
        self.next = begins.map(|begins| begins.wrapping_add(wire_bytes as u32));
        let uncaptured = wire_bytes - bytes.len();
        if self.lost && uncaptured == 0 && is_whole_messages(bytes) {
            self.lost = false;
        }
        self.bytes(bytes, counters, message);
        if uncaptured > 0 {
            self.gap(uncaptured, counters, message);
        }
    }

    fn bytes(&mut self, mut bytes: &[u8], counters: &mut Counters, message: &mut dyn FnMut(&[u8])) {
        while !bytes.is_empty() {
            if self.lost {
                counters.skipped_bytes += bytes.len() as u64;
                return;
            }
            if self.missing > 0 {
                bytes = self.go_on(bytes, counters, message);
            } else if self.kept.is_empty()
                && let Some((whole, rest)) = first_message(bytes)
            {
                // Whole in one piece, as nearly always: nothing is copied.
                tell(whole, true, counters, message);
                bytes = rest;
            } else {
                bytes = self.begin(bytes, counters);
            }
        }
    }

    /// Takes a byte of a length.
    fn begin<'a>(&mut self, bytes: &'a [u8], counters: &mut Counters) -> &'a [u8] {
        let Some((byte, rest)) = bytes.split_first() else {
            return bytes;
        };
        self.kept.push(*byte);
        if let [high, low] = self.kept[..] {
            self.missing = u16::from_be_bytes([high, low]).into();
            self.told = false;
            if self.missing == 0 {
                counters.runts += 1;
                self.kept.clear();
            }
        }
        rest
    }

    /// Takes bytes of the open message.
    fn go_on<'a>(
        &mut self,
        bytes: &'a [u8],
        counters: &mut Counters,
        message: &mut dyn FnMut(&[u8]),
    ) -> &'a [u8] {
        let (part, rest) = bytes.split_at(self.missing.min(bytes.len()));
        self.missing -= part.len();
        if self.told {
            counters.skipped_bytes += part.len() as u64;
        } else {
            let room = (LENGTH_BYTES + MESSAGE_BYTES).saturating_sub(self.kept.len());
            self.kept.extend_from_slice(&part[..part.len().min(room)]);
            counters.skipped_bytes += part.len().saturating_sub(room) as u64;
            if part.len() > room {
                self.tell_kept(false, counters, message);
            } else if self.missing == 0 {
                self.tell_kept(true, counters, message);
            }
        }
        if self.missing == 0 {
            self.close_message();
        }
        rest
    }

    /// So many bytes of the stream are missing here.
    fn gap(&mut self, length: usize, counters: &mut Counters, message: &mut dyn FnMut(&[u8])) {
        counters.gaps += 1;
        if self.lost {
            return;
        }
        if self.missing > 0 && !self.told {
            self.tell_kept(false, counters, message);
        }
        if self.missing >= length {
            self.missing -= length;
            if self.missing == 0 {
                self.close_message();
            }
        } else {
            counters.lost_places += 1;
            self.lost = true;
            self.missing = 0;
            self.close_message();
        }
    }

    fn restart(&mut self, counters: &mut Counters, message: &mut dyn FnMut(&[u8])) {
        counters.restarted += 1;
        if self.missing > 0 && !self.told {
            self.tell_kept(false, counters, message);
        }
        self.missing = 0;
        self.lost = false;
        self.close_message();
    }

    fn tell_kept(&mut self, whole: bool, counters: &mut Counters, message: &mut dyn FnMut(&[u8])) {
        let kept = self.kept.get(LENGTH_BYTES..).unwrap_or_default();
        tell(kept, whole, counters, message);
        self.told = true;
        self.kept = Vec::new();
    }

    fn close_message(&mut self) {
        self.told = false;
        self.kept = Vec::new();
    }
}

const LENGTH_BYTES: usize = 2;

fn tell(bytes: &[u8], whole: bool, counters: &mut Counters, message: &mut dyn FnMut(&[u8])) {
    if bytes.len() < HEADER_BYTES {
        counters.runts += 1;
        return;
    }
    counters.messages += 1;
    counters.cut += u64::from(!whole);
    message(bytes);
}

/// The message at the beginning of `bytes`, if it is whole, and what follows it.
fn first_message(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, behind) = bytes.split_first_chunk()?;
    behind.split_at_checked(u16::from_be_bytes(*length).into())
}

/// True for one or more messages, each behind its length, and nothing else.
fn is_whole_messages(mut bytes: &[u8]) -> bool {
    loop {
        match first_message(bytes) {
            Some((message, _)) if message.len() < HEADER_BYTES => return false,
            Some((_, [])) => return true,
            Some((_, rest)) => bytes = rest,
            None => return false,
        }
    }
}

#[cfg(test)]
mod tests;
