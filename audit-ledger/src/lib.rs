//! Sealed batches: what an agent closes, chains and sends, and how anyone checks that it is whole.
//!
//! A batch holds encoded events, each after its length as a varint, compressed with zstd. Its
//! header has the RFC 6962 Merkle tree hash over the events' bytes and the hash of the header
//! before it. Sans-IO: no sockets, files, clock or randomness.
//!
//! Invariant: `open(seal(events))` gives the same bytes, and a batch of which a byte was changed is
//! refused.

mod digest;

use std::ops::Range;

use audit_proto::{
    Message as _,
    v1::{Batch, BatchHeader},
};
use sha2::{Digest as _, Sha256};

/// Uncompressed events of one batch; an agent's own limit is far below. Bounds what a hostile
/// header can make us allocate.
const MAX_EVENT_BYTES: i64 = 64 << 20;
/// zstd's level: higher ones cost the audited host more than the wire gains.
const COMPRESSION: i32 = 1;

#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    #[error("the batch has no header")]
    NoHeader,
    #[error("its header says {0} bytes of events; 0 to {MAX_EVENT_BYTES} are possible")]
    Bytes(i64),
    #[error("its events cannot be decompressed: {0}")]
    Compression(std::io::Error),
    #[error("its events are {found} bytes, but the header says {said}")]
    Length { found: usize, said: i64 },
    #[error("its events are cut off at byte {0}")]
    Cut(usize),
    #[error("it holds {found} events, but the header says {said}")]
    Count { found: usize, said: i32 },
    #[error("its events do not give the Merkle root in the header")]
    Root,
}

/// The events of a batch, as it will hold them: encoded, each after its length. What is hashed and
/// what is compressed are these same bytes.
#[derive(Debug, Default)]
pub struct Frames {
    bytes: Vec<u8>,
    /// Where each event is in `bytes`, without its length.
    events: Vec<Range<usize>>,
}

impl Frames {
    /// Adds an encoded event.
    pub fn push(&mut self, event: &[u8]) {
        // Into a Vec, which grows.
        let _ = prost::encode_length_delimiter(event.len(), &mut self.bytes);
        let start = self.bytes.len();
        self.bytes.extend_from_slice(event);
        self.events.push(start..self.bytes.len());
    }

    /// Events held.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// With the lengths.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Forgets the events, and keeps memory for at most so many bytes.
    pub fn clear(&mut self, kept_bytes: usize) {
        self.bytes.clear();
        self.bytes.shrink_to(kept_bytes);
        self.events.clear();
    }

    /// The encoded events.
    pub fn events(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.events.iter().map(|event| &self.bytes[event.clone()])
    }
}

impl<T: AsRef<[u8]>> FromIterator<T> for Frames {
    fn from_iter<I: IntoIterator<Item = T>>(events: I) -> Self {
        let mut frames = Self::default();
        for event in events {
            frames.push(event.as_ref());
        }
        frames
    }
}

/// Closes the batches of one stream, numbered from 1.
pub struct Sealer {
    host_id: String,
    boot_id: String,
    run: String,
    batch: i64,
    previous_hash: Vec<u8>,
    /// Both reused from batch to batch: large buffers that come and go leave holes in the heap.
    zstd: zstd::bulk::Compressor<'static>,
    packed: Vec<u8>,
}

/// What `packed` may keep: an ordinary batch. One huge event may need more for a moment.
const KEPT_BYTES: usize = 4 << 20;

impl Sealer {
    pub fn new(host_id: String, boot_id: String, run: String) -> Self {
        #[expect(
            clippy::expect_used,
            reason = "the level is a constant that zstd knows, and nothing else can be refused"
        )]
        let zstd = zstd::bulk::Compressor::new(COMPRESSION).expect("zstd's level");
        Self {
            host_id,
            boot_id,
            run,
            batch: 0,
            previous_hash: Vec::new(),
            zstd,
            packed: Vec::new(),
        }
    }

    /// Closes the next batch. The times are the least and the greatest of its events, in
    /// microseconds since the Unix epoch.
    pub fn seal(&mut self, frames: &Frames, first_time: i64, last_time: i64) -> Batch {
        self.batch += 1;
        let header = BatchHeader {
            host_id: self.host_id.clone(),
            boot_id: self.boot_id.clone(),
            run: self.run.clone(),
            batch: self.batch,
            previous_hash: std::mem::take(&mut self.previous_hash),
            event_count: frames.len() as i32,
            event_bytes: frames.bytes() as i64,
            first_time,
            last_time,
            root: root_of(leaves(frames.events())).to_vec(),
        };
        self.previous_hash = header_hash(&header).to_vec();
        Batch {
            header: Some(header),
            events: self.pack(&frames.bytes).into(),
        }
    }

    /// Compressed, in no more memory than it needs: a batch may wait long.
    fn pack(&mut self, raw: &[u8]) -> Vec<u8> {
        self.packed.clear();
        self.packed
            .reserve(zstd::zstd_safe::compress_bound(raw.len()));
        #[expect(
            clippy::expect_used,
            reason = "compressing into memory only fails without memory"
        )]
        self.zstd
            .compress_to_buffer(raw, &mut self.packed)
            .expect("zstd into memory");
        let events = self.packed.as_slice().to_vec();
        self.packed.shrink_to(KEPT_BYTES);
        events
    }
}

/// In front of what is hashed: RFC 6962 section 2.1.
const LEAF: u8 = 0;
const NODE: u8 = 1;

/// RFC 6962 Merkle tree hash, bottom up: an odd node at the end of a level moves up as it is.
pub fn root<T: AsRef<[u8]>>(events: &[T]) -> [u8; 32] {
    root_of(leaves(events.iter().map(AsRef::as_ref)))
}

/// RFC 6962 hashes of events.
pub fn leaves<'a>(events: impl Iterator<Item = &'a [u8]>) -> Vec<[u8; 32]> {
    digest::all(LEAF, events)
}

/// As [`root`], of events whose hashes ([`leaves`]) are there already.
pub fn root_of(mut level: Vec<[u8; 32]>) -> [u8; 32] {
    while level.len() > 1 {
        let (pairs, odd) = level.as_chunks::<2>();
        let mut above = digest::all(NODE, pairs.iter().map(|pair| pair.as_flattened()));
        above.extend(odd);
        level = above;
    }
    level.pop().unwrap_or_else(|| Sha256::digest(b"").into())
}

/// What the next header of the stream must name.
pub fn header_hash(header: &BatchHeader) -> [u8; 32] {
    Sha256::digest(header.encode_to_vec()).into()
}

/// The encoded events of a batch that is what its header says.
pub fn open(batch: &Batch) -> Result<Frames, BatchError> {
    let frames = unpack(batch)?;
    let header = batch.header.as_ref().ok_or(BatchError::NoHeader)?;
    if root_of(leaves(frames.events()))[..] != header.root[..] {
        return Err(BatchError::Root);
    }
    Ok(frames)
}

/// The same, of a batch that was opened before: does not compute its Merkle root again.
pub fn unpack(batch: &Batch) -> Result<Frames, BatchError> {
    let header = batch.header.as_ref().ok_or(BatchError::NoHeader)?;
    let said = header.event_bytes;
    if !(0..=MAX_EVENT_BYTES).contains(&said) {
        return Err(BatchError::Bytes(said));
    }
    let bytes =
        zstd::bulk::decompress(&batch.events, said as usize).map_err(BatchError::Compression)?;
    if bytes.len() as i64 != said {
        return Err(BatchError::Length {
            found: bytes.len(),
            said,
        });
    }
    let mut events = Vec::with_capacity(header.event_count.clamp(0, 1 << 16) as usize);
    let mut at = 0;
    while let Some(mut rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
        let length = prost::decode_length_delimiter(&mut rest).map_err(|_| BatchError::Cut(at))?;
        if rest.len() < length {
            return Err(BatchError::Cut(at));
        }
        let start = bytes.len() - rest.len();
        at = start + length;
        events.push(start..at);
    }
    if i32::try_from(events.len()) != Ok(header.event_count) {
        return Err(BatchError::Count {
            found: events.len(),
            said: header.event_count,
        });
    }
    Ok(Frames { bytes, events })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sealer() -> Sealer {
        Sealer::new("host".to_owned(), "boot".to_owned(), "run".to_owned())
    }

    fn seal(events: &[Vec<u8>]) -> Batch {
        sealer().seal(&events.iter().collect(), 1, 2)
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// RFC 6962 section 2.1, as its recursive definition reads.
    fn model(leaves: &[Vec<u8>]) -> [u8; 32] {
        match leaves {
            [] => Sha256::digest(b"").into(),
            [one] => digest::one(LEAF, one),
            many => {
                let (left, right) = many.split_at(many.len().next_power_of_two() / 2);
                digest::one(NODE, &[model(left), model(right)].concat())
            }
        }
    }

    #[test]
    fn roots_of_nothing_and_of_an_empty_leaf_are_the_known_ones() {
        assert_eq!(
            hex(&root::<&[u8]>(&[])),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert_eq!(
            hex(&root(&[b""])),
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
        );
    }

    #[test]
    fn a_header_names_the_one_before_it() {
        let mut sealer = sealer();
        let first = sealer
            .seal(&Frames::from_iter([b"a"]), 1, 1)
            .header
            .expect("header");
        let second = sealer
            .seal(&Frames::from_iter([b"b"]), 2, 2)
            .header
            .expect("header");
        assert_eq!((first.batch, second.batch), (1, 2));
        assert!(first.previous_hash.is_empty());
        assert_eq!(second.previous_hash, header_hash(&first));
    }

    proptest! {
        #[test]
        fn the_root_is_that_of_the_definition(leaves: Vec<Vec<u8>>) {
            prop_assert_eq!(root(&leaves), model(&leaves));
        }

        #[test]
        fn opening_gives_what_was_sealed(events: Vec<Vec<u8>>) {
            let opened = open(&seal(&events)).expect("whole");
            let opened: Vec<&[u8]> = opened.events().collect();
            prop_assert_eq!(opened, events);
        }

        #[test]
        fn other_events_under_the_same_header_are_refused(
            events in proptest::collection::vec(any::<Vec<u8>>(), 1..20),
            others: Vec<Vec<u8>>,
        ) {
            prop_assume!(events != others);
            let mut batch = seal(&events);
            batch.events = seal(&others).events;
            prop_assert!(open(&batch).is_err());
        }

        #[test]
        fn arbitrary_batches_are_refused_without_a_panic(bytes: Vec<u8>) {
            if let Ok(batch) = Batch::decode(bytes.as_slice()) {
                prop_assert!(open(&batch).is_err());
            }
        }
    }
}
