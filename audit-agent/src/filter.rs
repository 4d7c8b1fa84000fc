//! Which events does the configuration leave out here? Reads that the kernel chose by a name alone,
//! kinds that share a hook with others, and what a rule of [`crate::policy`] asks for and the kernel
//! could not decide, because it did not know the path for sure: there the record says which rules it
//! satisfies otherwise.
//!
//! Invariants: what is left out is counted. The process table learns from every record, left out or
//! not. Events of the agent itself are never left out.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use audit_common::{
    kind,
    limits::{WATCHED_NAME_BYTES, WATCHED_NAMES},
    policy::PATH_KNOWN,
    record::Header,
};
use audit_proto::v1::Event;

use crate::{glob, policy::Policy};

/// Why a filter or a watched path cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    #[error("{key}: unknown kind `{name}`; known: {known}")]
    UnknownKind {
        key: String,
        name: String,
        known: String,
    },
    #[error(
        "{key}: `{name}` cannot be off: without exec, fork, exit and container nobody would know what the processes are that other events name"
    )]
    Kept { key: String, name: String },
    #[error("{key}: `{value}` is not an absolute path")]
    Relative { key: &'static str, value: String },
    #[error(
        "capture.watch_reads: `{pattern}`: `**` cannot be watched, because the kernel chooses reads by the name of the file or of the directory that holds it; name each directory, as in /etc/ssl/private/*"
    )]
    DoubleStar { pattern: String },
    #[error(
        "capture.watch_reads: `{pattern}`: either the last component or the one before it must be without wildcards, because the kernel chooses reads by one of these names"
    )]
    NoName { pattern: String },
    #[error("capture.watch_reads: `{pattern}`: the name `{name}` is longer than {} bytes, the most that the kernel side compares", WATCHED_NAME_BYTES - 1)]
    LongName { pattern: String, name: String },
    #[error(
        "capture.watch_reads: {count} different names, more than the {WATCHED_NAMES} that the kernel side holds"
    )]
    TooMany { count: usize },
}

/// Names that the kernel side watches, derived from path patterns: the last component, or where
/// that has a wildcard, the name of its directory.
pub fn watch_names(patterns: &[String]) -> Result<BTreeSet<Vec<u8>>, FilterError> {
    let mut names = BTreeSet::new();
    for pattern in patterns {
        let owned = || pattern.clone();
        if !pattern.starts_with('/') {
            return Err(FilterError::Relative {
                key: "capture.watch_reads",
                value: owned(),
            });
        }
        if pattern.contains("**") {
            return Err(FilterError::DoubleStar { pattern: owned() });
        }
        let mut last = pattern.rsplit('/').filter(|part| !part.is_empty());
        let name = [last.next(), last.next()]
            .into_iter()
            .flatten()
            .find(|part| !glob::is_pattern(part))
            .ok_or_else(|| FilterError::NoName { pattern: owned() })?;
        if name.len() >= WATCHED_NAME_BYTES {
            return Err(FilterError::LongName {
                pattern: owned(),
                name: name.to_owned(),
            });
        }
        names.insert(name.as_bytes().to_vec());
    }
    if names.len() > WATCHED_NAMES as usize {
        return Err(FilterError::TooMany { count: names.len() });
    }
    Ok(names)
}

/// Sets of rules remembered: records of an older one may still be in the rings when a new one is in
/// force, which is once a second at most.
const GENERATIONS: usize = 4;

/// The filters in force.
#[derive(Debug)]
pub struct Filter {
    watched: Vec<String>,
    /// Kinds that share a hook with others and are not wanted.
    off: Vec<i32>,
    /// What the kernel's filter runs with, the latest last.
    rules: VecDeque<(u32, Arc<Policy>)>,
    /// By rule, what was hidden here because the kernel did not know the path.
    hidden: BTreeMap<String, u64>,
}

impl Filter {
    pub fn new(watched: &[String], off: &[String]) -> Result<Self, FilterError> {
        watch_names(watched)?;
        let numbers = off
            .iter()
            .map(|name| kind_number("capture.off_kinds", name.clone()));
        Ok(Self {
            watched: watched.to_vec(),
            off: numbers.collect::<Result<_, _>>()?,
            rules: VecDeque::new(),
            hidden: BTreeMap::new(),
        })
    }

    /// These rules are in force from now on.
    pub fn learn(&mut self, generation: u32, policy: Arc<Policy>) {
        if self.rules.len() == GENERATIONS {
            self.rules.pop_front();
        }
        self.rules.push_back((generation, policy));
        let rules = &self.rules;
        let known = |name: &String| {
            let mut rules = rules.iter().flat_map(|(_, policy)| &policy.rules);
            rules.any(|rule| rule.name == *name)
        };
        self.hidden.retain(|name, _| known(name));
    }

    /// By rule, what was hidden here.
    pub fn hidden(&self) -> &BTreeMap<String, u64> {
        &self.hidden
    }

    /// True when a read of this path is wanted. The kernel chose it by one name; the whole path
    /// decides. A file without a path (its name could not be read) is wanted.
    pub fn watches(&self, path: &str) -> bool {
        path.is_empty()
            || self
                .watched
                .iter()
                .any(|pattern| glob::matches(pattern.as_bytes(), path.as_bytes()))
    }

    /// Decides what the kernel left open, and counts by rule what is hidden: `events` of them.
    pub fn leaves_out(&mut self, header: &Header, event: &Event, events: u64) -> bool {
        if self.off.contains(&event.kind) {
            return true;
        }
        if header.candidates == 0 {
            return false;
        }
        let generation = header.generation & !PATH_KNOWN;
        let mut sets = self.rules.iter();
        let Some((_, policy)) = sets.find(|(known, _)| *known == generation) else {
            return false;
        };
        let Some(rule) = policy.hides(header.candidates, event) else {
            return false;
        };
        match self.hidden.get_mut(&rule.name) {
            Some(count) => *count += events,
            None => {
                self.hidden.insert(rule.name.clone(), events);
            }
        }
        true
    }
}

fn kind_number(key: &str, name: String) -> Result<i32, FilterError> {
    match kind::ALL.iter().find(|row| row.name == name) {
        Some(row) if kind::is_kept(row.number) => Err(FilterError::Kept {
            key: key.to_owned(),
            name,
        }),
        Some(row) => Ok(row.number.into()),
        None => Err(FilterError::UnknownKind {
            key: key.to_owned(),
            name,
            known: kind::ALL
                .iter()
                .map(|row| row.name)
                .collect::<Vec<_>>()
                .join(", "),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use audit_proto::v1::File;

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn names_come_from_the_last_fixed_component() {
        let names = watch_names(&strings(&["/etc/shadow", "/home/*/.ssh/*", "/etc/ssh/k_*"]));
        let expected = [b".ssh".to_vec(), b"shadow".to_vec(), b"ssh".to_vec()];
        assert_eq!(names.expect("names"), BTreeSet::from(expected));
        let error = |pattern: &str| watch_names(&strings(&[pattern])).expect_err(pattern);
        assert!(matches!(error("/home/*/*"), FilterError::NoName { .. }));
        assert!(matches!(error("/etc/**"), FilterError::DoubleStar { .. }));
        assert!(matches!(error("shadow"), FilterError::Relative { .. }));
        assert!(matches!(
            error(&format!("/{}", "x".repeat(64))),
            FilterError::LongName { .. }
        ));
        let many: Vec<String> = (0..2000).map(|n| format!("/a/{n}")).collect();
        assert_eq!(
            watch_names(&many),
            Err(FilterError::TooMany { count: 2000 })
        );
    }

    #[test]
    fn what_other_events_need_cannot_be_off() {
        for name in ["exec", "fork", "exit", "container"] {
            let error = Filter::new(&[], &strings(&["open", name])).expect_err(name);
            assert!(matches!(error, FilterError::Kept { .. }), "{error}");
        }
        assert!(Filter::new(&[], &strings(&["open", "memory_exec"])).is_ok());
    }

    #[test]
    fn watched_reads_are_decided_by_the_whole_path() {
        let filter = Filter::new(&strings(&["/etc/shadow", "/root/.ssh/*"]), &[]).expect("filter");
        assert!(filter.watches("/etc/shadow"));
        assert!(filter.watches("/root/.ssh/id"));
        assert!(filter.watches(""), "an unknown path is not hidden");
        assert!(!filter.watches("/var/chroot/etc/shadow"));
    }

    #[test]
    fn what_the_kernel_left_open_is_decided_by_the_rules_it_had() {
        let policy = |path: &str| {
            let rule = crate::policy::Rule {
                name: "quiet".to_owned(),
                paths: strings(&[path]),
                ..crate::policy::Rule::default()
            };
            let budgets = crate::policy::Budgets::default();
            Arc::new(Policy::new(&[rule], &budgets).expect("policy"))
        };
        let mut filter = Filter::new(&[], &strings(&["memfd"])).expect("filter");
        filter.learn(1, policy("/tmp/"));
        filter.learn(2, policy("/var/"));
        let header = |generation, candidates| Header {
            generation,
            candidates,
            ..crate::sample::record(kind::OPEN).header
        };
        let event = |kind: u16, path: &str| Event {
            kind: kind.into(),
            file: Some(File {
                path: path.to_owned(),
                ..File::default()
            }),
            ..Event::default()
        };
        let in_tmp = event(kind::OPEN, "/tmp/x");
        assert!(filter.leaves_out(&header(1, 1), &in_tmp, 1));
        assert!(filter.leaves_out(&header(1 | PATH_KNOWN, 1), &in_tmp, 1));
        assert!(!filter.leaves_out(&header(2, 1), &in_tmp, 1));
        assert!(
            !filter.leaves_out(&header(9, 1), &in_tmp, 1),
            "unknown rules"
        );
        assert!(!filter.leaves_out(&header(1, 0), &in_tmp, 1));
        assert!(filter.leaves_out(&header(2, 1), &event(kind::OPEN, "/var/x"), 1));
        assert!(filter.leaves_out(&header(0, 0), &event(kind::MEMFD, ""), 1));
        assert_eq!(
            filter.hidden().get("quiet"),
            Some(&3),
            "one name, one count"
        );
        for generation in 3..9 {
            filter.learn(generation, Arc::default());
        }
        assert!(!filter.leaves_out(&header(1, 1), &in_tmp, 1), "forgotten");
        assert!(filter.hidden().is_empty());
    }

    #[test]
    fn an_unknown_kind_is_refused() {
        let unknown = Filter::new(&[], &strings(&["opn"])).expect_err("refused");
        assert!(unknown.to_string().contains("`opn`"), "{unknown}");
        assert!(unknown.to_string().contains("open"), "{unknown}");
    }
}
