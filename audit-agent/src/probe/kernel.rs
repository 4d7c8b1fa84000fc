//! What is this kernel like, and how is the object fitted to it?

use audit_common::{
    config::{CALL_ABI, Settings},
    offsets::{MISSING, Offsets, PATHS},
};
use aya::{Btf, Ebpf, EbpfLoader, VerifierLogLevel};
use sha2::{Digest as _, Sha256};
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::{
    ProbeError,
    btf::{Argument, Types},
    capabilities,
    hooks::{FREED, Rung},
    io_uring, object,
    objects::{self, Plan},
    pins::{Making, PinError},
};
use crate::Config;

/// Built by build.rs.
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("AUDIT_EBPF_OBJECT"));

/// Of a map that nothing will use.
const UNUSED_ENTRIES: u32 = 64;

pub(super) struct Kernel {
    pub(super) types: Types,
    pub(super) btf: Btf,
    pub(super) release: String,
    pub(super) offsets: Offsets,
    pub(super) missing: Vec<&'static str>,
    pub(super) uring: io_uring::Tracepoints,
}

impl Kernel {
    pub(super) fn running() -> Result<Self, ProbeError> {
        if let Some(missing) = capabilities::missing() {
            return Err(ProbeError::NotPermitted(missing));
        }
        let types = Types::of_kernel()?;
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

    pub(super) fn is_preemptible(&self) -> bool {
        object::is_preemptible(&self.release)
    }

    /// Why links of this kernel's kprobes cannot be pinned.
    pub(super) fn unpinnable(&self) -> Option<PinError> {
        (objects::has_kprobes() && object::version(&self.release) < (5, 15)).then(|| {
            PinError::Kernel("this kernel's kprobes end with the agent, before 5.15".to_owned())
        })
    }

    pub(super) fn plan(&self) -> Plan {
        Plan::new(&self.types, &self.offsets)
    }

    pub(super) fn settings(&self, config: &Config, plan: &Plan, generation: u32) -> Settings {
        Settings {
            generation,
            ..settings(config, &self.types, &self.uring, plan)
        }
    }

    /// What decides how a set of programs behaves: the object, and what is set in it. Filter rules and
    /// budgets are not: any set takes new ones while it runs.
    pub(super) fn fingerprint(&self, config: &Config) -> String {
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
    pub(super) fn load(
        &self,
        plan: &Plan,
        config: &Config,
        settings: &Settings,
        pins: Option<&Making>,
        log: VerifierLogLevel,
    ) -> Result<Ebpf, ProbeError> {
        // Programs in trampolines are preempted on every kernel.
        let in_trampolines = matches!(plan.rung, Some(Rung::Lsm | Rung::Fentry));
        let preempted = self.is_preemptible() || in_trampolines;
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
        loader
            .load(&object)
            .map_err(|error| ProbeError::of_load(&error))
    }

    /// Why open files cannot be told when their memory is freed: a program there must not run in an
    /// interrupt, nor be skipped on every path of the kernel that frees anything.
    pub(super) fn frees_unseen(&self) -> Option<&'static str> {
        let arguments = self
            .types
            .tracepoint(FREED.place.name())
            .unwrap_or_default();
        if self.is_preemptible() {
            Some("programs can be preempted there, and would be skipped")
        } else if self.types.has_function("file_free_rcu") {
            Some("this kernel frees open files in interrupts (before Linux 6.7)")
        } else if arguments.get(2) != Some(&Argument::Pointer("kmem_cache".to_owned())) {
            Some("this kernel does not say from which cache memory is freed")
        } else {
            None
        }
    }
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

/// The kernel's offsets, and the paths of the fields that it does not have, but must.
fn offsets(types: &Types) -> (Offsets, Vec<&'static str>) {
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
    types: &Types,
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
