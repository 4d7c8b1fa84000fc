//! Which YAML documents do the given paths hold, and where do they begin?
//!
//! A folder stands for the `.yml` and `.yaml` files under it, in order of name, without folders
//! called `tests`: those hold samples ([`crate::samples`]).

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::report::Broken;

/// A rule file is a few KB; more than this is something else by mistake.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Folders in folders; ends a loop of symbolic links.
const MAX_DEPTH: usize = 16;
/// Where samples live.
pub const TESTS: &str = "tests";

/// The text of one rule file.
#[derive(Debug, Clone)]
pub struct Source {
    pub file: PathBuf,
    pub text: String,
}

/// One YAML document of a file.
pub struct Document<'a> {
    /// Line number of its first line, from 1.
    pub line: usize,
    pub text: &'a str,
}

/// Reads all rule files under `paths`; what cannot be read goes to `broken`.
pub fn read<P: AsRef<Path>>(paths: &[P], broken: &mut Vec<Broken>) -> Vec<Source> {
    let mut sources = Vec::new();
    for path in paths {
        let mut files = Vec::new();
        find(path.as_ref(), 0, &mut files, broken);
        for file in files {
            match read_bounded(&file) {
                Ok(text) => sources.push(Source { file, text }),
                Err(error) => unreadable(&file, &error, broken),
            }
        }
    }
    sources
}

fn unreadable(path: &Path, error: &io::Error, broken: &mut Vec<Broken>) {
    broken.push(Broken {
        file: path.to_owned(),
        line: 0,
        problem: format!("cannot be read: {error}"),
        fix: "correct the path or its permissions".to_owned(),
    });
}

fn find(path: &Path, depth: usize, files: &mut Vec<PathBuf>, broken: &mut Vec<Broken>) {
    let children = || -> io::Result<Option<Vec<PathBuf>>> {
        if !fs::metadata(path)?.is_dir() {
            return Ok(None);
        }
        if depth > MAX_DEPTH {
            return Err(io::Error::other("folders are nested too deeply"));
        }
        let entries = fs::read_dir(path)?.map(|entry| Ok(entry?.path()));
        let mut paths = entries.collect::<io::Result<Vec<_>>>()?;
        paths.sort();
        Ok(Some(paths))
    };
    match children() {
        Ok(None) => files.push(path.to_owned()),
        Ok(Some(paths)) => {
            for child in paths {
                let is_tests = child.file_name().is_some_and(|name| name == TESTS);
                if (child.is_dir() && !is_tests) || (!child.is_dir() && is_yaml(&child)) {
                    find(&child, depth + 1, files, broken);
                }
            }
        }
        Err(error) => unreadable(path, &error, broken),
    }
}

pub fn is_yaml(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "yml" || e == "yaml")
}

pub fn read_bounded(file: &Path) -> io::Result<String> {
    let size = fs::metadata(file)?.len();
    if size > MAX_FILE_BYTES {
        let message = format!("{size} bytes; a rule file has at most {MAX_FILE_BYTES}");
        return Err(io::Error::other(message));
    }
    fs::read_to_string(file)
}

/// The documents of `text`; one for the whole where they depend on each other (`action:`).
pub fn documents(text: &str) -> Vec<Document<'_>> {
    let linked = text.lines().any(|line| line.starts_with("action:"));
    let mut documents = Vec::new();
    let (mut start, mut start_line) = (0, 1);
    let mut at = 0;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let separator = line.trim_end() == "---" || line.starts_with("--- ");
        if separator && !linked {
            documents.push(Document {
                line: start_line,
                text: &text[start..at],
            });
            (start, start_line) = (at + line.len(), number + 2);
        }
        at += line.len();
    }
    documents.push(Document {
        line: start_line,
        text: &text[start..],
    });
    documents.retain(|d| {
        d.text
            .lines()
            .any(|l| !l.trim().is_empty() && !l.starts_with('#'))
    });
    documents
}

impl Document<'_> {
    /// Number of the first line containing `blame`, else of the document's first.
    pub fn line_of(&self, blame: &str) -> usize {
        let first = blame.lines().next().unwrap_or_default();
        let found = (!first.is_empty()).then(|| self.text.lines().position(|l| l.contains(first)));
        self.line + found.flatten().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_know_their_lines() {
        let text = "# licence\n---\ntitle: a\nx: 1\n---\n\n---\ntitle: b\n";
        let found: Vec<_> = documents(text)
            .iter()
            .map(|d| (d.line, d.text.len(), d.line_of("x: 1")))
            .collect();
        assert_eq!(found, [(3, 14, 4), (8, 9, 8)]);
        assert_eq!(documents("action: global\n---\ntitle: a\n").len(), 1);
    }
}
