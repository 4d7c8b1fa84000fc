//! What a call really acts on, where the kernel lets us see it: kprobes on the security hooks of path
//! operations, which have the directory entries that the kernel has found, and not the caller's text,
//! which another thread may change.
//!
//! A hook keeps what it saw until the call returns; the program of the call's end puts it into its
//! record. Only a call that succeeded has surely come by its hook, so only such a one takes it.

use audit_common::{
    class, limits,
    record::{FileObject, section},
};
use aya_ebpf::{
    helpers::generated::{bpf_get_current_pid_tgid, bpf_probe_read_kernel},
    macros::{kprobe, map},
    maps::{LruHashMap, PerCpuArray},
    programs::ProbeContext,
};

use crate::{
    file, kernel, path,
    path::Path,
    policy,
    record::{Writer, file_object},
    settings::{self, offset},
};

/// Sections as a record has them, and how many bytes they are.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Seen {
    size: u64,
    file: FileObject,
    /// The `struct file` of an open.
    opened: u64,
    mode: u64,
    /// Filter rules that ask for the first path and are satisfied by it, and their generation; 0
    /// where the path is not known for sure.
    path_rules: u64,
    generation: u64,
    sections: [u8; limits::OBJECT_BYTES],
}

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

/// A name in a directory: `struct path *`, `struct dentry *`.
#[inline(always)]
fn entry(ctx: &ProbeContext, directory: usize, dentry: usize) -> Path {
    let directory: u64 = ctx.arg(directory).unwrap_or(0);
    Path::entry(directory, ctx.arg(dentry).unwrap_or(0))
}

/// `security_path_unlink(dir, dentry)`; rmdir, mkdir, mknod and symlink begin alike.
#[kprobe]
pub fn see_entry(ctx: ProbeContext) -> u32 {
    keep(entry(&ctx, 0, 1), None, 0, 0);
    0
}

/// `security_path_link(old_dentry, new_dir, new_dentry)`: both are on one mount.
#[kprobe]
pub fn see_link(ctx: ProbeContext) -> u32 {
    let directory: u64 = ctx.arg(1).unwrap_or(0);
    let old = Path::entry(directory, ctx.arg(0).unwrap_or(0));
    keep(old, Some(entry(&ctx, 1, 2)), 0, 0);
    0
}

/// `security_path_rename(old_dir, old_dentry, new_dir, new_dentry, flags)`
#[kprobe]
pub fn see_rename(ctx: ProbeContext) -> u32 {
    keep(entry(&ctx, 0, 1), Some(entry(&ctx, 2, 3)), 0, 0);
    0
}

/// `security_path_chmod(path, mode)`; chown and truncate begin alike.
#[kprobe]
pub fn see_path(ctx: ProbeContext) -> u32 {
    keep(Path::read(ctx.arg(0).unwrap_or(0), 0), None, 0, 0);
    0
}

/// `security_file_open(file)`: only opens that will be reported are worth it.
#[kprobe]
pub fn see_open(ctx: ProbeContext) -> u32 {
    let opened: u64 = ctx.arg(0).unwrap_or(0);
    let path = Path::of_file(opened);
    let mode: u32 = kernel::read(opened, offset!(file_mode));
    if file::is_reported(mode, &path) {
        keep(path, None, opened, mode);
    }
    0
}
