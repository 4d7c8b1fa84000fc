//! For which name did programs of a network namespace get this address?
//!
//! The name is the question's: what the program asked for, not the last CNAME. The latest answer
//! counts where several names lead to one address.
//!
//! **What a name here is worth.** It is what an answer said that a process of the namespace
//! received. Whoever could answer could forge it: the resolver, who sits on the path, root, and
//! whoever owns the network namespace. So a name explains a connection and never acquits it; and
//! a connection without a name was made to an address that no answer seen here gave.
//!
//! Invariants: entries and the bytes of their names are bounded in total, and a namespace may have
//! half of each. When the total is reached, the namespace with the most gives way, its longest
//! unused first; so one that has less than its equal share (total / namespaces, less one entry)
//! never loses anything to another. A namespace too many is refused until one has been idle for
//! [`IDLE_NS`]. Everything given up is counted.

mod slots;

use std::net::IpAddr;

use ahash::AHashMap;

use super::chain::Resolution;
use slots::{List, SLOT_BYTES, Slots};

/// A host with hundreds of containers has some thousands of addresses in use.
pub const ENTRIES: usize = 8192;
/// Of names as allocated: 64 bytes an entry; the usual name takes 48.
pub const NAMES_BYTES: usize = 512 << 10;
/// The largest nodes run some 250 pods.
pub const NAMESPACES: usize = 512;
/// An answer is usable this long at least, whatever its TTL: programs connect after it (they try
/// the next address, reconnect, or keep what they were told). Longer would give names to
/// addresses that meanwhile serve others.
pub const USABLE_AT_LEAST_NS: u64 = 600 * SECOND_NS;
/// And this long at most: a TTL may be of 68 years.
pub const USABLE_AT_MOST_NS: u64 = 86_400 * SECOND_NS;
/// A namespace without answers and lookups for so long may give way to a new one.
pub const IDLE_NS: u64 = 600 * SECOND_NS;
/// Of the total, one namespace may have one part in so many.
const NAMESPACE_PART: usize = 2;
const SECOND_NS: u64 = 1_000_000_000;

/// What the cache takes at most; a hash table may have four places for an entry.
pub const MEMORY_BYTES: usize =
    ENTRIES * SLOT_BYTES + NAMES_BYTES + 4 * NAMESPACES * (size_of::<(u32, Space)>() + 1);

/// How much the cache may hold.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub entries: usize,
    pub names_bytes: usize,
    pub namespaces: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: ENTRIES,
            names_bytes: NAMES_BYTES,
            namespaces: NAMESPACES,
        }
    }
}

/// Totals since the start, and how much there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    pub entries: u64,
    pub names_bytes: u64,
    pub namespaces: u64,
    /// Addresses taken from responses, known ones included.
    pub learned: u64,
    /// Entries given up for room.
    pub evicted: u64,
    /// Entries found too old.
    pub expired: u64,
    /// Addresses not learned because there were too many namespaces.
    pub refused: u64,
    /// Addresses in responses of names that the question does not lead to.
    pub unrelated: u64,
    /// Addresses beyond [`super::chain::ADDRESSES`] of one response.
    pub over_bound: u64,
    /// Unspecified and loopback addresses: filters answer them, and they belong to every name.
    pub unspecific: u64,
}

#[derive(Debug, Default)]
struct Space {
    list: List,
    entries: usize,
    names_bytes: usize,
    used_ns: u64,
}

/// What is short when room must be made.
#[derive(Debug, Clone, Copy)]
enum Measure {
    Entries,
    NamesBytes,
}

impl Measure {
    fn of(self, space: &Space) -> usize {
        match self {
            Self::Entries => space.entries,
            Self::NamesBytes => space.names_bytes,
        }
    }

    fn limit(self, limits: &Limits) -> usize {
        match self {
            Self::Entries => limits.entries,
            Self::NamesBytes => limits.names_bytes,
        }
    }
}

/// Names by address, per network namespace.
#[derive(Debug)]
pub struct Cache {
    slots: Slots,
    spaces: AHashMap<u32, Space>,
    names_bytes: usize,
    limits: Limits,
    counters: Counters,
}

impl Default for Cache {
    fn default() -> Self {
        Self::new(Limits::default())
    }
}

impl Cache {
    pub fn new(limits: Limits) -> Self {
        Self {
            slots: Slots::new(limits.entries),
            spaces: AHashMap::with_capacity(limits.namespaces),
            names_bytes: 0,
            limits,
            counters: Counters::default(),
        }
    }

    /// Takes what a response gave that a process of the namespace (its inode) received.
    pub fn learn(&mut self, namespace: u32, resolution: &Resolution<'_>, now_ns: u64) {
        let Resolution {
            asked,
            addresses,
            unrelated,
            over_bound,
        } = *resolution;
        for &(address, ttl) in addresses {
            self.store(namespace, address, asked, ttl, now_ns);
        }
        self.counters.unrelated += unrelated;
        self.counters.over_bound += over_bound;
    }

    /// What was last asked in this namespace when an answer gave this address.
    pub fn name_of(&mut self, namespace: u32, address: IpAddr, now_ns: u64) -> Option<&str> {
        let at = self.slots.find(namespace, address.to_canonical())?;
        if self.slots.get(at).usable_until_ns < now_ns {
            self.remove(namespace, at);
            self.counters.expired += 1;
            return None;
        }
        let space = self.spaces.get_mut(&namespace)?;
        space.used_ns = space.used_ns.max(now_ns);
        self.slots.touch(&mut space.list, at);
        Some(&self.slots.get(at).name)
    }

    /// Drops what a namespace had. To be called when it ends, because its number is given to
    /// another.
    pub fn forget(&mut self, namespace: u32) {
        while let Some(at) = self.oldest_of(namespace) {
            self.remove(namespace, at);
        }
        self.spaces.remove(&namespace);
    }

    pub fn counters(&self) -> Counters {
        Counters {
            entries: self.slots.len() as u64,
            names_bytes: self.names_bytes as u64,
            namespaces: self.spaces.len() as u64,
            ..self.counters
        }
    }

    fn store(&mut self, namespace: u32, address: IpAddr, name: &str, ttl: u32, now_ns: u64) {
        // An IPv4 address may be connected to through an IPv6 socket.
        let address = address.to_canonical();
        if address.is_unspecified() || address.is_loopback() {
            self.counters.unspecific += 1;
            return;
        }
        let usable_ns = u64::from(ttl)
            .saturating_mul(SECOND_NS)
            .clamp(USABLE_AT_LEAST_NS, USABLE_AT_MOST_NS);
        let until_ns = now_ns.saturating_add(usable_ns);
        if let Some(at) = self.slots.find(namespace, address) {
            if *self.slots.get(at).name == *name {
                self.refresh(namespace, at, until_ns, now_ns);
                return;
            }
            self.remove(namespace, at);
        }
        if !self.admit(namespace, now_ns) {
            self.counters.refused += 1;
            return;
        }
        let bytes = allocated(name.len());
        self.make_room(namespace, bytes);
        let Some(space) = self.spaces.get_mut(&namespace) else {
            return;
        };
        space.entries += 1;
        space.names_bytes += bytes;
        self.names_bytes += bytes;
        self.counters.learned += 1;
        let key = (namespace, address);
        self.slots
            .insert(&mut space.list, key, name.into(), until_ns);
    }

    fn refresh(&mut self, namespace: u32, at: u32, until_ns: u64, now_ns: u64) {
        let slot = self.slots.get_mut(at);
        slot.usable_until_ns = slot.usable_until_ns.max(until_ns);
        if let Some(space) = self.spaces.get_mut(&namespace) {
            space.used_ns = space.used_ns.max(now_ns);
            self.slots.touch(&mut space.list, at);
        }
        self.counters.learned += 1;
    }

    /// Makes sure that the namespace has its place; false when there is none for it.
    fn admit(&mut self, namespace: u32, now_ns: u64) -> bool {
        if !self.spaces.contains_key(&namespace) && self.spaces.len() >= self.limits.namespaces {
            let idlest = self.spaces.iter().min_by_key(|(_, space)| space.used_ns);
            let Some((&idlest, space)) = idlest else {
                return false;
            };
            if now_ns.saturating_sub(space.used_ns) < IDLE_NS {
                return false;
            }
            self.counters.evicted += space.entries as u64;
            self.forget(idlest);
        }
        let space = self.spaces.entry(namespace).or_default();
        space.used_ns = space.used_ns.max(now_ns);
        true
    }

    /// Makes room for one more entry of the namespace, with a name of `bytes`.
    fn make_room(&mut self, namespace: u32, bytes: usize) {
        for (measure, added) in [(Measure::Entries, 1), (Measure::NamesBytes, bytes)] {
            let limit = measure.limit(&self.limits);
            let own = |cache: &Self| cache.spaces.get(&namespace).map_or(0, |s| measure.of(s));
            while own(self) > 0 && own(self) + added > limit / NAMESPACE_PART {
                self.evict_oldest(namespace);
            }
            while self.total(measure) > 0 && self.total(measure) + added > limit {
                let victim = self.largest(measure, namespace);
                self.evict_oldest(victim);
            }
        }
    }

    fn total(&self, measure: Measure) -> usize {
        match measure {
            Measure::Entries => self.slots.len(),
            Measure::NamesBytes => self.names_bytes,
        }
    }

    /// Who gives way: the namespace that asks for room where it has its share, else the largest.
    fn largest(&self, measure: Measure, asking: u32) -> u32 {
        let has_share =
            |space: &Space| measure.of(space) * self.spaces.len() >= measure.limit(&self.limits);
        if self.spaces.get(&asking).is_some_and(has_share) {
            return asking;
        }
        let largest = self
            .spaces
            .iter()
            .max_by_key(|(_, space)| measure.of(space));
        largest.map_or(asking, |(namespace, _)| *namespace)
    }

    fn oldest_of(&self, namespace: u32) -> Option<u32> {
        self.spaces.get(&namespace)?.list.oldest()
    }

    /// The namespace keeps its place, also when nothing is left.
    fn evict_oldest(&mut self, namespace: u32) {
        if let Some(at) = self.oldest_of(namespace) {
            self.remove(namespace, at);
            self.counters.evicted += 1;
        }
    }

    fn remove(&mut self, namespace: u32, at: u32) {
        let Some(space) = self.spaces.get_mut(&namespace) else {
            return;
        };
        let name = self.slots.remove(&mut space.list, at);
        let bytes = allocated(name.len());
        space.entries -= 1;
        space.names_bytes -= bytes;
        self.names_bytes -= bytes;
    }
}

/// What glibc's and musl's allocators take for so many bytes.
fn allocated(bytes: usize) -> usize {
    (bytes + 8).next_multiple_of(16).max(32)
}

#[cfg(test)]
mod tests;
