//! Programs that do nothing, on the attach points of the others: the least that watching there can
//! cost. `cargo xtask bench overhead` attaches them as its limit.

use aya_ebpf::{
    macros::{btf_tracepoint, raw_tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext},
};

#[btf_tracepoint(function = "sys_exit")]
pub fn empty_sys_exit(_: BtfTracePointContext) -> i32 {
    0
}

#[btf_tracepoint(function = "signal_generate")]
pub fn empty_signal(_: BtfTracePointContext) -> i32 {
    0
}

#[btf_tracepoint(function = "sched_process_exec")]
pub fn empty_exec(_: BtfTracePointContext) -> i32 {
    0
}

#[btf_tracepoint(function = "sched_process_fork")]
pub fn empty_fork(_: BtfTracePointContext) -> i32 {
    0
}

#[btf_tracepoint(function = "sched_process_exit")]
pub fn empty_exit(_: BtfTracePointContext) -> i32 {
    0
}

#[btf_tracepoint(function = "cgroup_mkdir")]
pub fn empty_cgroup(_: BtfTracePointContext) -> i32 {
    0
}

#[btf_tracepoint(function = "cgroup_notify_populated")]
pub fn empty_container(_: BtfTracePointContext) -> i32 {
    0
}

#[raw_tracepoint(tracepoint = "kmem_cache_free")]
pub fn empty_freed(_: RawTracePointContext) -> i32 {
    0
}

#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn empty_state(_: BtfTracePointContext) -> i32 {
    0
}
