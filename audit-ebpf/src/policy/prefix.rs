//! With what does a walked path begin? Puts its first names together, from the root on, and asks
//! for the longest beginning that a rule names; its value has the rules of the shorter ones too.

use audit_common::{
    limits::{FILTER_COMPONENTS, FILTER_PREFIX_BYTES, FILTER_PREFIXES},
    policy::PathPrefix,
};
use aya_ebpf::{
    helpers::generated::bpf_probe_read_kernel_str,
    macros::map,
    maps::{LpmTrie, PerCpuArray, lpm_trie::Key},
};

use super::{bank, generation};
use crate::{
    path::Names,
    record::{CLASSES, bounded, bytes_of},
};

#[map]
static PATH_RULES: LpmTrie<PathPrefix, u64> = LpmTrie::with_max_entries(FILTER_PREFIXES, 0);
/// For each class, as records are built.
#[map]
static PREFIXES: PerCpuArray<Prefix> = PerCpuArray::with_max_entries(CLASSES, 0);

const BYTES: u64 = FILTER_PREFIX_BYTES as u64 + 1;
const LAST: u64 = BYTES - 1;

/// A key of [`PATH_RULES`], and room behind it for the name that makes it too long.
#[repr(C)]
struct Prefix {
    bits: u32,
    bytes: [u8; 2 * BYTES as usize + 4],
    /// Of `bytes` in use.
    length: u64,
    rules: u64,
}

const CONTINUE: u32 = 0;
const STOP: u32 = 1;

/// Looks for the path that was walked last in `class`; 0 where it is not known for sure.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn policy_prefix(class: u32) -> u32 {
    try_prefix(class).is_some().into()
}

/// The rules that [`policy_prefix`] has found.
#[inline(always)]
pub fn prefix_rules(class: u32) -> u64 {
    // SAFETY: a per-CPU map value, and programs of one class never interrupt each other.
    PREFIXES
        .get_ptr(class)
        .map_or(0, |prefix| unsafe { (*prefix).rules })
}

#[inline(always)]
fn try_prefix(class: u32) -> Option<()> {
    Names::of(class)?;
    let prefix = PREFIXES.get_ptr_mut(class)?;
    // SAFETY: as above.
    let prefix = unsafe { &mut *prefix };
    prefix.bytes[0] = bank(generation()) as u8;
    prefix.length = 1;
    let mut depth = 0;
    while depth < FILTER_COMPONENTS as u32 && prefix_step(class, depth) == CONTINUE {
        depth += 1;
    }
    let length = if prefix.length < BYTES {
        prefix.length
    } else {
        BYTES
    };
    prefix.bits = length as u32 * 8;
    let key = core::ptr::from_ref(prefix).cast::<Key<PathPrefix>>();
    // SAFETY: the value begins with a key.
    prefix.rules = PATH_RULES.get(unsafe { &*key }).copied().unwrap_or(0);
    Some(())
}

/// One name; a global function, as [`crate::path::climb_steps`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn prefix_step(class: u32, depth: u32) -> u32 {
    let (Some(names), Some(prefix)) = (Names::of(class), PREFIXES.get_ptr_mut(class)) else {
        return STOP;
    };
    let Some(name) = names.at(depth.into()) else {
        return STOP;
    };
    let Some(source) = bytes_of(class, name) else {
        return STOP;
    };
    // SAFETY: as above; what is written begins within the first half of the bytes and is at most half
    // and one long.
    unsafe {
        let at = bounded::<LAST>((*prefix).length);
        let to = (&raw mut (*prefix).bytes).cast::<u8>().add(at as usize);
        *to = b'/';
        let read = bpf_probe_read_kernel_str(to.add(1).cast(), BYTES as u32, source.cast());
        if read <= 0 {
            return STOP;
        }
        // The slash, and the name without its NUL.
        (*prefix).length = at + read as u64;
        if (*prefix).length >= BYTES {
            return STOP;
        }
    }
    CONTINUE
}
