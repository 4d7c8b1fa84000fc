//! Changes to a source tree, kept in memory until all of them are made.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

pub struct Tree {
    root: PathBuf,
    changed: BTreeMap<PathBuf, String>,
}

impl Tree {
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            changed: BTreeMap::new(),
        }
    }

    pub fn read(&self, path: &str) -> Result<String> {
        match self.changed.get(Path::new(path)) {
            Some(text) => Ok(text.clone()),
            None => fs::read_to_string(self.root.join(path)).with_context(|| path.to_owned()),
        }
    }

    /// A file that is not there yet.
    pub fn create(&mut self, path: &str, text: String) -> Result<()> {
        ensure!(
            !self.root.join(path).exists(),
            "{path} is there already; choose another name for the kind"
        );
        self.changed.insert(path.into(), text);
        Ok(())
    }

    pub fn replace(&mut self, path: &str, text: String) {
        self.changed.insert(path.into(), text);
    }

    /// Inserts `new` before the first `end` that follows `begin`.
    pub fn insert(&mut self, path: &str, begin: &str, end: &str, new: &str) -> Result<()> {
        let text = self.read(path)?;
        let place = text.find(begin).and_then(|at| {
            let after = at + begin.len();
            Some(after + text[after..].find(end)?)
        });
        let at = place.with_context(|| {
            format!(
                "{path} has no {end:?} after {begin:?}: it has changed; correct xtask/src/new_event/places.rs"
            )
        })?;
        self.replace(path, format!("{}{new}{}", &text[..at], &text[at..]));
        Ok(())
    }

    /// Writes everything; the paths that were written, from the root.
    pub fn save(self) -> Result<Vec<PathBuf>> {
        for (path, text) in &self.changed {
            let path = self.root.join(path);
            fs::write(&path, text).with_context(|| path.display().to_string())?;
        }
        Ok(self.changed.into_keys().collect())
    }
}
