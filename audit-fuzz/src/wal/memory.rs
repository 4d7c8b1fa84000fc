//! Where are the files of a log that is tried a thousand times a second? In memory.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use audit_wal::{Disk, DiskFile};

type Content = Arc<Mutex<Vec<u8>>>;

/// A disk that never fails; what is written is there.
#[derive(Debug, Clone, Default)]
pub struct Memory(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<PathBuf, Content>,
    random: u64,
}

#[derive(Debug)]
pub struct MemoryFile(Content);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Memory {
    /// All there is, as it is now.
    pub fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let state = lock(&self.0);
        let copy = |(path, content): (&PathBuf, &Content)| (path.clone(), lock(content).clone());
        state.files.iter().map(copy).collect()
    }

    /// A file with this content, in place of one that may be there.
    pub fn put(&self, path: &Path, content: Vec<u8>) {
        let content = Arc::new(Mutex::new(content));
        lock(&self.0).files.insert(path.to_owned(), content);
    }
}

impl Disk for Memory {
    type File = MemoryFile;

    fn create_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let state = lock(&self.0);
        let within = state.files.keys().filter(|path| path.parent() == Some(dir));
        Ok(within.cloned().collect())
    }

    fn create(&self, path: &Path) -> io::Result<MemoryFile> {
        self.put(path, Vec::new());
        self.open(path, true)
    }

    fn open(&self, path: &Path, _: bool) -> io::Result<MemoryFile> {
        let found = lock(&self.0).files.get(path).cloned();
        found.map(MemoryFile).ok_or(io::ErrorKind::NotFound.into())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let found = lock(&self.0).files.remove(path);
        found.map(drop).ok_or(io::ErrorKind::NotFound.into())
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    /// Not to be guessed by what repeats it; never the same twice.
    fn is_dir(&self, _: &Path) -> bool {
        false
    }

    fn remove_dir(&self, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn now(&self) -> std::time::Duration {
        std::time::Duration::ZERO
    }

    fn random(&self) -> io::Result<u64> {
        let mut state = lock(&self.0);
        state.random += 1;
        Ok(state.random.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }
}

impl DiskFile for MemoryFile {
    fn size_bytes(&self) -> io::Result<u64> {
        Ok(lock(&self.0).len() as u64)
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        let mut content = lock(&self.0);
        let size = content.len().max(bytes as usize);
        content.resize(size, 0);
        Ok(())
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        lock(&self.0).resize(bytes as usize, 0);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut content = lock(&self.0);
        let (start, end) = (offset as usize, offset as usize + bytes.len());
        if content.len() < end {
            content.resize(end, 0);
        }
        content[start..end].copy_from_slice(bytes);
        Ok(())
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let content = lock(&self.0);
        let rest = content.get(offset as usize..).unwrap_or_default();
        let read = rest.len().min(bytes.len());
        bytes[..read].copy_from_slice(&rest[..read]);
        Ok(read)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}
