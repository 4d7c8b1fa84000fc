//! What is the kernel giving the memory of back? It comes by one tracepoint for everything that it
//! frees; two things matter there: the kernel's copy of a path that a call was given ([`copies`]), and
//! an open file ([`written`]).
//!
//! Most that is freed is neither, and leaves after two comparisons. Untyped, because a typed program
//! cannot read a `const void *` before Linux 6.13.

use aya_ebpf::{
    EbpfContext as _,
    macros::{map, raw_tracepoint},
    maps::Array,
    programs::RawTracePointContext,
};

use audit_common::record::via;

use crate::{
    copies,
    gate::{self, Place},
    kernel, preemption,
    settings::{self, offset},
    written,
};

/// Which caches the kernel takes them from, once one of each was seen.
#[repr(C)]
struct Caches {
    names: u64,
    files: u64,
}

#[map]
static CACHES: Array<Caches> = Array::with_max_entries(1, 0);

/// The beginning of "names_cache".
const NAMES: u64 = u64::from_ne_bytes(*b"names_ca");
/// All of "filp". No other cache is merged with it (Linux 6.7).
const FILES: u64 = u64::from_le_bytes(*b"filp\0\0\0\0");
const FILES_MASK: u64 = (1 << 40) - 1;

#[derive(PartialEq, Eq)]
enum What {
    Name,
    File,
}

/// `kmem_cache_free(call_site, object, cache)`: names and open files.
#[raw_tracepoint(tracepoint = "kmem_cache_free")]
pub fn freed(ctx: RawTracePointContext) -> i32 {
    let (object, cache) = arguments(&ctx);
    match what(cache) {
        Some(What::Name) if settings::copies() => {
            keep_name(object);
        }
        Some(What::File) => {
            preemption::at(Place::LastClose, || {
                written::closed(object, via::RAW_TRACEPOINT, false);
            });
        }
        _ => {}
    }
    0
}

/// The same where open files are seen elsewhere.
#[raw_tracepoint(tracepoint = "kmem_cache_free")]
pub fn name_freed(ctx: RawTracePointContext) -> i32 {
    let (object, cache) = arguments(&ctx);
    if what(cache) == Some(What::Name) {
        keep_name(object);
    }
    0
}

#[inline(always)]
fn keep_name(object: u64) {
    if gate::is_open(Place::Copy, object as u32) {
        copies::keep(object);
    }
}

#[inline(always)]
fn arguments(ctx: &RawTracePointContext) -> (u64, u64) {
    let arguments: *const u64 = ctx.as_ptr().cast();
    // SAFETY: the context is an array of the tracepoint's arguments.
    unsafe { (*arguments.add(1), *arguments.add(2)) }
}

#[inline(always)]
fn what(cache: u64) -> Option<What> {
    let caches = CACHES.get_ptr_mut(0)?;
    // SAFETY: map memory; each field is written once, by whoever comes first, and always the same.
    let caches = unsafe { &mut *caches };
    if caches.names == 0 || caches.files == 0 {
        let name: u64 = kernel::read(kernel::pointer(cache, offset!(cache_name)), 0);
        if name == NAMES {
            caches.names = cache;
        } else if name & FILES_MASK == FILES {
            caches.files = cache;
        }
    }
    if cache == caches.names {
        Some(What::Name)
    } else if cache == caches.files {
        Some(What::File)
    } else {
        None
    }
}
