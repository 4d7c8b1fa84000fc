//! How many lines of a growing file say something? Each is read once.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

pub struct Tally {
    path: PathBuf,
    text: String,
    line: fn(&str) -> bool,
    read_bytes: u64,
    found: i64,
}

impl Tally {
    /// Of lines that contain `text` and that `line` accepts.
    pub fn new(path: &Path, text: String, line: fn(&str) -> bool) -> Self {
        Self {
            path: path.to_owned(),
            text,
            line,
            read_bytes: 0,
            found: 0,
        }
    }

    /// Since the beginning of the file. A line that is not complete counts next time.
    pub fn count(&mut self) -> Result<i64> {
        let mut file = File::open(&self.path)
            .with_context(|| format!("cannot read {}", self.path.display()))?;
        file.seek(SeekFrom::Start(self.read_bytes))?;
        let mut reader = BufReader::with_capacity(1 << 20, file);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line)? > 0 && line.ends_with(b"\n") {
            self.read_bytes += line.len() as u64;
            let text = String::from_utf8_lossy(&line);
            self.found += i64::from((self.line)(&text) && text.contains(&self.text));
            line.clear();
        }
        Ok(self.found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn every_line_counts_once_and_only_when_it_is_complete() {
        let mut file = tempfile::NamedTempFile::new().expect("file");
        let line = |text: &str| text.starts_with("open ");
        let mut tally = Tally::new(file.path(), "/x".to_owned(), line);
        file.write_all(b"open /x\nopen /y\nread /x\nopen /x")
            .expect("write");
        assert_eq!(tally.count().expect("count"), 1);
        file.write_all(b"\nopen /x\n").expect("write");
        assert_eq!(tally.count().expect("count"), 3);
        assert_eq!(tally.count().expect("count"), 3);
    }
}
