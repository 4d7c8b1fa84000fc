//! Reading kernel memory. A kernel pointer is a plain number here; a failed read is zero, because
//! a field that cannot be read is reported as absent, never as a reason to lose the event.

use aya_ebpf::{
    helpers::generated::{
        bpf_get_current_task, bpf_get_current_task_btf, bpf_probe_read_kernel, bpf_probe_read_user,
    },
    macros::map,
    maps::PerCpuArray,
};

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

/// The first bytes of a structure, read at once: a helper's call costs more than what it copies. For
/// programs in the context of a process, which do not interrupt each other on a CPU.
pub struct Block {
    base: u64,
    bytes: &'static [u64; BLOCK_WORDS],
}

/// As much as is asked for of most structures in one place (Linux 5.10 to 7.x).
const BLOCK_WORDS: usize = 14;

#[map]
static BLOCKS: PerCpuArray<[u64; BLOCK_WORDS]> = PerCpuArray::with_max_entries(2, 0);

impl Block {
    #[inline(always)]
    pub fn of_inode(base: u64) -> Option<Self> {
        Self::read(base, 0)
    }

    #[inline(always)]
    pub fn of_file(base: u64) -> Option<Self> {
        Self::read(base, 1)
    }

    #[inline(always)]
    fn read(base: u64, index: u32) -> Option<Self> {
        let bytes = BLOCKS.get_ptr_mut(index)?;
        // SAFETY: the helper checks the source and writes as many bytes as there are, zeros on failure.
        unsafe {
            bpf_probe_read_kernel(bytes.cast(), size_of_val(&*bytes) as u32, base as *const _);
            Some(Self {
                base,
                bytes: &*bytes,
            })
        }
    }

    #[inline(always)]
    pub fn base(&self) -> u64 {
        self.base
    }

    /// What a field holds, wherever it is.
    #[inline(always)]
    pub fn field<T: Copy>(&self, offset: usize) -> T {
        if offset + size_of::<T>() > size_of_val(self.bytes) {
            return read(self.base, offset);
        }
        // SAFETY: within the bytes. Callers read integers, as in `read`.
        unsafe {
            self.bytes
                .as_ptr()
                .byte_add(offset)
                .cast::<T>()
                .read_volatile()
        }
    }
}

/// A field behind a pointer that the verifier knows the type of.
#[inline(always)]
pub fn typed<T: Copy>(pointer: *const u8, offset: usize) -> T {
    // SAFETY: the verifier admits only fields of the pointer's type; a fault reads as zero.
    unsafe { pointer.wrapping_add(offset).cast::<T>().read_volatile() }
}

/// A kernel structure that the current task leads to. Where the verifier knows its type (`TYPED`, Linux
/// 5.11), its fields are read in place, at a fraction of what a helper's call costs.
#[derive(Clone, Copy)]
pub struct Struct<const TYPED: bool>(*const u8);

impl<const TYPED: bool> Struct<TYPED> {
    #[inline(always)]
    pub fn current_task() -> Self {
        // SAFETY: no arguments.
        let task = unsafe {
            if TYPED {
                bpf_get_current_task_btf() as *const u8
            } else {
                bpf_get_current_task() as *const u8
            }
        };
        Self(task)
    }

    /// What a field holds: at most eight bytes.
    #[inline(always)]
    pub fn field<T: Copy>(self, offset: usize) -> T {
        if TYPED {
            typed(self.0, offset)
        } else {
            read(self.0 as u64, offset)
        }
    }

    /// What a field points to.
    #[inline(always)]
    pub fn pointer(self, offset: usize) -> Self {
        Self(self.field(offset))
    }

    #[inline(always)]
    pub fn address(self) -> u64 {
        self.0 as u64
    }
}

impl Struct<false> {
    #[inline(always)]
    pub fn at(address: u64) -> Self {
        Self(address as *const u8)
    }
}

/// `with_task!(|task| ...)`: the current task as a [`Struct`], of the better of its two forms.
macro_rules! with_task {
    (|$task:ident| $body:expr) => {
        if $crate::settings::typed_task() {
            let $task = $crate::kernel::Struct::<true>::current_task();
            $body
        } else {
            let $task = $crate::kernel::Struct::<false>::current_task();
            $body
        }
    };
}
pub(crate) use with_task;
