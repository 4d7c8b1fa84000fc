//! Which events does the configuration leave out?
//!
//! Invariants: what is left out is counted. The process table learns from every record, left out or
//! not. Events of the agent itself are never left out.

use std::collections::BTreeSet;

use audit_common::{
    kind,
    limits::{WATCHED_NAME_BYTES, WATCHED_NAMES},
};
use audit_proto::v1::Event;
use serde::{Deserialize, Serialize};

use crate::glob;

/// One reason to leave events out: all that it states must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Exclude {
    /// Names of kinds; empty means any.
    pub kinds: Vec<String>,
    /// Beginnings of `file.path`.
    pub path_prefixes: Vec<String>,
    /// Whole `process.exe`.
    pub exes: Vec<String>,
    /// `process.uid`.
    pub uids: Vec<i64>,
}

/// Why a filter or a watched path cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    #[error(
        "filters.exclude[{at}] states no condition and would leave out everything; give kinds, path_prefixes, exes or uids"
    )]
    Everything { at: usize },
    #[error("{key}: unknown kind `{name}`; known: {known}")]
    UnknownKind {
        key: String,
        name: String,
        known: String,
    },
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

/// The filters in force.
#[derive(Debug)]
pub struct Filter {
    rules: Vec<Rule>,
    watched: Vec<String>,
    /// Kinds that share a hook with others and are not wanted.
    off: Vec<i32>,
}

#[derive(Debug)]
struct Rule {
    kinds: Vec<i32>,
    path_prefixes: Vec<String>,
    exes: Vec<String>,
    uids: Vec<i64>,
}

impl Filter {
    pub fn new(exclude: &[Exclude], watched: &[String]) -> Result<Self, FilterError> {
        watch_names(watched)?;
        let rules = exclude
            .iter()
            .enumerate()
            .map(|(at, rule)| Rule::new(at, rule));
        Ok(Self {
            rules: rules.collect::<Result<_, _>>()?,
            watched: watched.to_vec(),
            off: Vec::new(),
        })
    }

    /// Leaves out `kinds` too.
    pub fn without(mut self, kinds: &[String]) -> Result<Self, FilterError> {
        let numbers = kinds
            .iter()
            .map(|name| kind_number("capture.off_kinds", name.clone()));
        self.off = numbers.collect::<Result<_, _>>()?;
        Ok(self)
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

    pub fn leaves_out(&self, event: &Event) -> bool {
        self.off.contains(&event.kind) || self.rules.iter().any(|rule| rule.matches(event))
    }
}

impl Rule {
    fn new(at: usize, rule: &Exclude) -> Result<Self, FilterError> {
        let Exclude {
            kinds,
            path_prefixes,
            exes,
            uids,
        } = rule.clone();
        if kinds.is_empty() && path_prefixes.is_empty() && exes.is_empty() && uids.is_empty() {
            return Err(FilterError::Everything { at });
        }
        for (key, paths) in [
            ("filters.exclude.path_prefixes", &path_prefixes),
            ("filters.exclude.exes", &exes),
        ] {
            if let Some(value) = paths.iter().find(|path| !path.starts_with('/')) {
                return Err(FilterError::Relative {
                    key,
                    value: value.clone(),
                });
            }
        }
        let key = format!("filters.exclude[{at}].kinds");
        let kinds = kinds.into_iter().map(|name| kind_number(&key, name));
        Ok(Self {
            kinds: kinds.collect::<Result<_, _>>()?,
            path_prefixes,
            exes,
            uids,
        })
    }

    fn matches(&self, event: &Event) -> bool {
        if !self.kinds.is_empty() && !self.kinds.contains(&event.kind) {
            return false;
        }
        let path = event.file.as_ref().map_or("", |file| file.path.as_str());
        let process = event.process.as_ref();
        let exe = process.map_or("", |process| process.exe.as_str());
        let uid = process.and_then(|process| process.uid);
        (self.path_prefixes.is_empty() || self.path_prefixes.iter().any(|p| path.starts_with(p)))
            && (self.exes.is_empty() || self.exes.iter().any(|e| e == exe))
            && (self.uids.is_empty() || uid.is_some_and(|uid| self.uids.contains(&uid)))
    }
}

fn kind_number(key: &str, name: String) -> Result<i32, FilterError> {
    match kind::ALL.iter().find(|row| row.name == name) {
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
    use audit_proto::v1::{File, Process};

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
    fn watched_reads_are_decided_by_the_whole_path() {
        let filter = Filter::new(&[], &strings(&["/etc/shadow", "/root/.ssh/*"])).expect("filter");
        assert!(filter.watches("/etc/shadow"));
        assert!(filter.watches("/root/.ssh/id"));
        assert!(filter.watches(""), "an unknown path is not hidden");
        assert!(!filter.watches("/var/chroot/etc/shadow"));
    }

    #[test]
    fn all_conditions_of_a_rule_must_hold_and_any_rule_suffices() {
        let both = Exclude {
            kinds: strings(&["open"]),
            path_prefixes: strings(&["/proc/"]),
            ..Exclude::default()
        };
        let user = Exclude {
            uids: vec![33],
            exes: strings(&["/usr/sbin/httpd"]),
            ..Exclude::default()
        };
        let filter = Filter::new(&[both, user], &[]).expect("filter");
        let event = |kind: u16, path: &str, exe: &str, uid| Event {
            kind: kind.into(),
            file: Some(File {
                path: path.to_owned(),
                ..File::default()
            }),
            process: Some(Process {
                exe: exe.to_owned(),
                uid: Some(uid),
                ..Process::default()
            }),
            ..Event::default()
        };
        assert!(filter.leaves_out(&event(kind::OPEN, "/proc/1/x", "/bin/x", 0)));
        assert!(!filter.leaves_out(&event(kind::UNLINK, "/proc/1/x", "/bin/x", 0)));
        assert!(!filter.leaves_out(&event(kind::OPEN, "/etc/x", "/bin/x", 0)));
        assert!(filter.leaves_out(&event(kind::EXEC, "", "/usr/sbin/httpd", 33)));
        assert!(!filter.leaves_out(&event(kind::EXEC, "", "/usr/sbin/httpd", 34)));
    }

    #[test]
    fn filters_that_cannot_work_are_refused() {
        let refused = |rule: Exclude| Filter::new(&[rule], &[]).expect_err("refused");
        assert_eq!(
            refused(Exclude::default()),
            FilterError::Everything { at: 0 }
        );
        let unknown = refused(Exclude {
            kinds: strings(&["opn"]),
            ..Exclude::default()
        });
        assert!(unknown.to_string().contains("`opn`"), "{unknown}");
        assert!(unknown.to_string().contains("open"), "{unknown}");
    }
}
