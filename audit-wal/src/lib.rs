//! A crash-safe log of records in segment files: what is on disk after a sync, and what a crash or a
//! bad disk may take.
//!
//! # Format
//!
//! A segment file `%016x.seg` is named by the index of its first record. It is a header, a run of
//! frames, then zeros; integers are little-endian.
//!
//! The header is 16 bytes at the start and again at 4096, in case a bad disk takes a block: `wal2`,
//! the CRC-32C of the other twelve bytes, and 8 random ones, the segment's salt. Frames begin behind
//! the second copy, each at a multiple of 8 bytes:
//!
//! | bytes | field |
//! |---|---|
//! | 4 | CRC-32C of the next four fields, begun with the salt's first half |
//! | 4 | length of the record, 1 to `max_record_bytes` |
//! | 4 | CRC-32C of the record, begun with the salt's second half |
//! | 8 | index; the first of a log is 1, each next one greater |
//! | 8 | greatest index that was durable when this frame was written |
//! | length | the record |
//! | 0 to 7 | zeros |
//!
//! Who chooses what is recorded does not know the salt, so no bytes inside a record are ever taken
//! for a frame, also where damage makes the log look for the next one.
//!
//! Segments are allocated in full when they are made, so that a full disk is met there, with nothing
//! at risk, and a sync has no new length to write. A segment that is full gives its rest back.
//!
//! # Writing
//!
//! [`Log::append`] only encodes; [`Log::sync`] writes everything appended at once and syncs once,
//! which is the group commit. A segment's name and header are durable before its first record is. After a failed
//! write or sync nobody knows what is on disk, so the log goes on in a new segment, whose name says
//! where the old one ends: what was refused cannot come back behind what is written later.
//!
//! # Recovery
//!
//! What `sync` returned is there after a crash. A frame that does not check out is the end of the log
//! if nothing behind it was written later than its sync: the rest was never promised, and is cut off
//! (kept beside the segment as `.cut`). It is damage if a later frame or segment proves that it had
//! been durable: the missing indexes are reported, and everything behind them is served. Damage to
//! the very last frames, with nothing behind them, looks like an unfinished write and is treated so.

#![forbid(unsafe_code)]

mod check;
mod disk;
mod frame;
mod header;
mod lock;
mod log;
mod reader;
mod segment;
pub mod simulated;

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

pub use check::{Report, check, check_on};
pub use disk::{Disk, DiskFile, System};
pub use log::Log;
pub use reader::Reader;

#[derive(Debug, Clone)]
pub struct Options {
    /// A segment is allocated with this size; a longer group of records gets a longer one.
    pub segment_bytes: u64,
    pub max_record_bytes: u32,
}

/// One variant for each thing that a caller can do about it.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    #[error("{}: another process uses this log; stop it first", .0.display())]
    Locked(PathBuf),
    #[error("{}: the disk is full; free room for a whole segment, and it goes on", .0.display())]
    DiskFull(PathBuf),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("a record of {0} bytes is empty or longer than {1}")]
    Size(usize, u32),
}

impl WalError {
    fn at(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::DiskFull(path.to_owned())
            }
            _ => Self::Io {
                path: path.to_owned(),
                source,
            },
        }
    }
}

/// Records that were durable and are not readable any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    pub path: PathBuf,
    pub offset: u64,
    pub first_index: u64,
    pub last_index: u64,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            path,
            offset,
            first_index,
            last_index,
        } = self;
        write!(
            f,
            "{}: records {first_index} to {last_index} are damaged, from byte {offset} on; the \
             others are served",
            path.display()
        )
    }
}

/// What opening found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Recovery {
    pub records: u64,
    /// Bytes of an unfinished write, cut off.
    pub truncated_bytes: u64,
    pub damaged: Vec<Damage>,
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
