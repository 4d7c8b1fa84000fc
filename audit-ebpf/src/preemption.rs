//! May another task run on this CPU while a program of ours runs? A record is built in memory that
//! all programs of its class on a CPU share, so it may not.
//!
//! The kernel calls programs at tracepoints with preemption off, up to Linux 6.18. Later kernels do
//! not; there the agent replaces the two calls below, which no kernel has as helpers, by the
//! functions bpf_preempt_disable and bpf_preempt_enable, and by nothing elsewhere
//! (`audit-agent/src/probe/object.rs`).

use core::arch::asm;

use audit_common::config::{PREEMPTION_OFF, PREEMPTION_ON};

use crate::gate::{self, Place};

/// Runs `body` with preemption off, if it is for this set of programs to record at `place`.
#[inline(always)]
pub fn at(place: Place, body: impl FnOnce()) -> i32 {
    without(|| {
        if gate::is_open(place, 0) {
            body();
        }
    })
}

/// Runs `body` with preemption off.
#[inline(always)]
pub fn without(body: impl FnOnce()) -> i32 {
    call::<PREEMPTION_OFF>();
    body();
    call::<PREEMPTION_ON>();
    0
}

#[inline(always)]
fn call<const PLACEHOLDER: i32>() {
    // SAFETY: what is put here takes no arguments and touches no memory of ours; as every call, it
    // may change the first six registers.
    unsafe {
        asm!(
            "call {placeholder}",
            placeholder = const PLACEHOLDER,
            lateout("r0") _,
            lateout("r1") _,
            lateout("r2") _,
            lateout("r3") _,
            lateout("r4") _,
            lateout("r5") _,
        )
    };
}
