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
mod hooks;
mod info;
mod io_uring;
mod log;
mod object;
mod objects;
pub mod pins;
mod policy;
mod ring;
mod snapshot;

use std::{fs, io, sync::Arc};

use audit_common::{
    config::{CALL_ABI, Counters, Settings},
    limits::WATCHED_NAME_BYTES,
    offsets::{MISSING, Offsets, PATHS},
    record::LAYOUT,
};
use aya::{
    Btf, Ebpf, EbpfLoader, VerifierLogLevel,
    maps::{HashMap, Map, MapData, MapError, PerCpuArray},
    programs::ProgramInfo,
};
use sha2::{Digest as _, Sha256};
use zerocopy::{FromBytes as _, IntoBytes as _};

use attach::{Attached, Attacher, Dispatch, attach};
pub use btf::BtfError;
pub use complexity::{Complexity, complexity};
#[cfg(test)]
pub(crate) use hooks::OBJECT_KINDS;
use hooks::{DISPATCHER, FREED, LISTENER, NAME_FREED, OBJECTS, Point};
pub(crate) use hooks::{HOOKS, Place};
pub use hooks::{Hook, HookStatus, Rung};
use objects::Plan;
use pins::{Directory, Making, PinError, Set};
pub(crate) use ring::Ring;

use crate::{Config, filter, policy::PolicyError, process::proc_fs, unsent::Told};

/// Built by build.rs.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("AUDIT_EBPF_OBJECT"));

#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error(
        "loading kernel programs needs root, or CAP_BPF, CAP_PERFMON and CAP_DAC_READ_SEARCH; {0}"
    )]
    NotPermitted(String),
    #[error(transparent)]
    Types(#[from] BtfError),
    #[error("the kernel object does not load: {0}")]
    Load(String),
    #[error("what path calls act on cannot be seen: {0}")]
    NoObjects(String),
    #[error("no hook could be attached; the first reason: {0}")]
    NoHook(String),
    #[error("capture.watch_reads: {0}")]
    Watch(String),
    #[error("capture.pin.directory: {0}")]
    Pin(#[from] PinError),
    #[error(transparent)]
    Policy(#[from] PolicyError),
}

/// Of a map that nothing will use.
const UNUSED_ENTRIES: u32 = 64;
/// The lanes: process, network, file.
pub(crate) const RINGS: usize = 3;
const RING_NAMES: [&str; RINGS] = ["PROCESS_RING", "NETWORK_RING", "FILE_RING"];

/// What the programs of one set write to.
pub(crate) struct Lanes {
    pub(crate) rings: [Ring; RINGS],
    counters: PerCpuArray<MapData, KernelCounters>,
    /// Where it is pinned.
    pub(crate) set: Option<Set>,
}

impl Lanes {
    /// `keeps`: what is read stays in the rings until it is released.
    fn new(rings: [Map; RINGS], counters: Map, keeps: bool) -> Result<Self, ProbeError> {
        let ring = |map| Ring::new(map, keeps).map_err(|e| ProbeError::Load(format!("ring: {e}")));
        let [process, network, file] = rings;
        Ok(Self {
            rings: [ring(process)?, ring(network)?, ring(file)?],
            counters: typed("COUNTERS", counters)?,
            set: None,
        })
    }

    /// Of a set that is pinned.
    fn pinned(set: Set) -> Result<Self, ProbeError> {
        let open = |name: &str| open_map(&set.map(name));
        let [process, network, file] = RING_NAMES;
        let rings = [open(process)?, open(network)?, open(file)?];
        let counters = open("COUNTERS")?;
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

/// What the object is fitted to.
struct Kernel {
    types: btf::Types,
    btf: Btf,
    release: String,
    offsets: Offsets,
    missing: Vec<&'static str>,
    uring: io_uring::Tracepoints,
}

impl Kernel {
    fn running() -> Result<Self, ProbeError> {
        if let Some(missing) = capabilities::missing() {
            return Err(ProbeError::NotPermitted(missing));
        }
        let types = btf::Types::of_kernel()?;
        let (offsets, missing) = offsets(&types);
        Ok(Self {
            btf: Btf::from_sys_fs().map_err(|error| ProbeError::Load(error.to_string()))?,
            release: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            uring: io_uring::Tracepoints::of(&types),
            offsets,
            missing,
            types,
        })
    }

    fn is_preemptible(&self) -> bool {
        object::is_preemptible(&self.release)
    }

    /// Why links of this kernel's kprobes cannot be pinned.
    fn unpinnable(&self) -> Option<PinError> {
        (objects::has_kprobes() && object::version(&self.release) < (5, 15)).then(|| {
            PinError::Kernel("this kernel's kprobes end with the agent, before 5.15".to_owned())
        })
    }

    fn plan(&self) -> Plan {
        Plan::new(&self.types, &self.offsets)
    }

    fn settings(&self, config: &Config, plan: &Plan, generation: u32) -> Settings {
        Settings {
            generation,
            ..settings(config, &self.types, &self.uring, plan)
        }
    }

    /// What decides how a set of programs behaves: the object, and what is set in it. Filter rules and
    /// budgets are not: any set takes new ones while it runs.
    fn fingerprint(&self, config: &Config) -> String {
        let mut hash = Sha256::new();
        hash.update(OBJECT);
        hash.update(self.offsets.as_bytes());
        hash.update(self.settings(config, &self.plan(), 0).as_bytes());
        let (rings, capture) = (&config.rings, &config.capture);
        let configured = (rings, &capture.watch_reads, &capture.off_kinds);
        hash.update(serde_json::to_vec(&configured).unwrap_or_default());
        let digest = hash.finalize();
        digest[..8]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    /// The object's maps, and its programs, of which none is loaded yet.
    fn load(
        &self,
        plan: &Plan,
        config: &Config,
        settings: &Settings,
        pins: Option<&Making>,
        log: VerifierLogLevel,
    ) -> Result<Ebpf, ProbeError> {
        // Programs of the LSM are preempted on every kernel.
        let preempted = self.is_preemptible() || plan.rung == Some(Rung::Trampoline);
        let object = object::prepare(OBJECT, &self.types, preempted);
        let mut loader = EbpfLoader::new();
        // Some MiB with all their entries.
        if plan.rung.is_none() {
            loader.map_max_entries("SEEN", UNUSED_ENTRIES);
        }
        if plan.copies.is_err() {
            loader.map_max_entries("COPIES", UNUSED_ENTRIES);
        }
        loader
            .btf(Some(&self.btf))
            .verifier_log_level(log)
            .override_global("OFFSETS", self.offsets.as_bytes(), true)
            .override_global("SETTINGS", settings.as_bytes(), true)
            .map_max_entries("PROCESS_RING", config.rings.process_bytes)
            .map_max_entries("NETWORK_RING", config.rings.network_bytes)
            .map_max_entries("FILE_RING", config.rings.file_bytes);
        for (name, path) in pins.into_iter().flat_map(Making::shared) {
            loader.map_pin_path(name, path);
        }
        loader.load(&object).map_err(|error| load_error(&error))
    }
}

impl Probe {
    /// The programs, and what they write to; in front of that what former sets have written, which
    /// is to be read first.
    pub(crate) fn load(config: &Config, told: &Told) -> Result<(Self, Vec<Lanes>), ProbeError> {
        let kernel = Kernel::running()?;
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
            Ok(directory) => Self::lasting(config, &kernel, directory, told),
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
        told: &Told,
    ) -> Result<(Self, Vec<Lanes>), ProbeError> {
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
                let newest = sets.last().map(|set| set.generation).max(active);
                let making = directory.begin(newest.unwrap_or(0) + 1, &fingerprint)?;
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
        let mut shared = |name: &str| open_map(&set.shared(name));
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
        for rung in [Rung::Trampoline, Rung::Kprobe] {
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
        watch_names(&mut ebpf, config)?;
        if let Some(pins) = pins {
            pin_maps(&ebpf, pins)?;
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
        guard_maps(&mut ebpf)?;
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
            frees_unseen: frees_unseen(&kernel.types, preemptible),
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
        .flat_map(|(_, of_lsm, of_kprobe)| [*of_lsm, *of_kprobe]);
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

/// Attaches programs that do nothing at the same places: the least that watching there can cost.
pub struct EmptyProbe {
    _ebpf: Ebpf,
}

impl EmptyProbe {
    pub fn load() -> Result<Self, ProbeError> {
        let kernel = Btf::from_sys_fs().map_err(|error| ProbeError::Load(error.to_string()))?;
        let object = object::prepare(OBJECT, &btf::Types::of_kernel()?, false);
        let mut ebpf = EbpfLoader::new()
            .btf(Some(&kernel))
            .load(&object)
            .map_err(|error| load_error(&error))?;
        let points = HOOKS.iter().flat_map(|hook| hook.points);
        for point in points.chain([&DISPATCHER]) {
            let (Place::Tracepoint(tracepoint) | Place::RawTracepoint(tracepoint)) = point.place
            else {
                continue;
            };
            let program = match tracepoint {
                "sched_process_exec" => "empty_exec",
                "sched_process_fork" => "empty_fork",
                "sched_process_exit" => "empty_exit",
                "cgroup_mkdir" => "empty_cgroup",
                "cgroup_notify_populated" => "empty_container",
                "kmem_cache_free" => "empty_freed",
                "signal_generate" => "empty_signal",
                "sys_exit" => "empty_sys_exit",
                _ => "empty_state",
            };
            let point = Point { program, ..*point };
            attach(&mut ebpf, point, &kernel, None).map_err(ProbeError::Load)?;
        }
        Ok(Self { _ebpf: ebpf })
    }
}

fn take(ebpf: &mut Ebpf, name: &str) -> Result<Map, ProbeError> {
    ebpf.take_map(name)
        .ok_or_else(|| ProbeError::Load(format!("the object has no map {name}")))
}

fn typed<T>(name: &str, map: Map) -> Result<T, ProbeError>
where
    T: TryFrom<Map, Error = MapError>,
{
    T::try_from(map).map_err(|error| ProbeError::Load(format!("map {name}: {error}")))
}

/// A map that is pinned.
fn open_map(path: &std::path::Path) -> Result<Map, ProbeError> {
    let map = MapData::from_pin(path).and_then(Map::from_map_data);
    map.map_err(|error| ProbeError::Load(format!("{}: {}", path.display(), chain(&error))))
}

/// All of them, so that whoever takes over finds what it needs; shared ones have been pinned when
/// they were made.
fn pin_maps(ebpf: &Ebpf, pins: &Making) -> Result<(), ProbeError> {
    for (name, map) in ebpf.maps() {
        let Some(path) = pins.map(name) else { continue };
        map.pin(&path)
            .map_err(|error| ProbeError::Load(format!("{}: {}", path.display(), chain(&error))))?;
    }
    Ok(())
}

/// An eighth of the smallest ring: the reader is called in time, and seldom.
fn wakeup_bytes(config: &Config) -> u32 {
    let rings = &config.rings;
    rings
        .process_bytes
        .min(rings.network_bytes)
        .min(rings.file_bytes)
        / 8
}

/// Why open files cannot be told when their memory is freed: a program there must not run in an
/// interrupt, nor be skipped on every path of the kernel that frees anything.
fn frees_unseen(types: &btf::Types, preemptible: bool) -> Option<&'static str> {
    let arguments = types.tracepoint(FREED.place.name()).unwrap_or_default();
    if preemptible {
        Some("programs can be preempted there, and would be skipped")
    } else if types.has_function("file_free_rcu") {
        Some("this kernel frees open files in interrupts (before Linux 6.7)")
    } else if arguments.get(2) != Some(&btf::Argument::Pointer("kmem_cache".to_owned())) {
        Some("this kernel does not say from which cache memory is freed")
    } else {
        None
    }
}

/// The kernel's offsets, and the paths of the fields that it does not have, but must.
fn offsets(types: &btf::Types) -> (Offsets, Vec<&'static str>) {
    let mut missing = Vec::new();
    let values: Vec<u32> = PATHS
        .iter()
        .map(|path| {
            let optional = path.strip_prefix('?');
            types.offset(optional.unwrap_or(path)).unwrap_or_else(|| {
                if optional.is_none() {
                    missing.push(*path);
                }
                MISSING
            })
        })
        .collect();
    let mut offsets = Offsets::read_from_bytes(values.as_bytes()).unwrap_or_default();
    // The programs read both with one access (audit-ebpf/src/path.rs).
    if offsets.dentry_name != offsets.dentry_parent.wrapping_add(16) {
        offsets.dentry_name = MISSING;
        missing.push("dentry.d_name.name");
    }
    (offsets, missing)
}

fn settings(
    config: &Config,
    types: &btf::Types,
    uring: &io_uring::Tracepoints,
    plan: &Plan,
) -> Settings {
    Settings {
        watch_reads: u32::from(!config.capture.watch_reads.is_empty()),
        wakeup_bytes: wakeup_bytes(config),
        objects: plan.rung.is_some().into(),
        copies: plan.copies.is_ok().into(),
        close_writes: u32::from(!config.capture.is_off("close_write")),
        typed_task: types.has_function("bpf_get_current_task_btf").into(),
        number_offset: CALL_ABI.number,
        argument_offsets: CALL_ABI.arguments,
        compat_argument_offsets: CALL_ABI.compat_arguments,
        compat_bits: CALL_ABI.compat_bits,
        ..uring.settings(types)
    }
}

fn watch_names(ebpf: &mut Ebpf, config: &Config) -> Result<(), ProbeError> {
    let names = filter::watch_names(&config.capture.watch_reads)
        .map_err(|error| ProbeError::Watch(error.to_string()))?;
    // Borrowed, not taken: the programs that use it are loaded later.
    let map = ebpf
        .map_mut("WATCHED")
        .ok_or_else(|| ProbeError::Load("the object has no map WATCHED".to_owned()))?;
    let mut watched: HashMap<_, [u8; WATCHED_NAME_BYTES], u8> = HashMap::try_from(map)
        .map_err(|error| ProbeError::Load(format!("map WATCHED: {error}")))?;
    for name in names {
        let mut key = [0; WATCHED_NAME_BYTES];
        let room = key
            .get_mut(..name.len())
            .filter(|_| name.len() < WATCHED_NAME_BYTES);
        let Some(room) = room else {
            return Err(ProbeError::Watch(format!(
                "the name {:?} is longer than {} bytes",
                String::from_utf8_lossy(&name),
                WATCHED_NAME_BYTES - 1
            )));
        };
        room.copy_from_slice(&name);
        watched
            .insert(key, 1, 0)
            .map_err(|error| ProbeError::Watch(error.to_string()))?;
    }
    Ok(())
}

/// Tells the programs which maps are ours: all that this process has open.
fn guard_maps(ebpf: &mut Ebpf) -> Result<(), ProbeError> {
    let failed = |error: &dyn std::error::Error| ProbeError::Load(format!("map OWN_MAPS: {error}"));
    let mut own: HashMap<_, u32, u8> = typed("OWN_MAPS", take(ebpf, "OWN_MAPS")?)?;
    for entry in fs::read_dir("/proc/self/fdinfo").map_err(|error| failed(&error))? {
        let path = entry.map_err(|error| failed(&error))?.path();
        // The one that lists this folder is gone already.
        let Ok(text) = fs::read_to_string(path) else {
            continue;
        };
        let id = text.lines().find_map(|line| line.strip_prefix("map_id:"));
        if let Some(id) = id.and_then(|id| id.trim().parse::<u32>().ok()) {
            own.insert(id, 1, 0).map_err(|error| failed(&error))?;
        }
    }
    Ok(())
}

fn load_error(error: &(dyn std::error::Error + 'static)) -> ProbeError {
    let mut source = Some(error);
    while let Some(error) = source {
        if let Some(io) = error.downcast_ref::<io::Error>()
            && io.kind() == io::ErrorKind::PermissionDenied
        {
            return ProbeError::NotPermitted(
                "no capability is missing, so this is a user namespace, or the kernel is locked down"
                    .to_owned(),
            );
        }
        source = error.source();
    }
    ProbeError::Load(chain(error))
}

/// The error with its causes; of a verifier's log only the last lines, which say what it refused.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    let lines: Vec<_> = text.lines().collect();
    match lines.len() {
        0..=8 => text,
        many => format!("{} ... {}", lines[0], lines[many - 7..].join(" | ")),
    }
}
