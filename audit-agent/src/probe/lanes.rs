//! What does one set of programs write to, and how much did it count?

use std::io;

use audit_common::{config::Counters, record::LAYOUT};
use aya::maps::{Map, MapData, PerCpuArray};

use super::{
    ProbeError, Ring,
    maps::{open, typed},
    pins::Set,
};

/// The lanes: process, network, file.
pub(crate) const RINGS: usize = 3;
pub(super) const RING_NAMES: [&str; RINGS] = ["PROCESS_RING", "NETWORK_RING", "FILE_RING"];

/// What the programs of one set write to.
pub(crate) struct Lanes {
    pub(crate) rings: [Ring; RINGS],
    counters: PerCpuArray<MapData, KernelCounters>,
    /// Where it is pinned.
    pub(crate) set: Option<Set>,
}

impl Lanes {
    /// `keeps`: what is read stays in the rings until it is released.
    pub(super) fn new(rings: [Map; RINGS], counters: Map, keeps: bool) -> Result<Self, ProbeError> {
        let ring = |map| Ring::new(map, keeps).map_err(|e| ProbeError::Load(format!("ring: {e}")));
        let [process, network, file] = rings;
        Ok(Self {
            rings: [ring(process)?, ring(network)?, ring(file)?],
            counters: typed("COUNTERS", counters)?,
            set: None,
        })
    }

    /// Of a set that is pinned.
    pub(super) fn pinned(set: Set) -> Result<Self, ProbeError> {
        let pinned = |name: &str| open(&set.map(name));
        let [process, network, file] = RING_NAMES;
        let rings = [pinned(process)?, pinned(network)?, pinned(file)?];
        let counters = pinned("COUNTERS")?;
        let lanes = Self::new(rings, counters, true)?;
        Ok(Self {
            set: Some(set),
            ..lanes
        })
    }

    /// The counters of `class` on each CPU.
    pub(crate) fn counters(&self, class: u8) -> io::Result<Vec<Counters>> {
        let values = self
            .counters
            .get(&class.into(), 0)
            .map_err(io::Error::other)?;
        Ok(values.iter().map(|value| value.0).collect())
    }

    /// 0 for a set that is not pinned.
    pub(crate) fn generation(&self) -> u32 {
        self.set.as_ref().map_or(0, |set| set.generation)
    }

    /// Its records are as this agent understands them.
    pub(crate) fn is_understood(&self) -> bool {
        self.set.as_ref().is_none_or(|set| set.layout == LAYOUT)
    }
}

/// [`Counters`], which aya may copy out of a map.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct KernelCounters(pub(crate) Counters);

#[expect(
    unsafe_code,
    reason = "aya asks for the promise that every byte pattern is a value"
)]
// SAFETY: repr(transparent) over a struct of u64, which zerocopy has checked.
unsafe impl aya::Pod for KernelCounters {}
