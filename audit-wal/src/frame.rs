//! How does a record look on disk, and is what is there one? See the crate's documentation.

pub const HEAD: usize = 24;
const ALIGN: usize = 8;

/// A frame's record and what its head says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    pub index: u64,
    /// Greatest index that was durable when it was written.
    pub durable: u64,
    pub record: &'a [u8],
}

/// Bytes of the frame of a record.
pub fn size(record: usize) -> usize {
    (HEAD + record).next_multiple_of(ALIGN)
}

/// Length of the record of the frame that `head` begins; `None` where none can begin.
pub fn record_bytes(head: &[u8], max_record_bytes: u32) -> Option<usize> {
    let length = u32::from_le_bytes(*head.first_chunk()?);
    (1..=max_record_bytes)
        .contains(&length)
        .then_some(length as usize)
}

pub fn write(frame: Frame<'_>, out: &mut Vec<u8>) {
    let end = out.len() + size(frame.record.len());
    let length = (frame.record.len() as u32).to_le_bytes();
    out.extend_from_slice(&length);
    out.extend_from_slice(&checksum(frame).to_le_bytes());
    out.extend_from_slice(&frame.index.to_le_bytes());
    out.extend_from_slice(&frame.durable.to_le_bytes());
    out.extend_from_slice(frame.record);
    out.resize(end, 0);
}

/// The frame at the start of `bytes`; `None` where there is none that checks out.
pub fn read(bytes: &[u8], max_record_bytes: u32) -> Option<Frame<'_>> {
    let length = record_bytes(bytes, max_record_bytes)?;
    let (head, rest) = bytes.split_at_checked(HEAD)?;
    let word = |at: usize| {
        head.get(at..)?
            .first_chunk()
            .copied()
            .map(u64::from_le_bytes)
    };
    let frame = Frame {
        index: word(8)?,
        durable: word(16)?,
        record: rest.get(..length)?,
    };
    let sum = u32::from_le_bytes(*head.get(4..)?.first_chunk()?);
    (checksum(frame) == sum).then_some(frame)
}

/// Where the next frame is whose head checks out, at `from` or later.
pub fn find(bytes: &[u8], from: usize, max_record_bytes: u32) -> Option<(usize, Frame<'_>)> {
    let mut at = from.next_multiple_of(ALIGN);
    while at < bytes.len() {
        if let Some(frame) = read(&bytes[at..], max_record_bytes) {
            return Some((at, frame));
        }
        at += ALIGN;
    }
    None
}

fn checksum(frame: Frame<'_>) -> u32 {
    let sum = crc32c::crc32c(&(frame.record.len() as u32).to_le_bytes());
    let sum = crc32c::crc32c_append(sum, &frame.index.to_le_bytes());
    let sum = crc32c::crc32c_append(sum, &frame.durable.to_le_bytes());
    crc32c::crc32c_append(sum, frame.record)
}
