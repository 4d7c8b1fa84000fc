//! What should the record have, if strace is right, and what does it have? Both as [`Fact`]s that
//! compare by equality: kind, who, and a text with names, paths and result.
//!
//! The calls of each kind are those that docs/events.md promises; where their paths are is this
//! module's own knowledge, so that a mistake in the agent's table shows.

mod addresses;
mod names;
mod recorded;
mod seen;

use std::{collections::BTreeMap, fmt};

pub use recorded::{Recorded, recorded};
pub use seen::{Verdict, seen};

use crate::strace;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fact {
    pub kind: String,
    /// The thread; of exec and exit the process.
    pub who: i64,
    pub what: String,
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} by {}: {}", self.kind, self.who, self.what)
    }
}

const EVENTS: &str = include_str!("../../docs/events.md");

/// The kind of each system call that the page lists; of a call that tells several, the first.
fn promised() -> BTreeMap<&'static str, &'static str> {
    let (mut kinds, mut kind) = (BTreeMap::new(), "");
    for line in EVENTS.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            kind = heading.trim_matches('`');
        } else if let Some(row) = line.strip_prefix("| `")
            && let Some((call, _)) = row.split_once('`')
            && kind != "All columns"
        {
            kinds.entry(call).or_insert(kind);
        }
    }
    // Off by default, and what a linker does all day.
    kinds.retain(|_, kind| *kind != "memory_exec");
    kinds
}

/// What strace is to note.
pub fn traced_calls() -> Vec<&'static str> {
    promised().into_keys().chain(strace::FOLLOWED).collect()
}
