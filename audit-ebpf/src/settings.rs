//! What the agent decided before load: field offsets, settings, and processes to leave out.

use audit_common::{config::Settings, limits, offsets::Offsets};
use aya_ebpf::{macros::map, maps::HashMap};

// Read through volatile loads: the agent replaces their bytes in the object, so the compiler must
// not use the values it sees here. The verifier knows the replaced values as constants.
#[unsafe(no_mangle)]
static OFFSETS: Offsets = ZERO_OFFSETS;
#[unsafe(no_mangle)]
static SETTINGS: Settings = Settings {
    watch_reads: 0,
    wakeup_bytes: 0,
    argument_offsets: [0; 5],
};

// SAFETY: all fields are u32, for which zero is a value.
const ZERO_OFFSETS: Offsets = unsafe { core::mem::zeroed() };

/// Threads' process ids whose events are not reported: the agent, the collector.
#[map]
static IGNORED: HashMap<u32, u8> = HashMap::with_max_entries(limits::IGNORED_PROCESSES, 0);

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

/// Where `struct pt_regs` holds argument `N` of a system call.
#[inline(always)]
pub fn argument_offset<const N: usize>() -> usize {
    read(|_, settings| unsafe { &raw const (*settings).argument_offsets[N] })
}

#[inline(always)]
pub fn ignored(pid: u32) -> bool {
    // SAFETY: only the presence of the key is used.
    unsafe { IGNORED.get(pid).is_some() }
}
