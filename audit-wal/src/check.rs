//! Is a log sound? Reads everything, changes nothing.

use std::path::Path;

use crate::{
    Damage, WalError,
    disk::{Disk, System},
    segment::{self, Bounds},
};

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Report {
    pub segments: usize,
    pub records: u64,
    pub first_index: u64,
    pub last_index: u64,
    pub damaged: Vec<Damage>,
    /// Of a write that was not finished; opening the log cuts it off.
    pub tail_bytes: u64,
}

pub fn check(dir: &Path, max_record_bytes: u32) -> Result<Report, WalError> {
    check_on(&System, dir, max_record_bytes)
}

/// As [`check`], on another disk.
pub fn check_on<D: Disk>(disk: &D, dir: &Path, max_record_bytes: u32) -> Result<Report, WalError> {
    let firsts = segment::list(disk, dir)?;
    let mut report = Report {
        segments: firsts.len(),
        first_index: firsts.first().copied().unwrap_or(1),
        ..Report::default()
    };
    for (at, first) in firsts.iter().enumerate() {
        let limit = firsts.get(at + 1).copied();
        let bounds = Bounds {
            limit,
            max_record_bytes,
        };
        let scan = segment::scan(disk, dir, *first, bounds)?;
        report.records += scan.records;
        report.last_index = scan.next - 1;
        report.damaged.extend(scan.damage);
        if let (None, Some(tail)) = (limit, scan.tail) {
            report.tail_bytes = tail.len() as u64;
        }
    }
    Ok(report)
}
