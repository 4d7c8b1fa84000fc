//! Up to where do the batches of a spool tell what the kernel has recorded? So that, where capture
//! outlives the agent, the next one takes up what no batch tells and nothing twice.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicU64},
};

use serde::{Deserialize, Serialize};

/// Up to where the batches tell everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub boot_id: String,
    pub sets: Vec<SetState>,
    #[serde(default)]
    pub told: Told,
}

/// What of that which is counted in the kernel, and not recorded, was told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// Filter rules of each bank, in the order of their bits, and how much each had hidden.
    pub rules: Vec<Vec<(String, u64)>>,
}

/// Of one set of kernel programs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetState {
    pub generation: u32,
    /// The last number of each class, in the order of [`audit_common::class::ALL`], on each CPU.
    pub numbers: Vec<Vec<u64>>,
    /// Runs of each program that the kernel skipped, as far as told.
    pub skipped: BTreeMap<String, u64>,
    /// Of each class, what filters had hidden and budgets shed, as far as told.
    #[serde(default)]
    pub left_out: Vec<[u64; 2]>,
}

/// Where the source stands.
#[derive(Debug)]
pub struct Mark {
    /// Ascending.
    pub number: u64,
    pub state: State,
    /// Where the source learns the number of the last mark that is kept.
    pub kept: Arc<AtomicU64>,
}
