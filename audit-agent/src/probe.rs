//! Loads the kernel programs and attaches them: which object, which offsets, which hooks. Or takes
//! over what a former agent has left running ([`pins`]).
//!
//! Invariant: dropping a [`Probe`] detaches and unloads everything it loaded, unless it is pinned.
//! A hook that cannot be attached is reported with its reason and does not stop the others; only a
//! host on which no hook works is an error.

mod attach;
mod btf;
mod capabilities;
mod complexity;
mod empty;
mod error;
mod hooks;
mod info;
mod io_uring;
mod kernel;
mod lanes;
mod log;
mod maps;
mod object;
mod objects;
pub mod pins;
mod policy;
mod ring;
mod snapshot;

use std::{io, sync::Arc};

use audit_common::record::LAYOUT;
use aya::{
    Ebpf, VerifierLogLevel,
    maps::{HashMap, MapData},
    programs::ProgramInfo,
};

use attach::{Attached, Attacher, Dispatch, attach};
pub use btf::BtfError;
pub use complexity::{Complexity, complexity};
pub use empty::EmptyProbe;
pub use error::ProbeError;
use error::chain;
#[cfg(test)]
pub(crate) use hooks::OBJECT_KINDS;
use hooks::{FREED, LISTENER, NAME_FREED, OBJECT_RUNGS, OBJECTS};
pub(crate) use hooks::{HOOKS, Place};
pub use hooks::{Hook, HookStatus, Rung};
use kernel::Kernel;
use lanes::RING_NAMES;
pub(crate) use lanes::{Lanes, RINGS};
use maps::{take, typed};
use objects::Plan;
use pins::{Directory, Making, Set};
pub(crate) use ring::Ring;

use crate::{
    Config,
    process::proc_fs,
    spool::{State, Told},
};

/// The attached programs, and what they are told while they run.
pub struct Probe {
    /// Held for its links: dropping it detaches. None where the programs are a former agent's.
    _ebpf: Option<Ebpf>,
    /// Held because the kernel empties a program array that nobody has open, or pinned.
    _dispatch: Option<Dispatch>,
    hooks: Vec<HookStatus>,
    ignored: HashMap<MapData, u32, u64>,
    log: Option<log::Log>,
    attached: Vec<Attached>,
    pins: Option<Pins>,
    /// Records of what was there before the programs.
    before: Vec<u8>,
    pub(crate) rules: policy::Rules,
}

struct Pins {
    directory: Directory,
    live: Set,
    keep_at_stop: bool,
}

impl Probe {
    /// The programs, and what they write to; in front of that what former sets have written, which
    /// is to be read first.
    pub(crate) fn load(config: &Config, state: &State) -> Result<(Self, Vec<Lanes>), ProbeError> {
        let (kernel, told) = (Kernel::running()?, &state.told);
        let pins = &config.capture.pin;
        if pins.directory.as_os_str().is_empty() {
            let (probe, lanes) = Self::fresh(config, &kernel, None, told)?;
            return Ok((probe, vec![lanes]));
        }
        let directory = match kernel.unpinnable() {
            Some(error) => Err(error),
            None => Directory::open(&pins.directory),
        };
        match directory {
            Ok(directory) => Self::lasting(config, &kernel, directory, state),
            Err(error) if error.is_of_host() => {
                tracing::warn!(%error, "capture.pin.directory: capture ends with the agent");
                let (probe, lanes) = Self::fresh(config, &kernel, None, told)?;
                Ok((probe, vec![lanes]))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// With pins: takes over what fits, replaces what does not.
    fn lasting(
        config: &Config,
        kernel: &Kernel,
        directory: Directory,
        state: &State,
    ) -> Result<(Self, Vec<Lanes>), ProbeError> {
        let told = &state.told;
        let fingerprint = kernel.fingerprint(config);
        let (mut sets, active) = (directory.sets()?, directory.active());
        let fits = sets.iter().position(|set| {
            Some(set.generation) == active
                && !set.is_ended
                && set.fingerprint == fingerprint
                && set.layout == LAYOUT
        });
        let live = fits.map(|at| sets.remove(at));
        let (mut probe, lanes) = match live {
            Some(live) => {
                // A former agent may have died in the middle of a switch to it.
                directory.switch(&live)?;
                tracing::info!(
                    generation = live.generation,
                    "took over the programs of a former agent"
                );
                Self::adopt(config, live, told)?
            }
            None => {
                // Also those that are gone: what is known of them must not be taken for this one's.
                let gone = state.sets.iter().map(|set| set.generation);
                let newest = gone
                    .chain(active)
                    .chain(sets.iter().map(|set| set.generation));
                let making = directory.begin(newest.max().unwrap_or(0) + 1, &fingerprint)?;
                let made = Self::fresh(config, kernel, Some(&making), told);
                let (probe, mut lanes) = made.inspect_err(|_| directory.abandon(&making))?;
                let live = directory.finish(&making)?;
                directory.switch(&live)?;
                tracing::info!(generation = live.generation, pins = %live.path.display(), "programs are pinned");
                lanes.set = Some(live);
                (probe, lanes)
            }
        };
        let mut all = Vec::new();
        for mut set in sets {
            directory.end(&mut set)?;
            all.push(Lanes::pinned(set)?);
        }
        if active.is_none() {
            probe.look_around(config, kernel);
        }
        if let Some(live) = lanes.set.clone() {
            probe.pins = Some(Pins {
                directory,
                live,
                keep_at_stop: config.capture.pin.keep_at_stop,
            });
        }
        all.push(lanes);
        Ok((probe, all))
    }

    /// The programs of a former agent, which go on running.
    fn adopt(config: &Config, set: Set, told: &Told) -> Result<(Self, Lanes), ProbeError> {
        let failed = |error: &dyn std::error::Error| ProbeError::Load(chain(error));
        let attached = attached(&set)?;
        let mut shared = |name: &str| maps::open(&set.shared(name));
        let ignored = typed("IGNORED", shared("IGNORED")?)?;
        let rules = policy::Rules::open(&mut shared, Arc::new(config.policy()?), told)?;
        let mut probe = Self {
            _ebpf: None,
            _dispatch: None,
            hooks: Vec::new(),
            ignored,
            log: None,
            attached,
            pins: None,
            before: Vec::new(),
            rules,
        };
        probe.forget_ended();
        let own = probe.ignore(std::process::id());
        own.map_err(|error| failed(&error))?;
        Ok((probe, Lanes::pinned(set)?))
    }

    /// Loads and attaches everything: with the best hooks that see objects here, or else without.
    fn fresh(
        config: &Config,
        kernel: &Kernel,
        pins: Option<&Making>,
        told: &Told,
    ) -> Result<(Self, Lanes), ProbeError> {
        let mut plan = kernel.plan();
        for rung in OBJECT_RUNGS {
            plan.rung = Some(rung);
            let refused = match objects::missing(rung, &kernel.types) {
                Some(reason) => reason,
                None => match Self::load_with(config, kernel, &mut plan, pins, told) {
                    Err(ProbeError::NoObjects(reason)) => {
                        if let Some(pins) = pins {
                            pins.start_again()?;
                        }
                        reason
                    }
                    other => return other,
                },
            };
            plan.refused.push((rung, refused));
        }
        plan.rung = None;
        Self::load_with(config, kernel, &mut plan, pins, told)
    }

    fn load_with(
        config: &Config,
        kernel: &Kernel,
        plan: &mut Plan,
        pins: Option<&Making>,
        told: &Told,
    ) -> Result<(Self, Lanes), ProbeError> {
        let generation = pins.map_or(0, |pins| pins.generation);
        let settings = kernel.settings(config, plan, generation);
        let mut ebpf = kernel.load(plan, config, &settings, pins, VerifierLogLevel::default())?;
        // Before any program is attached: they keep the map only while it has a file descriptor.
        let log = log::Log::of(&mut ebpf);
        maps::watch_names(&mut ebpf, config)?;
        if let Some(pins) = pins {
            maps::pin_all(&ebpf, pins)?;
        }
        let mut map = |name: &str| take(&mut ebpf, name);
        let rings = [
            map(RING_NAMES[0])?,
            map(RING_NAMES[1])?,
            map(RING_NAMES[2])?,
        ];
        let lanes = Lanes::new(rings, map("COUNTERS")?, pins.is_some())?;
        let mut dispatch = Dispatch {
            programs: typed("PROGRAMS", map("PROGRAMS")?)?,
            probe_programs: typed("PROBE_PROGRAMS", map("PROBE_PROGRAMS")?)?,
            shapes: typed("SHAPES", map("SHAPES")?)?,
        };
        let mut probe = Self {
            _ebpf: None,
            _dispatch: None,
            hooks: Vec::new(),
            ignored: typed("IGNORED", map("IGNORED")?)?,
            log,
            attached: Vec::new(),
            pins: None,
            before: Vec::new(),
            rules: policy::Rules::open(&mut map, Arc::new(config.policy()?), told)?,
        };
        // Before anything is attached, so that our own start is not in the record.
        let own = probe.ignore(std::process::id());
        own.map_err(|error| ProbeError::Load(error.to_string()))?;
        probe.attach(config, kernel, plan, pins, (&mut ebpf, &mut dispatch))?;
        maps::guard(&mut ebpf)?;
        probe._ebpf = Some(ebpf);
        probe._dispatch = Some(dispatch);
        if pins.is_none() {
            probe.look_around(config, kernel);
        }
        Ok((probe, lanes))
    }

    /// Attaches every hook that is wanted and can be had.
    fn attach(
        &mut self,
        config: &Config,
        kernel: &Kernel,
        plan: &mut Plan,
        pins: Option<&Making>,
        (ebpf, dispatch): (&mut Ebpf, &mut Dispatch),
    ) -> Result<(), ProbeError> {
        let preemptible = kernel.is_preemptible();
        let mut attacher = Attacher {
            ebpf: &mut *ebpf,
            dispatch,
            kernel: &kernel.btf,
            missing: &kernel.missing,
            uring: &kernel.uring,
            frees_unseen: kernel.frees_unseen(),
            sees_freed: false,
            pins,
            attached: Vec::new(),
        };
        if let Some(rung) = plan.rung {
            let attached = objects::attach_all(attacher.ebpf, &kernel.btf, rung, pins);
            attached.map_err(ProbeError::NoObjects)?;
        }
        self.hooks = attacher.attach_all(config, preemptible);
        let sees_freed = attacher.sees_freed;
        self.attached = attacher.attached;
        if plan.copies.is_ok() && !sees_freed {
            plan.copies = attach(ebpf, NAME_FREED, &kernel.btf, pins).map(drop);
        }
        plan.tell(&mut self.hooks);
        any_attached(&self.hooks)
    }

    /// Takes in what was there before the programs, which are attached by now.
    fn look_around(&mut self, config: &Config, kernel: &Kernel) {
        let Some(ebpf) = &mut self._ebpf else { return };
        let (status, before) = snapshot::take(ebpf, config, &kernel.btf, &kernel.missing);
        self.hooks.push(status);
        self.before = before;
    }

    pub fn hooks(&self) -> &[HookStatus] {
        &self.hooks
    }

    /// Leaves the process `pid` out of the record from now on.
    pub fn ignore(&mut self, pid: u32) -> io::Result<()> {
        let began = proc_fs::start_ticks(pid)?;
        self.ignored.insert(pid, began, 0).map_err(io::Error::other)
    }

    /// Makes room in the map of ignored processes, which outlives them.
    fn forget_ended(&mut self) {
        let listed: Vec<(u32, u64)> = self.ignored.iter().flatten().collect();
        for (pid, began) in listed {
            if proc_fs::start_ticks(pid).ok() != Some(began) {
                // An entry that stays says nothing of another process.
                let _ = self.ignored.remove(&pid);
            }
        }
    }

    /// Records of what was there before; once.
    pub(crate) fn take_before(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.before)
    }

    /// A former set was read to its end, and what it held is safe.
    pub(crate) fn forget(&self, lanes: &Lanes) {
        if let (Some(pins), Some(set)) = (&self.pins, &lanes.set)
            && let Err(error) = pins.directory.forget(set)
        {
            tracing::warn!(%error, "capture.pin.directory: a set that was read to its end stays");
        }
    }

    /// The agent is to end: unless capture goes on without it, nothing is recorded any more.
    pub(crate) fn stop(&mut self) {
        if let Some(pins) = self.pins.as_mut().filter(|pins| !pins.keep_at_stop)
            && let Err(error) = pins.directory.end(&mut pins.live)
        {
            tracing::warn!(%error, "capture.pin.directory: programs may go on; audit-agent --unpin removes them");
        }
    }

    /// Tells for each program how often the kernel has skipped it since the last time.
    pub(crate) fn skipped(&mut self, mut tell: impl FnMut(&str, u64)) {
        for attached in &mut self.attached {
            // A kernel before 5.12 does not count it.
            let now = info::of(&attached.program).map_or(0, |info| info.skipped);
            if now > attached.skipped {
                tell(&attached.name, now - attached.skipped);
                attached.skipped = now;
            }
        }
    }

    /// Passes on what the programs have logged, in a build in which they do.
    pub(crate) fn forward_log(&mut self) {
        if let Some(log) = &mut self.log {
            log.forward();
        }
    }

    /// For each program how often it had been skipped, when that was last told.
    pub(crate) fn skips(&self) -> impl Iterator<Item = (&str, u64)> {
        let attached = self.attached.iter();
        attached.map(|attached| (attached.name.as_str(), attached.skipped))
    }

    /// Goes on from what a former agent had told.
    pub(crate) fn told_skips(&mut self, told: impl Fn(&str) -> u64) {
        for attached in &mut self.attached {
            attached.skipped = told(&attached.name);
        }
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let Some(pins) = &self.pins else { return };
        if pins.live.is_ended
            && let Err(error) = pins.directory.clear()
        {
            tracing::warn!(%error, "capture.pin.directory: not removed");
        }
    }
}

/// The programs of a pinned set whose skipped runs are losses.
fn attached(set: &Set) -> Result<Vec<Attached>, ProbeError> {
    let failed = |error: &dyn std::error::Error| ProbeError::Load(chain(error));
    let mut attached = Vec::new();
    for (name, path) in set.programs().map_err(|error| failed(&error))? {
        if may_be_skipped(&name) {
            continue;
        }
        let info = ProgramInfo::from_pin(&path).map_err(|error| failed(&error))?;
        attached.push(Attached {
            name,
            program: info.fd().map_err(|error| failed(&error))?,
            skipped: 0,
        });
    }
    Ok(attached)
}

/// For each program of a set that has ended, how often the kernel had skipped it.
pub(crate) fn skips_of(lanes: &Lanes) -> Vec<(String, u64)> {
    let Some(set) = &lanes.set else {
        return Vec::new();
    };
    let attached = attached(set).unwrap_or_else(|error| {
        tracing::warn!(%error, "runs that the kernel skipped of replaced programs are not known");
        Vec::new()
    });
    let skipped = |of: Attached| {
        (
            of.name,
            info::of(&of.program).map_or(0, |info| info.skipped),
        )
    };
    attached.into_iter().map(skipped).collect()
}

fn any_attached(hooks: &[HookStatus]) -> Result<(), ProbeError> {
    if hooks.iter().any(|hook| hook.attached.is_some()) {
        return Ok(());
    }
    let reason = hooks.first().and_then(|hook| hook.tried.last());
    let reason = reason.map(|(_, reason)| reason.clone()).unwrap_or_default();
    Err(ProbeError::NoHook(reason))
}

/// Programs of which nothing is lost where they are skipped: those that see objects and texts, for then
/// a record says that they saw nothing; one that does nothing; and one that is skipped where an
/// interrupt frees something, which is no open file.
fn may_be_skipped(program: &str) -> bool {
    let objects = OBJECTS
        .iter()
        .flat_map(|object| OBJECT_RUNGS.map(|rung| object.point(rung).program));
    let others = [FREED, NAME_FREED, LISTENER].map(|point| point.program);
    objects.chain(others).any(|name| name == program)
}

/// Removes everything that an agent has pinned; false when there was nothing.
pub fn unpin(config: &Config) -> Result<bool, ProbeError> {
    let path = &config.capture.pin.directory;
    if !path.exists() {
        return Ok(false);
    }
    Directory::open(path)?.clear()?;
    Ok(true)
}

/// What each hook would get on this kernel: loads and attaches everything, and lets go again. Leaves
/// alone what is pinned.
pub fn check(config: &Config) -> Result<Vec<HookStatus>, ProbeError> {
    let (mut probe, _) = Probe::fresh(config, &Kernel::running()?, None, &Told::default())?;
    Ok(std::mem::take(&mut probe.hooks))
}

/// Does capture go on while no agent runs? `None` when it is not asked for.
pub fn outlives(config: &Config) -> Option<Result<(), ProbeError>> {
    let path = &config.capture.pin.directory;
    if path.as_os_str().is_empty() {
        return None;
    }
    let unpinnable = Kernel::running().map(|kernel| kernel.unpinnable());
    Some(match unpinnable {
        Err(error) => Err(error),
        Ok(Some(error)) => Err(error.into()),
        Ok(None) => pins::usable(path).map_err(ProbeError::from),
    })
}
