//! How are keys, certificates and lists kept? Whole or not at all, for their owner.
//!
//! A file belongs to whoever owns its directory: root may issue into a directory of the collector's
//! user, who can read what is there afterwards.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, fchown},
    path::{Path, PathBuf},
};

/// Credentials are some KiB; a revocation list of a hundred thousand hosts is 4 MiB.
const MAX_BYTES: u64 = 16 << 20;

#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", path.display())]
pub struct FileError {
    pub path: PathBuf,
    #[source]
    pub source: io::Error,
}

fn failed(path: &Path) -> impl Fn(io::Error) -> FileError {
    let path = path.to_owned();
    move |source| FileError {
        path: path.clone(),
        source,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum For {
    Owner,
    Everybody,
}

/// Replaces the file at once, also when the power fails.
pub fn write(path: &Path, content: &[u8], readers: For) -> Result<(), FileError> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let new = path.with_extension("new");
    let written = || {
        let _ = fs::remove_file(&new);
        let mode = match readers {
            For::Owner => 0o600,
            For::Everybody => 0o644,
        };
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(mode).open(&new)?;
        belongs(&file, directory)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        fs::File::open(directory)?.sync_all()
    };
    written().map_err(failed(path))
}

/// Opens the file for a lock, made where it is not there yet.
pub fn lock(path: &Path) -> Result<fs::File, FileError> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let locked = || {
        let mut options = fs::OpenOptions::new();
        let options = options.write(true).create(true).truncate(false);
        let file = options.mode(0o600).open(path)?;
        belongs(&file, directory)?;
        file.lock()?;
        Ok(file)
    };
    locked().map_err(failed(path))
}

fn belongs(file: &fs::File, directory: &Path) -> io::Result<()> {
    let (own, owner) = (file.metadata()?, fs::metadata(directory)?);
    // Another user than root is not allowed to.
    if own.uid() == 0 && owner.uid() != 0 {
        fchown(file, Some(owner.uid()), Some(owner.gid()))?;
    }
    Ok(())
}

/// A directory that only its owner can enter; what is there already keeps its mode.
pub fn directory(path: &Path) -> Result<(), FileError> {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let made = || {
        if path.is_dir() {
            return Ok(());
        }
        if let Some(parent) = parent {
            fs::create_dir_all(parent)?;
        }
        fs::DirBuilder::new().mode(0o700).create(path)?;
        let directory = fs::File::open(path)?;
        parent.map_or(Ok(()), |parent| belongs(&directory, parent))
    };
    made().map_err(failed(path))
}

pub fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    let content = || {
        let bytes = fs::metadata(path)?.len();
        if bytes > MAX_BYTES {
            return Err(io::Error::other(format!(
                "{bytes} bytes long, more than {MAX_BYTES}; is it the right file?"
            )));
        }
        fs::read(path)
    };
    content().map_err(failed(path))
}

/// Changes when a file is replaced or written, also behind a link that is (as in Kubernetes).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp(Option<(u64, u64, i64, i64, u64)>);

impl Stamp {
    pub fn of(path: &Path) -> Self {
        let found = fs::metadata(path).ok();
        Self(found.map(|m| (m.dev(), m.ino(), m.mtime(), m.mtime_nsec(), m.size())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_file_is_for_its_owner_and_replacing_it_changes_its_stamp() {
        let dir = tempfile::tempdir().expect("tempdir");
        let below = dir.path().join("a/b");
        directory(&below).expect("made");
        directory(&below).expect("there");
        assert_eq!(fs::metadata(&below).expect("dir").mode() & 0o777, 0o700);
        let path = below.join("key.pem");
        let none = Stamp::of(&path);
        write(&path, b"one", For::Owner).expect("written");
        assert_eq!(fs::metadata(&path).expect("file").mode() & 0o777, 0o600);
        let first = Stamp::of(&path);
        write(&path, b"two", For::Owner).expect("written");
        assert!(first != none && Stamp::of(&path) != first);
        assert_eq!(read(&path).expect("read"), b"two");
        let error = read(&below.join("no")).expect_err("none");
        assert!(error.to_string().contains("a/b/no"), "{error}");
    }
}
