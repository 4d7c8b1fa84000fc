//! Which rules are in force, and which of them cannot fire here?
//!
//! Rules that come with the program and rules of the configured directories are two sets: a rule in
//! both is in force twice, under two files.

use audit_detect::{Report, RuleSet, Scratch, Source};
use audit_proto::v1::{Event, Rule};

use crate::{config, problems::Problems};

include!(concat!(env!("OUT_DIR"), "/rules.rs"));

#[derive(Debug, Default)]
pub struct Rules {
    sets: Vec<RuleSet>,
    idle: Vec<String>,
    broken: Vec<String>,
}

/// Working memory of the evaluating thread.
pub struct Memory {
    scratch: Vec<Scratch>,
    matched: Vec<usize>,
}

impl Rules {
    /// Loads what the configuration names. A broken rule costs itself, not the others.
    pub fn load(config: &config::Detect) -> Self {
        let mut rules = Self::default();
        if !config.enabled {
            return rules;
        }
        if config.builtin_rules {
            let sources: Vec<Source> = RULES
                .iter()
                .map(|(name, text)| Source {
                    file: format!("builtin/{name}").into(),
                    text: (*text).to_owned(),
                })
                .collect();
            rules.add(RuleSet::compile(&sources));
        }
        if !config.rules_dirs.is_empty() {
            rules.add(RuleSet::load(&config.rules_dirs));
        }
        rules
    }

    fn add(&mut self, (set, report): (RuleSet, Report)) {
        self.sets.push(set);
        self.idle
            .extend(report.idle.iter().map(ToString::to_string));
        self.broken
            .extend(report.broken.iter().map(ToString::to_string));
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
        self.sets.iter().map(RuleSet::len).sum()
    }

    pub fn idle(&self) -> &[String] {
        &self.idle
    }

    pub fn broken(&self) -> &[String] {
        &self.broken
    }

    pub fn memory(&self) -> Memory {
        Memory {
            scratch: self.sets.iter().map(RuleSet::scratch).collect(),
            matched: Vec::new(),
        }
    }

    /// Every rule that matches.
    pub fn evaluate(&self, event: &Event, memory: &mut Memory) -> Vec<&Rule> {
        let mut found = Vec::new();
        for (set, scratch) in self.sets.iter().zip(&mut memory.scratch) {
            set.evaluate(event, scratch, &mut memory.matched);
            found.extend(memory.matched.iter().map(|index| set.rule(*index)));
        }
        found
    }
}
