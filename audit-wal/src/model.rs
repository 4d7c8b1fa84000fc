//! What remains when the disk fails and the power goes? The real log on a disk in memory that does
//! both, by seed, against a model that only remembers what was promised.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use crate::{
    Log, Options, WalError, header,
    simulated::{Random, Simulated},
};

/// What the log promised.
#[derive(Default)]
struct Model {
    /// By index, what `sync` confirmed.
    promised: BTreeMap<u64, Vec<u8>>,
    /// What was appended under an index and may be there.
    appended: BTreeMap<u64, BTreeSet<Vec<u8>>>,
}

const DIR: &str = "/log";

fn options() -> Options {
    Options {
        segment_bytes: header::BYTES as u64 + 600,
        max_record_bytes: 300,
    }
}

fn reopened(disk: &Simulated) -> (Log<Simulated>, crate::Recovery) {
    disk.set_failing(0);
    Log::open_on(disk.clone(), Path::new(DIR), options()).expect("a sound disk opens")
}

impl Model {
    fn verify(&mut self, log: &Log<Simulated>, seed: u64) {
        let first = log.first_index();
        let found: BTreeMap<u64, Vec<u8>> = log
            .read_from(0)
            .expect("reader")
            .collect::<Result<_, WalError>>()
            .expect("reads");
        for (index, record) in self.promised.range(first..) {
            assert_eq!(
                found.get(index),
                Some(record),
                "seed {seed}: record {index}"
            );
        }
        for (index, record) in &found {
            let known = self.appended.get(index);
            assert!(
                known.is_some_and(|known| known.contains(record)),
                "seed {seed}: record {index} was never appended"
            );
        }
        // What is there after a crash stays.
        self.promised.extend(found);
    }
}

fn some_record(random: &mut Random, serial: &mut u64) -> Vec<u8> {
    *serial += 1;
    let length = 8 + random.below(200) as usize;
    let mut record = serial.to_le_bytes().to_vec();
    record.resize(length, *serial as u8);
    record
}

fn history(seed: u64) {
    let mut random = Random::new(seed.wrapping_add(77));
    let disk = Simulated::new(seed);
    let mut model = Model::default();
    let mut serial = 0;
    for _ in 0..4 {
        let (mut log, recovery) = reopened(&disk);
        assert_eq!(recovery.damaged, [], "seed {seed}: a crash is no damage");
        model.verify(&log, seed);
        disk.set_failing([0, 6, 20][random.below(3) as usize]);
        for _ in 0..random.below(25) {
            let mut group = Vec::new();
            for _ in 0..random.below(4) {
                let record = some_record(&mut random, &mut serial);
                let index = log.append(&record).expect("of a right size");
                model
                    .appended
                    .entry(index)
                    .or_default()
                    .insert(record.clone());
                group.push((index, record));
            }
            if log.sync().is_ok() {
                if !group.is_empty() {
                    // What was refused before may not come back behind it.
                    model.appended.split_off(&log.next_index());
                }
                model.promised.extend(group);
            }
            if random.once_in(6) {
                let _ = log.drop_before(random.below(log.next_index() + 1));
            }
        }
        if random.once_in(3) {
            disk.set_failing(0);
            model.verify(&log, seed);
        }
        drop(log);
        if random.once_in(4) {
            continue; // only the process ends
        }
        disk.crash();
    }
    let (log, _) = reopened(&disk);
    model.verify(&log, seed);
}

#[test]
fn what_sync_returned_survives_failing_disks_and_crashes() {
    for seed in 0..5000 {
        history(seed);
    }
}

/// One bit of one file turns: whatever else was durable is served, and the loss is told.
#[test]
fn a_flipped_bit_costs_one_record_and_is_told() {
    for seed in 0..2000 {
        let mut random = Random::new(seed);
        let disk = Simulated::new(seed);
        let (mut log, _) = reopened(&disk);
        let mut serial = 0;
        let last = 10 + random.below(20);
        for _ in 0..last {
            log.append(&some_record(&mut random, &mut serial))
                .expect("append");
            log.sync().expect("sync");
        }
        let before: BTreeMap<u64, Vec<u8>> = log
            .read_from(0)
            .expect("reader")
            .map(|r| r.expect("reads"))
            .collect();
        drop(log);
        disk.flip_bit();
        let (log, recovery) = reopened(&disk);
        let after: BTreeMap<u64, Vec<u8>> = log
            .read_from(0)
            .expect("reader")
            .map(|r| r.expect("reads"))
            .collect();
        let gone: Vec<&u64> = before.keys().filter(|i| !after.contains_key(i)).collect();
        assert!(
            after
                .iter()
                .all(|(index, record)| before.get(index) == Some(record)),
            "seed {seed}"
        );
        match gone.as_slice() {
            [] => {}
            [index] => {
                let told = recovery
                    .damaged
                    .iter()
                    .any(|d| (d.first_index..=d.last_index).contains(index));
                let cut = **index == last && recovery.truncated_bytes > 0;
                assert!(told || cut, "seed {seed}: {index} of {last}: {recovery:?}");
            }
            more => panic!("seed {seed}: {more:?} of {last} are gone: {recovery:?}"),
        }
    }
}
