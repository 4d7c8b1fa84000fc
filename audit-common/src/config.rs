//! What the agent sets in the kernel programs before they load, and the counters that they keep.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::call::ARGUMENTS;

/// Read-only global `SETTINGS`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Settings {
    /// Report opens that only read, of watched names.
    pub watch_reads: u32,
    /// A ring wakes its reader when this much waits in it; below that the reader's timer collects.
    pub wakeup_bytes: u32,
    /// Security hooks tell the objects of path calls.
    pub objects: u32,
    /// What is read and written through files that are open for writing is counted, for their close.
    pub close_writes: u32,
    /// The helper bpf_get_current_task_btf is there (Linux 5.11).
    pub typed_task: u32,
    /// Where `struct pt_regs` holds the number of a system call, and its arguments.
    pub number_offset: u32,
    pub argument_offsets: [u32; ARGUMENTS],
    /// The arguments of a 32-bit caller.
    pub compat_argument_offsets: [u32; ARGUMENTS],
    /// The bits of [`crate::offsets::COMPAT_WORD`] that are set while a 32-bit call is served.
    pub compat_bits: u32,
    /// Which argument of io_uring's submission, and of its completion, is the request;
    /// [`crate::offsets::MISSING`] where the tracepoint does not tell it.
    pub uring_submit_request: u32,
    pub uring_complete_request: u32,
    /// A completion tells its entry of the completion queue, and not each of its fields.
    pub uring_complete_entry: u32,
    /// Bits of `io_kiocb.flags`: it has credentials, has data of its own, accepts more than one
    /// connection; 0 where it cannot.
    pub uring_has_credentials: u32,
    pub uring_has_data: u32,
    pub uring_accepts_many: u32,
    /// The kernel's own copies of the texts of path calls are seen.
    pub copies: u32,
    /// The set that these programs are of; see [`gate`].
    pub generation: u32,
}

/// Ticks in which /proc tells when a process began: 100 a second, on every architecture of ours.
pub const TICK_NS: u64 = 10_000_000;

/// The one value of the map `GATE`: which set of programs records.
pub mod gate {
    /// Sets that are attached at the same time agree on each event.
    const SWITCHING: u64 = 1 << 32;

    pub const fn steady(generation: u32) -> u64 {
        generation as u64
    }

    pub const fn switching(generation: u32) -> u64 {
        generation as u64 | SWITCHING
    }

    /// The set that records.
    pub const fn active(gate: u64) -> u32 {
        gate as u32
    }
}

/// Numbers of calls that the agent replaces before it loads the programs; no kernel has helpers with
/// such numbers.
pub const PREEMPTION_OFF: i32 = 0x7ead_0001;
pub const PREEMPTION_ON: i32 = 0x7ead_0002;

/// How an architecture passes a system call's number and arguments.
#[derive(Debug, Clone, Copy)]
pub struct CallAbi {
    pub number: u32,
    pub arguments: [u32; ARGUMENTS],
    pub compat_arguments: [u32; ARGUMENTS],
    pub compat_bits: u32,
}

/// orig_rax; rdi, rsi, rdx, r10, r8, r9; of i386 ebx, ecx, edx, esi, edi, ebp; TS_COMPAT.
#[cfg(target_arch = "x86_64")]
pub const CALL_ABI: CallAbi = CallAbi {
    number: 120,
    arguments: [112, 104, 96, 56, 72, 64],
    compat_arguments: [40, 88, 96, 104, 112, 32],
    compat_bits: 2,
};
/// syscallno; orig_x0 (x0 holds the result by then), x1 to x5, the same for 32 bits; TIF_32BIT.
#[cfg(target_arch = "aarch64")]
pub const CALL_ABI: CallAbi = CallAbi {
    number: 280,
    arguments: [272, 8, 16, 24, 32, 40],
    compat_arguments: [272, 8, 16, 24, 32, 40],
    compat_bits: 1 << 22,
};

/// Value of the per-CPU map `COUNTERS`, one per class.
#[repr(C)]
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Counters {
    /// The last sequence number given out: every record that should have been sent.
    pub sequence: u64,
    /// Of these, how many found no place in the ring.
    pub ring_full: u64,
    /// Seen and left out on purpose: ignored processes, reads that nobody watches, and what a
    /// filter rule hid.
    pub filtered: u64,
    /// Beyond the budget of a cgroup, and only counted.
    pub shed: u64,
    /// Connects that returned undecided, and requests of io_uring, that found the map full in which
    /// they wait for their outcome: reported as such, but their outcome will not be.
    pub pending_full: u64,
}
