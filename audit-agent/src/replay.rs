//! How does the pipeline run without the kernel? From a file of records, each after its length as
//! a little-endian u32.
//!
//! Invariant: every byte of the file is delivered or named in an error; a cut file is an error.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use audit_common::{class, config::Counters, record::Header};
use zerocopy::FromBytes as _;

use crate::source::{Round, Source};

/// Longest record accepted: far above what the kernel programs can build (32 KiB).
const MAX_RECORD_BYTES: usize = 1 << 20;

/// Records of a file, some at a time; then silence, like a quiet host.
#[derive(Debug)]
pub struct Replay {
    path: PathBuf,
    bytes: Vec<u8>,
    at: usize,
    records_per_round: usize,
    counters: [Counters; 4],
    ignored: BTreeSet<u32>,
}

impl Replay {
    pub fn open(path: &Path, records_per_round: usize) -> io::Result<Self> {
        let bytes = fs::read(path).map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", path.display()))
        })?;
        Ok(Self {
            path: path.to_owned(),
            bytes,
            at: 0,
            records_per_round: records_per_round.max(1),
            counters: Default::default(),
            ignored: BTreeSet::new(),
        })
    }

    /// What a file holds for these records.
    pub fn encode<'a>(records: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
        let mut out = Vec::new();
        for record in records {
            out.extend_from_slice(&(record.len() as u32).to_le_bytes());
            out.extend_from_slice(record);
        }
        out
    }

    fn take(&mut self) -> io::Result<Option<(usize, usize)>> {
        let rest = &self.bytes[self.at..];
        if rest.is_empty() {
            return Ok(None);
        }
        let cut = |what: String| {
            let text = format!("{}: byte {}: {what}", self.path.display(), self.at);
            io::Error::new(io::ErrorKind::InvalidData, text)
        };
        let Some((length, rest)) = rest.split_first_chunk::<4>() else {
            return Err(cut("the file ends within a record's length".to_owned()));
        };
        let length = u32::from_le_bytes(*length) as usize;
        if length > MAX_RECORD_BYTES {
            return Err(cut(format!(
                "a record of {length} bytes, more than {MAX_RECORD_BYTES}; is this a record file?"
            )));
        }
        if rest.len() < length {
            return Err(cut(format!(
                "the file ends within a record of {length} bytes"
            )));
        }
        let start = self.at + 4;
        self.at = start + length;
        Ok(Some((start, self.at)))
    }
}

impl Source for Replay {
    fn next(&mut self, timeout: Duration, round: &mut Round) -> io::Result<()> {
        for _ in 0..self.records_per_round {
            let Some((start, end)) = self.take()? else {
                break;
            };
            let record = &self.bytes[start..end];
            let header = Header::read_from_prefix(record)
                .ok()
                .map(|(header, _)| header);
            if let Some(header) = header {
                let at = class::ALL.iter().position(|class| *class == header.class);
                if let Some(at) = at {
                    self.counters[at].sequence += 1;
                    if self.ignored.contains(&header.pid) {
                        self.counters[at].filtered += 1;
                        continue;
                    }
                }
            }
            round.push(header.map_or(0, |header| header.time_ns), record);
        }
        if round.is_empty() {
            thread::sleep(timeout);
        }
        round.sort();
        Ok(())
    }

    fn counters(&mut self) -> [Counters; 4] {
        self.counters
    }

    fn ignore(&mut self, pid: u32) -> io::Result<()> {
        self.ignored.insert(pid);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_file_is_an_error_that_names_the_place() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("records");
        let mut bytes = Replay::encode([b"one".as_slice(), b"two"]);
        bytes.truncate(bytes.len() - 1);
        fs::write(&path, bytes).expect("write");
        let mut replay = Replay::open(&path, 1).expect("open");
        let mut round = Round::default();
        replay.next(Duration::ZERO, &mut round).expect("first");
        assert_eq!(round.records().collect::<Vec<_>>(), [b"one"]);
        let error = replay.next(Duration::ZERO, &mut round).expect_err("cut");
        assert!(error.to_string().contains("byte 7"), "{error}");
    }
}
