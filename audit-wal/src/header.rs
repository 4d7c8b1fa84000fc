//! Which salt does a segment have? Its first bytes say so, twice.
//!
//! Invariant: a header is durable before the first frame behind it is written. So a segment without
//! one holds no record, unless a bad disk took both copies.

use crate::frame::Salt;

const MAGIC: [u8; 4] = *b"wal2";
const COPY_BYTES: usize = 16;
/// Of the second copy: in another block than the first, as a bad disk loses whole blocks.
const SECOND_AT: usize = 4096;
/// Where frames begin.
pub const BYTES: usize = SECOND_AT + COPY_BYTES;

pub fn write(salt: Salt) -> Vec<u8> {
    let mut copy = [0; COPY_BYTES];
    copy[..4].copy_from_slice(&MAGIC);
    copy[8..].copy_from_slice(&salt.to_le_bytes());
    let sum = sum(&copy);
    copy[4..8].copy_from_slice(&sum);
    let mut header = vec![0; BYTES];
    header[..COPY_BYTES].copy_from_slice(&copy);
    header[SECOND_AT..].copy_from_slice(&copy);
    header
}

/// The salt that a segment with this content has; `None` where no copy checks out.
pub fn read(segment: &[u8]) -> Option<Salt> {
    [0, SECOND_AT].iter().find_map(|at| {
        let copy: &[u8; COPY_BYTES] = segment.get(*at..)?.first_chunk()?;
        let sound = copy[..4] == MAGIC && copy[4..8] == sum(copy);
        let salt = copy.last_chunk().copied().map(Salt::from_le_bytes)?;
        sound.then_some(salt)
    })
}

/// Of magic and salt.
fn sum(copy: &[u8; COPY_BYTES]) -> [u8; 4] {
    let sum = crc32c::crc32c_append(crc32c::crc32c(&copy[..4]), &copy[8..]);
    sum.to_le_bytes()
}
