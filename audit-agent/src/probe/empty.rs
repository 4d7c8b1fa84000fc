//! What does watching cost at the least?

use aya::{Btf, Ebpf, EbpfLoader};

use super::{
    HOOKS, Place, ProbeError,
    attach::attach,
    btf::Types,
    hooks::{DISPATCHER, Point},
    kernel::OBJECT,
    object,
};

/// Attaches programs that do nothing at the same places: the least that watching there can cost.
pub struct EmptyProbe {
    _ebpf: Ebpf,
}

impl EmptyProbe {
    pub fn load() -> Result<Self, ProbeError> {
        let kernel = Btf::from_sys_fs().map_err(|error| ProbeError::Load(error.to_string()))?;
        let object = object::prepare(OBJECT, &Types::of_kernel()?, false);
        let mut ebpf = EbpfLoader::new()
            .btf(Some(&kernel))
            .load(&object)
            .map_err(|error| ProbeError::of_load(&error))?;
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
