//! What is left of a log when its disk has damaged it?
//!
//! Guarantee: everything that [`crate::wal`] says holds; every record that is read was durable once,
//! under its index, with these bytes; every durable record is read that is in a file without damage, or
//! in front of the first damage in its file; without any damage, all are.
//!
//! Input: what was done with the log, then what the disk did: bits flipped, ranges zeroed, moved or
//! gone, files cut or gone, also a range of another file in place of one.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use audit_wal::simulated::Simulated;

use crate::{
    input::Input,
    wal::{self, DIR, OPTIONS, recovers},
};

const MAX_STEPS: u8 = 64;
const MAX_CHANGES: usize = 6;
/// Where frames begin, and what each takes beside its record: of `audit-wal`'s documentation.
const HEADER_BYTES: usize = 4112;
const HEAD_BYTES: usize = 28;
const _: () = assert!(OPTIONS.max_record_bytes >= 511, "so much is appended");

/// What was durable and not removed.
type Promised = BTreeMap<u64, Vec<u8>>;

pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let disk = Simulated::new(0);
    let promised = write(&disk, &mut input);
    let sound = disk.files();
    if input.is_empty() {
        let records: Promised = recovers(&disk).into_iter().collect();
        assert!(
            records == promised,
            "records are not those that were promised"
        );
        return;
    }
    for _ in 0..MAX_CHANGES {
        if !input.is_empty() {
            change(&disk, &mut input);
        }
    }
    let damaged = disk.files();
    let records: Promised = recovers(&disk).into_iter().collect();
    for (index, record) in &records {
        assert_eq!(
            promised.get(index),
            Some(record),
            "record {index} was never promised"
        );
    }
    for index in untouched(&promised, &sound, &damaged) {
        assert!(
            records.contains_key(&index),
            "record {index} was not touched"
        );
    }
}

fn write(disk: &Simulated, input: &mut Input<'_>) -> Promised {
    let mut promised = Promised::new();
    let mut pending = Promised::new();
    let (mut log, _) = wal::open(disk);
    for _ in 0..input.byte() % MAX_STEPS {
        match input.byte() % 16 {
            0..9 => {
                let (length, fill) = (usize::from(input.byte()), input.byte());
                let record = vec![fill; 1 + length * 2];
                let index = log.append(&record).expect("within the limits");
                pending.insert(index, record);
            }
            9..14 => {
                log.sync().expect("nothing fails unless it is told to");
                promised.append(&mut pending);
            }
            14 => {
                drop(log);
                // What was not synced was never promised, and its indexes go to others.
                pending.clear();
                log = wal::open(disk).0;
            }
            _ => {
                let next = log.next_index() as usize;
                let index = input.below(next) as u64;
                log.drop_before(index)
                    .expect("nothing fails unless it is told to");
                promised = promised.split_off(&log.first_index());
            }
        }
    }
    promised
}

fn change(disk: &Simulated, input: &mut Input<'_>) {
    let files: Vec<(PathBuf, Vec<u8>)> = disk.files().into_iter().collect();
    let Some((path, content)) = files.get(input.below(files.len())) else {
        return;
    };
    let mut content = content.clone();
    match input.byte() % 8 {
        0 => {
            let removed = audit_wal::Disk::remove(disk, path);
            removed.expect("it was there");
            return;
        }
        1 => {
            let (_, other) = &files[input.below(files.len())];
            let at = input.below(content.len().min(other.len()));
            let length = input.below(1 << 13);
            let end = content.len().min(other.len()).min(at + length);
            content[at..end].copy_from_slice(&other[at..end]);
        }
        _ => input.damage(&mut content),
    }
    disk.put(path, content);
}

/// The durable records in front of the first byte that is another one now.
fn untouched(
    promised: &Promised,
    sound: &BTreeMap<PathBuf, Vec<u8>>,
    damaged: &BTreeMap<PathBuf, Vec<u8>>,
) -> Vec<u64> {
    let mut found = Vec::new();
    let firsts: Vec<u64> = sound.keys().filter_map(|path| first(path)).collect();
    for (at, first) in firsts.iter().enumerate() {
        let path = Path::new(DIR).join(format!("{first:016x}.seg"));
        let (Some(before), Some(after)) = (sound.get(&path), damaged.get(&path)) else {
            continue;
        };
        let same = before.iter().zip(after).take_while(|(a, b)| a == b).count();
        let limit = firsts.get(at + 1).copied().unwrap_or(u64::MAX);
        let mut end = HEADER_BYTES;
        for (index, record) in promised.range(first..&limit) {
            end += (HEAD_BYTES + record.len()).next_multiple_of(8);
            if end <= same {
                found.push(*index);
            }
        }
    }
    found
}

fn first(path: &Path) -> Option<u64> {
    if path.extension()? != "seg" {
        return None;
    }
    u64::from_str_radix(path.file_stem()?.to_str()?, 16).ok()
}
