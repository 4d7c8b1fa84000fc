//! The system call that is just returning: its number, arguments and result, whoever called and
//! however (64-bit, x32, or i386 by `int 0x80`).
//!
//! [`sys_exit`] runs at the end of every call and goes on to the program that the agent put into
//! the call's slot. The arguments come from the registers that the kernel saved at entry: other
//! threads cannot change them, and no enter hook has to be paid for.

use audit_common::{
    call::{ARGUMENTS, COMPAT_SLOT, NONE, SLOTS, Shape},
    record::via,
};
use aya_ebpf::{
    helpers::generated::{bpf_get_current_task, bpf_get_current_task_btf},
    macros::{btf_tracepoint, map},
    maps::{Array, ProgramArray},
    programs::BtfTracePointContext,
};

use crate::{
    kernel, process,
    settings::{self, offset},
};

/// The program of each slot.
#[map]
static PROGRAMS: ProgramArray = ProgramArray::with_max_entries(SLOTS, 0);
/// What the arguments of each slot's call mean.
#[map]
static SHAPES: Array<Shape> = Array::with_max_entries(SLOTS, 0);

/// Set in the number of an x32 call (arch/x86/include/uapi/asm/unistd.h).
const X32: u32 = 1 << 30;
/// From here on x32 has numbers of its own, for calls that pass pointers in memory.
const X32_ONLY: u32 = 512;

/// `sys_exit(regs, result)`
#[btf_tracepoint(function = "sys_exit")]
pub fn sys_exit(ctx: BtfTracePointContext) -> i32 {
    let slot = Call::slot(&ctx);
    // SAFETY: every program in the map is one of this tracepoint.
    unsafe { PROGRAMS.tail_call(&ctx, slot) };
    0
}

/// What the call of a slot means; zeroes where the slot has no program.
#[inline(always)]
pub fn shape_of(slot: u32) -> Option<&'static Shape> {
    SHAPES.get(slot)
}

/// A returning system call.
pub struct Call {
    /// `struct pt_regs *`, typed: the verifier lets it be read directly.
    registers: *const u8,
    pub result: i64,
    pub slot: u32,
}

impl Call {
    #[inline(always)]
    pub fn of(ctx: &BtfTracePointContext) -> Self {
        let slot = Self::slot(ctx);
        let result = process::argument(ctx, 1) as i64;
        Self {
            registers: process::argument(ctx, 0) as *const u8,
            // The kernel extends the sign of a 32-bit result only where it is an error.
            result: if slot < COMPAT_SLOT { result } else { result as i32 as i64 },
            slot,
        }
    }

    #[inline(always)]
    fn slot(ctx: &BtfTracePointContext) -> u32 {
        let registers = process::argument(ctx, 0) as *const u8;
        let number: u32 = typed(registers, settings::number_offset());
        if is_compat() {
            return number.wrapping_add(COMPAT_SLOT);
        }
        let number = number & !X32;
        // Never beyond the native slots: -1 is a call that a tracer skipped.
        if number < COMPAT_SLOT { number } else { SLOTS }
    }

    /// What the arguments mean; the agent has described every slot that has a program.
    #[inline(always)]
    pub fn shape(&self) -> Option<&'static Shape> {
        shape_of(self.slot)
    }

    /// The caller's memory holds pointers of 4 bytes.
    #[inline(always)]
    pub fn has_short_pointers(&self) -> bool {
        self.slot >= X32_ONLY
    }

    #[inline(always)]
    pub fn argument<const N: usize>(&self) -> u64 {
        if self.slot < COMPAT_SLOT {
            typed(self.registers, settings::argument_offset::<N>())
        } else {
            typed::<u32>(self.registers, settings::compat_argument_offset::<N>()).into()
        }
    }

    /// The argument at a position that only the shape knows; 0 for none.
    #[inline(always)]
    pub fn argument_at(&self, position: u8) -> u64 {
        match position {
            0 => self.argument::<0>(),
            1 => self.argument::<1>(),
            2 => self.argument::<2>(),
            3 => self.argument::<3>(),
            4 => self.argument::<4>(),
            5 => self.argument::<5>(),
            _ => 0,
        }
    }

    #[inline(always)]
    pub fn arguments(&self) -> [u64; ARGUMENTS] {
        [
            self.argument::<0>(),
            self.argument::<1>(),
            self.argument::<2>(),
            self.argument::<3>(),
            self.argument::<4>(),
            self.argument::<5>(),
        ]
    }

    /// The directory that the path at `path` starts from: a descriptor, or AT_FDCWD.
    #[inline(always)]
    pub fn directory(&self, directory: u8) -> i32 {
        const AT_FDCWD: i32 = -100;
        if directory == NONE {
            AT_FDCWD
        } else {
            self.argument_at(directory) as i32
        }
    }

    #[inline(always)]
    pub fn via(&self) -> u8 {
        via::SYS_EXIT
    }
}

/// A field behind a pointer that the verifier knows the type of.
#[inline(always)]
fn typed<T: Copy>(pointer: *const u8, offset: usize) -> T {
    // SAFETY: the verifier admits only fields of the pointer's type; a fault reads as zero.
    unsafe { pointer.wrapping_add(offset).cast::<T>().read_volatile() }
}

/// Is the current task in a 32-bit call?
#[inline(always)]
fn is_compat() -> bool {
    let word: u32 = if settings::typed_task() {
        // SAFETY: no arguments.
        typed(unsafe { bpf_get_current_task_btf() } as *const u8, offset!(task_compat))
    } else {
        // SAFETY: no arguments.
        kernel::read(unsafe { bpf_get_current_task() }, offset!(task_compat))
    };
    word & settings::compat_bits() != 0
}
