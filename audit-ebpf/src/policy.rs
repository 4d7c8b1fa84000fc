//! Is a record left out, because a filter rule hides it or its cgroup is over its budget? What the
//! maps mean is said in [`audit_common::policy`].
//!
//! Asked twice: when a record is begun, with all that is known of who acts, so that what is hidden
//! costs no more ([`policy_judge`]); and when it is sent, when its path is known and it uses up a
//! budget ([`policy_admit`]). Invariants: what is left out is counted once, by rule or by cgroup,
//! and takes no number; exec, fork and exit are never left out; what the kernel does not know for
//! sure it does not hide. Where nothing is configured, each question is one look at a map.

mod budget;
mod prefix;

use audit_common::{
    call::SLOTS,
    kind,
    limits::{
        FILTER_CGROUP_LEVELS, FILTER_CGROUPS, FILTER_KINDS, FILTER_PROGRAMS, FILTER_RULES,
        FILTER_USERS,
    },
    policy::{
        BANKS, CgroupKey, GENERATION, HIDDEN_COUNTS, PATH_KNOWN, Policy, ProgramKey, SHED_BANK,
        UserPrefix, hidden_index,
    },
    record::Header,
};
use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LpmTrie, PerCpuArray, lpm_trie::Key},
};

pub use prefix::{policy_prefix, prefix_rules};

use crate::{
    kernel,
    record::{count_filtered, header_of},
    settings::offset,
    task,
};

/// The generation in force, the bank of `SHED` in use, and the last generation.
#[map]
static CURRENT: Array<u32> = Array::with_max_entries(3, 0);
#[map]
static POLICIES: Array<Policy> = Array::with_max_entries(BANKS, 0);
/// Rules that the kind satisfies, whether they name it or none; at bank * FILTER_KINDS + kind.
#[map]
static KIND_RULES: Array<u64> = Array::with_max_entries(BANKS * FILTER_KINDS, 0);
/// Rules that name the system call, at bank * SLOTS + slot.
#[map]
static CALL_RULES: Array<u64> = Array::with_max_entries(BANKS * SLOTS, 0);
#[map]
static USER_RULES: LpmTrie<UserPrefix, u64> = LpmTrie::with_max_entries(FILTER_USERS, 0);
#[map]
static CGROUP_RULES: HashMap<CgroupKey, u64> = HashMap::with_max_entries(FILTER_CGROUPS, 0);
#[map]
static PROGRAM_RULES: HashMap<ProgramKey, u64> = HashMap::with_max_entries(FILTER_PROGRAMS, 0);
/// What each rule has hidden of each class, at [`hidden_index`].
#[map]
static HIDDEN_BY: PerCpuArray<u64> = PerCpuArray::with_max_entries(BANKS * HIDDEN_COUNTS, 0);

pub const PASSES: u32 = 0;
pub const HIDDEN: u32 = 1;
/// Some rule asks for a path that is not known (yet).
const OPEN: u32 = 2;

/// Of the rules and budgets in force; 0 where there are none.
#[inline(always)]
pub fn generation() -> u32 {
    current(GENERATION)
}

#[inline(always)]
fn shed_bank() -> u32 {
    current(SHED_BANK)
}

#[inline(always)]
fn current(index: u32) -> u32 {
    // SAFETY: map memory, which the agent changes at any time.
    CURRENT
        .get_ptr(index)
        .map_or(0, |value| unsafe { value.read_volatile() })
}

#[inline(always)]
fn bank(generation: u32) -> u32 {
    generation & (BANKS - 1)
}

#[inline(always)]
fn policy(generation: u32) -> Option<&'static Policy> {
    POLICIES.get(bank(generation))
}

/// Judges the record that was begun in `class`, of the current task in the system call of `slot`.
/// Where `deferred`, what is hidden is not counted yet, because it is judged again when it is sent.
///
/// Global functions, as [`crate::path::climb_steps`]: they are in every program, and would need more
/// stack than there is.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn policy_judge(class: u32, slot: u32, deferred: u32) -> u32 {
    let generation = generation();
    let (Some(header), Some(policy)) = (header_of(class), policy(generation)) else {
        return PASSES;
    };
    let mut rules = kind_rules(header, generation);
    if rules == 0 {
        return PASSES;
    }
    if rules & !policy.any_call != 0 {
        rules &= policy.any_call | call_rules(slot, generation);
    }
    rules = actor_rules(rules, header, policy, generation);
    header.generation = generation;
    let verdict = settle(header, policy, rules, policy.paths);
    if verdict == HIDDEN && deferred == 0 {
        count_hidden(header, class, generation);
    }
    verdict
}

/// The same, of a record in the name of a task that was here earlier: its header has the rules that
/// task satisfied. The record is judged for good when it is sent.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn policy_judge_owner(class: u32) -> u32 {
    let generation = generation();
    let (Some(header), Some(policy)) = (header_of(class), policy(generation)) else {
        return PASSES;
    };
    let who = if header.generation == generation {
        header.candidates
    } else {
        of_stranger(header, policy, generation)
    };
    let rules = kind_rules(header, generation) & policy.any_call & who;
    header.generation = generation;
    settle(header, policy, rules, policy.paths)
}

/// Notes in a header that is kept which rules the current task satisfies, if it is that of the header.
#[inline(always)]
pub fn of_owner(header: &mut Header) {
    header.generation = generation();
    header.candidates = 0;
    if header.generation != 0 {
        if header.pid != task::current_pid() {
            header.generation = 0;
            return;
        }
        header.candidates = policy_actor(header.credentials.uid);
    }
}

/// The rules that the current task satisfies, with that user id.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn policy_actor(uid: u32) -> u64 {
    let generation = generation();
    let Some(policy) = policy(generation) else {
        return 0;
    };
    actor_rules_of(policy.rules, uid, policy, generation)
}

/// May the record of `class` be sent? Counts what may not.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn policy_admit(class: u32) -> u32 {
    let generation = generation();
    let (Some(header), Some(policy)) = (header_of(class), policy(generation)) else {
        return PASSES;
    };
    if kind::is_kept(header.kind) {
        return PASSES;
    }
    if header.candidates != 0 && is_hidden(header, policy, generation) {
        count_hidden(header, class, generation);
        return HIDDEN;
    }
    if budget::is_over(header, policy, class) {
        return HIDDEN;
    }
    PASSES
}

#[inline(always)]
fn is_hidden(header: &mut Header, policy: &Policy, generation: u32) -> bool {
    let mut undecided = policy.paths;
    if header.generation & !PATH_KNOWN != generation {
        // Judged by rules that are no more. Who it was is known in part.
        let rules = kind_rules(header, generation) & policy.any_call;
        let rules = rules & of_stranger(header, policy, generation);
        header.generation = generation;
        header.candidates = rules;
    } else if header.generation & PATH_KNOWN != 0 {
        undecided = 0;
    }
    let rules = header.candidates;
    settle(header, policy, rules, undecided) == HIDDEN
}

/// The path of the record of `class` was just walked.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn policy_path(class: u32) -> u32 {
    let Some(header) = header_of(class) else {
        return 0;
    };
    let generation = generation();
    // A new name may be elsewhere; the agent knows both.
    if header.kind == kind::RENAME || header.kind == kind::LINK {
        return 0;
    }
    if header.generation == generation && policy_prefix(class) != 0 {
        path_known(header, generation, prefix_rules(class));
    }
    0
}

/// Leaves of the rules that ask for a path those that are satisfied.
#[inline(always)]
pub fn path_known(header: &mut Header, generation: u32, satisfied: u64) {
    if header.generation != generation || header.kind == kind::RENAME || header.kind == kind::LINK {
        return;
    }
    if let Some(policy) = policy(generation) {
        header.candidates &= !policy.paths | satisfied;
        header.generation |= PATH_KNOWN;
    }
}

/// What follows from the rules that a record satisfies, `undecided` of them but for the path.
#[inline(always)]
fn settle(header: &mut Header, policy: &Policy, rules: u64, undecided: u64) -> u32 {
    let hiding = rules & !policy.includes;
    let keeping = rules & policy.includes;
    if hiding == 0 || keeping & !undecided != 0 {
        header.candidates = 0;
        return PASSES;
    }
    header.candidates = rules;
    if keeping == 0 && hiding & !undecided != 0 {
        // Which rule did it: the first that surely hides.
        header.candidates = hiding & !undecided;
        return HIDDEN;
    }
    OPEN
}

#[inline(always)]
fn count_hidden(header: &Header, class: u32, generation: u32) {
    count_filtered(class as u8);
    let rule = first(header.candidates);
    if let Some(count) = HIDDEN_BY.get_ptr_mut(hidden_index(bank(generation), rule, class)) {
        // SAFETY: a per-CPU map value of one class, whose programs never interrupt each other.
        unsafe { *count += 1 };
    }
}

/// The lowest bit.
#[inline(always)]
fn first(rules: u64) -> u32 {
    let mut rule = 0;
    let mut width = FILTER_RULES as u32 / 2;
    let mut rest = rules;
    while width > 0 {
        if rest & ((1_u64 << width) - 1) == 0 {
            rule += width;
            rest >>= width;
        }
        width /= 2;
    }
    rule
}

#[inline(always)]
fn kind_rules(header: &Header, generation: u32) -> u64 {
    let kind = u32::from(header.kind);
    if kind >= FILTER_KINDS {
        return 0;
    }
    let at = bank(generation) * FILTER_KINDS + kind;
    KIND_RULES.get(at).copied().unwrap_or(0)
}

#[inline(always)]
fn call_rules(slot: u32, generation: u32) -> u64 {
    if slot >= SLOTS {
        return 0;
    }
    let at = bank(generation) * SLOTS + slot;
    CALL_RULES.get(at).copied().unwrap_or(0)
}

#[inline(always)]
fn actor_rules(rules: u64, header: &Header, policy: &Policy, generation: u32) -> u64 {
    actor_rules_of(rules, header.credentials.uid, policy, generation)
}

/// Those of `rules` that the current task satisfies. Asks only for what one of them asks for.
#[inline(always)]
fn actor_rules_of(mut rules: u64, uid: u32, policy: &Policy, generation: u32) -> u64 {
    if rules & !policy.any_user != 0 {
        rules &= policy.any_user | user_rules(uid, generation);
    }
    if rules & !policy.any_cgroup != 0 {
        rules &= policy.any_cgroup | cgroup_rules(generation);
    }
    if rules & !policy.any_program != 0 {
        rules &= policy.any_program | program_rules(generation);
    }
    rules
}

/// Those that somebody satisfies who is not here (any more): of a rule that asks for a program or a
/// cgroup it is not known.
#[inline(always)]
fn of_stranger(header: &Header, policy: &Policy, generation: u32) -> u64 {
    let rules = policy.any_program & policy.any_cgroup;
    rules & (policy.any_user | user_rules(header.credentials.uid, generation))
}

#[inline(always)]
fn user_rules(uid: u32, generation: u32) -> u64 {
    let [a, b, c, d] = uid.to_be_bytes();
    let key = Key::new(UserPrefix::BITS, [bank(generation) as u8, a, b, c, d]);
    USER_RULES.get(key).copied().unwrap_or(0)
}

/// The bits of a whole key.
trait Bits {
    const BITS: u32;
}

impl<const N: usize> Bits for [u8; N] {
    const BITS: u32 = N as u32 * 8;
}

/// Of the cgroup that the current task is in, and those above it.
#[inline(always)]
fn cgroup_rules(generation: u32) -> u64 {
    let set = kernel::pointer(task::current(), offset!(task_cgroups));
    let mut cgroup = kernel::pointer(set, offset!(css_set_cgroup));
    let mut rules = 0;
    let mut level = 0;
    while level < FILTER_CGROUP_LEVELS && cgroup != 0 {
        let node = kernel::pointer(cgroup, offset!(cgroup_kn));
        let key = CgroupKey {
            id: kernel::read(node, offset!(kernfs_node_id)),
            bank: bank(generation).into(),
        };
        // SAFETY: a number that is written whole.
        rules |= unsafe { CGROUP_RULES.get(key) }.copied().unwrap_or(0);
        let above = kernel::pointer(cgroup, offset!(cgroup_parent));
        cgroup = match above {
            0 => 0,
            above => kernel::pointer(above, offset!(css_cgroup)),
        };
        level += 1;
    }
    rules
}

/// Of the program that the current task runs.
#[inline(always)]
fn program_rules(generation: u32) -> u64 {
    let mm = kernel::pointer(task::current(), offset!(task_mm));
    if mm == 0 {
        return 0; // a thread of the kernel
    }
    let file = kernel::pointer(mm, offset!(mm_exe_file));
    let inode = kernel::pointer(file, offset!(file_inode));
    let super_block = kernel::pointer(inode, offset!(inode_sb));
    let key = ProgramKey {
        inode: kernel::read(inode, offset!(inode_ino)),
        device: kernel::read(super_block, offset!(super_block_dev)),
        bank: bank(generation),
    };
    // SAFETY: a number that is written whole.
    unsafe { PROGRAM_RULES.get(key) }.copied().unwrap_or(0)
}
