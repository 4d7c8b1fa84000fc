//! How is a log read while it grows? With file handles of its own, up to the end of the moment at
//! which the reader was made.

use std::io;

use crate::{
    WalError,
    disk::{Disk, DiskFile, System},
    frame::{self, Salt},
    segment::Segment,
};

/// One read from the disk.
const CHUNK_BYTES: usize = 256 << 10;

/// Iterates over indexes and records, in order.
pub struct Reader<D: Disk = System> {
    disk: D,
    segments: std::vec::IntoIter<Segment>,
    open: Option<Open<D::File>>,
    from: u64,
    max_record_bytes: u32,
}

/// A segment that is being read: its runs last to first, and what of the file is in memory.
struct Open<F> {
    segment: Segment,
    salt: Salt,
    file: F,
    runs: Vec<(u64, u64)>,
    /// Where `buffer` begins in the file.
    offset: u64,
    buffer: Vec<u8>,
    used: usize,
}

impl<D: Disk> Reader<D> {
    pub(crate) fn new(disk: D, segments: Vec<Segment>, from: u64, max_record_bytes: u32) -> Self {
        Self {
            disk,
            segments: segments.into_iter(),
            open: None,
            from,
            max_record_bytes,
        }
    }

    fn advance(&mut self) -> Result<Option<(u64, Vec<u8>)>, WalError> {
        loop {
            let Some(open) = &mut self.open else {
                let Some(segment) = self.segments.next() else {
                    return Ok(None);
                };
                if let Some(salt) = segment.salt {
                    self.open = Some(self.begin(segment, salt)?);
                }
                continue;
            };
            let path = open.segment.path.clone();
            match open
                .next(self.max_record_bytes)
                .map_err(WalError::at(&path))?
            {
                Some((index, record)) if index >= self.from => return Ok(Some((index, record))),
                Some(_) => {}
                None => self.open = None,
            }
        }
    }

    fn begin(&self, segment: Segment, salt: Salt) -> Result<Open<D::File>, WalError> {
        let file = self
            .disk
            .open(&segment.path, false)
            .map_err(WalError::at(&segment.path))?;
        let mut runs: Vec<(u64, u64)> = segment
            .runs
            .iter()
            .map(|run| (run.offset_of(self.from), run.end))
            .collect();
        runs.reverse();
        Ok(Open {
            segment,
            salt,
            file,
            runs,
            offset: 0,
            buffer: Vec::new(),
            used: 0,
        })
    }
}

impl<F: DiskFile> Open<F> {
    fn next(&mut self, max_record_bytes: u32) -> io::Result<Option<(u64, Vec<u8>)>> {
        loop {
            let Some((at, end)) = self.runs.last().copied() else {
                return Ok(None);
            };
            if at >= end {
                self.runs.pop();
                continue;
            }
            self.need(at, frame::HEAD)?;
            let bytes = frame::record_bytes(&self.buffer[self.used..], max_record_bytes);
            let size = bytes.map_or(0, frame::size);
            self.need(at, size)?;
            let frame = frame::read(&self.buffer[self.used..], self.salt, max_record_bytes);
            let Some(frame) = frame else {
                let message = format!("the record at byte {at} no longer checks out");
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            };
            let found = (frame.index, frame.record.to_vec());
            if let Some((at, _)) = self.runs.last_mut() {
                *at += size as u64;
            }
            return Ok(Some(found));
        }
    }

    /// Has `bytes` from `at` in the buffer, where the file has so many.
    fn need(&mut self, at: u64, bytes: usize) -> io::Result<()> {
        let within = at.checked_sub(self.offset).map(|skip| skip as usize);
        match within {
            Some(skip) if skip + bytes <= self.buffer.len() => {
                self.used = skip;
                return Ok(());
            }
            _ => {}
        }
        self.buffer.resize(bytes.max(CHUNK_BYTES), 0);
        let mut filled = 0;
        while filled < bytes {
            match self
                .file
                .read_at(&mut self.buffer[filled..], at + filled as u64)?
            {
                0 => break,
                read => filled += read,
            }
        }
        self.buffer.truncate(filled);
        (self.offset, self.used) = (at, 0);
        Ok(())
    }
}

impl<D: Disk> Iterator for Reader<D> {
    type Item = Result<(u64, Vec<u8>), WalError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.advance() {
            Ok(found) => Ok(found).transpose(),
            Err(error) => {
                // The rest of that segment cannot be found without the frame.
                self.open = None;
                Some(Err(error))
            }
        }
    }
}
