//! Is a batch what its header says? Bounds first, then size, count and Merkle root.

use audit_proto::{
    Message as _,
    v1::{Batch, BatchHeader},
};
use sha2::{Digest as _, Sha256};

/// Uncompressed events of one batch; an agent's own limit is far below. Bounds what a hostile
/// header can make us allocate.
const MAX_EVENT_BYTES: i64 = 64 << 20;

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

fn leaf(bytes: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update([0]);
    hash.update(bytes);
    hash.finalize().into()
}

fn node(left: &[u8; 32], right: &[u8; 32]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update([1]);
    hash.update(left);
    hash.update(right);
    hash.finalize().into()
}

/// RFC 6962 Merkle tree hash, bottom up: an odd node at the end of a level moves up as it is.
pub fn root<T: AsRef<[u8]>>(leaves: &[T]) -> [u8; 32] {
    let mut level: Vec<[u8; 32]> = leaves.iter().map(|l| leaf(l.as_ref())).collect();
    while level.len() > 1 {
        level = level
            .chunks(2)
            .map(|pair| match pair {
                [left, right] => node(left, right),
                odd => odd[0],
            })
            .collect();
    }
    level.pop().unwrap_or_else(|| Sha256::digest(b"").into())
}

/// What the next header of the stream must name.
pub fn header_hash(header: &BatchHeader) -> [u8; 32] {
    Sha256::digest(header.encode_to_vec()).into()
}

/// The encoded events of a batch that is what its header says.
pub fn open(batch: &Batch) -> Result<Vec<Vec<u8>>, BatchError> {
    let header = batch.header.as_ref().ok_or(BatchError::NoHeader)?;
    let said = header.event_bytes;
    if !(0..=MAX_EVENT_BYTES).contains(&said) {
        return Err(BatchError::Bytes(said));
    }
    let raw =
        zstd::bulk::decompress(&batch.events, said as usize).map_err(BatchError::Compression)?;
    if raw.len() as i64 != said {
        return Err(BatchError::Length {
            found: raw.len(),
            said,
        });
    }
    let mut rest = &raw[..];
    let mut events = Vec::with_capacity(header.event_count.clamp(0, 1 << 16) as usize);
    while !rest.is_empty() {
        let cut = || BatchError::Cut(raw.len() - rest.len());
        let mut after = rest;
        let length = prost::decode_length_delimiter(&mut after).map_err(|_| cut())?;
        let event = after.get(..length).ok_or_else(cut)?;
        events.push(event.to_vec());
        rest = &after[length..];
    }
    if i32::try_from(events.len()) != Ok(header.event_count) {
        return Err(BatchError::Count {
            found: events.len(),
            said: header.event_count,
        });
    }
    if root(&events)[..] != header.root[..] {
        return Err(BatchError::Root);
    }
    Ok(events)
}
