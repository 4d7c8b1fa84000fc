//! What do path calls really act on, and by what is that seen here? The best rung whose programs load,
//! attach and then see something: those of the BPF LSM attach also where the kernel was not told to
//! ask it, and see nothing.
//!
//! Beside it, and for failed calls which come by no hook, the texts that the kernel itself has copied.

use std::{fs, fs::OpenOptions, path::Path};

use audit_common::{
    call::NONE,
    offsets::{MISSING, Offsets},
    record::SEEN_BYTES,
};
use aya::{Btf, Ebpf, maps::PerCpuArray};

use super::{
    attach::attach,
    btf::{Argument, Types},
    hooks::{FREED, HOOKS, HookStatus, OBJECT_KINDS, OBJECTS, Rung},
    pins::Making,
};

/// What is to be tried, and why nothing better.
pub(super) struct Plan {
    pub rung: Option<Rung>,
    pub refused: Vec<(Rung, String)>,
    /// Whether copied texts can be seen.
    pub copies: Result<(), String>,
}

impl Plan {
    /// Before anything was tried.
    pub fn new(types: &Types, offsets: &Offsets) -> Self {
        let copies = copies_missing(types, offsets);
        Self {
            rung: None,
            refused: Vec::new(),
            copies: copies.map_or(Ok(()), |reason| Err(reason.to_owned())),
        }
    }

    /// Tells hooks how their objects and texts are seen.
    pub fn tell(&self, hooks: &mut [HookStatus]) {
        let reasons = self.refused.iter();
        let reasons: Vec<String> = reasons
            .map(|(rung, why)| format!("{rung}: {why}"))
            .collect();
        for (status, hook) in hooks.iter_mut().zip(HOOKS) {
            if hook.kinds.iter().any(|kind| OBJECT_KINDS.contains(kind)) {
                status.objects = Some(self.rung.ok_or_else(|| reasons.join("; ")));
                status.tried.splice(..0, self.refused.iter().cloned());
            }
            let mut rows = hook.calls.iter().copied().flatten();
            if rows.any(|row| row.shape.path != NONE) {
                status.texts = Some(self.copies.clone());
            }
        }
    }
}

/// Why `rung` need not be tried.
pub(super) fn missing(rung: Rung, types: &Types) -> Option<String> {
    let refused = match rung {
        Rung::Lsm => without_lsm().or_else(|| preempted(types)),
        Rung::Fentry => preempted(types),
        _ => (!has_kprobes()).then(|| "this kernel has no kprobes".to_owned()),
    };
    let function = || {
        let mut places = OBJECTS
            .iter()
            .map(|object| object.point(Rung::Kprobe).place);
        let missing = places.find(|place| !types.has_function(place.name()))?;
        Some(format!("this kernel has no function {}", missing.name()))
    };
    refused.or_else(function)
}

pub(super) fn has_kprobes() -> bool {
    Path::new("/sys/bus/event_source/devices/kprobe").exists()
}

fn without_lsm() -> Option<String> {
    // Absent where securityfs is not mounted; then the trial tells.
    let modules = fs::read_to_string("/sys/kernel/security/lsm").ok()?;
    let asked = modules.trim().split(',').any(|module| module == "bpf");
    (!asked).then(|| NOT_ASKED.to_owned())
}

/// A record is built in memory of the CPU, and programs in trampolines may be preempted.
fn preempted(types: &Types) -> Option<String> {
    let version = rustix::system::uname()
        .version()
        .to_string_lossy()
        .into_owned();
    let can = types.function("bpf_preempt_disable").is_none() && version.contains("PREEMPT");
    can.then(|| {
        "its programs can be preempted here, which kernels before 6.10 cannot prevent".to_owned()
    })
}

const NOT_ASKED: &str =
    "the kernel does not ask BPF programs (no `bpf` in the boot parameter lsm= or CONFIG_LSM)";

/// Attaches all of the rung's programs, and lets them prove that they see something.
pub(super) fn attach_all(
    ebpf: &mut Ebpf,
    kernel: &Btf,
    rung: Rung,
    pins: Option<&Making>,
) -> Result<(), String> {
    for object in OBJECTS {
        // Where one is skipped nothing is lost: `path_source` says that it saw nothing.
        attach(ebpf, object.point(rung), kernel, pins)?;
    }
    match (sees(ebpf)?, rung) {
        (true, _) => Ok(()),
        (false, Rung::Lsm) => Err(NOT_ASKED.to_owned()),
        (false, _) => Err("its programs were not called".to_owned()),
    }
}

/// Opens a file for writing, and looks whether the hook of opens has put together what it saw: in room
/// that no other set of programs has.
fn sees(ebpf: &Ebpf) -> Result<bool, String> {
    let map = ebpf.map("ROOM").ok_or("the object has no map ROOM")?;
    let failed = |error| format!("map ROOM: {error}");
    let room: PerCpuArray<_, [u8; SEEN_BYTES]> = PerCpuArray::try_from(map).map_err(failed)?;
    let opened = OpenOptions::new().write(true).open("/dev/null");
    opened.map_err(|error| format!("/dev/null: {error}"))?;
    let seen = room.get(&0, 0).map_err(failed)?;
    Ok(seen.iter().flatten().any(|byte| *byte != 0))
}

/// Why the texts that the kernel has copied cannot be seen.
fn copies_missing(types: &Types, offsets: &Offsets) -> Option<&'static str> {
    let cache = Argument::Pointer("kmem_cache".to_owned());
    let arguments = types.tracepoint(FREED.place.name()).unwrap_or_default();
    if arguments.get(2) != Some(&cache) {
        return Some("the tracepoint kmem_cache_free does not say which cache it is (Linux 6.1)");
    }
    let needed = [
        offsets.filename_name,
        offsets.filename_uptr,
        offsets.filename_iname,
        offsets.cache_name,
    ];
    if needed.contains(&MISSING) {
        return Some("this kernel's copies do not say which argument they are of");
    }
    if !types.has_function("bpf_task_pt_regs") {
        return Some("this kernel has no helper bpf_task_pt_regs (Linux 5.15)");
    }
    None
}
