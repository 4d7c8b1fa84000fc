//! Which events does the configuration leave out in the kernel, and how much may a cgroup fill?
//! `capture.filters` and `capture.budgets`, checked.
//!
//! Invariants: no rule can hide exec, fork or exit, without which nobody would know what the process
//! is that other events name. A rule that cannot work is refused, and the error names it. What a
//! program, a cgroup or a path prefix is to the kernel is not here: [`places`] finds it, [`tables`]
//! puts it into the form of the maps.

pub mod places;
pub mod tables;

use std::path::PathBuf;

use audit_common::{
    class, kind,
    limits::{FILTER_PREFIX_BYTES, FILTER_PREFIXES, FILTER_PROGRAMS, FILTER_RULES, FILTER_USERS},
    policy as kernel,
};
use audit_config::nearest;
use audit_proto::{text::escape, v1::Event};
use serde::{Deserialize, Serialize};

use crate::calls;

/// Longest name of a rule: it is in every heartbeat.
const NAME_BYTES: usize = 64;
/// Cgroups that the rules may name, all together.
const CGROUPS: usize = 1024;

/// One reason to hide events, or to keep them: everything that it states must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rule {
    /// In heartbeats and in `hostaudit status`.
    pub name: String,
    pub action: Action,
    /// Names of kinds; empty means any but exec, fork and exit.
    pub kinds: Vec<String>,
    /// Names of system calls, and what io_uring does like them.
    pub syscalls: Vec<String>,
    /// Programs, by path.
    pub exes: Vec<PathBuf>,
    /// Real user ids: 33, or "1000-1999".
    pub uids: Vec<Users>,
    /// Paths in the hierarchy of cgroup v2; what is below them too.
    pub cgroups: Vec<String>,
    /// Beginnings of `file.path`, and of `target_file.path` where there is one.
    pub paths: Vec<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Hide what matches.
    #[default]
    Exclude,
    /// Keep what matches, though other rules would hide it.
    Include,
}

/// One user id, or a range of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Users {
    One(u32),
    Range(String),
}

/// How many events of each class one cgroup may have recorded; none is no bound.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Budgets {
    pub process: Option<Budget>,
    pub network: Option<Budget>,
    pub file: Option<Budget>,
    pub flow: Option<Budget>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    pub events_per_second: u32,
    /// Events at once, after a pause; as many as in a second unless said.
    #[serde(default)]
    pub burst: Option<u32>,
    /// Beyond the budget one event in so many is recorded; 0 for none.
    #[serde(default = "default_sample")]
    pub sample: u32,
    /// And of these so many in a second.
    #[serde(default = "default_sampled")]
    pub sampled_per_second: u32,
}

fn default_sample() -> u32 {
    100
}

fn default_sampled() -> u32 {
    10
}

/// Why a rule or a budget cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    #[error(
        "capture.filters[{at}]: `{name}` is no name for a rule; give it 1 to {NAME_BYTES} letters, digits, `-`, `_` or `.`: it is what heartbeats and `hostaudit status` call the rule"
    )]
    Name { at: usize, name: String },
    #[error(
        "capture.filters[{at}]: there is another rule `{name}`; what each has hidden could not be told apart"
    )]
    SameName { at: usize, name: String },
    #[error(
        "capture.filters: {count} rules, more than {FILTER_RULES}; join some: each selector is a list"
    )]
    TooManyRules { count: usize },
    #[error(
        "capture.filters `{rule}`: it states no condition; give kinds, syscalls, exes, uids, cgroups or paths"
    )]
    Everything { rule: String },
    #[error("capture.filters `{rule}`: unknown {what} `{name}`{}", hint(.near))]
    Unknown {
        rule: String,
        what: &'static str,
        name: String,
        near: Option<String>,
    },
    #[error(
        "capture.filters `{rule}`: `{kind}` cannot be hidden: without exec, fork, exit and container nobody would know what the processes are that other events name"
    )]
    Kept { rule: String, kind: String },
    #[error("capture.filters `{rule}`: {key}: `{value}` does not begin with `/`")]
    Relative {
        rule: String,
        key: &'static str,
        value: String,
    },
    #[error(
        "capture.filters `{rule}`: paths: `{value}` is longer than the {FILTER_PREFIX_BYTES} bytes that the kernel side compares; name a directory further up"
    )]
    LongPath { rule: String, value: String },
    #[error(
        "capture.filters `{rule}`: uids: `{value}` is neither a user id nor a range like 1000-1999"
    )]
    Users { rule: String, value: String },
    #[error("capture.filters: {count} {what}, more than the {most} that the kernel side holds")]
    TooMany {
        what: &'static str,
        count: usize,
        most: usize,
    },
    #[error("capture.budgets.{class}.{key}: {value} is outside {least}..={most}")]
    Budget {
        class: &'static str,
        key: &'static str,
        value: u32,
        least: u32,
        most: u32,
    },
}

fn hint(near: &Option<String>) -> String {
    near.as_ref()
        .map_or(String::new(), |near| format!("; did you mean `{near}`?"))
}

/// The rules and budgets of a configuration, checked.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Policy {
    pub rules: Vec<ValidRule>,
    /// By class.
    pub budgets: [kernel::Budget; 8],
}

/// Its place in [`Policy::rules`] is its bit. An empty list is no condition.
#[derive(Debug, PartialEq, Eq)]
pub struct ValidRule {
    pub name: String,
    pub action: Action,
    pub kinds: Vec<u16>,
    pub slots: Vec<u32>,
    pub exes: Vec<PathBuf>,
    /// Both included.
    pub users: Vec<(u32, u32)>,
    pub cgroups: Vec<String>,
    pub paths: Vec<String>,
    /// As they are in events.
    escaped: Vec<String>,
}

impl Policy {
    pub fn new(filters: &[Rule], budgets: &Budgets) -> Result<Self, PolicyError> {
        if filters.len() > FILTER_RULES {
            let count = filters.len();
            return Err(PolicyError::TooManyRules { count });
        }
        let mut rules: Vec<ValidRule> = Vec::new();
        for (at, rule) in filters.iter().enumerate() {
            if rules.iter().any(|other| other.name == rule.name) {
                let name = rule.name.clone();
                return Err(PolicyError::SameName { at, name });
            }
            rules.push(ValidRule::new(at, rule)?);
        }
        let policy = Self {
            rules,
            budgets: budgets.valid()?,
        };
        policy.within_bounds()?;
        Ok(policy)
    }

    /// Nothing is left out.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.budgets.iter().all(|budget| budget.interval_ns == 0)
    }

    fn within_bounds(&self) -> Result<(), PolicyError> {
        let sum = |of: fn(&ValidRule) -> usize| self.rules.iter().map(of).sum::<usize>();
        let blocks = tables::user_blocks(&self.rules).len();
        for (what, count, most) in [
            (
                "programs",
                sum(|rule| rule.exes.len()),
                FILTER_PROGRAMS as usize / 2,
            ),
            ("cgroups", sum(|rule| rule.cgroups.len()), CGROUPS),
            (
                "path prefixes",
                sum(|rule| rule.paths.len()),
                FILTER_PREFIXES as usize / 2,
            ),
            ("blocks of user ids", blocks, FILTER_USERS as usize / 2),
        ] {
            if count > most {
                return Err(PolicyError::TooMany { what, count, most });
            }
        }
        Ok(())
    }

    /// The rule that hides an event which satisfies `candidates` but for its path, if one does.
    pub fn hides(&self, candidates: u64, event: &Event) -> Option<&ValidRule> {
        let matching = || {
            let rules = self.rules.iter().enumerate();
            rules
                .filter(|(at, rule)| candidates >> at & 1 != 0 && rule.is_path_of(event))
                .map(|(_, rule)| rule)
        };
        if matching().any(|rule| rule.action == Action::Include) {
            return None;
        }
        matching().next()
    }
}

impl ValidRule {
    fn new(at: usize, rule: &Rule) -> Result<Self, PolicyError> {
        let name = rule.name.clone();
        let plain = |c: char| c.is_ascii_alphanumeric() || ['-', '_', '.'].contains(&c);
        if name.is_empty() || name.len() > NAME_BYTES || !name.chars().all(plain) {
            return Err(PolicyError::Name { at, name });
        }
        if *rule
            == (Rule {
                name: name.clone(),
                action: rule.action,
                ..Rule::default()
            })
        {
            return Err(PolicyError::Everything { rule: name });
        }
        let kinds = rule.kinds.iter().map(|kind| kind_number(&name, kind));
        let mut slots = Vec::new();
        for call in &rule.syscalls {
            slots.extend(slots_of(&name, call)?);
        }
        let users = rule.uids.iter().map(|users| users.range(&name));
        for exe in &rule.exes {
            absolute(&name, "exes", &exe.to_string_lossy())?;
        }
        for cgroup in &rule.cgroups {
            absolute(&name, "cgroups", cgroup)?;
        }
        for path in &rule.paths {
            absolute(&name, "paths", path)?;
            if path.len() > FILTER_PREFIX_BYTES {
                let value = path.clone();
                return Err(PolicyError::LongPath { rule: name, value });
            }
        }
        let escaped = rule
            .paths
            .iter()
            .map(|path| escape(path.as_bytes()).into_owned());
        Ok(Self {
            action: rule.action,
            kinds: kinds.collect::<Result<_, _>>()?,
            slots,
            exes: rule.exes.clone(),
            users: users.collect::<Result<_, _>>()?,
            cgroups: rule.cgroups.clone(),
            escaped: escaped.collect(),
            paths: rule.paths.clone(),
            name,
        })
    }

    /// What of it the kernel cannot always decide.
    pub fn needs_path(&self) -> bool {
        !self.paths.is_empty()
    }

    /// Does every path of the event begin as the rule says? One that has none does not.
    fn is_path_of(&self, event: &Event) -> bool {
        let files = [&event.file, &event.target_file].into_iter().flatten();
        let mut paths = files.map(|file| file.path.as_str()).peekable();
        let below = |path: &str| self.escaped.iter().any(|prefix| path.starts_with(prefix));
        self.escaped.is_empty() || paths.peek().is_some() && paths.all(below)
    }
}

impl Users {
    fn range(&self, rule: &str) -> Result<(u32, u32), PolicyError> {
        let text = match self {
            Self::One(uid) => return Ok((*uid, *uid)),
            Self::Range(text) => text,
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (first.trim().parse(), last.trim().parse()) {
            (Ok(first), Ok(last)) if first <= last => Ok((first, last)),
            _ => Err(PolicyError::Users {
                rule: rule.to_owned(),
                value: text.clone(),
            }),
        }
    }
}

impl Budgets {
    fn valid(&self) -> Result<[kernel::Budget; 8], PolicyError> {
        let mut budgets = [kernel::Budget::default(); 8];
        for (class, budget) in [
            (class::PROCESS, &self.process),
            (class::NETWORK, &self.network),
            (class::FILE, &self.file),
            (class::FLOW, &self.flow),
        ] {
            if let (Some(budget), Some(room)) = (budget, budgets.get_mut(usize::from(class))) {
                *room = budget.valid(class::name(class).unwrap_or_default())?;
            }
        }
        Ok(budgets)
    }
}

impl Budget {
    /// Above it the kernel's clock would not tell records apart.
    const MOST: u32 = 1_000_000;

    fn valid(&self, class: &'static str) -> Result<kernel::Budget, PolicyError> {
        let burst = self.burst.unwrap_or(self.events_per_second);
        for (key, value, least) in [
            ("events_per_second", self.events_per_second, 1),
            ("burst", burst, 1),
            ("sample", self.sample, 0),
            ("sampled_per_second", self.sampled_per_second, 1),
        ] {
            if !(least..=Self::MOST).contains(&value) {
                return Err(PolicyError::Budget {
                    class,
                    key,
                    value,
                    least,
                    most: Self::MOST,
                });
            }
        }
        const SECOND_NS: u64 = 1_000_000_000;
        let interval_ns = SECOND_NS / u64::from(self.events_per_second);
        Ok(kernel::Budget {
            interval_ns,
            burst_ns: interval_ns * u64::from(burst),
            sample: self.sample.into(),
            sampled_interval_ns: SECOND_NS / u64::from(self.sampled_per_second),
        })
    }
}

fn absolute(rule: &str, key: &'static str, value: &str) -> Result<(), PolicyError> {
    if value.starts_with('/') {
        return Ok(());
    }
    Err(PolicyError::Relative {
        rule: rule.to_owned(),
        key,
        value: value.to_owned(),
    })
}

fn kind_number(rule: &str, name: &str) -> Result<u16, PolicyError> {
    match kind::ALL.iter().find(|row| row.name == name) {
        Some(row) if kind::is_kept(row.number) => Err(PolicyError::Kept {
            rule: rule.to_owned(),
            kind: name.to_owned(),
        }),
        Some(row) => Ok(row.number),
        None => Err(unknown(
            rule,
            "kind",
            name,
            kind::ALL.iter().map(|row| row.name),
        )),
    }
}

fn slots_of(rule: &str, name: &str) -> Result<Vec<u32>, PolicyError> {
    let rows = || calls::ALL.iter().copied().flatten();
    let slots: Vec<u32> = rows()
        .filter(|row| row.name == name)
        .flat_map(calls::Row::slots)
        .collect();
    if slots.is_empty() {
        let what = "system call (of those that are recorded)";
        return Err(unknown(rule, what, name, rows().map(|row| row.name)));
    }
    Ok(slots)
}

fn unknown<'a>(
    rule: &str,
    what: &'static str,
    name: &str,
    known: impl Iterator<Item = &'a str>,
) -> PolicyError {
    PolicyError::Unknown {
        rule: rule.to_owned(),
        what,
        name: name.to_owned(),
        near: nearest(name, known).map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use audit_proto::v1::File;

    fn rule(yaml: &str) -> Rule {
        yaml_serde::from_str(yaml).expect("yaml")
    }

    fn policy(rules: &[&str]) -> Result<Policy, PolicyError> {
        let rules: Vec<Rule> = rules.iter().map(|yaml| rule(yaml)).collect();
        Policy::new(&rules, &Budgets::default())
    }

    #[test]
    fn a_rule_that_cannot_work_is_refused_by_name() {
        for (yaml, named) in [
            ("{kinds: [open]}", "is no name"),
            ("{name: a b, kinds: [open]}", "`a b`"),
            ("{name: x}", "no condition"),
            ("{name: x, action: include}", "no condition"),
            ("{name: x, kinds: [opn]}", "did you mean `open`"),
            ("{name: x, kinds: [open, exec]}", "`exec` cannot be hidden"),
            ("{name: x, kinds: [fork]}", "`fork` cannot be hidden"),
            ("{name: x, kinds: [exit]}", "`exit` cannot be hidden"),
            ("{name: x, syscalls: [openatt]}", "did you mean `openat`"),
            ("{name: x, exes: [httpd]}", "exes: `httpd`"),
            ("{name: x, paths: [tmp]}", "paths: `tmp`"),
            ("{name: x, cgroups: [a]}", "cgroups: `a`"),
            ("{name: x, uids: ['9-1']}", "`9-1`"),
            ("{name: x, uids: [www]}", "`www`"),
        ] {
            let error = policy(&[yaml]).expect_err(yaml).to_string();
            assert!(error.contains(named), "{yaml}: {error}");
        }
        let long = format!("{{name: x, paths: [/{}]}}", "a".repeat(127));
        assert!(matches!(
            policy(&[&long]),
            Err(PolicyError::LongPath { .. })
        ));
        let twice = policy(&["{name: x, uids: [1]}", "{name: x, uids: [2]}"]);
        assert!(matches!(twice, Err(PolicyError::SameName { at: 1, .. })));
        let many: Vec<Rule> = (0..65)
            .map(|n| rule(&format!("{{name: r{n}, uids: [1]}}")))
            .collect();
        assert_eq!(
            Policy::new(&many, &Budgets::default()),
            Err(PolicyError::TooManyRules { count: 65 })
        );
    }

    #[test]
    fn budgets_have_bounds_and_defaults() {
        let budgets = |yaml: &str| {
            let budgets: Budgets = yaml_serde::from_str(yaml).expect("yaml");
            Policy::new(&[], &budgets)
        };
        let file = budgets("file: {events_per_second: 1000}")
            .expect("valid")
            .budgets[3];
        assert_eq!(
            (file.interval_ns, file.burst_ns),
            (1_000_000, 1_000_000_000)
        );
        assert_eq!((file.sample, file.sampled_interval_ns), (100, 100_000_000));
        for (yaml, named) in [
            (
                "file: {events_per_second: 0}",
                "capture.budgets.file.events_per_second: 0",
            ),
            (
                "flow: {events_per_second: 1, burst: 0}",
                "capture.budgets.flow.burst",
            ),
            ("process: {events_per_second: 2000000}", "1..=1000000"),
        ] {
            let error = budgets(yaml).expect_err(yaml).to_string();
            assert!(error.contains(named), "{yaml}: {error}");
        }
        assert!(budgets("{}").expect("valid").is_empty());
        assert!(
            !budgets("file: {events_per_second: 1}")
                .expect("valid")
                .is_empty()
        );
    }

    #[test]
    fn what_the_kernel_left_open_is_decided_by_every_path_and_includes_win() {
        let policy = policy(&[
            "{name: temporary, paths: [/tmp/, /var/tmp/]}",
            "{name: keep, action: include, paths: [/tmp/keep]}",
            "{name: user, uids: [1]}",
        ])
        .expect("policy");
        let event = |path: &str, target: Option<&str>| Event {
            file: Some(File {
                path: path.to_owned(),
                ..File::default()
            }),
            target_file: target.map(|path| File {
                path: path.to_owned(),
                ..File::default()
            }),
            ..Event::default()
        };
        let hides = |candidates, event: &Event| {
            let rule = policy.hides(candidates, event);
            rule.map(|rule| rule.name.clone())
        };
        let hidden = Some("temporary".to_owned());
        assert_eq!(hides(0b011, &event("/tmp/x", None)), hidden);
        assert_eq!(hides(0b001, &event("/tmp/x", Some("/var/tmp/y"))), hidden);
        assert_eq!(hides(0b001, &event("/tmp/x", Some("/etc/cron.d/y"))), None);
        assert_eq!(hides(0b011, &event("/tmp/keep/x", None)), None);
        assert_eq!(hides(0b001, &event("/tmp/keep/x", None)), hidden);
        assert_eq!(hides(0b001, &event("/etc/x", None)), None);
        assert_eq!(hides(0b001, &Event::default()), None, "no path");
        assert_eq!(hides(0b000, &event("/tmp/x", None)), None);
        assert_eq!(
            hides(0b100, &Event::default()),
            Some("user".to_owned()),
            "a rule without paths"
        );
    }
}
