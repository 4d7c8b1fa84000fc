//! close_write: which regular files that were open for writing are closed for the last time, and how
//! much was read and written through them?
//!
//! Whoever drops the last reference to an open file (close, dup2, close_range, exec, the end of a
//! process, of a mapping, of a message that carried it), the kernel comes by one place:
//! `locks_remove_file`, where the file is still whole. Without kprobes it is the moment in which the
//! memory of the file is freed ([`crate::freed`]), a little later, where its name may be gone. Both are
//! in the context of a process, so that no program of this class is interrupted by them.
//!
//! Bytes are counted by the ends of the calls that move them. Not counted: memory mappings, io_uring,
//! asynchronous I/O of the kernel's own kind (io_submit).

use core::arch::asm;

use audit_common::{
    call::NONE,
    class, kind, limits,
    record::{CloseWrite, Open, open_outcome, section, via},
};
use aya_ebpf::{
    bindings::BPF_NOEXIST,
    macros::{kprobe, map},
    maps::HashMap,
    programs::ProbeContext,
};

use crate::{
    file::{self, FMODE_CREATED, FMODE_WRITE},
    gate::{self, Place},
    inode::file_object,
    kernel::{self, Block},
    path::{self, Path},
    record::{Writer, count_missed},
    settings::{self, offset},
    syscall::at_exit,
};

/// What is known of a file since its open.
#[repr(C)]
#[derive(Clone, Copy)]
struct Opened {
    /// `struct inode *`: an entry that was left over is not taken for another file's.
    inode: u64,
    opened_ns: u64,
    bytes_read: u64,
    bytes_written: u64,
    /// [`open_outcome`]
    outcome: u64,
    /// Of who opened it.
    root: Path,
}

/// By `struct file *`.
#[map]
static WRITTEN: HashMap<u64, Opened> = HashMap::with_max_entries(limits::WRITTEN_FILES, 0);

/// From include/uapi/asm-generic/errno-base.h.
const EEXIST: i32 = -17;

// include/linux/fs.h
/// It was opened whole; one that could not be is freed too.
const FMODE_OPENED: u32 = 1 << 19;
/// The kernel's own, behind a file of overlayfs.
pub const FMODE_NOACCOUNT: u32 = 1 << 29;
const S_IFMT: u32 = 0o170_000;
const S_IFREG: u32 = 0o100_000;

#[inline(always)]
fn is_regular(mode: u32) -> bool {
    mode & S_IFMT == S_IFREG
}

/// From `opened_ns` on what goes through `file` is counted, if it can be written to.
#[inline(always)]
pub fn opened(file: &Block, open: &Open, opened_ns: u64) {
    let mode: u32 = file.field(offset!(file_mode));
    if settings::close_writes() && mode & FMODE_WRITE != 0 && is_regular(open.file.mode) {
        let follow = || {
            let inode = file.field(offset!(file_inode));
            follow(file.base(), inode, opened_ns, open.outcome)
        };
        if follow() == LEFT_OVER {
            miss(file.base());
            follow();
        }
    }
}

/// An entry for this place in memory was there already.
const LEFT_OVER: u32 = 1;

/// What was open there before had its last close, or its memory would not be another's; and that close was
/// not seen, or its entry would be gone. A function of its own, not called by [`follow`], for the stack.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn miss(file: u64) -> u32 {
    let _ = WRITTEN.remove(file);
    count_missed(class::FILE);
    0
}

/// A global function, as [`path::climb_steps`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn follow(file: u64, inode: u64, opened_ns: u64, outcome: u32) -> u32 {
    let opened = Opened {
        inode,
        opened_ns,
        bytes_read: 0,
        bytes_written: 0,
        outcome: outcome.into(),
        root: Path::root(),
    };
    // Where there is no room its close is told without counts.
    match WRITTEN.insert(file, opened, BPF_NOEXIST.into()) {
        Err(EEXIST) => LEFT_OVER,
        _ => 0,
    }
}

/// A call has moved bytes into or out of the file behind `fd`.
#[inline(always)]
pub fn count(fd: u64, bytes: i64, wrote: bool) {
    if bytes <= 0 || !settings::close_writes() {
        return;
    }
    let Some(opened) = WRITTEN.get_ptr_mut(file::of_descriptor(fd)) else {
        return;
    };
    // SAFETY: fields of a map value.
    let total = unsafe {
        if wrote {
            &raw mut (*opened).bytes_written
        } else {
            &raw mut (*opened).bytes_read
        }
    };
    // SAFETY: an aligned word of map memory; several threads may count at once. Rust's atomics of
    // this target can only load and store.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) total, in(reg) bytes) };
}

at_exit!(exit_moved, exit_moved_kprobe: |call| {
    if let Some(shape) = call.shape() {
        if shape.source != NONE {
            count(call.argument_at(shape.source), call.result, false);
        }
        if shape.sink != NONE {
            count(call.argument_at(shape.sink), call.result, true);
        }
    }
});

/// `locks_remove_file(file)`
#[kprobe]
pub fn close_write_kprobe(ctx: ProbeContext) -> u32 {
    let file = ctx.arg(0).unwrap_or(0);
    if gate::is_open(Place::LastClose, file as u32) {
        closed(file, via::KPROBE, true);
    }
    0
}

/// Nobody has the open file any more. `whole`: it still holds its name and its inode.
#[inline(always)]
pub fn closed(address: u64, via: u8, whole: bool) -> Option<()> {
    let file = Block::of_file(address)?;
    let mode: u32 = file.field(offset!(file_mode));
    if mode & (FMODE_WRITE | FMODE_OPENED | FMODE_NOACCOUNT) != FMODE_WRITE | FMODE_OPENED {
        return None;
    }
    let inode: u64 = file.field(offset!(file_inode));
    // SAFETY: the entry is of this file, which nobody has any more.
    let known = unsafe { WRITTEN.get(address) }.filter(|known| known.inode == inode);
    // Of one that is known, the inode may be another's by now: an unlinked file's goes with its last close.
    if known.is_none() && !is_regular(kernel::read::<u16>(inode, offset!(inode_mode)).into()) {
        return None;
    }
    let (mut writer, payload) =
        match Writer::begin::<CloseWrite>(class::FILE, kind::CLOSE_WRITE, via) {
            Some(begun) => begun,
            None => {
                let _ = WRITTEN.remove(address);
                return None;
            }
        };
    file_object(&mut payload.file, inode);
    payload.position_bytes = file.field(offset!(file_position));
    payload.outcome = open_outcome::WRITE;
    if mode & FMODE_CREATED != 0 {
        payload.outcome |= open_outcome::CREATED;
    }
    let mut root = Path::root();
    if let Some(known) = known {
        payload.opened_ns = known.opened_ns;
        payload.bytes_read = known.bytes_read;
        payload.bytes_written = known.bytes_written;
        payload.outcome |= known.outcome as u32;
        // A process that ends has no root any more when it lets go of its files.
        if root.is_none() {
            root = known.root;
        }
    }
    let _ = WRITTEN.remove(address);
    let path = Path::of(&file);
    let mut deleted = path.is_deleted();
    if !whole && path.inode() != inode {
        payload.inode_gone = 1;
        deleted = kernel::read::<u32>(inode, offset!(inode_links)) == 0;
    }
    // A name that the file was the last to hold is dead, but its memory stays as it was for a grace
    // period. What is neither is another's by now.
    if payload.inode_gone == 0 || path.is_dead() {
        path::section_below(&mut writer, section::PATH, path, root, deleted);
    }
    writer.send();
    Some(())
}
