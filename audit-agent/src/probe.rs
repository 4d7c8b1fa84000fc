//! Loads the kernel programs and attaches them: which object, which offsets, which hooks.
//!
//! Invariant: dropping a [`Probe`] detaches and unloads everything it loaded; nothing is pinned.
//! A hook that cannot be attached is reported with its reason and does not stop the others; only a
//! host on which no hook works is an error.

mod attach;
mod btf;
mod capabilities;
mod hooks;
mod info;
mod io_uring;
mod log;
mod object;
mod objects;
mod policy;

use std::{fs, io, sync::Arc};

use audit_common::{
    config::{CALL_ABI, Counters, Settings},
    limits::WATCHED_NAME_BYTES,
    offsets::{MISSING, Offsets, PATHS},
};
use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{HashMap, MapData, PerCpuArray, RingBuf},
};
use zerocopy::{FromBytes as _, IntoBytes as _};

use attach::{Attached, Attacher, Dispatch, attach};
pub use btf::BtfError;
#[cfg(test)]
pub(crate) use hooks::OBJECT_KINDS;
use hooks::{DISPATCHER, FREED, NAME_FREED, Point};
pub(crate) use hooks::{HOOKS, Place};
pub use hooks::{Hook, HookStatus, Rung};
use objects::Plan;

use crate::{Config, filter, policy::PolicyError};

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
    #[error(transparent)]
    Policy(#[from] PolicyError),
}

/// Of a map that nothing will use.
const UNUSED_ENTRIES: u32 = 64;
/// The lanes: process, network, file.
pub(crate) const RINGS: usize = 3;
pub(crate) type Ring = RingBuf<MapData>;

/// The loaded programs and their maps.
pub struct Probe {
    // Held for its links: dropping it detaches.
    _ebpf: Ebpf,
    // Held because the kernel empties a program array that nobody has open.
    _dispatch: Dispatch,
    hooks: Vec<HookStatus>,
    pub(crate) rings: [Ring; RINGS],
    counters: PerCpuArray<MapData, KernelCounters>,
    ignored: HashMap<MapData, u32, u8>,
    log: Option<log::Log>,
    attached: Vec<Attached>,
    pub(crate) rules: policy::Rules,
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

impl Probe {
    pub fn load(config: &Config) -> Result<Self, ProbeError> {
        if let Some(missing) = capabilities::missing() {
            return Err(ProbeError::NotPermitted(missing));
        }
        let types = btf::Types::of_kernel()?;
        let (offsets, missing) = offsets(&types);
        let copies = objects::copies_missing(&types, &offsets);
        let mut plan = Plan {
            rung: None,
            refused: Vec::new(),
            copies: copies.map_or(Ok(()), |reason| Err(reason.to_owned())),
        };
        for rung in [Rung::Trampoline, Rung::Kprobe] {
            plan.rung = Some(rung);
            let refused = match objects::missing(rung, &types) {
                Some(reason) => reason,
                None => match Self::load_with(config, &types, (&offsets, &missing), &mut plan) {
                    Err(ProbeError::NoObjects(reason)) => reason,
                    other => return other,
                },
            };
            plan.refused.push((rung, refused));
        }
        plan.rung = None;
        Self::load_with(config, &types, (&offsets, &missing), &mut plan)
    }

    fn load_with(
        config: &Config,
        types: &btf::Types,
        (offsets, missing): (&Offsets, &[&'static str]),
        plan: &mut Plan,
    ) -> Result<Self, ProbeError> {
        let kernel = Btf::from_sys_fs().map_err(|error| ProbeError::Load(error.to_string()))?;
        let uname = rustix::system::uname();
        let preemptible = object::is_preemptible(&uname.release().to_string_lossy());
        let uring = io_uring::Tracepoints::of(types);
        let settings = settings(config, types, &uring, plan);
        // Those of the LSM are, on every kernel.
        let preempted = preemptible || plan.rung == Some(Rung::Trampoline);
        let object = object::prepare(OBJECT, types, preempted);
        let mut loader = EbpfLoader::new();
        // Some MiB with all their entries.
        if plan.rung.is_none() {
            loader.map_max_entries("SEEN", UNUSED_ENTRIES);
        }
        if plan.copies.is_err() {
            loader.map_max_entries("COPIES", UNUSED_ENTRIES);
        }
        let mut ebpf = loader
            .btf(Some(&kernel))
            .override_global("OFFSETS", offsets.as_bytes(), true)
            .override_global("SETTINGS", settings.as_bytes(), true)
            .map_max_entries("PROCESS_RING", config.rings.process_bytes)
            .map_max_entries("NETWORK_RING", config.rings.network_bytes)
            .map_max_entries("FILE_RING", config.rings.file_bytes)
            .load(&object)
            .map_err(|error| load_error(&error))?;
        // Before any program is attached: they keep the map only while it has a file descriptor.
        let log = log::Log::of(&mut ebpf);
        watch_names(&mut ebpf, config)?;
        // Before anything is attached, so that our own start is not in the record.
        let mut ignored: HashMap<_, u32, u8> = take(&mut ebpf, "IGNORED")?;
        let own = ignored.insert(std::process::id(), 1, 0);
        own.map_err(|error| ProbeError::Load(error.to_string()))?;
        let rings = rings(&mut ebpf)?;
        let counters = take(&mut ebpf, "COUNTERS")?;
        let rules = policy::Rules::new(&mut ebpf, Arc::new(config.policy()?))?;
        let mut dispatch = Dispatch {
            programs: take(&mut ebpf, "PROGRAMS")?,
            probe_programs: take(&mut ebpf, "PROBE_PROGRAMS")?,
            shapes: take(&mut ebpf, "SHAPES")?,
        };
        let mut attacher = Attacher {
            ebpf: &mut ebpf,
            dispatch: &mut dispatch,
            kernel: &kernel,
            missing,
            uring: &uring,
            frees_unseen: frees_unseen(types, preemptible),
            sees_freed: false,
            attached: Vec::new(),
        };
        if let Some(rung) = plan.rung {
            objects::attach_all(attacher.ebpf, &kernel, rung).map_err(ProbeError::NoObjects)?;
        }
        let mut hooks = attacher.attach_all(config, preemptible);
        let (attached, sees_freed) = (attacher.attached, attacher.sees_freed);
        if plan.copies.is_ok() && !sees_freed {
            plan.copies = attach(&mut ebpf, NAME_FREED, &kernel).map(drop);
        }
        plan.tell(&mut hooks);
        guard_maps(&mut ebpf)?;
        any_attached(&hooks)?;
        Ok(Self {
            _ebpf: ebpf,
            attached,
            _dispatch: dispatch,
            hooks,
            rings,
            counters,
            ignored,
            log,
            rules,
        })
    }

    pub fn hooks(&self) -> &[HookStatus] {
        &self.hooks
    }

    /// Leaves the process `pid` out of the record from now on.
    pub fn ignore(&mut self, pid: u32) -> io::Result<()> {
        self.ignored.insert(pid, 1, 0).map_err(io::Error::other)
    }

    /// Tells for each program how often the kernel has skipped it since the last time.
    pub(crate) fn skipped(&mut self, mut tell: impl FnMut(&'static str, u64)) {
        for attached in &mut self.attached {
            // A kernel before 5.12 does not count it.
            let now = info::of(&attached.program).map_or(0, |info| info.skipped);
            if now > attached.skipped {
                tell(attached.name, now - attached.skipped);
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

    /// The counters of `class` on each CPU.
    pub(crate) fn counters(&self, class: u8) -> io::Result<Vec<Counters>> {
        let values = self
            .counters
            .get(&class.into(), 0)
            .map_err(io::Error::other)?;
        Ok(values.iter().map(|value| value.0).collect())
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

/// What each hook would get on this kernel: loads and attaches everything, and lets go again.
pub fn check(config: &Config) -> Result<Vec<HookStatus>, ProbeError> {
    Probe::load(config).map(|probe| probe.hooks)
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
            attach(&mut ebpf, point, &kernel).map_err(ProbeError::Load)?;
        }
        Ok(Self { _ebpf: ebpf })
    }
}

fn take<T>(ebpf: &mut Ebpf, name: &str) -> Result<T, ProbeError>
where
    T: TryFrom<aya::maps::Map, Error = aya::maps::MapError>,
{
    let map = ebpf
        .take_map(name)
        .ok_or_else(|| ProbeError::Load(format!("the object has no map {name}")))?;
    T::try_from(map).map_err(|error| ProbeError::Load(format!("map {name}: {error}")))
}

fn rings(ebpf: &mut Ebpf) -> Result<[Ring; RINGS], ProbeError> {
    Ok([
        take(ebpf, "PROCESS_RING")?,
        take(ebpf, "NETWORK_RING")?,
        take(ebpf, "FILE_RING")?,
    ])
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
    let mut own: HashMap<_, u32, u8> = take(ebpf, "OWN_MAPS")?;
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
