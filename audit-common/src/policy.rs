//! What the configuration leaves out in the kernel: filter rules and budgets, as the maps hold them.
//!
//! A rule is a bit. For each thing that rules can ask for there is a map to the rules that it
//! satisfies, and in [`Policy`] the rules that do not ask for it; a record satisfies the rules that
//! are in one or the other, for everything. All of it is there twice, in two banks, so that a new
//! set of rules is complete before programs begin to use it: the generation in map `CURRENT` says
//! which bank that is, by its lowest bit; 0 says that there is nothing to leave out.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::limits::{FILTER_PREFIX_BYTES, FILTER_RULES};

pub const BANKS: u32 = 2;
/// Indexes of the map `CURRENT`.
pub const GENERATION: u32 = 0;
pub const SHED_BANK: u32 = 1;
/// The last generation that was given out, in force or not: for the next agent, where the maps outlive
/// one.
pub const LAST_GENERATION: u32 = 2;
/// Set in [`crate::record::Header::generation`] when the rules that remain know the path.
pub const PATH_KNOWN: u32 = 1 << 31;

/// Counts of one bank in the map `HIDDEN_BY`: for each rule one of each class.
pub const HIDDEN_COUNTS: u32 = FILTER_RULES as u32 * CLASSES;
/// Numbers of classes, 0 included, and room.
const CLASSES: u32 = 8;

/// Where that map counts what a rule has hidden of a class.
pub const fn hidden_index(bank: u32, rule: u32, class: u32) -> u32 {
    bank * HIDDEN_COUNTS + rule * CLASSES + class
}

const _: () = assert!(FILTER_RULES == u64::BITS as usize);

/// Value of the map `POLICIES`, one per bank. Sets of rules, but for the budgets.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Policy {
    /// All rules.
    pub rules: u64,
    /// A record that satisfies one of these is kept, whatever the others say.
    pub includes: u64,
    /// Rules that ask for paths.
    pub paths: u64,
    /// Rules that do not ask for: system calls, users, cgroups, programs.
    pub any_call: u64,
    pub any_user: u64,
    pub any_cgroup: u64,
    pub any_program: u64,
    /// By class.
    pub budgets: [Budget; 8],
}

/// What a cgroup may fill of one class.
#[repr(C)]
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Budget {
    /// One record in this time; 0 is no budget.
    pub interval_ns: u64,
    /// So far ahead of that the records may be.
    pub burst_ns: u64,
    /// Of those beyond, one in so many is told; 0 for none.
    pub sample: u64,
    /// And of these, one in this time.
    pub sampled_interval_ns: u64,
}

/// How far a cgroup has used a [`Budget`]; value of the map `BUCKETS`. Not exact where several CPUs
/// use it at once; what is shed is counted elsewhere, and exactly.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Bucket {
    /// When the next record is within the rate.
    pub next_ns: u64,
    pub next_sampled_ns: u64,
    /// Records beyond the budget.
    pub over: u64,
}

/// Key of the maps `BUCKETS` (bank 0) and `SHED`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct BudgetKey {
    pub cgroup_id: u64,
    pub class: u32,
    pub bank: u32,
}

/// Records beyond a budget; value of the per-CPU maps `SHED` and `SHED_REST`.
#[repr(C)]
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Shed {
    /// Counted and not told.
    pub shed: u64,
    /// Told, as the sample.
    pub sampled: u64,
}

/// Key of the map `PROGRAM_RULES`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ProgramKey {
    pub inode: u64,
    /// major << 20 | minor
    pub device: u32,
    pub bank: u32,
}

/// Key of the map `CGROUP_RULES`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CgroupKey {
    pub id: u64,
    pub bank: u64,
}

/// Bank and beginning of a path: what a key of the map `PATH_RULES` has behind its length in bits.
pub type PathPrefix = [u8; 1 + FILTER_PREFIX_BYTES];
/// Bank and beginning of a user id, big-endian: the same of the map `USER_RULES`.
pub type UserPrefix = [u8; 5];
