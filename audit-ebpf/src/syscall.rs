//! Results and arguments of the system call that is just returning.
//!
//! The arguments come from the registers that the kernel saved at entry: other threads cannot
//! change them, and no enter hook has to be paid for.

use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{bpf_get_current_task_btf, bpf_task_pt_regs},
    programs::TracePointContext,
};

use crate::{kernel, settings};

/// What the call returned: `struct trace_event_raw_sys_exit.ret`, the same since Linux 2.6.32.
#[inline(always)]
pub fn result(ctx: &TracePointContext) -> i64 {
    // SAFETY: the context of a sys_exit tracepoint has the result at byte 16.
    unsafe { *ctx.as_ptr().cast::<u8>().add(16).cast::<i64>() }
}

/// The saved registers of the current task (bpf_task_pt_regs: Linux 5.15).
#[inline(always)]
pub fn registers() -> u64 {
    // SAFETY: helpers without memory arguments.
    unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) as u64 }
}

/// Argument `N` of the call.
#[inline(always)]
pub fn argument<const N: usize>(registers: u64) -> u64 {
    kernel::read(registers, settings::argument_offset::<N>())
}
