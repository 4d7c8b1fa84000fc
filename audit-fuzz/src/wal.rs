//! What holds of every log, whatever is in its files?
//!
//! Checking changes nothing and says what opening then finds. Records come in the order of their
//! indexes, and with what is told as damaged they are all from the first to the last. Opening again
//! finds the same and changes nothing. What is appended then is there, with what was there.

use std::path::Path;

use audit_wal::{Log, Options, Recovery, Report, check_on, simulated::Simulated};

pub const DIR: &str = "/log";
/// A header takes half of a segment, so that a few records fill one.
pub const OPTIONS: Options = Options {
    segment_bytes: 8 << 10,
    max_record_bytes: 512,
};

pub type Records = Vec<(u64, Vec<u8>)>;

pub fn open(disk: &Simulated) -> (Log<Simulated>, Recovery) {
    Log::open_on(disk.clone(), Path::new(DIR), OPTIONS).expect("nothing fails unless it is told to")
}

/// Goes through all of it; the records that were found first.
pub fn recovers(disk: &Simulated) -> Records {
    let before = disk.files();
    let report = check_on(disk, Path::new(DIR), OPTIONS.max_record_bytes)
        .expect("nothing fails unless it is told to");
    assert!(disk.files() == before, "checking changed a file");
    let (log, recovery) = open(disk);
    agrees(&log, &recovery, &report);
    let records = read(&log, 0);
    assert_eq!(records.len() as u64, recovery.records);
    complete(&log, &recovery, &records);
    if let Some((middle, _)) = records.get(records.len() / 2) {
        assert!(read(&log, *middle) == records[records.len() / 2..]);
    }
    drop(log);
    again(disk, &recovery, &records);
    goes_on(disk, &records, &recovery);
    records
}

fn agrees(log: &Log<Simulated>, recovery: &Recovery, report: &Report) {
    assert_eq!(recovery.records, report.records);
    assert_eq!(recovery.damaged, report.damaged);
    assert_eq!(recovery.truncated_bytes, report.tail_bytes);
    assert_eq!(log.first_index(), report.first_index);
    assert_eq!(log.next_index(), report.last_index + 1);
    assert_eq!(log.segments().len(), report.segments);
}

pub fn read(log: &Log<Simulated>, from: u64) -> Records {
    let reader = log
        .read_from(from)
        .expect("nothing fails unless it is told to");
    let records: Result<Records, _> = reader.collect();
    records.expect("what opening found is read")
}

/// From the first to the last, each index is a record's or told as damaged, once.
fn complete(log: &Log<Simulated>, recovery: &Recovery, records: &Records) {
    let mut told: Vec<(u64, u64)> = records.iter().map(|(index, _)| (*index, *index)).collect();
    assert!(told.is_sorted(), "indexes do not ascend");
    let damaged = recovery.damaged.iter();
    told.extend(damaged.map(|damage| (damage.first_index, damage.last_index)));
    told.sort_unstable();
    let mut next = log.first_index();
    for (first, last) in told {
        assert!(
            first == next && first <= last,
            "{first} to {last} where {next} is next"
        );
        next = last + 1;
    }
    assert_eq!(next, log.next_index());
    let sizes = 1..=OPTIONS.max_record_bytes as usize;
    assert!(
        records
            .iter()
            .all(|(_, record)| sizes.contains(&record.len()))
    );
}

fn again(disk: &Simulated, first: &Recovery, records: &Records) {
    let before = disk.files();
    let (log, recovery) = open(disk);
    assert!(disk.files() == before, "opening again changed a file");
    assert_eq!(recovery.truncated_bytes, 0);
    assert_eq!(
        (recovery.records, &recovery.damaged),
        (first.records, &first.damaged)
    );
    assert!(
        read(&log, 0) == *records,
        "opening again found other records"
    );
}

fn goes_on(disk: &Simulated, before: &Records, first: &Recovery) {
    let (mut log, _) = open(disk);
    let next = log.next_index();
    let new: [&[u8]; 2] = [b"one", &[7; 512]];
    let indexes = log
        .append_all(&new)
        .expect("nothing fails unless it is told to");
    assert_eq!(indexes, [next, next + 1]);
    let behind = indexes.into_iter().zip(new.map(<[u8]>::to_vec));
    let all: Records = before.iter().cloned().chain(behind).collect();
    assert!(
        read(&log, 0) == all,
        "not what was there and what was appended"
    );
    drop(log);
    let (mut log, recovery) = open(disk);
    assert!(
        read(&log, 0) == all,
        "not what was there and what was appended"
    );
    assert_eq!(
        (recovery.truncated_bytes, &recovery.damaged),
        (0, &first.damaged)
    );
    log.drop_before(next + 1)
        .expect("nothing fails unless it is told to");
    assert!(read(&log, next + 1) == all[all.len() - 1..]);
}
