//! Which rules are in force, and which of them cannot fire here?
//!
//! Rules of the configured directories lie over those that come with the program: one with the id
//! of another replaces it.

use audit_columns::View;
use audit_detect::{Report, RuleSet, Scratch, Source};
use audit_proto::v1::Rule;

use crate::{config, problems::Problems};

include!(concat!(env!("OUT_DIR"), "/rules.rs"));

/// The rules that come with the program.
pub fn builtin() -> Vec<Source> {
    RULES
        .iter()
        .map(|(name, text)| Source {
            file: format!("builtin/{name}").into(),
            text: (*text).to_owned(),
        })
        .collect()
}

#[derive(Debug, Default)]
pub struct Rules {
    set: RuleSet,
    idle: Vec<String>,
    broken: Vec<String>,
}

/// Working memory of the evaluating thread.
pub struct Memory {
    scratch: Scratch,
    matched: Vec<usize>,
}

impl Memory {
    /// Rows of another batch follow.
    pub fn begin_rows(&mut self) {
        self.scratch.begin_rows();
    }
}

impl Rules {
    /// Loads what the configuration names. A broken rule costs itself, not the others.
    pub fn load(config: &config::Detect) -> Self {
        if !config.enabled {
            return Self::default();
        }
        let base = match config.builtin_rules {
            true => builtin(),
            false => Vec::new(),
        };
        let (set, Report { idle, broken, .. }) = RuleSet::load_over(&base, &config.rules_dirs);
        Self {
            set,
            idle: idle.iter().map(ToString::to_string).collect(),
            broken: broken.iter().map(ToString::to_string).collect(),
        }
    }

    /// Tells an operator what has to be repaired.
    pub fn report(&self, problems: &Problems) {
        tracing::info!(
            rules = self.loaded(),
            idle = self.idle.len(),
            "rules loaded"
        );
        for broken in &self.broken {
            tracing::warn!("{broken}");
        }
        if let Some(first) = self.broken.first() {
            let count = self.broken.len();
            problems.set("rules", format!("{count} to repair; the first: {first}"));
        }
    }

    pub fn loaded(&self) -> usize {
        self.set.len()
    }

    pub fn idle(&self) -> &[String] {
        &self.idle
    }

    pub fn broken(&self) -> &[String] {
        &self.broken
    }

    pub fn memory(&self) -> Memory {
        Memory {
            scratch: self.set.scratch(),
            matched: Vec::new(),
        }
    }

    /// Every rule that matches a row, after [`Memory::begin_rows`].
    pub fn matching(&self, row: &View<'_>, memory: &mut Memory) -> Vec<&Rule> {
        self.set
            .evaluate_row(row, &mut memory.scratch, &mut memory.matched);
        let found = memory.matched.iter();
        found.map(|index| self.set.rule(*index)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configured_rule_replaces_the_builtin_one_of_its_id() {
        let dir = tempfile::tempdir().expect("tempdir");
        let alone = Rules::load(&config::Detect::default());
        let text = RULES[0].1.replace("title: ", "title: Ours of ");
        std::fs::write(dir.path().join("ours.yml"), text).expect("write");
        let rules = Rules::load(&config::Detect {
            rules_dirs: vec![dir.path().to_owned()],
            ..config::Detect::default()
        });
        assert_eq!(rules.broken(), &[] as &[String]);
        assert_eq!(rules.loaded(), alone.loaded());
        let ours = rules
            .set
            .iter()
            .filter(|info| info.rule.title.starts_with("Ours of "));
        assert_eq!(ours.count(), alone.loaded() - builtin_left(&rules));
        assert!(rules.idle().iter().any(|idle| idle.contains("replaced by")));
    }

    fn builtin_left(rules: &Rules) -> usize {
        let left = rules.set.iter().filter(|i| i.file.starts_with("builtin"));
        left.count()
    }
}
