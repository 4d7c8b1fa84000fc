//! How do rules and budgets get into the kernel, and what have they left out?
//!
//! Invariants: a bank is written only while no program uses it: at least [`QUIET`] after another was
//! switched to, when every program that began before has long ended. So a change detaches nothing,
//! loses nothing, and is one write of one number. A rule's counts are taken over before its bank is
//! written again, and shed counts are read from the bank that is not in use, so none is lost.
//!
//! Where capture outlives the agent so do these maps, with what is in force and what was counted. The
//! next agent takes a look at both banks, and goes on as if it had written them.

use std::{
    collections::BTreeMap,
    iter, mem,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use audit_common::{
    call::SLOTS,
    class,
    limits::FILTER_KINDS,
    policy::{
        BANKS, BudgetKey, CgroupKey, GENERATION, LAST_GENERATION, PATH_KNOWN, PathPrefix,
        Policy as Masks, ProgramKey, SHED_BANK, Shed, UserPrefix, hidden_index,
    },
};
use aya::maps::{
    Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, PerCpuHashMap, PerCpuValues,
    lpm_trie::Key,
};

use super::{ProbeError, typed};
use crate::{
    policy::{
        Policy, places,
        places::Places,
        tables::{Tables, UserBlock},
    },
    source::ShedCount,
    spool::Told,
};

/// Programs run for some microseconds, a second at the very most where a host stands still.
const QUIET: Duration = Duration::from_secs(1);

/// A program's device and inode, and such, as aya may copy them.
type TwoWords = [u64; 2];
const MASK_WORDS: usize = size_of::<Masks>() / 8;

/// Rules and budgets as the kernel has them.
pub(crate) struct Rules {
    maps: Maps,
    wanted: Arc<Policy>,
    /// What `wanted` was when it was last written, and where its programs and cgroups were.
    written: Option<(Arc<Policy>, Places)>,
    /// Grows with each write; its lowest bit is the bank.
    generation: u32,
    switched: Option<Instant>,
    banks: [Bank; BANKS as usize],
    /// By rule, of this run.
    hidden: BTreeMap<String, u64>,
    /// There is one, or there was.
    has_budgets: bool,
    shed_bank: u32,
    shed_rest: [Shed; class::ALL.len()],
    hierarchy: Option<PathBuf>,
}

/// What is in a bank.
#[derive(Default)]
struct Bank {
    tables: Tables,
    /// In the order of their bits, with what was already counted of each.
    rules: Vec<(String, u64)>,
}

struct Maps {
    current: Array<MapData, u32>,
    policies: Array<MapData, [u64; MASK_WORDS]>,
    kinds: Array<MapData, u64>,
    calls: Array<MapData, u64>,
    users: LpmTrie<MapData, UserPrefix, u64>,
    cgroups: HashMap<MapData, TwoWords, u64>,
    programs: HashMap<MapData, TwoWords, u64>,
    prefixes: LpmTrie<MapData, PathPrefix, u64>,
    hidden: PerCpuArray<MapData, u64>,
    shed: PerCpuHashMap<MapData, TwoWords, TwoWords>,
    shed_rest: PerCpuArray<MapData, TwoWords>,
}

impl Rules {
    /// Takes the maps, and writes the first set: before anything is attached, or in place of what a
    /// former agent has left in them, of which `told` are the counts that it has told.
    pub(super) fn open(
        map: &mut dyn FnMut(&str) -> Result<Map, ProbeError>,
        policy: Arc<Policy>,
        told: &Told,
    ) -> Result<Self, ProbeError> {
        let maps = Maps::open(map)?;
        let mut rules = Self {
            maps,
            wanted: policy,
            written: None,
            generation: 0,
            switched: None,
            banks: Default::default(),
            hidden: BTreeMap::new(),
            has_budgets: false,
            shed_bank: 0,
            shed_rest: Default::default(),
            hierarchy: places::hierarchy(),
        };
        let failed = |error| ProbeError::Load(format!("capture.filters: {error}"));
        rules.inherit(told).map_err(failed)?;
        rules.write_if_changed().map_err(failed)?;
        Ok(rules)
    }

    /// Takes up what is in the maps.
    fn inherit(&mut self, told: &Told) -> Result<(), MapError> {
        self.generation = self.maps.current.get(&LAST_GENERATION, 0)?;
        if self.generation == 0 {
            return Ok(());
        }
        let told = told.rules.iter().cloned().chain(iter::repeat(Vec::new()));
        for ((bank, room), rules) in (0..).zip(&mut self.banks).zip(told) {
            let tables = self.maps.tables(bank)?;
            *room = Bank { tables, rules };
        }
        // What is there is told, whoever had the budget.
        self.has_budgets = true;
        self.shed_bank = self.maps.current.get(&SHED_BANK, 0)?;
        for (class, before) in class::ALL.into_iter().zip(&mut self.shed_rest) {
            *before = sum(&self.maps.shed_rest.get(&class.into(), 0)?);
        }
        Ok(())
    }

    /// By bank, the rules in the order of their bits, with what has been told of each.
    pub(crate) fn told(&self) -> Vec<Vec<(String, u64)>> {
        self.banks.iter().map(|bank| bank.rules.clone()).collect()
    }

    /// What shall be in force from the next [`Self::refresh`] on.
    pub(crate) fn want(&mut self, policy: Arc<Policy>) {
        self.wanted = policy;
    }

    /// The generation in force.
    pub(crate) fn in_force(&self) -> Option<(u32, Arc<Policy>)> {
        let (policy, _) = self.written.as_ref()?;
        Some((self.generation, Arc::clone(policy)))
    }

    /// Once a second: writes what is wanted now, or is elsewhere now.
    pub(crate) fn refresh(&mut self) -> Result<(), MapError> {
        let quiet = self.switched.is_none_or(|since| since.elapsed() >= QUIET);
        if quiet {
            self.write_if_changed()
        } else {
            Ok(())
        }
    }

    fn write_if_changed(&mut self) -> Result<(), MapError> {
        if self.generation == 0 && self.wanted.is_empty() {
            self.written = Some((Arc::clone(&self.wanted), Places::default()));
            return Ok(());
        }
        let places = places::find(&self.wanted, self.hierarchy.as_deref());
        if let Some((policy, known)) = &self.written
            && *policy == self.wanted
            && *known == places
        {
            return Ok(());
        }
        for missing in &places.missing {
            tracing::warn!(missing, "a filter rule names what is not there (yet)");
        }
        self.write(&places)?;
        self.written = Some((Arc::clone(&self.wanted), places));
        Ok(())
    }

    fn write(&mut self, places: &Places) -> Result<(), MapError> {
        self.count()?;
        // 0 would be none, and the highest bit has a meaning.
        let generation = match (self.generation + 1) & !PATH_KNOWN {
            0 => BANKS,
            next => next,
        };
        let bank = generation & (BANKS - 1);
        let tables = Tables::new(&self.wanted, places);
        let old = mem::take(
            self.banks
                .get_mut(bank as usize)
                .unwrap_or(&mut Bank::default()),
        );
        self.maps.clear(bank, &old.tables)?;
        self.maps.fill(bank, &tables, &old.tables)?;
        let mut rules = Vec::new();
        for (at, rule) in (0..).zip(&self.wanted.rules) {
            let counted = self.maps.hidden_by(bank, at)?;
            rules.push((rule.name.clone(), counted));
            self.hidden.entry(rule.name.clone()).or_default();
        }
        if let Some(room) = self.banks.get_mut(bank as usize) {
            *room = Bank { tables, rules };
        }
        let mut budgets = self.wanted.budgets.iter();
        self.has_budgets |= budgets.any(|budget| budget.interval_ns != 0);
        self.maps.current.set(LAST_GENERATION, generation, 0)?;
        let in_force = if self.wanted.is_empty() {
            0
        } else {
            generation
        };
        self.maps.current.set(GENERATION, in_force, 0)?;
        self.generation = generation;
        self.switched = Some(Instant::now());
        // Bounded by what two banks name.
        let banks = &self.banks;
        let named = |name: &String| {
            let mut rules = banks.iter().flat_map(|bank| &bank.rules);
            rules.any(|(rule, _)| rule == name)
        };
        self.hidden.retain(|name, _| named(name));
        Ok(())
    }

    /// By rule, what each has hidden in this run.
    pub(crate) fn hidden(&mut self) -> BTreeMap<String, u64> {
        if let Err(error) = self.count() {
            tracing::debug!(%error, "counts of filter rules cannot be read");
        }
        self.hidden.clone()
    }

    fn count(&mut self) -> Result<(), MapError> {
        for (bank, contents) in (0..).zip(&mut self.banks) {
            for (rule, (name, counted)) in (0..).zip(&mut contents.rules) {
                let now = self.maps.hidden_by(bank, rule)?;
                let total = self.hidden.entry(name.clone()).or_default();
                *total += now.saturating_sub(*counted);
                *counted = now;
            }
        }
        Ok(())
    }

    /// What was shed until the last call, and is told once. At most once a [`QUIET`].
    pub(crate) fn shed(&mut self) -> Result<Vec<ShedCount>, MapError> {
        if !self.has_budgets {
            return Ok(Vec::new());
        }
        let mut told = Vec::new();
        let idle = 1 - self.shed_bank;
        for (key, counts) in self.maps.shed_of(idle)? {
            told.push(ShedCount {
                class: u8::try_from(key.class).unwrap_or(0),
                cgroup_id: Some(key.cgroup_id),
                shed: counts.shed,
                sampled: counts.sampled,
            });
        }
        self.maps.current.set(SHED_BANK, idle, 0)?;
        self.shed_bank = idle;
        for (class, before) in class::ALL.into_iter().zip(&mut self.shed_rest) {
            let now = sum(&self.maps.shed_rest.get(&class.into(), 0)?);
            if now != *before {
                told.push(ShedCount {
                    class,
                    cgroup_id: None,
                    shed: now.shed - before.shed,
                    sampled: now.sampled - before.sampled,
                });
                *before = now;
            }
        }
        Ok(told)
    }
}

fn sum(values: &PerCpuValues<TwoWords>) -> Shed {
    let mut total = Shed::default();
    for [shed, sampled] in values.iter() {
        total.shed += shed;
        total.sampled += sampled;
    }
    total
}

impl Maps {
    fn open(map: &mut dyn FnMut(&str) -> Result<Map, ProbeError>) -> Result<Self, ProbeError> {
        macro_rules! open {
            ($name:literal) => {
                typed($name, map($name)?)?
            };
        }
        Ok(Self {
            current: open!("CURRENT"),
            policies: open!("POLICIES"),
            kinds: open!("KIND_RULES"),
            calls: open!("CALL_RULES"),
            users: open!("USER_RULES"),
            cgroups: open!("CGROUP_RULES"),
            programs: open!("PROGRAM_RULES"),
            prefixes: open!("PATH_RULES"),
            hidden: open!("HIDDEN_BY"),
            shed: open!("SHED"),
            shed_rest: open!("SHED_REST"),
        })
    }

    /// What is in a bank, as far as it must be known to put something else there: not which rules a
    /// key leads to.
    fn tables(&self, bank: u32) -> Result<Tables, MapError> {
        let mut tables = Tables {
            kinds: values(&self.kinds, bank * FILTER_KINDS, FILTER_KINDS)?,
            calls: values(&self.calls, bank * SLOTS, SLOTS)?,
            ..Tables::default()
        };
        for key in self.users.keys() {
            let key = key?;
            let [of, a, b, c, d] = key.data();
            if u32::from(of) == bank {
                tables.users.push(UserBlock {
                    first: u32::from_be_bytes([a, b, c, d]),
                    bits: key.prefix_len().saturating_sub(8),
                    rules: 0,
                });
            }
        }
        for key in self.cgroups.keys() {
            let key: CgroupKey = zerocopy::transmute!(key?);
            if key.bank == u64::from(bank) {
                tables.cgroups.insert(key.id, 0);
            }
        }
        for key in self.programs.keys() {
            let key: ProgramKey = zerocopy::transmute!(key?);
            if key.bank == bank {
                tables.programs.insert((key.device, key.inode), 0);
            }
        }
        for key in self.prefixes.keys() {
            let key = key?;
            let bytes = (key.prefix_len() / 8) as usize;
            if let [of, prefix @ ..] = &key.data()[..bytes]
                && u32::from(*of) == bank
            {
                tables.prefixes.insert(prefix.to_vec(), 0);
            }
        }
        Ok(tables)
    }

    fn clear(&mut self, bank: u32, old: &Tables) -> Result<(), MapError> {
        for block in &old.users {
            self.users
                .remove(&user_key(bank, block.first, block.bits))?;
        }
        for id in old.cgroups.keys() {
            self.cgroups.remove(&cgroup_key(bank, *id))?;
        }
        for program in old.programs.keys() {
            self.programs.remove(&program_key(bank, *program))?;
        }
        for prefix in old.prefixes.keys() {
            self.prefixes.remove(&prefix_key(bank, prefix))?;
        }
        Ok(())
    }

    /// Over the remains of `old`. Writes no more than it must: while a process writes to a map, the
    /// kernel skips kprobes on that CPU, which matters if it is preempted then.
    fn fill(&mut self, bank: u32, tables: &Tables, old: &Tables) -> Result<(), MapError> {
        self.policies.set(bank, words(&tables.policy), 0)?;
        let kinds = (&old.kinds[..], &tables.kinds[..]);
        set_changed(&mut self.kinds, bank * FILTER_KINDS, kinds)?;
        let calls = (&old.calls[..], &tables.calls[..]);
        set_changed(&mut self.calls, bank * SLOTS, calls)?;
        for block in &tables.users {
            let key = user_key(bank, block.first, block.bits);
            self.users.insert(&key, block.rules, 0)?;
        }
        for (id, rules) in &tables.cgroups {
            self.cgroups.insert(cgroup_key(bank, *id), rules, 0)?;
        }
        for (program, rules) in &tables.programs {
            self.programs
                .insert(program_key(bank, *program), rules, 0)?;
        }
        for (prefix, rules) in &tables.prefixes {
            self.prefixes.insert(&prefix_key(bank, prefix), rules, 0)?;
        }
        Ok(())
    }

    fn hidden_by(&self, bank: u32, rule: u32) -> Result<u64, MapError> {
        let mut total = 0;
        for class in class::ALL {
            let at = hidden_index(bank, rule, class.into());
            total += self.hidden.get(&at, 0)?.iter().sum::<u64>();
        }
        Ok(total)
    }

    /// Takes everything out of a bank that is not in use.
    fn shed_of(&mut self, bank: u32) -> Result<Vec<(BudgetKey, Shed)>, MapError> {
        let keys: Vec<TwoWords> = self.shed.keys().collect::<Result<_, _>>()?;
        let mut found = Vec::new();
        for words in keys {
            let key: BudgetKey = zerocopy::transmute!(words);
            if key.bank == bank {
                found.push((key, sum(&self.shed.get(&words, 0)?)));
                self.shed.remove(&words)?;
            }
        }
        Ok(found)
    }
}

/// Writes from `first` on what is different; beyond the end of each there are zeroes.
fn set_changed(
    map: &mut Array<MapData, u64>,
    first: u32,
    (old, new): (&[u64], &[u64]),
) -> Result<(), MapError> {
    let of = |values: &[u64], at| values.get(at).copied().unwrap_or(0);
    for (index, at) in (first..).zip(0..old.len().max(new.len())) {
        let rules = of(new, at);
        if rules != of(old, at) {
            map.set(index, rules, 0)?;
        }
    }
    Ok(())
}

fn values(map: &Array<MapData, u64>, first: u32, count: u32) -> Result<Vec<u64>, MapError> {
    (first..first + count).map(|at| map.get(&at, 0)).collect()
}

fn words(masks: &Masks) -> [u64; MASK_WORDS] {
    zerocopy::transmute!(*masks)
}

fn user_key(bank: u32, first: u32, bits: u32) -> Key<UserPrefix> {
    let [a, b, c, d] = first.to_be_bytes();
    Key::new(8 + bits, [bank as u8, a, b, c, d])
}

fn cgroup_key(bank: u32, id: u64) -> TwoWords {
    let bank = bank.into();
    zerocopy::transmute!(CgroupKey { id, bank })
}

fn program_key(bank: u32, (device, inode): (u32, u64)) -> TwoWords {
    zerocopy::transmute!(ProgramKey {
        inode,
        device,
        bank
    })
}

fn prefix_key(bank: u32, prefix: &[u8]) -> Key<PathPrefix> {
    let mut data: PathPrefix = [0; size_of::<PathPrefix>()];
    data[0] = bank as u8;
    // The configuration was refused if one is longer.
    for (to, from) in data[1..].iter_mut().zip(prefix) {
        *to = *from;
    }
    let bytes = (1 + prefix.len()).min(data.len());
    Key::new(bytes as u32 * 8, data)
}
