//! The system call that is just returning: its number, arguments and result, whoever called and
//! however (64-bit, x32, or i386 by `int 0x80`).
//!
//! A dispatcher runs at the end of every call and goes on to the program that the agent put into the
//! call's slot. The arguments come from the registers that the kernel saved at entry: other threads
//! cannot change them, and no enter hook has to be paid for.
//!
//! There are two dispatchers, and two programs of each call, because a program belongs to one place:
//! the tracepoint `sys_exit`, and a kprobe on `trace_syscall_exit`, which calls it (Linux 6.19 and
//! later). The kernel skips a tracepoint's program while another task is preempted inside it on that
//! CPU; the handler of a kprobe is never preempted.

use audit_common::{
    call::{ARGUMENTS, COMPAT_SLOT, NONE, SLOTS, Shape},
    record::via,
};
use aya_ebpf::{
    helpers::generated::{bpf_get_current_task_btf, bpf_task_pt_regs},
    macros::{btf_tracepoint, kprobe, map},
    maps::{Array, ProgramArray},
    programs::{BtfTracePointContext, ProbeContext},
};

use crate::{
    kernel::{self, typed, with_task},
    process,
    settings::{self, offset},
};

/// The program of each slot.
#[map]
static PROGRAMS: ProgramArray = ProgramArray::with_max_entries(SLOTS, 0);
/// The same for the kprobe.
#[map]
static PROBE_PROGRAMS: ProgramArray = ProgramArray::with_max_entries(SLOTS, 0);
/// What the arguments of each slot's call mean.
#[map]
static SHAPES: Array<Shape> = Array::with_max_entries(SLOTS, 0);

/// Makes both programs of a system call's end.
macro_rules! at_exit {
    ($tracepoint:ident, $kprobe:ident: |$call:ident| $body:block) => {
        #[aya_ebpf::macros::btf_tracepoint(function = "sys_exit")]
        pub fn $tracepoint(ctx: aya_ebpf::programs::BtfTracePointContext) -> i32 {
            $crate::preemption::without(|| {
                let $call = $crate::syscall::Call::of_tracepoint(&ctx);
                if $crate::gate::is_open($crate::gate::Place::Call, $call.slot) {
                    $body
                }
            })
        }

        #[aya_ebpf::macros::kprobe]
        pub fn $kprobe(ctx: aya_ebpf::programs::ProbeContext) -> u32 {
            let $call = $crate::syscall::Call::of_kprobe(&ctx);
            if $crate::gate::is_open($crate::gate::Place::Call, $call.slot) {
                $body
            }
            0
        }
    };
}
pub(crate) use at_exit;

/// Set in the number of an x32 call (arch/x86/include/uapi/asm/unistd.h).
const X32: u32 = 1 << 30;
/// From here on x32 has numbers of its own, for calls that pass pointers in memory.
const X32_ONLY: u32 = 512;

/// `sys_exit(regs, result)`
#[btf_tracepoint(function = "sys_exit")]
pub fn sys_exit(ctx: BtfTracePointContext) -> i32 {
    let registers = process::argument(&ctx, 0) as *const u8;
    let slot = slot(typed(registers, settings::number_offset()));
    // SAFETY: every program in the map is one of this tracepoint.
    unsafe { PROGRAMS.tail_call(&ctx, slot) };
    0
}

/// `trace_syscall_exit(regs, result)`
#[kprobe]
pub fn sys_exit_kprobe(ctx: ProbeContext) -> u32 {
    let registers: u64 = ctx.arg(0).unwrap_or(0);
    let slot = slot(kernel::read(registers, settings::number_offset()));
    // SAFETY: every program in the map is one for a kprobe.
    unsafe { PROBE_PROGRAMS.tail_call(&ctx, slot) };
    0
}

#[inline(always)]
fn slot(number: u32) -> u32 {
    if is_compat() {
        return number.wrapping_add(COMPAT_SLOT);
    }
    let number = number & !X32;
    // Never beyond the native slots: -1 is a call that a tracer skipped.
    if number < COMPAT_SLOT { number } else { SLOTS }
}

/// What the call of a slot means; zeroes where the slot has no program.
#[inline(always)]
pub fn shape_of(slot: u32) -> Option<&'static Shape> {
    SHAPES.get(slot)
}

/// A returning system call.
pub struct Call {
    arguments: [u64; ARGUMENTS],
    pub result: i64,
    pub slot: u32,
    pub is_x32: bool,
    pub via: u8,
}

impl Call {
    #[inline(always)]
    pub fn of_tracepoint(ctx: &BtfTracePointContext) -> Self {
        // `struct pt_regs *`, typed: the verifier lets it be read directly.
        let registers = process::argument(ctx, 0) as *const u8;
        let result = process::argument(ctx, 1);
        let number = typed(registers, settings::number_offset());
        Self::new((via::SYS_EXIT, number), result, |offset| {
            typed(registers, offset)
        })
    }

    #[inline(always)]
    pub fn of_kprobe(ctx: &ProbeContext) -> Self {
        let registers: u64 = ctx.arg(0).unwrap_or(0);
        let result = ctx.arg(1).unwrap_or(0);
        let number = kernel::read(registers, settings::number_offset());
        Self::new((via::KPROBE, number), result, |offset| {
            kernel::read(registers, offset)
        })
    }

    /// The call that the current task is in; its result is not known.
    #[inline(always)]
    pub fn of_current() -> Self {
        // SAFETY: neither takes more than the task.
        let registers = unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) } as *const u8;
        let number = typed(registers, settings::number_offset());
        Self::new((via::BTF_TRACEPOINT, number), 0, |offset| {
            typed(registers, offset)
        })
    }

    #[inline(always)]
    fn new((via, number): (u8, u32), result: u64, register: impl Fn(usize) -> u64) -> Self {
        let slot = slot(number);
        let compat = slot >= COMPAT_SLOT;
        let argument = |native: usize, short: usize| {
            if compat {
                register(short) as u32 as u64
            } else {
                register(native)
            }
        };
        macro_rules! argument {
            ($n:literal) => {
                argument(
                    settings::argument_offset::<$n>(),
                    settings::compat_argument_offset::<$n>(),
                )
            };
        }
        Self {
            arguments: [
                argument!(0),
                argument!(1),
                argument!(2),
                argument!(3),
                argument!(4),
                argument!(5),
            ],
            // The kernel extends the sign of a 32-bit result only where it is an error.
            result: if compat {
                result as i32 as i64
            } else {
                result as i64
            },
            slot,
            is_x32: !compat && number & X32 != 0,
            via,
        }
    }

    /// A socketcall of i386, for a function that was given its parts.
    #[inline(always)]
    pub fn socketcall(number: u64, arguments: u64, result: u64, via: u32) -> Self {
        /// arch/x86/entry/syscalls/syscall_32.tbl
        const NUMBER: u32 = 102;
        Self {
            arguments: [number, arguments, 0, 0, 0, 0],
            result: result as i64,
            slot: COMPAT_SLOT + NUMBER,
            is_x32: false,
            via: via as u8,
        }
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
        self.arguments[N]
    }

    /// The argument at a position that only the shape knows; 0 for none.
    #[inline(always)]
    pub fn argument_at(&self, position: u8) -> u64 {
        match position {
            0 => self.arguments[0],
            1 => self.arguments[1],
            2 => self.arguments[2],
            3 => self.arguments[3],
            4 => self.arguments[4],
            5 => self.arguments[5],
            _ => 0,
        }
    }

    #[inline(always)]
    pub fn arguments(&self) -> [u64; ARGUMENTS] {
        self.arguments
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
}

/// Is the current task in a 32-bit call?
#[inline(always)]
fn is_compat() -> bool {
    let word: u32 = with_task!(|task| task.field(offset!(task_compat)));
    word & settings::compat_bits() != 0
}
