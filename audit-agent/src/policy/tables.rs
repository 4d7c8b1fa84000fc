//! Rules in the form of the kernel's maps: for each thing that rules ask for, which of them it
//! satisfies. What rules do not ask for is in the masks of [`kernel::Policy`].

use std::collections::BTreeMap;

use audit_common::{
    call::SLOTS,
    kind,
    limits::FILTER_KINDS,
    policy::{self as kernel},
};

use super::{Action, Policy, ValidRule, places::Places};

/// The contents of one bank.
#[derive(Debug, Default)]
pub struct Tables {
    pub policy: kernel::Policy,
    /// Of each kind, in order.
    pub kinds: Vec<u64>,
    /// Of each slot, in order; empty where no rule asks for calls.
    pub calls: Vec<u64>,
    pub users: Vec<UserBlock>,
    /// By device and inode.
    pub programs: BTreeMap<(u32, u64), u64>,
    /// By id.
    pub cgroups: BTreeMap<u64, u64>,
    /// By beginning.
    pub prefixes: BTreeMap<Vec<u8>, u64>,
}

/// User ids that begin with the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserBlock {
    pub first: u32,
    /// How many bits of it count.
    pub bits: u32,
    pub rules: u64,
}

impl Tables {
    pub fn new(policy: &Policy, places: &Places) -> Self {
        let rules = &policy.rules;
        let mut tables = Self {
            policy: masks(policy),
            kinds: kinds(rules),
            users: user_blocks(rules),
            prefixes: prefixes(rules),
            ..Self::default()
        };
        if rules.iter().any(|rule| !rule.slots.is_empty()) {
            tables.calls = vec![0; SLOTS as usize];
        }
        for (at, rule) in rules.iter().enumerate() {
            for slot in &rule.slots {
                if let Some(of_slot) = tables.calls.get_mut(*slot as usize) {
                    *of_slot |= 1 << at;
                }
            }
        }
        for (at, device, inode) in &places.programs {
            *tables.programs.entry((*device, *inode)).or_default() |= 1 << at;
        }
        for (at, id) in &places.cgroups {
            *tables.cgroups.entry(*id).or_default() |= 1 << at;
        }
        tables
    }
}

fn masks(policy: &Policy) -> kernel::Policy {
    let of = |holds: fn(&ValidRule) -> bool| {
        let rules = policy.rules.iter().enumerate();
        rules
            .filter(|(_, rule)| holds(rule))
            .fold(0, |bits, (at, _)| bits | 1 << at)
    };
    kernel::Policy {
        rules: of(|_| true),
        includes: of(|rule| rule.action == Action::Include),
        paths: of(ValidRule::needs_path),
        any_call: of(|rule| rule.slots.is_empty()),
        any_user: of(|rule| rule.users.is_empty()),
        any_cgroup: of(|rule| rule.cgroups.is_empty()),
        any_program: of(|rule| rule.exes.is_empty()),
        budgets: policy.budgets,
    }
}

fn kinds(rules: &[ValidRule]) -> Vec<u64> {
    let mut kinds = vec![0; FILTER_KINDS as usize];
    for row in kind::ALL.iter().filter(|row| !kind::is_kept(row.number)) {
        for (at, rule) in rules.iter().enumerate() {
            let asked = rule.kinds.is_empty() || rule.kinds.contains(&row.number);
            if let (true, Some(of_kind)) = (asked, kinds.get_mut(usize::from(row.number))) {
                *of_kind |= 1 << at;
            }
        }
    }
    kinds
}

/// The value of the longest beginning that matches is the answer, so it has the rules of all shorter
/// ones that match too.
fn prefixes(rules: &[ValidRule]) -> BTreeMap<Vec<u8>, u64> {
    let mut own: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
    for (at, rule) in rules.iter().enumerate() {
        for path in &rule.paths {
            *own.entry(path.clone().into_bytes()).or_default() |= 1 << at;
        }
    }
    let all = |path: &[u8]| {
        let shorter = own.iter().filter(|(prefix, _)| path.starts_with(prefix));
        shorter.fold(0, |bits, (_, rules)| bits | rules)
    };
    own.keys().map(|path| (path.clone(), all(path))).collect()
}

/// Disjoint blocks of all ranges, each with the rules that have it.
pub fn user_blocks(rules: &[ValidRule]) -> Vec<UserBlock> {
    let ranges = || {
        let of_rule = |(at, rule): (usize, &ValidRule)| {
            let users = rule.users.clone().into_iter();
            users.map(move |(first, last)| (u64::from(first), u64::from(last) + 1, at))
        };
        rules.iter().enumerate().flat_map(of_rule)
    };
    // Between two of these nothing changes.
    let mut edges: Vec<u64> = ranges().flat_map(|(first, end, _)| [first, end]).collect();
    edges.sort_unstable();
    edges.dedup();
    let mut blocks = Vec::new();
    for pair in edges.windows(2) {
        let &[mut first, end] = pair else { continue };
        let inside = ranges().filter(|(begin, until, _)| *begin <= first && first < *until);
        let rules = inside.fold(0, |bits, (_, _, at)| bits | 1 << at);
        while rules != 0 && first < end {
            // The largest block that begins here and does not reach beyond the end.
            let aligned = if first == 0 {
                32
            } else {
                first.trailing_zeros().min(32)
            };
            let fits = 63 - (end - first).leading_zeros();
            let size = aligned.min(fits);
            blocks.push(UserBlock {
                first: u32::try_from(first).unwrap_or(u32::MAX),
                bits: 32 - size,
                rules,
            });
            first += 1 << size;
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Budgets, Rule};

    fn policy(rules: &[&str]) -> Policy {
        let rules: Vec<Rule> = rules
            .iter()
            .map(|yaml| yaml_serde::from_str(yaml).expect("yaml"))
            .collect();
        Policy::new(&rules, &Budgets::default()).expect("policy")
    }

    /// As the kernel looks it up.
    fn rules_of(blocks: &[UserBlock], uid: u32) -> u64 {
        let inside = |block: &&UserBlock| {
            let size = 32 - block.bits;
            u64::from(uid) >> size == u64::from(block.first) >> size
        };
        let found: Vec<_> = blocks.iter().filter(inside).collect();
        assert!(found.len() < 2, "{uid}: {found:?}");
        found.first().map_or(0, |block| block.rules)
    }

    #[test]
    fn ranges_of_users_become_blocks_that_say_the_same() {
        let policy = policy(&[
            "{name: a, uids: ['1000-1999', 0]}",
            "{name: b, uids: ['1500-4294967295']}",
            "{name: c, uids: ['0-4294967295']}",
            "{name: d, kinds: [open]}",
        ]);
        let blocks = user_blocks(&policy.rules);
        for (uid, rules) in [
            (0, 0b101),
            (1, 0b100),
            (999, 0b100),
            (1000, 0b101),
            (1499, 0b101),
            (1500, 0b111),
            (1999, 0b111),
            (2000, 0b110),
            (u32::MAX, 0b110),
        ] {
            assert_eq!(rules_of(&blocks, uid), rules, "{uid}");
        }
        assert!(blocks.len() < 64, "{}", blocks.len());
    }

    #[test]
    fn no_rule_has_exec_fork_or_exit() {
        let tables = Tables::new(&policy(&["{name: a, uids: [0]}"]), &Places::default());
        for row in kind::ALL {
            let kept = ["exec", "fork", "exit", "container"];
            let expected = u64::from(!kept.contains(&row.name));
            assert_eq!(
                tables.kinds[usize::from(row.number)],
                expected,
                "{}",
                row.name
            );
        }
    }

    #[test]
    fn a_longer_beginning_has_the_rules_of_the_shorter() {
        let tables = Tables::new(
            &policy(&[
                "{name: a, paths: [/var/]}",
                "{name: b, action: include, paths: [/var/log/audit]}",
                "{name: c, paths: [/tmp/], syscalls: [openat]}",
            ]),
            &Places::default(),
        );
        let of = |path: &str| tables.prefixes.get(path.as_bytes()).copied();
        assert_eq!(of("/var/"), Some(0b001));
        assert_eq!(of("/var/log/audit"), Some(0b011));
        assert_eq!(of("/tmp/"), Some(0b100));
        assert_eq!(tables.policy.includes, 0b010);
        assert_eq!(tables.policy.paths, 0b111);
        assert_eq!(
            (tables.policy.any_call, tables.policy.any_user),
            (0b011, 0b111)
        );
        let slot = crate::calls::slot("openat").expect("slot");
        assert_eq!(tables.calls[slot as usize], 0b100);
        assert_eq!(
            tables.calls.iter().filter(|rules| **rules != 0).count(),
            2,
            "i386 too"
        );
    }
}
