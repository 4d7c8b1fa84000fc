//! Where are the cache's entries kept? In one slab of fixed size, found by (namespace, address)
//! and listed by use.
//!
//! Invariants: the slab and its index never grow, whatever comes and goes, so the memory is known
//! from the start. A slot is in one bucket's chain and one list, or on the free list. Places are
//! drawn by a keyed hash: nobody outside can choose addresses that share a bucket.

use std::net::IpAddr;

/// No slot.
const NONE: u32 = u32::MAX;

/// One address of one namespace.
#[derive(Debug)]
pub struct Slot {
    pub namespace: u32,
    pub address: IpAddr,
    pub name: Box<str>,
    pub usable_until_ns: u64,
    /// The next slot of the same bucket, or of the free list.
    chained: u32,
    newer: u32,
    older: u32,
}

/// The ends of a list of slots, from the latest used to the longest unused.
#[derive(Debug, Clone, Copy)]
pub struct List {
    newest: u32,
    oldest: u32,
}

impl Default for List {
    fn default() -> Self {
        Self {
            newest: NONE,
            oldest: NONE,
        }
    }
}

impl List {
    pub fn oldest(&self) -> Option<u32> {
        (self.oldest != NONE).then_some(self.oldest)
    }
}

#[derive(Debug)]
pub struct Slots {
    slots: Vec<Slot>,
    buckets: Box<[u32]>,
    free: u32,
    used: usize,
    random: ahash::RandomState,
}

/// What one slot takes, with its part of the index.
pub const SLOT_BYTES: usize = size_of::<Slot>() + size_of::<u32>();

impl Slots {
    /// Room for `entries`; memory is touched as it is used.
    pub fn new(entries: usize) -> Self {
        Self {
            slots: Vec::with_capacity(entries),
            buckets: vec![NONE; entries.next_power_of_two()].into_boxed_slice(),
            free: NONE,
            used: 0,
            random: ahash::RandomState::new(),
        }
    }

    pub fn len(&self) -> usize {
        self.used
    }

    pub fn is_full(&self) -> bool {
        self.used == self.slots.capacity()
    }

    pub fn find(&self, namespace: u32, address: IpAddr) -> Option<u32> {
        let mut at = self.buckets[self.bucket(namespace, address)];
        while let Some(slot) = self.slots.get(at as usize) {
            if slot.namespace == namespace && slot.address == address {
                return Some(at);
            }
            at = slot.chained;
        }
        None
    }

    pub fn get(&self, at: u32) -> &Slot {
        &self.slots[at as usize]
    }

    pub fn get_mut(&mut self, at: u32) -> &mut Slot {
        &mut self.slots[at as usize]
    }

    /// Adds what is not there yet, as the newest of `list`. The caller made room.
    pub fn insert(
        &mut self,
        list: &mut List,
        (namespace, address): (u32, IpAddr),
        name: Box<str>,
        usable_until_ns: u64,
    ) {
        debug_assert!(!self.is_full());
        let bucket = self.bucket(namespace, address);
        let slot = Slot {
            namespace,
            address,
            name,
            usable_until_ns,
            chained: self.buckets[bucket],
            newer: NONE,
            older: NONE,
        };
        let at = if self.free == NONE {
            self.slots.push(slot);
            (self.slots.len() - 1) as u32
        } else {
            let at = self.free;
            self.free = self.get(at).chained;
            *self.get_mut(at) = slot;
            at
        };
        self.buckets[bucket] = at;
        self.used += 1;
        self.link(list, at);
    }

    /// Removes a slot of `list`; returns its name.
    pub fn remove(&mut self, list: &mut List, at: u32) -> Box<str> {
        self.unlink(list, at);
        let Slot {
            namespace,
            address,
            chained,
            ..
        } = *self.get(at);
        let bucket = self.bucket(namespace, address);
        if self.buckets[bucket] == at {
            self.buckets[bucket] = chained;
        } else {
            let mut before = self.buckets[bucket];
            while self.get(before).chained != at {
                before = self.get(before).chained;
            }
            self.get_mut(before).chained = chained;
        }
        let free = std::mem::replace(&mut self.free, at);
        let slot = self.get_mut(at);
        slot.chained = free;
        self.used -= 1;
        std::mem::take(&mut self.get_mut(at).name)
    }

    /// Makes a slot of `list` its newest.
    pub fn touch(&mut self, list: &mut List, at: u32) {
        if list.newest != at {
            self.unlink(list, at);
            self.link(list, at);
        }
    }

    /// The slots of a list, the oldest first.
    #[cfg(test)]
    pub fn listed(&self, list: &List) -> impl Iterator<Item = u32> {
        let newer = |at: &u32| Some(self.get(*at).newer).filter(|at| *at != NONE);
        std::iter::successors(list.oldest(), newer)
    }

    /// Every slot that was ever used is in use or free, and the slab did not grow.
    #[cfg(test)]
    pub fn check(&self, entries: usize) {
        let mut free = 0;
        let mut at = self.free;
        while at != NONE {
            free += 1;
            assert!(free <= self.slots.len(), "the free list goes round");
            at = self.get(at).chained;
        }
        assert_eq!(self.used + free, self.slots.len());
        assert_eq!(self.slots.capacity(), entries);
    }

    fn link(&mut self, list: &mut List, at: u32) {
        let older = std::mem::replace(&mut list.newest, at);
        if older == NONE {
            list.oldest = at;
        } else {
            self.get_mut(older).newer = at;
        }
        let slot = self.get_mut(at);
        slot.older = older;
        slot.newer = NONE;
    }

    fn unlink(&mut self, list: &mut List, at: u32) {
        let Slot { newer, older, .. } = *self.get(at);
        match newer {
            NONE => list.newest = older,
            newer => self.get_mut(newer).older = older,
        }
        match older {
            NONE => list.oldest = newer,
            older => self.get_mut(older).newer = newer,
        }
    }

    fn bucket(&self, namespace: u32, address: IpAddr) -> usize {
        // A power of two of buckets.
        self.random.hash_one((namespace, address)) as usize & (self.buckets.len() - 1)
    }
}
