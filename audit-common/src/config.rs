//! What the agent sets in the kernel programs before they load, and the counters that they keep.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Read-only global `SETTINGS`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Settings {
    /// Report opens that only read, of watched names.
    pub watch_reads: u32,
    /// A ring wakes its reader when this much waits in it; below that the reader's timer collects.
    pub wakeup_bytes: u32,
    /// Where the saved user registers (`struct pt_regs`) hold the arguments of a system call.
    pub argument_offsets: [u32; 5],
}

/// Argument registers of a system call in `struct pt_regs` (x86_64: rdi, rsi, rdx, r10, r8).
#[cfg(target_arch = "x86_64")]
pub const ARGUMENT_OFFSETS: [u32; 5] = [112, 104, 96, 56, 72];
/// Argument registers of a system call in `struct pt_regs` (arm64: orig_x0, because x0 holds the
/// result by then, then x1 to x4).
#[cfg(target_arch = "aarch64")]
pub const ARGUMENT_OFFSETS: [u32; 5] = [272, 8, 16, 24, 32];

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
    /// Seen and left out on purpose: ignored processes, reads that nobody watches.
    pub filtered: u64,
    /// Connects that returned undecided and found the pending map full: reported as such, but their
    /// outcome will not be.
    pub pending_full: u64,
}
