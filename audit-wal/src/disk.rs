//! What does the log ask of a file system? A seam, so that tests can fail each call and lose each
//! unsynced byte under the real code, here and in whoever keeps files beside a log; in production it is
//! [`System`] and costs nothing.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{fs::FallocateFlags, io::Errno};

pub trait Disk: Clone + Send {
    type File: DiskFile;

    /// With those above it; durable.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// Files and directories.
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>>;
    fn is_dir(&self, path: &Path) -> bool;
    /// An empty file for writing, in place of one that may be there; nobody else may read it.
    fn create(&self, path: &Path) -> io::Result<Self::File>;
    /// For reading, and for writing if `write`.
    fn open(&self, path: &Path, write: bool) -> io::Result<Self::File>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// With everything in it.
    fn remove_dir(&self, dir: &Path) -> io::Result<()>;
    /// In place of a file that may be there.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Names made and removed in `dir` are durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// A number that nobody can guess. Not of the disk, but a test that repeats needs it to repeat.
    fn random(&self) -> io::Result<u64>;
    /// Since some moment, never backwards; as little of the disk.
    fn now(&self) -> Duration;

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let file = self.open(path, false)?;
        let mut bytes = vec![0; usize::try_from(file.size_bytes()?).unwrap_or(usize::MAX)];
        let mut filled = 0;
        while filled < bytes.len() {
            match file.read_at(&mut bytes[filled..], filled as u64)? {
                0 => break,
                read => filled += read,
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    }

    /// The whole file anew: it has its old content or the new one, and the new one when this returns.
    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let temporary = path.with_extension("new");
        let file = self.create(&temporary)?;
        file.write_at(bytes, 0)?;
        file.sync()?;
        self.rename(&temporary, path)?;
        self.sync_dir(path.parent().unwrap_or(Path::new("/")))
    }
}

pub trait DiskFile: Send {
    fn size_bytes(&self) -> io::Result<u64>;
    /// Space for `bytes` from the start, as zeros where nothing was written. An error leaves the file
    /// as long, and the disk as full, as it was.
    fn allocate(&self, bytes: u64) -> io::Result<()>;
    fn truncate(&self, bytes: u64) -> io::Result<()>;
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Some bytes at `offset`; 0 at the end.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize>;
    /// What was written and allocated is durable.
    fn sync(&self) -> io::Result<()>;
}

/// The operating system's file systems.
#[derive(Debug, Clone, Copy, Default)]
pub struct System;

impl Disk for System {
    type File = File;

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        if dir.is_dir() {
            return Ok(());
        }
        fs::create_dir_all(dir)?;
        // Which of those above it are new is not known, and it happens once.
        for above in dir.ancestors().skip(1).take_while(|path| path.exists()) {
            if let Ok(above) = File::open(above) {
                above.sync_all()?;
            }
        }
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        fs::read_dir(dir)?.map(|e| Ok(e?.path())).collect()
    }

    fn is_dir(&self, path: &Path) -> bool {
        path.is_dir()
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<File> {
        File::options().read(true).write(write).open(path)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        fs::remove_dir_all(dir)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn random(&self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        // Up to 256 bytes come whole.
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn now(&self) -> Duration {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        Duration::new(
            now.tv_sec.unsigned_abs(),
            u32::try_from(now.tv_nsec).unwrap_or_default(),
        )
    }
}

impl DiskFile for File {
    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        let before = self.metadata()?.len();
        match rustix::fs::fallocate(self, FallocateFlags::empty(), 0, bytes) {
            // A file system without it (NFS, ZFS) meets a full disk at the write instead.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            Err(error) => {
                // Some (ext4) keep what they could allocate, which may be all that was left. Without
                // this nothing else is lost, so the first error is the one to tell.
                let _ = self.set_len(before);
                Err(error.into())
            }
            Ok(()) => Ok(()),
        }
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        self.set_len(bytes)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(self, bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}
