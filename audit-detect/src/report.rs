//! What did loading find wrong, and what should the author do about it?
//!
//! Invariant: each document of each file read is in exactly one of `loaded`, `filters`, `idle` and
//! `broken` (a rule with a mere warning is loaded and also mentioned in `broken`).

use std::{fmt, path::PathBuf};

/// The result of loading rule files.
#[derive(Debug, Default)]
pub struct Report {
    pub files: usize,
    /// Rules that are evaluated.
    pub loaded: usize,
    /// Filter documents that apply to at least one rule.
    pub filters: usize,
    /// Sound rules that cannot fire on this host.
    pub idle: Vec<Idle>,
    /// What has to be repaired.
    pub broken: Vec<Broken>,
    /// Loaded rules of which a part cannot match.
    pub inert: Vec<Inert>,
}

/// A sound rule that is not evaluated.
#[derive(Debug, Clone)]
pub struct Idle {
    pub file: PathBuf,
    pub line: usize,
    pub title: String,
    pub id: String,
    pub why: Why,
}

/// Why a rule cannot fire.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Why {
    #[error("log source {0} is not collected")]
    LogSource(String),
    #[error("no event here has the field {0}")]
    Field(String),
    #[error("{0} is not supported")]
    Unsupported(String),
    #[error("replaced by {0}, which has its id")]
    Replaced(String),
    #[error("filter applies to no loaded rule")]
    NoTarget,
}

/// A document that must be repaired.
#[derive(Debug, Clone)]
pub struct Broken {
    pub file: PathBuf,
    /// First line that can be blamed; 0 for the file as a whole.
    pub line: usize,
    pub problem: String,
    pub fix: String,
}

/// A field of a loaded rule that no event here has, so that the part naming it never matches.
#[derive(Debug, Clone)]
pub struct Inert {
    pub file: PathBuf,
    pub title: String,
    pub field: String,
}

impl Report {
    /// Whether every document was sound (rules that cannot fire here are sound).
    pub fn is_sound(&self) -> bool {
        self.broken.is_empty()
    }

    /// How many rules cannot fire, by reason, most frequent first.
    pub fn idle_by_reason(&self) -> Vec<(String, usize)> {
        let mut counts = std::collections::BTreeMap::<String, usize>::new();
        for idle in &self.idle {
            *counts.entry(idle.why.to_string()).or_default() += 1;
        }
        let mut counts: Vec<_> = counts.into_iter().collect();
        counts.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        counts
    }
}

impl fmt::Display for Idle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}: {:?} cannot fire: {}",
            self.file.display(),
            self.line,
            self.title,
            self.why
        )
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        write!(f, ": {}; {}", self.problem, self.fix)
    }
}

impl fmt::Display for Inert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {:?} names {}, which no event here has; that part never matches",
            self.file.display(),
            self.title,
            self.field
        )
    }
}
