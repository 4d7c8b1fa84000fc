//! After a crash: which lines are in the file beyond those that the state file vouches for?
//!
//! What was written after the last sync may be whole (the process was killed), or cut, or nothing but
//! zeros (the host lost power). A line counts when it is JSON and its cursor is beyond that of the
//! line before; the file is cut behind the last that counts, and the rest is written again.

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Seek as _, SeekFrom},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::line_file::State;

/// `None` before the first start. A damaged one is an error: without it lines would be double.
pub fn load(path: &Path) -> io::Result<Option<State>> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    serde_json::from_slice(&text).map(Some).map_err(|error| {
        io::Error::other(format!(
            "damaged ({error}); remove it, and the file goes on from the present"
        ))
    })
}

/// Up to which cursor everything is on disk. Looks for the file of the state, which may have been
/// renamed since, and cuts what is not whole.
pub fn check(state: &State, path: &Path) -> io::Result<i64> {
    let mut places = beside(&state.path)?;
    places.extend([state.path.clone(), path.to_path_buf()]);
    for place in places {
        let Ok(metadata) = fs::metadata(&place) else {
            continue;
        };
        if (metadata.dev(), metadata.ino()) == (state.device, state.inode) {
            return check_lines(state, &place, metadata.len());
        }
    }
    // It was removed or compressed: what it held beyond the state cannot be known.
    Ok(state.cursor)
}

fn check_lines(state: &State, place: &Path, bytes: u64) -> io::Result<i64> {
    // Shorter than it was: another program has cut it, and lines were appended since.
    let from = if bytes < state.bytes { 0 } else { state.bytes };
    let mut last = (from > 0).then_some(state.cursor);
    let file = File::options().read(true).write(true).open(place)?;
    let mut reader = BufReader::new(&file);
    reader.seek(SeekFrom::Start(from))?;
    let mut end = from;
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line)?;
        let Some(cursor) = cursor(&line).filter(|cursor| last.is_none_or(|last| *cursor > last))
        else {
            break;
        };
        last = Some(cursor);
        end += read as u64;
    }
    if end < bytes {
        let cut = bytes - end;
        tracing::warn!(path = %place.display(), bytes = cut, "cut what a crash left behind whole lines");
        file.set_len(end)?;
    }
    file.sync_all()?;
    Ok(state.cursor.max(last.unwrap_or(state.cursor)))
}

/// Of a whole line; its last member.
fn cursor(line: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(line.strip_suffix(b"\n")?).ok()?;
    let (_, cursor) = text.strip_suffix("\"}")?.rsplit_once("\"cursor\":\"")?;
    serde_json::from_str::<serde::de::IgnoredAny>(text).ok()?;
    cursor.parse().ok()
}

/// The files whose names begin with that of `path`.
pub fn beside(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(Vec::new());
    };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let name = name.as_encoded_bytes();
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(name) {
            found.push(entry.path());
        }
    }
    Ok(found)
}
