//! Which text did the kernel use? It copies a path out of the caller's memory once and works with the
//! copy; by the call's end the caller's memory may say another thing. The copies are seen when the
//! kernel gives their memory back ([`crate::freed`]): after it has used them, before the call returns.
//!
//! Invariants: only a copy that was made in this call, for this argument, is taken for it; what is not
//! taken by the program of the call's end is forgotten there.

use audit_common::{
    call::{ARGUMENTS, NONE},
    limits::{self, PATH_BYTES},
    record::section_flags,
};
use aya_ebpf::{
    helpers::generated::{bpf_get_current_pid_tgid, bpf_probe_read_kernel_str},
    macros::map,
    maps::{LruHashMap, PerCpuArray},
};

use crate::{
    kernel,
    record::{Writer, bounded, user_section},
    settings::{self, offset},
    syscall::Call,
};

/// What one thread's call has had copied: its path, and its second path or text.
#[repr(C)]
pub struct Copies {
    /// Whose it is: the map may give a forgotten thread's place to another.
    thread: u64,
    /// With their NUL; 0 for none.
    bytes: [u64; 2],
    texts: [[u8; PATH_BYTES]; 2],
}

#[map]
static COPIES: LruHashMap<u64, Copies> = LruHashMap::with_max_entries(limits::COPIES, 0);
/// Always zero: a thread's first copies are made of it.
#[map]
static NO_COPIES: PerCpuArray<Copies> = PerCpuArray::with_max_entries(1, 0);

/// Keeps the text of a `struct filename` that an argument of the current call was copied to.
#[inline(always)]
pub fn keep(object: u64) -> Option<()> {
    let call = Call::of_current();
    let shape = call.shape()?;
    if shape.kind == 0 || shape.path == NONE {
        return None;
    }
    let second = match shape.target_path {
        NONE => shape.text,
        position => position,
    };
    let copies = of_thread()?;
    let inner = object + offset!(filename_iname) as u64;
    let is_second;
    let (mut text, mut least) = (inner, 0);
    if kernel::pointer(object, offset!(filename_name)) == inner {
        // Both arguments may be one: the kernel copies, and frees, them in their order.
        let source = kernel::pointer(object, offset!(filename_uptr));
        let of_first = source == call.argument_at(shape.path);
        is_second = second != NONE
            && source == call.argument_at(second)
            && (!of_first || copies.bytes[0] != 0);
        if !of_first && !is_second {
            return None;
        }
    } else {
        // A text that does not fit in beside its `struct filename`, which is elsewhere then; or an
        // object that was no name at all, and is shorter than such a text.
        text = object;
        least = (PATH_BYTES - offset!(filename_iname)) as i64;
        is_second = copies.bytes[0] != 0;
    }
    let at = if is_second { 1 } else { 0 };
    copies.bytes[at] = 0;
    // SAFETY: the helper writes at most the size of the text.
    let read = unsafe {
        bpf_probe_read_kernel_str(
            copies.texts[at].as_mut_ptr().cast(),
            PATH_BYTES as u32,
            text as *const _,
        )
    };
    if read > least {
        copies.bytes[at] = read as u64;
    }
    Some(())
}

#[inline(always)]
fn of_thread() -> Option<&'static mut Copies> {
    // SAFETY: no arguments.
    let thread = unsafe { bpf_get_current_pid_tgid() };
    let mut found = COPIES.get_ptr_mut(thread);
    if found.is_none() {
        let blank = NO_COPIES.get_ptr(0)?;
        // SAFETY: a map value, which nobody writes to.
        let _ = COPIES.insert(thread, unsafe { &*blank }, 0);
        found = COPIES.get_ptr_mut(thread);
    }
    // SAFETY: the entry is of this thread, which is here.
    let copies = unsafe { &mut *found? };
    copies.thread = thread;
    Some(copies)
}

/// The call that is ending on this CPU. In map memory: a choice among registers would be a branch for
/// each of them to the verifier, and every use of one would multiply what it has to check.
#[repr(C)]
struct Ending {
    /// The last two are room, so that a position can be masked.
    arguments: [u64; 8],
    /// As in [`Copies::bytes`].
    bytes: [u64; 2],
    /// Addresses of the copied texts.
    texts: [u64; 2],
}

#[map]
static ENDING: PerCpuArray<Ending> = PerCpuArray::with_max_entries(1, 0);

/// Which copy: of the path, or of the second path or text.
pub const FIRST: u32 = 0;
pub const SECOND: u32 = 1;

/// Takes the copies of the call, so that no later call finds them; to be called before what follows.
#[inline(always)]
pub fn take(call: &Call, has_path: bool) -> Option<()> {
    let ending = ENDING.get_ptr_mut(0)?;
    // SAFETY: a per-CPU map value; programs of calls' ends do not interrupt each other.
    let ending = unsafe { &mut *ending };
    ending.arguments[..ARGUMENTS].copy_from_slice(&call.arguments());
    ending.bytes = [0; 2];
    if !has_path || !settings::copies() {
        return Some(());
    }
    // SAFETY: no arguments.
    let thread = unsafe { bpf_get_current_pid_tgid() };
    if let Some(copies) = COPIES.get_ptr_mut(thread) {
        // SAFETY: the entry is of this thread, which is here.
        let copies = unsafe { &mut *copies };
        if copies.thread == thread {
            ending.bytes = copies.bytes;
            ending.texts = [
                copies.texts[0].as_ptr() as u64,
                copies.texts[1].as_ptr() as u64,
            ];
            copies.bytes = [0; 2];
        }
    }
    Some(())
}

/// The argument at a position that only the shape knows; 0 for none.
#[inline(always)]
pub fn argument(position: u8) -> u64 {
    match ENDING.get_ptr(0) {
        // SAFETY: the position is masked.
        Some(ending) => unsafe {
            (&raw const (*ending).arguments)
                .cast::<u64>()
                .add(bounded::<7>(position.into()) as usize)
                .read_volatile()
        },
        None => 0,
    }
}

/// Address and bytes of a copy; 0 bytes for none.
#[inline(always)]
fn copy(which: u32) -> (u64, u64) {
    match ENDING.get_ptr(0).filter(|_| settings::copies()) {
        // SAFETY: as in `take`.
        Some(ending) => unsafe {
            match which {
                FIRST => ((*ending).texts[0], (*ending).bytes[0]),
                _ => ((*ending).texts[1], (*ending).bytes[1]),
            }
        },
        None => (0, 0),
    }
}

/// Appends the text at the argument `position` (NONE: nothing) as the kernel used it; where no copy
/// was seen, as the caller's memory says it now.
#[inline(always)]
pub fn section(writer: &mut Writer, tag: u8, which: u32, position: u8) {
    writer.suspend();
    given_text(writer.class().into(), tag.into(), which, position.into());
    writer.reload();
}

/// Appends what the caller's memory says now, where [`section`] has written something else.
#[inline(always)]
pub fn now(writer: &mut Writer, tag: u8, which: u32, position: u8) {
    if settings::copies() {
        writer.suspend();
        present_text(writer.class().into(), tag.into(), which, position.into());
        writer.reload();
    }
}

/// A global function, which the verifier checks once ([`crate::path::climb_steps`]).
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn given_text(class: u32, tag: u32, which: u32, position: u32) -> u32 {
    const MOST: u64 = PATH_BYTES as u64;
    let Some(mut writer) = Writer::resume(class as u8) else {
        return 1;
    };
    if position == u32::from(NONE) || !writer.has_room() {
        return 1;
    }
    let (text, bytes) = copy(which);
    if bytes == 0 {
        user_section(&mut writer, tag as u8, argument(position as u8));
    } else {
        let mut open = writer.section(tag as u8);
        open.flags |= section_flags::COPIED;
        writer.kernel_bytes::<MOST>(text, bytes - 1);
        writer.close(open);
    }
    writer.suspend();
    0
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn present_text(class: u32, tag: u32, which: u32, position: u32) -> u32 {
    let Some(mut writer) = Writer::resume(class as u8) else {
        return 1;
    };
    if copy(which).1 == 0 || !writer.has_room() {
        return 1;
    }
    user_section(&mut writer, tag as u8, argument(position as u8));
    writer.suspend();
    0
}

/// Does the path at the argument `position` begin at the root?
#[inline(always)]
pub fn is_absolute(which: u32, position: u8) -> bool {
    first_byte(which, position.into()) == u32::from(b'/')
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn first_byte(which: u32, position: u32) -> u32 {
    let (text, bytes) = copy(which);
    if bytes != 0 {
        kernel::read::<u8>(text, 0).into()
    } else {
        let address = argument(position as u8);
        kernel::read_user::<u8>(address).unwrap_or(0).into()
    }
}
