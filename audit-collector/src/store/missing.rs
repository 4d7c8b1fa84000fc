//! Which files of the table are not what the manifest says, and what is in the record but cannot be
//! served? Looked at once, when the store opens.
//!
//! Invariant: such a file stays in the manifest, and what is on disk of it stays there, so that the
//! file of a backup makes everything whole again.

use std::{collections::HashSet, fs, path::Path};

use super::{Manifest, TableFile};
use crate::problems::Problems;

/// Files named in the problem; the log has them all.
const NAMED: usize = 8;

#[derive(Debug, Default)]
pub struct Missing {
    files: Vec<TableFile>,
    paths: HashSet<String>,
}

impl Missing {
    pub fn find(manifest: &Manifest, data_dir: &Path, problems: &Problems) -> Self {
        let mut missing = Self::default();
        let mut reasons = Vec::new();
        for file in &manifest.files {
            let path = data_dir.join(&file.path);
            let reason = match fs::metadata(&path) {
                Ok(found) if found.len() == file.bytes => continue,
                Ok(found) => format!("{} bytes instead of {}", found.len(), file.bytes),
                Err(error) => error.to_string(),
            };
            tracing::error!(path = %path.display(), events = file.rows, reason, "not served");
            reasons.push(format!("{} ({reason})", path.display()));
            missing.paths.insert(file.path.clone());
            missing.files.push(file.clone());
        }
        if !missing.files.is_empty() {
            problems.set("table", missing.message(&reasons));
        }
        missing
    }

    fn message(&self, reasons: &[String]) -> String {
        let named = reasons[..reasons.len().min(NAMED)].join(", ");
        let more = match reasons.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(" and {more} more, which the log names"),
        };
        format!(
            "{} events are missing, because files are: {named}{more}; all others are served. Put them \
             back from a backup and restart the collector",
            self.events()
        )
    }

    pub fn contains(&self, file: &TableFile) -> bool {
        self.paths.contains(&file.path)
    }

    pub fn files(&self) -> &[TableFile] {
        &self.files
    }

    pub fn events(&self) -> i64 {
        self.files.iter().map(|file| file.rows as i64).sum()
    }
}
