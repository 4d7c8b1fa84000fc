//! What the agent decided before load: field offsets, settings, and processes to leave out.

use audit_common::{
    call::ARGUMENTS,
    config::{Settings, TICK_NS},
    limits,
    offsets::Offsets,
};
use aya_ebpf::{macros::map, maps::HashMap};

use crate::task;

// Read through volatile loads: the agent replaces their bytes in the object, so the compiler must
// not use the values it sees here. The verifier knows the replaced values as constants.
#[unsafe(no_mangle)]
static OFFSETS: Offsets = ZERO_OFFSETS;
#[unsafe(no_mangle)]
static SETTINGS: Settings = Settings {
    watch_reads: 0,
    wakeup_bytes: 0,
    objects: 0,
    close_writes: 0,
    typed_task: 0,
    number_offset: 0,
    argument_offsets: [0; ARGUMENTS],
    compat_argument_offsets: [0; ARGUMENTS],
    compat_bits: 0,
    uring_submit_request: 0,
    uring_complete_request: 0,
    uring_complete_entry: 0,
    uring_has_credentials: 0,
    uring_has_data: 0,
    uring_accepts_many: 0,
    copies: 0,
    generation: 0,
};

// SAFETY: all fields are u32, for which zero is a value.
const ZERO_OFFSETS: Offsets = unsafe { core::mem::zeroed() };

/// Processes whose events are not reported: the agent, the collector. When each began, in ticks of
/// [`TICK_NS`], because the map may outlive a process, and its number be given out again.
#[map]
static IGNORED: HashMap<u32, u64> = HashMap::with_max_entries(limits::IGNORED_PROCESSES, 0);

/// Ids of our own maps: who else writes to them is reported.
#[map]
static OWN_MAPS: HashMap<u32, u8> = HashMap::with_max_entries(limits::OWN_MAPS, 0);

/// `setting!(uring_has_data)`: what the agent has set.
macro_rules! setting {
    ($field:ident) => {
        $crate::settings::read(|_, settings| unsafe { &raw const (*settings).$field }) as u32
    };
}
pub(crate) use setting;

/// `offset!(task_cred)`: the field's offset in the running kernel.
macro_rules! offset {
    ($field:ident) => {
        $crate::settings::read(|offsets, _| unsafe { &raw const (*offsets).$field })
    };
}
pub(crate) use offset;

#[inline(always)]
pub fn read(field: impl Fn(*const Offsets, *const Settings) -> *const u32) -> usize {
    // SAFETY: the closure points into one of the two statics.
    unsafe { field(&raw const OFFSETS, &raw const SETTINGS).read_volatile() as usize }
}

#[inline(always)]
pub fn watch_reads() -> bool {
    read(|_, settings| unsafe { &raw const (*settings).watch_reads }) != 0
}

#[inline(always)]
pub fn wakeup_bytes() -> u64 {
    read(|_, settings| unsafe { &raw const (*settings).wakeup_bytes }) as u64
}

#[inline(always)]
pub fn objects() -> bool {
    read(|_, settings| unsafe { &raw const (*settings).objects }) != 0
}

#[inline(always)]
pub fn copies() -> bool {
    read(|_, settings| unsafe { &raw const (*settings).copies }) != 0
}

#[inline(always)]
pub fn close_writes() -> bool {
    read(|_, settings| unsafe { &raw const (*settings).close_writes }) != 0
}

#[inline(always)]
pub fn typed_task() -> bool {
    read(|_, settings| unsafe { &raw const (*settings).typed_task }) != 0
}

#[inline(always)]
pub fn compat_bits() -> u32 {
    read(|_, settings| unsafe { &raw const (*settings).compat_bits }) as u32
}

/// Where `struct pt_regs` holds the number of a system call.
#[inline(always)]
pub fn number_offset() -> usize {
    read(|_, settings| unsafe { &raw const (*settings).number_offset })
}

/// Where it holds argument `N`.
#[inline(always)]
pub fn argument_offset<const N: usize>() -> usize {
    read(|_, settings| unsafe { &raw const (*settings).argument_offsets[N] })
}

/// The same, of a 32-bit call.
#[inline(always)]
pub fn compat_argument_offset<const N: usize>() -> usize {
    read(|_, settings| unsafe { &raw const (*settings).compat_argument_offsets[N] })
}

#[inline(always)]
pub fn own_map(id: u32) -> bool {
    // SAFETY: only the presence of the key is used.
    unsafe { OWN_MAPS.get(id).is_some() }
}

/// Is the current process one of ours? A global function, as [`crate::path::climb_steps`]: inlined, it
/// costs its callers registers, which old verifiers then find unwritten on the stack.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ignored() -> u32 {
    // SAFETY: a number that is written whole.
    match unsafe { IGNORED.get(task::current_pid()) } {
        Some(began) => (task::current_start_ns() / TICK_NS == *began).into(),
        None => 0,
    }
}
