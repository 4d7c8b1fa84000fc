//! Which rules of one bucket match an event, without asking each of them?
//!
//! All literals of a field are one Aho-Corasick automaton, so each field is scanned once; a hit
//! at the right place makes an atom true. Each rule names a set of atoms of which one is true
//! whenever the rule is ([`Expr::necessary`]); so only rules with a true one are computed, plus
//! those that have no such set. Tests that are not literals run when a computed rule asks.
//!
//! Invariants: a cell of the scratch counts only if it carries this event's number, so nothing has
//! to be cleared between events; what a scan found in a part of an event is kept for the rows that
//! have the same part, and forgotten before those of another batch.

use std::{collections::BTreeMap, ops::Range};

use ahash::AHashMap;
use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};
use audit_proto::columns::Row;
use regex::Regex;

use crate::{
    expr::{AtomId, Expr},
    field::{Field, Home},
    pattern::{Anchor, Test},
    values::Values,
};

/// Beyond this many bytes of literals in one field, the automaton is the compact form: some
/// slower, far smaller. SigmaHQ's rules for Linux have 12 KB in their largest field.
const DFA_LITERAL_BYTES: usize = 64 << 10;

/// The tests of one bucket's rules while they are being collected.
#[derive(Debug, Default)]
pub struct Atoms {
    list: Vec<(Field, Test)>,
    ids: AHashMap<(Field, Test), AtomId>,
}

impl Atoms {
    /// The atom for `test` of `field`; the same for the same question.
    pub fn id(&mut self, field: Field, test: Test) -> AtomId {
        let key = (field, test);
        if let Some(id) = self.ids.get(&key) {
            return *id;
        }
        let id = self.list.len() as AtomId;
        self.list.push(key.clone());
        self.ids.insert(key, id);
        id
    }
}

/// A rule asked for more than the matchers can be built for.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    #[error("regular expression: {0}")]
    Regex(#[from] regex::Error),
    #[error("literals: {0}")]
    Literals(#[from] aho_corasick::BuildError),
}

#[derive(Debug)]
pub struct Index {
    groups: Vec<Group>,
    atoms: Vec<Atom>,
    /// Rules to compute when an atom becomes true, by atom.
    wakes: Vec<Vec<u32>>,
    /// Rules to compute for every event.
    always: Vec<u32>,
    rules: Vec<Expr>,
}

#[derive(Debug)]
struct Atom {
    /// Its field's place in [`Fields`].
    slot: usize,
    other: Option<usize>,
    test: Test,
    regex: Option<Regex>,
    found_by_scan: bool,
}

/// The fields that one part of an event has, or another group of them.
#[derive(Debug)]
struct Group {
    home: Home,
    scans: Vec<Scan>,
}

/// The literals of one field.
#[derive(Debug)]
struct Scan {
    slot: usize,
    automaton: AhoCorasick,
    /// By pattern: what a hit at which place means.
    hits: Vec<Vec<(Anchor, AtomId)>>,
}

/// The fields that rules of any bucket ask for.
#[derive(Debug, Default)]
pub struct Fields(Vec<Field>);

/// The values of one event's fields, read when they are asked for, and once for all buckets.
#[derive(Debug)]
pub struct FieldValues {
    /// The event's.
    number: u64,
    values: Vec<(u64, Values)>,
}

impl Fields {
    fn slot(&mut self, field: Field) -> usize {
        let known = self.0.iter().position(|f| *f == field);
        known.unwrap_or_else(|| {
            self.0.push(field);
            self.0.len() - 1
        })
    }

    pub fn values(&self) -> FieldValues {
        FieldValues {
            number: 0,
            values: self.0.iter().map(|_| (0, Values::default())).collect(),
        }
    }

    fn read(&self, slot: usize, row: &impl Row, event: &mut FieldValues) {
        let (stamp, values) = &mut event.values[slot];
        if *stamp != event.number {
            *stamp = event.number;
            values.clear();
            self.0[slot].read(row, values);
        }
    }
}

impl FieldValues {
    /// Another event follows.
    pub fn begin(&mut self) {
        self.number += 1;
    }
}

/// Working memory for one [`Index`].
#[derive(Debug)]
pub struct IndexScratch {
    number: u64,
    /// Event number and value.
    atoms: Vec<(u64, bool)>,
    awake: Vec<u64>,
    queue: Vec<u32>,
    /// By group.
    found: Vec<Found>,
}

/// What a group's scans found in the parts of the rows at hand: what rows share is scanned once.
#[derive(Debug, Default)]
struct Found {
    /// By the part's number among the rows, where in `atoms`.
    places: Vec<Option<Range<usize>>>,
    atoms: Vec<AtomId>,
}

impl IndexScratch {
    pub fn begin_rows(&mut self) {
        for found in &mut self.found {
            found.places.clear();
            found.atoms.clear();
        }
    }
}

impl Index {
    /// Compiles rules over `atoms`; the result numbers them as given.
    pub fn build(
        mut atoms: Atoms,
        rules: Vec<Expr>,
        fields: &mut Fields,
    ) -> Result<Index, IndexError> {
        let triggers = choose_triggers(&mut atoms, &rules);
        let mut index = Index {
            groups: Vec::new(),
            atoms: Vec::new(),
            wakes: vec![Vec::new(); atoms.list.len()],
            always: Vec::new(),
            rules,
        };
        for (rule, set) in triggers.into_iter().enumerate() {
            match set {
                None => index.always.push(rule as u32),
                Some(set) => {
                    set.iter()
                        .for_each(|id| index.wakes[*id as usize].push(rule as u32));
                }
            }
        }
        for (id, (field, test)) in atoms.list.into_iter().enumerate() {
            let slot = fields.slot(field);
            let other = match &test {
                Test::SameAs { other, .. } => Some(fields.slot(*other)),
                _ => None,
            };
            let regex = match &test {
                Test::Regex(source) => Some(source.compile()?),
                _ => None,
            };
            let found_by_scan = !index.wakes[id].is_empty();
            index.atoms.push(Atom {
                slot,
                other,
                test,
                regex,
                found_by_scan,
            });
        }
        index.groups = groups(scans(&index.atoms)?, fields);
        Ok(index)
    }

    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    pub fn scratch(&self) -> IndexScratch {
        IndexScratch {
            number: 0,
            atoms: vec![(0, false); self.atoms.len()],
            awake: vec![0; self.rules.len()],
            queue: Vec::with_capacity(self.rules.len()),
            found: self.groups.iter().map(|_| Found::default()).collect(),
        }
    }

    /// Calls `matched` with each rule that matches, in no particular order.
    pub fn evaluate(
        &self,
        row: &impl Row,
        fields: &Fields,
        event: &mut FieldValues,
        scratch: &mut IndexScratch,
        mut matched: impl FnMut(u32),
    ) {
        scratch.number = event.number;
        scratch.queue.clear();
        scratch.queue.extend_from_slice(&self.always);
        for (group, at) in self.groups.iter().zip(0..) {
            let part = group.home.part(row).and_then(|part| row.same(part));
            match part {
                Some(part) => self.scan_once(at, part as usize, row, fields, event, scratch),
                None => self.scan(group, row, fields, event, scratch, |_| {}),
            }
        }
        let queue = std::mem::take(&mut scratch.queue);
        for rule in &queue {
            let expr = &self.rules[*rule as usize];
            if expr.holds(&mut |id| self.atom(id, row, fields, event, scratch)) {
                matched(*rule);
            }
        }
        scratch.queue = queue;
    }

    /// What a group's scans find in a part, which rows before may have had.
    fn scan_once(
        &self,
        at: usize,
        part: usize,
        row: &impl Row,
        fields: &Fields,
        event: &mut FieldValues,
        scratch: &mut IndexScratch,
    ) {
        let mut found = std::mem::take(&mut scratch.found[at]);
        if found.places.len() <= part {
            found.places.resize(part + 1, None);
        }
        if let Some(known) = found.places[part].clone() {
            for id in &found.atoms[known] {
                self.holds(*id, scratch);
            }
        } else {
            let from = found.atoms.len();
            let atoms = &mut found.atoms;
            self.scan(&self.groups[at], row, fields, event, scratch, |id| {
                atoms.push(id);
            });
            found.places[part] = Some(from..found.atoms.len());
        }
        scratch.found[at] = found;
    }

    fn scan(
        &self,
        group: &Group,
        row: &impl Row,
        fields: &Fields,
        event: &mut FieldValues,
        scratch: &mut IndexScratch,
        mut found: impl FnMut(AtomId),
    ) {
        for scan in &group.scans {
            fields.read(scan.slot, row, event);
            for text in event.values[scan.slot].1.folded() {
                for hit in scan.automaton.find_overlapping_iter(text) {
                    for (anchor, id) in &scan.hits[hit.pattern().as_usize()] {
                        if scratch.atoms[*id as usize].0 != scratch.number
                            && anchor.accepts(text, hit.start(), hit.end())
                        {
                            self.holds(*id, scratch);
                            found(*id);
                        }
                    }
                }
            }
        }
    }

    /// An atom that a scan has found; the rules that ask for it are computed.
    fn holds(&self, id: AtomId, scratch: &mut IndexScratch) {
        let number = scratch.number;
        scratch.atoms[id as usize] = (number, true);
        for rule in &self.wakes[id as usize] {
            if std::mem::replace(&mut scratch.awake[*rule as usize], number) != number {
                scratch.queue.push(*rule);
            }
        }
    }

    fn atom(
        &self,
        id: AtomId,
        row: &impl Row,
        fields: &Fields,
        event: &mut FieldValues,
        scratch: &mut IndexScratch,
    ) -> bool {
        let atom = &self.atoms[id as usize];
        let (stamp, value) = scratch.atoms[id as usize];
        if stamp == scratch.number {
            return value;
        }
        if atom.found_by_scan {
            return false;
        }
        fields.read(atom.slot, row, event);
        if let Some(other) = atom.other {
            fields.read(other, row, event);
        }
        let other = atom.other.map(|slot| &event.values[slot].1);
        let value = atom
            .test
            .holds(&event.values[atom.slot].1, atom.regex.as_ref(), other);
        scratch.atoms[id as usize] = (scratch.number, value);
        value
    }
}

/// Scans of fields that are at home in the same place.
fn groups(scans: Vec<Scan>, fields: &Fields) -> Vec<Group> {
    let mut groups: BTreeMap<Home, Vec<Scan>> = BTreeMap::new();
    for scan in scans {
        let home = fields.0[scan.slot].home();
        groups.entry(home).or_default().push(scan);
    }
    let group = |(home, scans)| Group { home, scans };
    groups.into_iter().map(group).collect()
}

/// For each rule the atoms that wake it. Tests that are no literals but imply some are stood for
/// by atoms of those, added here.
fn choose_triggers(atoms: &mut Atoms, rules: &[Expr]) -> Vec<Option<Vec<AtomId>>> {
    let mut stands_for = Vec::with_capacity(atoms.list.len());
    for id in 0..atoms.list.len() {
        let (field, test) = &atoms.list[id];
        let field = *field;
        stands_for.push(test.implied_literals().map(|literals| {
            let cost = literals
                .iter()
                .map(|(a, text)| expected_frequency(*a, text))
                .sum::<f64>();
            let literal = |(anchor, text)| atoms.id(field, Test::Literal { anchor, text });
            (literals.into_iter().map(literal).collect::<Vec<_>>(), cost)
        }));
    }
    let cost = |id: AtomId| stands_for[id as usize].as_ref().map(|(_, cost)| *cost);
    let literals = |id: AtomId| {
        stands_for[id as usize]
            .as_ref()
            .map(|(literals, _)| literals)
    };
    rules
        .iter()
        .map(|rule| {
            let (_, set) = rule.necessary(&cost)?;
            let found = set.into_iter().map(literals).collect::<Option<Vec<_>>>()?;
            let mut found: Vec<_> = found.into_iter().flatten().copied().collect();
            found.sort_unstable();
            found.dedup();
            Some(found)
        })
        .collect()
}

/// A guess at how often a literal is found: long ones and those bound to a place are rarer.
fn expected_frequency(anchor: Anchor, text: &str) -> f64 {
    let place = match anchor {
        Anchor::Whole => 0.05,
        Anchor::Start | Anchor::End => 0.2,
        Anchor::Anywhere => 1.0,
    };
    place * 0.7f64.powi(i32::try_from(text.len().min(32)).unwrap_or(32))
}

fn scans(atoms: &[Atom]) -> Result<Vec<Scan>, IndexError> {
    let mut by_slot = BTreeMap::<usize, BTreeMap<&str, Vec<(Anchor, AtomId)>>>::new();
    for (id, atom) in atoms.iter().enumerate() {
        if let (true, Test::Literal { anchor, text }) = (atom.found_by_scan, &atom.test) {
            let hits = by_slot
                .entry(atom.slot)
                .or_default()
                .entry(text)
                .or_default();
            hits.push((*anchor, id as AtomId));
        }
    }
    by_slot
        .into_iter()
        .map(|(slot, literals)| {
            let bytes: usize = literals.keys().map(|text| text.len()).sum();
            let kind = match bytes > DFA_LITERAL_BYTES {
                true => AhoCorasickKind::ContiguousNFA,
                false => AhoCorasickKind::DFA,
            };
            let automaton = AhoCorasick::builder()
                .match_kind(MatchKind::Standard)
                .kind(Some(kind))
                .build(literals.keys())?;
            Ok(Scan {
                slot,
                automaton,
                hits: literals.into_values().collect(),
            })
        })
        .collect()
}
