//! How does a record look on disk, and is what is there one? See the crate's documentation.

pub const HEAD: usize = 28;
const ALIGN: usize = 8;

/// Random, and of one segment: what a record's own bytes cannot know.
pub type Salt = u64;

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

/// The fields of a head, not checked yet.
struct Head {
    sum: u32,
    length: usize,
    record_sum: u32,
    index: u64,
    durable: u64,
}

impl Head {
    /// `None` where the length is that of no record, which is cheap and mostly so between frames.
    fn parse(bytes: &[u8], max_record_bytes: u32) -> Option<Self> {
        let head = bytes.first_chunk::<HEAD>()?;
        let half = |at: usize| head.get(at..)?.first_chunk().copied();
        let word = |at: usize| head.get(at..)?.first_chunk().copied();
        Some(Self {
            length: record_bytes(head, max_record_bytes)?,
            sum: u32::from_le_bytes(half(0)?),
            record_sum: u32::from_le_bytes(half(8)?),
            index: u64::from_le_bytes(word(12)?),
            durable: u64::from_le_bytes(word(20)?),
        })
    }

    /// The frame, if what `bytes` begin with is this head and its record.
    fn check<'a>(&self, bytes: &'a [u8], salt: Salt) -> Option<Frame<'a>> {
        let (head, rest) = bytes.split_first_chunk::<HEAD>()?;
        if head_sum(head, salt) != self.sum {
            return None;
        }
        let record = rest.get(..self.length)?;
        (record_sum(record, salt) == self.record_sum).then_some(Frame {
            index: self.index,
            durable: self.durable,
            record,
        })
    }
}

/// Length of the record of the frame that `head` begins; `None` where none can begin.
pub fn record_bytes(head: &[u8], max_record_bytes: u32) -> Option<usize> {
    let length = u32::from_le_bytes(*head.get(4..)?.first_chunk()?);
    (1..=max_record_bytes)
        .contains(&length)
        .then_some(length as usize)
}

/// Appends a frame without its checksums, which need the salt: [`stamp`] writes them.
pub fn write(frame: Frame<'_>, out: &mut Vec<u8>) {
    let end = out.len() + size(frame.record.len());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&(frame.record.len() as u32).to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&frame.index.to_le_bytes());
    out.extend_from_slice(&frame.durable.to_le_bytes());
    out.extend_from_slice(frame.record);
    out.resize(end, 0);
}

/// Writes the checksums of the frame at the start of `bytes`.
pub fn stamp(bytes: &mut [u8], salt: Salt) {
    let length = record_bytes(bytes, u32::MAX).unwrap_or(0);
    if let Some((head, rest)) = bytes.split_first_chunk_mut::<HEAD>()
        && let Some(record) = rest.get(..length)
    {
        head[8..12].copy_from_slice(&record_sum(record, salt).to_le_bytes());
        let sum = head_sum(head, salt);
        head[..4].copy_from_slice(&sum.to_le_bytes());
    }
}

/// The frame at the start of `bytes`; `None` where there is none that checks out.
pub fn read(bytes: &[u8], salt: Salt, max_record_bytes: u32) -> Option<Frame<'_>> {
    Head::parse(bytes, max_record_bytes)?.check(bytes, salt)
}

/// Where the next frame that checks out is, at `from` or later, of those whose place, index and
/// durable index are `plausible`. That and the head's own checksum come first, so that bytes without
/// frames are read once and not once for each number in them that may be a length.
pub fn find(
    bytes: &[u8],
    from: usize,
    salt: Salt,
    max_record_bytes: u32,
    plausible: impl Fn(usize, u64, u64) -> bool,
) -> Option<(usize, Frame<'_>)> {
    let mut at = from.next_multiple_of(ALIGN);
    while at < bytes.len() {
        let rest = &bytes[at..];
        if let Some(head) = Head::parse(rest, max_record_bytes)
            && plausible(at, head.index, head.durable)
            && let Some(frame) = head.check(rest, salt)
        {
            return Some((at, frame));
        }
        at += ALIGN;
    }
    None
}

/// Of the head but its first field. Begun with one half of the salt, and the record's sum with the
/// other: who guesses one has not guessed both.
fn head_sum(head: &[u8; HEAD], salt: Salt) -> u32 {
    sum(salt as u32, &head[4..])
}

fn record_sum(record: &[u8], salt: Salt) -> u32 {
    sum((salt >> 32) as u32, record)
}

fn sum(begin: u32, bytes: &[u8]) -> u32 {
    #[cfg(test)]
    SUMMED_BYTES.with(|summed| summed.set(summed.get() + bytes.len() as u64));
    crc32c::crc32c_append(begin, bytes)
}

#[cfg(test)]
thread_local! {
    /// What checksums were computed over in this thread: the work that a test bounds.
    pub static SUMMED_BYTES: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}
