//! A file of lines, each with its cursor, that is rotated and of which no crash leaves a line missing
//! or double.
//!
//! Invariants:
//! * A state file says up to which cursor everything is on disk, in which file (by inode) and up to
//!   which byte. It is written after those lines were synced. What the file has beyond that byte is
//!   checked at start (`resume`): whole lines count, the rest is cut.
//! * A write that fails is taken back before it is tried again.
//! * Rotation renames to `PATH.CURSOR`, where everything up to the cursor is in that file or an
//!   earlier one. The state that names the new file is written after it exists.
//! * Another program may rename or remove the file: it is looked at before each write.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use super::resume;
use crate::{
    config,
    store::{replace_file, sync_parent},
};

/// How often lines are synced while they flow; what is checked line by line after a crash.
const SYNC_EVERY: Duration = Duration::from_secs(1);
/// Of the cursor in a rotated file's name: as many as the largest has, so that names sort.
const CURSOR_DIGITS: usize = 19;

#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", path.display())]
pub struct FileError {
    path: PathBuf,
    source: io::Error,
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_path_buf();
    move |source| FileError { path, source }
}

/// One event, without its line feed.
#[derive(Debug)]
pub struct Line {
    pub cursor: i64,
    pub text: String,
}

/// Up to where everything is on disk, and in which file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    pub cursor: i64,
    pub path: PathBuf,
    pub device: u64,
    pub inode: u64,
    pub bytes: u64,
    /// When the file's first line was written, seconds since the Unix epoch; 0 before.
    pub began: u64,
}

struct Opened {
    file: File,
    device: u64,
    inode: u64,
    /// Written, as far as is known.
    bytes: u64,
    began: u64,
}

pub struct LineFile {
    path: PathBuf,
    max_bytes: u64,
    max_files: usize,
    max_age_s: u64,
    state_path: PathBuf,
    /// Everything up to here is in the file, or was passed over.
    cursor: i64,
    saved: State,
    synced: Instant,
    opened: Option<Opened>,
}

impl LineFile {
    /// A new one begins at the present.
    pub fn new(config: &config::EventsFile, state_path: PathBuf, present: i64) -> Self {
        Self {
            path: config.path.clone(),
            max_bytes: config.max_bytes,
            max_files: config.max_files,
            max_age_s: config.max_age_s,
            state_path,
            cursor: present,
            saved: State::default(),
            synced: Instant::now(),
            opened: None,
        }
    }

    pub fn cursor(&self) -> i64 {
        self.cursor
    }

    /// There is nothing to write up to here.
    pub fn passed(&mut self, cursor: i64) {
        self.cursor = self.cursor.max(cursor);
    }

    /// Finds out what is on disk already. Before anything else.
    pub fn recover(&mut self) -> Result<(), FileError> {
        let state = resume::load(&self.state_path).map_err(failed(&self.state_path))?;
        if let Some(state) = state {
            self.cursor = resume::check(&state, &self.path).map_err(failed(&self.path))?;
            self.saved = state;
        }
        self.open()
    }

    /// Appends the lines beyond the cursor. After an error some may be there, whole; try again with
    /// the same.
    pub fn append(&mut self, lines: &[Line]) -> Result<(), FileError> {
        let before = self.cursor;
        let mut lines = lines.iter().filter(|l| l.cursor > before).peekable();
        if lines.peek().is_none() {
            return Ok(());
        }
        self.look()?;
        let (mut buffer, mut reached, mut bytes) = (String::new(), before, self.bytes());
        for line in lines {
            let line_bytes = line.text.len() as u64 + 1;
            if bytes > 0 && bytes + line_bytes > self.max_bytes {
                self.write(&buffer, reached)?;
                buffer.clear();
                self.rotate()?;
                bytes = 0;
            }
            buffer.push_str(&line.text);
            buffer.push('\n');
            bytes += line_bytes;
            reached = line.cursor;
        }
        self.write(&buffer, reached)
    }

    fn bytes(&self) -> u64 {
        self.opened.as_ref().map_or(0, |opened| opened.bytes)
    }

    /// Syncs and rotates where it is time to.
    pub fn tend(&mut self) -> Result<(), FileError> {
        let began = self.opened.as_ref().map_or(0, |opened| opened.began);
        let age_s = now_s().saturating_sub(began);
        if began > 0 && self.max_age_s > 0 && age_s >= self.max_age_s {
            self.rotate()?;
        }
        if self.synced.elapsed() >= SYNC_EVERY {
            self.sync()?;
        }
        Ok(())
    }

    /// Everything up to the cursor is on disk afterwards.
    pub fn sync(&mut self) -> Result<(), FileError> {
        let Some(opened) = &self.opened else {
            return Ok(());
        };
        let state = State {
            cursor: self.cursor,
            path: self.path.clone(),
            device: opened.device,
            inode: opened.inode,
            bytes: opened.bytes,
            began: opened.began,
        };
        if state == self.saved {
            self.synced = Instant::now();
            return Ok(());
        }
        opened.file.sync_data().map_err(failed(&self.path))?;
        let text = serde_json::to_vec(&state).map_err(io::Error::other);
        text.and_then(|text| replace_file(&self.state_path, &text))
            .map_err(failed(&self.state_path))?;
        self.saved = state;
        self.synced = Instant::now();
        Ok(())
    }

    /// Makes sure that the file at the path is the opened one, ends where the last whole write did,
    /// and is known to the state.
    fn look(&mut self) -> Result<(), FileError> {
        let there = match fs::metadata(&self.path) {
            Ok(there) => Some((there.dev(), there.ino(), there.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed(&self.path)(error)),
        };
        if let (Some(opened), Some((device, inode, bytes))) = (&mut self.opened, there)
            && (opened.device, opened.inode) == (device, inode)
        {
            if bytes > opened.bytes {
                let cut = opened.file.set_len(opened.bytes);
                cut.map_err(failed(&self.path))?;
            }
            // Shorter: another program has cut it.
            opened.bytes = opened.bytes.min(bytes);
            return match (self.saved.device, self.saved.inode) == (device, inode) {
                true => Ok(()),
                false => self.sync(),
            };
        }
        self.sync()?;
        self.opened = None;
        self.open()
    }

    fn open(&mut self) -> Result<(), FileError> {
        let file = File::options()
            .create(true)
            .append(true)
            .read(true)
            .mode(0o600)
            .open(&self.path)
            .map_err(failed(&self.path))?;
        let (metadata, bytes) = file
            .metadata()
            .and_then(|found| Ok((found.clone(), end_line(&file, found.len())?)))
            .map_err(failed(&self.path))?;
        sync_parent(&self.path).map_err(failed(&self.path))?;
        let known = (self.saved.device, self.saved.inode) == (metadata.dev(), metadata.ino());
        self.opened = Some(Opened {
            file,
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes,
            began: match (bytes, known) {
                (0, _) => 0,
                (_, true) => self.saved.began,
                (_, false) => now_s(),
            },
        });
        self.sync()
    }

    fn write(&mut self, text: &str, reached: i64) -> Result<(), FileError> {
        if text.is_empty() {
            return Ok(());
        }
        self.look()?;
        let Some(opened) = &mut self.opened else {
            return Ok(());
        };
        if let Err(error) = opened.file.write_all(text.as_bytes()) {
            // Half a line should not stay for those who read along. Where this fails, the next look
            // does it.
            let _ = opened.file.set_len(opened.bytes);
            return Err(failed(&self.path)(error));
        }
        opened.bytes += text.len() as u64;
        if opened.began == 0 {
            opened.began = now_s();
        }
        self.cursor = reached;
        Ok(())
    }

    fn rotate(&mut self) -> Result<(), FileError> {
        self.look()?;
        if self.bytes() == 0 {
            return Ok(());
        }
        self.sync()?;
        let to = rotated(&self.path, self.cursor);
        if to.exists() {
            let message = "is there already; move it away";
            return Err(failed(&to)(io::Error::other(message)));
        }
        fs::rename(&self.path, &to).map_err(failed(&self.path))?;
        self.opened = None;
        self.open()?;
        self.prune()
    }

    /// Deletes the oldest rotated files beyond those that are kept.
    fn prune(&self) -> Result<(), FileError> {
        let mut files = rotated_files(&self.path).map_err(failed(&self.path))?;
        let beyond = match self.max_files {
            0 => 0,
            kept => files.len().saturating_sub(kept),
        };
        for path in files.drain(..beyond) {
            fs::remove_file(&path).map_err(failed(&path))?;
        }
        Ok(())
    }
}

fn now_s() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
}

/// Ends what someone else left as half a line; the length afterwards.
fn end_line(mut file: &File, bytes: u64) -> io::Result<u64> {
    let mut last = [b'\n'];
    if bytes > 0 {
        file.read_exact_at(&mut last, bytes - 1)?;
    }
    if last == [b'\n'] {
        return Ok(bytes);
    }
    file.write_all(b"\n")?;
    Ok(bytes + 1)
}

fn rotated(path: &Path, cursor: i64) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{cursor:0CURSOR_DIGITS$}"));
    name.into()
}

/// Files that rotation left beside `path`, the oldest first. By time first, as the cursors of another
/// collector's files say nothing here.
fn rotated_files(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for beside in resume::beside(path)? {
        let name = beside.as_os_str().to_string_lossy().into_owned();
        let cursor = name.strip_prefix(&*path.to_string_lossy());
        let cursor = cursor.and_then(|rest| rest.strip_prefix('.'));
        let digits = |text: &str| text.len() == CURSOR_DIGITS && text.parse::<u64>().is_ok();
        if cursor.is_some_and(digits) {
            files.push((fs::metadata(&beside)?.modified()?, beside));
        }
    }
    files.sort();
    Ok(files.into_iter().map(|(_, path)| path).collect())
}

#[cfg(test)]
mod tests;
