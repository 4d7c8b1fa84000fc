//! A disk in memory that fails and loses, by seed. For tests: of the log, and of what is built on it, which
//! is why it is not hidden behind a feature: each choice of features would build everything above anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::{Disk, DiskFile};

/// xorshift64*: a seed is a history.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n
    }

    pub fn once_in(&mut self, n: u64) -> bool {
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

#[derive(Debug, Clone)]
struct State {
    random: Random,
    /// Calls fail once in so many; 0 for never.
    failing: u64,
    files: Vec<Content>,
    /// Names as programs see them, and as they are on the platter.
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    dirs: BTreeSet<PathBuf>,
    now: Duration,
}

/// Clones are the same disk.
#[derive(Debug, Clone)]
pub struct Simulated(Arc<Mutex<State>>);

#[derive(Debug)]
pub struct SimulatedFile {
    disk: Simulated,
    number: usize,
}

/// What a disk had at some moment.
#[derive(Debug, Clone)]
pub struct Image(State);

impl Simulated {
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            random: Random::new(seed),
            failing: 0,
            files: Vec::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            dirs: BTreeSet::new(),
            now: Duration::ZERO,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls fail once in so many; 0 for never.
    pub fn set_failing(&self, once_in: u64) {
        self.state().failing = once_in;
    }

    pub fn set_now(&self, now: Duration) {
        self.state().now = now;
    }

    /// All files, as programs see them.
    pub fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let state = self.state();
        let copy =
            |(path, number): (&PathBuf, &usize)| (path.clone(), state.files[*number].seen.clone());
        state.names.iter().map(copy).collect()
    }

    /// A durable file with this content, in place of one that may be there.
    pub fn put(&self, path: &Path, content: Vec<u8>) {
        let mut state = self.state();
        let number = state.files.len();
        state.files.push(Content {
            durable: content.clone(),
            seen: content,
            unsynced: BTreeSet::new(),
        });
        state.names.insert(path.to_owned(), number);
        state.durable_names.insert(path.to_owned(), number);
    }

    /// An image of what is on the platter.
    pub fn image(&self) -> Image {
        Image(self.state().clone())
    }

    /// As it was then; files that are open are not any more.
    pub fn restore(&self, image: &Image) {
        let mut state = self.state();
        let now = state.now;
        *state = image.0.clone();
        state.now = now;
        for file in &mut state.files {
            file.seen.clone_from(&file.durable);
            file.unsynced.clear();
        }
        state.names = state.durable_names.clone();
    }

    /// One bit of one file turns.
    pub fn flip_bit(&self) {
        let mut state = self.state();
        let numbers: Vec<usize> = state.names.values().copied().collect();
        let number = numbers[state.random.below(numbers.len() as u64) as usize];
        let at = state.files[number].seen.len() as u64;
        let at = state.random.below(at) as usize;
        let bit = 1 << state.random.below(8);
        state.files[number].seen[at] ^= bit;
    }

    /// The power goes: of what was not synced, each sector and each name is there or not.
    pub fn crash(&self) {
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

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.fails()?;
        let all = dir.ancestors().map(Path::to_owned);
        state.dirs.extend(all);
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let state = self.state();
        let all = state.names.keys().chain(&state.dirs);
        let within = all.filter(|path| path.parent() == Some(dir));
        Ok(within.cloned().collect())
    }

    fn is_dir(&self, path: &Path) -> bool {
        self.state().dirs.contains(path)
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

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.fails()?;
        state.names.retain(|path, _| !path.starts_with(dir));
        state.dirs.retain(|path| !path.starts_with(dir));
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.fails()?;
        let number = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(to.to_owned(), number);
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.fails()?;
        let State {
            names,
            durable_names,
            ..
        } = &mut *state;
        durable_names.retain(|path, _| path.parent() != Some(dir));
        let synced = names.iter().filter(|(path, _)| path.parent() == Some(dir));
        durable_names.extend(synced.map(|(path, number)| (path.clone(), *number)));
        Ok(())
    }

    fn random(&self) -> io::Result<u64> {
        let mut state = self.state();
        state.fails()?;
        Ok(state.random.below(1 << 31) << 32 | state.random.below(1 << 31))
    }

    fn now(&self) -> Duration {
        self.state().now
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
        if failed.is_ok() || random.once_in(2) {
            file.durable.resize(file.seen.len(), 0);
        }
        for sector in std::mem::take(&mut file.unsynced) {
            let range = file.sector(sector);
            // A failed sync forgets what it did not write: a second one would succeed falsely.
            if (failed.is_ok() || random.once_in(2)) && range.end <= file.durable.len() {
                file.durable[range.clone()].copy_from_slice(&file.seen[range]);
            }
        }
        failed
    }
}
