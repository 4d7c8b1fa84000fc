//! What a call really acts on, where the kernel lets us see it: programs of the BPF LSM on the security
//! hooks of path operations, or at the functions that ask those (fentry, kprobes), which have the directory entries that the kernel has found,
//! and not the caller's text, which another thread may change.
//!
//! A hook keeps what it saw until the call returns; the program of the call's end puts it into its
//! record. Only a call that succeeded has surely come by its hook, so only such a one takes it.

use audit_common::{
    class, limits,
    record::{FileObject, Seen, section},
};
use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{bpf_get_current_pid_tgid, bpf_probe_read_kernel},
    macros::{fentry, kprobe, lsm, map},
    maps::{LruHashMap, PerCpuArray},
    programs::{FEntryContext, LsmContext, ProbeContext},
};

use crate::{
    file,
    inode::file_object,
    kernel, path,
    path::Path,
    policy, preemption,
    record::Writer,
    settings::{self, offset},
    written::FMODE_NOACCOUNT,
};

#[map]
static SEEN: LruHashMap<u64, Seen> = LruHashMap::with_max_entries(limits::OBJECTS, 0);
/// Where one is put together; a stack has no room for it.
#[map]
static ROOM: PerCpuArray<Seen> = PerCpuArray::with_max_entries(1, 0);

/// Of the current thread, its path call or its open: an open that cuts the file is also a truncation.
#[inline(always)]
fn key(of_open: bool) -> u64 {
    // SAFETY: no arguments. Process ids end far below the highest bit.
    (unsafe { bpf_get_current_pid_tgid() }) | u64::from(of_open) << 63
}

/// Keeps one or two paths, and the object behind the first.
#[inline(always)]
fn keep(first: Path, second: Option<Path>, opened: u64, mode: u32) -> Option<()> {
    const MOST: u64 = limits::OBJECT_BYTES as u64;
    let mut writer = Writer::draft()?;
    let start = writer.end();
    path::section(&mut writer, section::OBJECT, first);
    let generation = policy::generation();
    let (mut known, mut path_rules) = (0, 0);
    if generation != 0 && policy::policy_prefix(class::FILE.into()) != 0 {
        known = generation;
        path_rules = policy::prefix_rules(class::FILE.into());
    }
    if let Some(second) = second
        && writer.has_room()
    {
        path::section(&mut writer, section::TARGET_OBJECT, second);
    }
    let mut size = writer.end() - start;
    if size > MOST {
        size = 0; // the paths have to come from elsewhere
    }
    let room = ROOM.get_ptr_mut(0)?;
    // SAFETY: a per-CPU map value that only these programs use; the size was checked.
    let room = unsafe { &mut *room };
    room.size = size;
    room.opened = opened;
    room.mode = mode.into();
    room.path_rules = path_rules;
    room.generation = known.into();
    file_object(&mut room.file, first.inode());
    // SAFETY: both are map memory, and the size is bounded by that of the destination.
    unsafe {
        bpf_probe_read_kernel(
            room.sections.as_mut_ptr().cast(),
            size as u32,
            writer.at(start).cast(),
        )
    };
    let _ = SEEN.insert(key(opened != 0), &*room, 0);
    Some(())
}

/// What the hook of the current call saw.
pub struct Taken(&'static Seen);

impl Taken {
    #[inline(always)]
    pub fn of_current(is_open: bool) -> Option<Self> {
        if !settings::objects() {
            return None;
        }
        // SAFETY: the entry is of this thread, which is here.
        unsafe { SEEN.get(key(is_open)) }.map(|seen| {
            // SAFETY: map memory lives as long as the program.
            Self(unsafe { &*core::ptr::from_ref(seen) })
        })
    }

    pub fn file(&self) -> FileObject {
        self.0.file
    }

    /// The file that was opened.
    #[inline(always)]
    pub fn opened(&self) -> u64 {
        self.0.opened
    }

    /// The mode that a file was opened in.
    #[inline(always)]
    pub fn mode(&self) -> u32 {
        self.0.mode as u32
    }

    /// Appends what was seen, and forgets it; false when the paths were too long to be kept.
    #[inline(always)]
    pub fn put(self, writer: &mut Writer) -> bool {
        const MOST: u64 = limits::OBJECT_BYTES as u64;
        let kept = self.0.size > 0 && writer.has_room();
        if kept {
            writer.kernel_bytes::<MOST>(self.0.sections.as_ptr() as u64, self.0.size);
            let header = writer.header();
            if header.candidates != 0 && self.0.generation != 0 {
                policy::path_known(header, self.0.generation as u32, self.0.path_rules);
            }
        }
        let _ = SEEN.remove(key(self.0.opened != 0));
        kept
    }
}

/// Whatever was seen for this call is of no use.
#[inline(always)]
pub fn forget(is_open: bool) {
    if settings::objects() {
        let _ = SEEN.remove(key(is_open));
    }
}

/// `security_path_unlink(dir, dentry)`; rmdir, mkdir, mknod and symlink begin alike.
#[inline(always)]
fn saw_entry(argument: impl Fn(usize) -> u64) {
    keep(Path::entry(argument(0), argument(1)), None, 0, 0);
}

/// `security_path_link(old_dentry, new_dir, new_dentry)`: both are on one mount.
#[inline(always)]
fn saw_link(argument: impl Fn(usize) -> u64) {
    let directory = argument(1);
    let old = Path::entry(directory, argument(0));
    keep(old, Some(Path::entry(directory, argument(2))), 0, 0);
}

/// `security_path_rename(old_dir, old_dentry, new_dir, new_dentry, flags)`
#[inline(always)]
fn saw_rename(argument: impl Fn(usize) -> u64) {
    let new = Path::entry(argument(2), argument(3));
    keep(Path::entry(argument(0), argument(1)), Some(new), 0, 0);
}

/// `security_path_chmod(path, mode)`; chown and truncate begin alike.
#[inline(always)]
fn saw_path(argument: impl Fn(usize) -> u64) {
    keep(Path::read(argument(0), 0), None, 0, 0);
}

/// `security_file_open(file)`: only opens that will be reported are worth it. Opening a file of
/// overlayfs opens the one behind it too (so of Linux 6.12, not of 6.1), which is not what the caller opened.
#[inline(always)]
fn saw_open(argument: impl Fn(usize) -> u64) {
    let opened = argument(0);
    let path = Path::of_file(opened);
    let mode: u32 = kernel::read(opened, offset!(file_mode));
    if mode & FMODE_NOACCOUNT != 0 {
        return;
    }
    if file::is_reported(mode, &path) {
        keep(path, None, opened, mode);
    } else if SEEN.get_ptr(key(true)).is_some() {
        // Of an open by no open call (mq_open, TIOCGPTPEER, io_uring), which nobody has taken.
        forget(true);
    }
}

/// One program serves all kprobes of a form.
macro_rules! kprobes {
    ($($name:ident: $saw:ident;)+) => {$(
        #[kprobe]
        pub fn $name(ctx: ProbeContext) -> u32 {
            $saw(|n| ctx.arg(n).unwrap_or(0));
            0
        }
    )+};
}

kprobes! {
    see_entry: saw_entry;
    see_link: saw_link;
    see_rename: saw_rename;
    see_path: saw_path;
    see_open: saw_open;
}

/// A program in a trampoline belongs to one function: the hook that the kernel asks security modules
/// by, which it never refuses, or the function around that.
macro_rules! trampolines {
    ($($lsm:ident, $fentry:ident: $saw:ident;)+) => {$(
        #[lsm]
        pub fn $lsm(ctx: LsmContext) -> i32 {
            // SAFETY: the context is an array of 64-bit arguments.
            preemption::without(|| $saw(|n| unsafe { *ctx.as_ptr().cast::<u64>().add(n) }))
        }

        #[fentry]
        pub fn $fentry(ctx: FEntryContext) -> i32 {
            // SAFETY: as above.
            preemption::without(|| $saw(|n| unsafe { *ctx.as_ptr().cast::<u64>().add(n) }))
        }
    )+};
}

trampolines! {
    lsm_unlink, enter_unlink: saw_entry;
    lsm_rmdir, enter_rmdir: saw_entry;
    lsm_mkdir, enter_mkdir: saw_entry;
    lsm_mknod, enter_mknod: saw_entry;
    lsm_symlink, enter_symlink: saw_entry;
    lsm_link, enter_link: saw_link;
    lsm_rename, enter_rename: saw_rename;
    lsm_chmod, enter_chmod: saw_path;
    lsm_chown, enter_chown: saw_path;
    lsm_truncate, enter_truncate: saw_path;
    lsm_open, enter_open: saw_open;
}
