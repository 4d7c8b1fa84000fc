//! What remains when the disk fails and the power goes? The real log on a disk in memory that does
//! both, by seed, against a model that only remembers what was promised.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use crate::{Disk, DiskFile, Log, Options, WalError, header};

/// xorshift64*: a seed is a history.
#[derive(Debug, Clone)]
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n
    }

    fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

const SECTOR: usize = 64;

/// A file as programs see it, and as it is on the platter.
#[derive(Debug, Default, Clone)]
struct Content {
    seen: Vec<u8>,
    durable: Vec<u8>,
    unsynced: BTreeSet<usize>,
}

impl Content {
    fn sector(&self, number: usize) -> std::ops::Range<usize> {
        let end = self.seen.len();
        (number * SECTOR).min(end)..((number + 1) * SECTOR).min(end)
    }
}

#[derive(Debug)]
struct State {
    random: Random,
    /// Calls fail once in so many; 0 for never.
    failing: u64,
    files: Vec<Content>,
    /// Names as programs see them, and as they are on the platter.
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
}

#[derive(Debug, Clone)]
struct Simulated(Arc<Mutex<State>>);

struct SimulatedFile {
    disk: Simulated,
    number: usize,
}

impl Simulated {
    fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            random: Random::new(seed),
            failing: 0,
            files: Vec::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no test panics while it holds this")
    }

    /// The power goes: of what was not synced, each sector and each name is there or not.
    fn crash(&self) {
        let mut state = self.state();
        let State {
            random,
            files,
            names,
            durable_names,
            ..
        } = &mut *state;
        for file in files.iter_mut() {
            if file.seen.len() != file.durable.len() && random.once_in(2) {
                file.durable.resize(file.seen.len(), 0);
            }
            for sector in std::mem::take(&mut file.unsynced) {
                let range = file.sector(sector);
                if random.once_in(2) && range.end <= file.durable.len() {
                    file.durable[range.clone()].copy_from_slice(&file.seen[range]);
                }
            }
            file.seen.clone_from(&file.durable);
        }
        let all: BTreeSet<PathBuf> = names.keys().chain(durable_names.keys()).cloned().collect();
        for path in all {
            let (new, old) = (names.get(&path), durable_names.get(&path));
            if new != old {
                let kept = if random.once_in(2) { new } else { old }.copied();
                match kept {
                    Some(file) => durable_names.insert(path, file),
                    None => durable_names.remove(&path),
                };
            }
        }
        names.clone_from(durable_names);
    }
}

impl State {
    fn fails(&mut self) -> io::Result<()> {
        if self.failing == 0 || !self.random.once_in(self.failing) {
            return Ok(());
        }
        Err(match self.random.below(2) {
            0 => io::ErrorKind::StorageFull.into(),
            _ => io::Error::from_raw_os_error(5),
        })
    }

    fn write(&mut self, number: usize, bytes: &[u8], offset: usize) {
        let file = &mut self.files[number];
        if file.seen.len() < offset + bytes.len() {
            file.seen.resize(offset + bytes.len(), 0);
        }
        file.seen[offset..offset + bytes.len()].copy_from_slice(bytes);
        if !bytes.is_empty() {
            let sectors = offset / SECTOR..=(offset + bytes.len() - 1) / SECTOR;
            file.unsynced.extend(sectors);
        }
    }
}

impl Disk for Simulated {
    type File = SimulatedFile;

    fn create_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, _: &Path) -> io::Result<Vec<PathBuf>> {
        Ok(self.state().names.keys().cloned().collect())
    }

    fn create(&self, path: &Path) -> io::Result<SimulatedFile> {
        let mut state = self.state();
        state.fails()?;
        // A file that is cut to nothing is as good as a new one of its name.
        let number = state.files.len();
        state.files.push(Content::default());
        state.names.insert(path.to_owned(), number);
        Ok(SimulatedFile {
            disk: self.clone(),
            number,
        })
    }

    fn open(&self, path: &Path, _: bool) -> io::Result<SimulatedFile> {
        let number = self.state().names.get(path).copied();
        Ok(SimulatedFile {
            disk: self.clone(),
            number: number.ok_or(io::ErrorKind::NotFound)?,
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.fails()?;
        state.names.remove(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(())
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.fails()?;
        state.durable_names = state.names.clone();
        Ok(())
    }

    fn random(&self) -> io::Result<u64> {
        let mut state = self.state();
        state.fails()?;
        Ok(state.random.below(1 << 31) << 32 | state.random.below(1 << 31))
    }
}

impl DiskFile for SimulatedFile {
    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.disk.state().files[self.number].seen.len() as u64)
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.fails()?;
        let file = &mut state.files[self.number];
        let bytes = (bytes as usize).max(file.seen.len());
        file.seen.resize(bytes, 0);
        Ok(())
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.fails()?;
        let file = &mut state.files[self.number];
        // Should it grow again, what was there must not come back.
        let gone = bytes as usize / SECTOR..file.seen.len().div_ceil(SECTOR);
        file.unsynced.extend(gone);
        file.seen.truncate(bytes as usize);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        if let Err(error) = state.fails() {
            // A short write: some of it is there.
            let part = state.random.below(bytes.len() as u64 + 1) as usize;
            state.write(self.number, &bytes[..part], offset as usize);
            return Err(error);
        }
        state.write(self.number, bytes, offset as usize);
        Ok(())
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.disk.state();
        let file = &state.files[self.number].seen;
        let rest = file.get(offset as usize..).unwrap_or_default();
        let read = rest.len().min(bytes.len());
        bytes[..read].copy_from_slice(&rest[..read]);
        // Short reads are normal.
        let short = 1 + state.random.below(read.max(1) as u64) as usize;
        Ok(if read > 0 { short.min(read) } else { 0 })
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        let failed = state.fails();
        let State { random, files, .. } = &mut *state;
        let file = &mut files[self.number];
        let (length, seen) = (file.seen.len(), file.seen.clone());
        if failed.is_ok() || random.once_in(2) {
            file.durable.resize(length, 0);
        }
        for sector in std::mem::take(&mut file.unsynced) {
            let range = file.sector(sector);
            // A failed sync forgets what it did not write: a second one would succeed falsely.
            if (failed.is_ok() || random.once_in(2)) && range.end <= file.durable.len() {
                file.durable[range.clone()].copy_from_slice(&seen[range]);
            }
        }
        failed
    }
}

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
    disk.state().failing = 0;
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
        disk.state().failing = [0, 6, 20][random.below(3) as usize];
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
            disk.state().failing = 0;
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
        {
            let mut state = disk.state();
            let numbers: Vec<usize> = state.names.values().copied().collect();
            let number = numbers[random.below(numbers.len() as u64) as usize];
            let bytes = &mut state.files[number].seen;
            let at = random.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << random.below(8);
        }
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
