//! Reading kernel memory. A kernel pointer is a plain number here; a failed read is zero, because
//! a field that cannot be read is reported as absent, never as a reason to lose the event.

use aya_ebpf::helpers::generated::{bpf_probe_read_kernel, bpf_probe_read_user};

/// The `T` at `base + offset`.
#[inline(always)]
pub fn read<T: Copy>(base: u64, offset: usize) -> T {
    let mut value = core::mem::MaybeUninit::<T>::uninit();
    // SAFETY: the helper checks the source and writes size_of::<T>() bytes, zeros on failure.
    // Callers read integers and arrays of them, for which every bit pattern is a value.
    unsafe {
        bpf_probe_read_kernel(
            value.as_mut_ptr().cast(),
            size_of::<T>() as u32,
            (base + offset as u64) as *const _,
        );
        value.assume_init()
    }
}

/// The pointer at `base + offset`.
#[inline(always)]
pub fn pointer(base: u64, offset: usize) -> u64 {
    read(base, offset)
}

/// The `T` at `address` of the current process.
#[inline(always)]
pub fn read_user<T: Copy>(address: u64) -> Option<T> {
    let mut value = core::mem::MaybeUninit::<T>::uninit();
    // SAFETY: as in `read`.
    unsafe {
        let failed = bpf_probe_read_user(
            value.as_mut_ptr().cast(),
            size_of::<T>() as u32,
            address as *const _,
        );
        (failed == 0).then(|| value.assume_init())
    }
}
