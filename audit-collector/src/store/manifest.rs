//! What the table consists of, and how far each stream has come: the one file that decides.
//!
//! `manifest.json` is replaced by rename, so a crash leaves the old or the new one. A Parquet file
//! that it does not name is the remains of an unfinished compaction and is deleted at start. Stream
//! cursors are those of WAL records up to `compacted_through`; later ones are read from the WAL.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::streams::StreamState;

pub const FILE_NAME: &str = "manifest.json";
const VERSION: u32 = 1;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub version: u32,
    /// Every WAL record up to this one is in `files`.
    pub compacted_through: u64,
    pub events: i64,
    pub batches: i64,
    pub files: Vec<TableFile>,
    pub streams: Vec<StreamState>,
}

/// One Parquet file, with what a query needs to leave it out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableFile {
    /// Below the data directory.
    pub path: String,
    pub bytes: u64,
    pub rows: u64,
    pub batches: u64,
    pub first_position: i64,
    pub last_position: i64,
    pub first_time: i64,
    pub last_time: i64,
}

#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{}: damaged ({reason}); restore it from a backup, or move the data directory away to start \
         an empty one",
        path.display()
    )]
    Damaged { path: PathBuf, reason: String },
}

/// Writes `bytes` so that after a crash the file is the old or the new one.
pub fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    sync_parent(path)
}

pub fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

impl Manifest {
    pub fn load(data_dir: &Path) -> Result<Self, ManifestError> {
        let path = data_dir.join(FILE_NAME);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self {
                    version: VERSION,
                    ..Self::default()
                });
            }
            Err(source) => return Err(ManifestError::Io { path, source }),
        };
        let damaged = |reason: String| ManifestError::Damaged {
            path: path.clone(),
            reason,
        };
        let manifest: Self =
            serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        if manifest.version != VERSION {
            let reason = format!("version {} is not {VERSION}", manifest.version);
            return Err(damaged(reason));
        }
        Ok(manifest)
    }

    pub fn save(&self, data_dir: &Path) -> io::Result<()> {
        let bytes = serde_json::to_vec_pretty(self).map_err(io::Error::other)?;
        replace_file(&data_dir.join(FILE_NAME), &bytes)
    }

    /// Deletes what an unfinished compaction left; returns what was deleted.
    pub fn delete_orphans(&self, data_dir: &Path) -> io::Result<Vec<PathBuf>> {
        let events = data_dir.join("events");
        let mut deleted = Vec::new();
        for day in fs::read_dir(&events)? {
            let day = day?.path();
            if !day.is_dir() {
                continue;
            }
            for file in fs::read_dir(&day)? {
                let path = file?.path();
                let parquet = path.with_extension("parquet");
                let known = parquet
                    .strip_prefix(data_dir)
                    .ok()
                    .and_then(Path::to_str)
                    .is_some_and(|name| self.files.iter().any(|f| f.path == name));
                let temporary = path.extension().is_some_and(|e| e == "new");
                if temporary || !known {
                    fs::remove_file(&path)?;
                    deleted.push(path);
                }
            }
        }
        Ok(deleted)
    }
}
