//! Is a batch what its header says?

use std::ops::Range;

use audit_proto::{
    Message as _,
    v1::{Batch, BatchHeader},
};
use prost::encoding::{DecodeContext, decode_key, skip_field};
use sha2::{Digest as _, Sha256};

use crate::{Frames, leaves, root_of};

/// Uncompressed events of one batch; an agent's own limit is far below. Bounds what a hostile
/// header can make us allocate.
pub const MAX_EVENT_BYTES: i64 = 64 << 20;
/// Eight times what an agent puts into one. An event may have no bytes, but once decoded each takes some
/// KiB.
const MAX_EVENTS: i32 = 1 << 16;
/// Ids and keys are far shorter, and losses are bounded by [`crate::MAX_LOSSES`].
const MAX_HEADER_BYTES: usize = 64 << 10;

/// How a zstd frame begins.
const FRAME: [u8; 4] = 0xfd2f_b528_u32.to_le_bytes();
/// The greatest number of a field of a header.
const LAST_FIELD: u32 = 22;

#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    #[error("the batch has no header")]
    NoHeader,
    #[error("its header is {0} bytes long; at most {MAX_HEADER_BYTES} are possible")]
    LongHeader(usize),
    #[error("its header is not an encoded BatchHeader: {0}")]
    Header(#[from] prost::DecodeError),
    #[error("its header says {0} bytes of events; 0 to {MAX_EVENT_BYTES} are possible")]
    Bytes(i64),
    #[error("its header says {0} events; 0 to {MAX_EVENTS} are possible")]
    Events(i32),
    #[error("its events are not one zstd frame")]
    Frame,
    #[error("its events cannot be decompressed: {0}")]
    Compression(std::io::Error),
    #[error("its events are {found} bytes, but the header says {said}")]
    Length { found: usize, said: i64 },
    #[error("its events are cut off at byte {0}")]
    Cut(usize),
    #[error("it holds {found} events, but the header says {said}")]
    Count { found: usize, said: i32 },
    #[error("it holds more than the {0} events that the header says")]
    More(i32),
    #[error("its events do not give the Merkle root in the header")]
    Root,
}

/// A header and the hash by which the next one names it.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    pub fields: BatchHeader,
    pub hash: [u8; 32],
}

/// Reads the header of a batch; says nothing about who signed it.
pub fn header(batch: &Batch) -> Result<Header, BatchError> {
    let bytes = &batch.header;
    if bytes.is_empty() {
        return Err(BatchError::NoHeader);
    }
    if bytes.len() > MAX_HEADER_BYTES {
        return Err(BatchError::LongHeader(bytes.len()));
    }
    Ok(Header {
        fields: BatchHeader::decode(&bytes[..])?,
        hash: Sha256::digest(bytes).into(),
    })
}

/// Has a header that can be read a field that this program does not know?
pub(crate) fn is_of_later_version(mut encoded: &[u8]) -> bool {
    while !encoded.is_empty() {
        let Ok((field, wire)) = decode_key(&mut encoded) else {
            return true;
        };
        if field > LAST_FIELD
            || skip_field(wire, field, &mut encoded, DecodeContext::default()).is_err()
        {
            return true;
        }
    }
    false
}

/// The encoded events of a batch that is what its header says; none where the agent dropped them.
pub fn open(batch: &Batch, header: &BatchHeader) -> Result<Frames, BatchError> {
    if batch.dropped.is_some() {
        return match batch.events.len() {
            0 => Ok(Frames::default()),
            _ => Err(BatchError::Count { found: 1, said: 0 }),
        };
    }
    let frames = unpack(batch, header)?;
    if root_of(leaves(frames.events()))[..] != header.root[..] {
        return Err(BatchError::Root);
    }
    Ok(frames)
}

/// The same, of a batch that was opened before: does not compute its Merkle root again.
pub fn unpack(batch: &Batch, header: &BatchHeader) -> Result<Frames, BatchError> {
    if batch.dropped.is_some() {
        return Ok(Frames::default());
    }
    let said = header.event_bytes;
    if !(0..=MAX_EVENT_BYTES).contains(&said) {
        return Err(BatchError::Bytes(said));
    }
    if !(0..=MAX_EVENTS).contains(&header.event_count) {
        return Err(BatchError::Events(header.event_count));
    }
    // zstd would take several, and skip what it is told to: room for what nobody has hashed.
    let frame = zstd::zstd_safe::find_frame_compressed_size(&batch.events);
    if !batch.events.starts_with(&FRAME) || frame != Ok(batch.events.len()) {
        return Err(BatchError::Frame);
    }
    let bytes =
        zstd::bulk::decompress(&batch.events, said as usize).map_err(BatchError::Compression)?;
    if bytes.len() as i64 != said {
        return Err(BatchError::Length {
            found: bytes.len(),
            said,
        });
    }
    let events = split(&bytes, header.event_count)?;
    Ok(Frames { bytes, events })
}

/// Where each event is.
fn split(bytes: &[u8], said: i32) -> Result<Vec<Range<usize>>, BatchError> {
    let mut events = Vec::with_capacity(said.clamp(0, 1 << 16) as usize);
    let mut at = 0;
    while let Some(mut rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
        let length = prost::decode_length_delimiter(&mut rest).map_err(|_| BatchError::Cut(at))?;
        if rest.len() < length {
            return Err(BatchError::Cut(at));
        }
        if i32::try_from(events.len()) == Ok(said) {
            return Err(BatchError::More(said));
        }
        let start = bytes.len() - rest.len();
        at = start + length;
        events.push(start..at);
    }
    if i32::try_from(events.len()) != Ok(said) {
        return Err(BatchError::Count {
            found: events.len(),
            said,
        });
    }
    Ok(events)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Key, Origin, Sealer, Summary};
    use proptest::prelude::*;

    fn seal(events: &[Vec<u8>]) -> Batch {
        let mut sealer = Sealer::begin(Key::new(1, [1; 32]), Origin::default(), None);
        sealer.seal(&events.iter().collect(), Summary::default())
    }

    fn reopen(batch: &Batch) -> Result<Frames, BatchError> {
        open(batch, &header(batch)?.fields)
    }

    #[test]
    fn a_small_batch_does_not_become_a_million_events() {
        let mut batch = seal(&vec![Vec::new(); 1 << 20]);
        let mut fields = header(&batch).expect("header").fields;
        assert!(batch.events.len() < 1000);
        assert!(matches!(
            unpack(&batch, &fields),
            Err(BatchError::Events(_))
        ));
        fields.event_count = 2;
        assert!(matches!(unpack(&batch, &fields), Err(BatchError::More(2))));
        batch = seal(&vec![Vec::new(); 1 << 16]);
        assert_eq!(reopen(&batch).expect("whole").len(), 1 << 16);
    }

    #[test]
    fn nothing_hides_behind_the_events() {
        let batch = seal(&[b"event".to_vec()]);
        let skipped = b"\x50\x2a\x4d\x18\x04\0\0\0else";
        let empty = seal(&[]).events;
        for more in [&skipped[..], &empty, b"\0"] {
            let events = [&batch.events, more].concat().into();
            let batch = Batch {
                events,
                ..batch.clone()
            };
            assert!(matches!(reopen(&batch), Err(BatchError::Frame)));
        }
    }

    proptest! {
        #[test]
        fn opening_gives_what_was_sealed(events: Vec<Vec<u8>>) {
            let opened = reopen(&seal(&events)).expect("whole");
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
            prop_assert!(reopen(&batch).is_err());
        }

        #[test]
        fn arbitrary_batches_are_refused_without_a_panic(bytes: Vec<u8>) {
            if let Ok(batch) = Batch::decode(bytes.as_slice()) {
                prop_assert!(reopen(&batch).is_err());
            }
        }
    }
}
