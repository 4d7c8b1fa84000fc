//! Programs of the file class: open, unlink, rename; and how a file descriptor leads to its file.
//!
//! All run when the call returns, so an open is described by the file that it got.

use audit_common::{
    class, kind, limits,
    record::{Open, PathCall, open_outcome, section},
};
use aya_ebpf::{
    helpers::generated::bpf_probe_read_kernel_str,
    macros::{map, tracepoint},
    maps::HashMap,
    programs::TracePointContext,
};

use crate::{
    kernel, path,
    path::Path,
    record::{TRACEPOINT, Writer, count_filtered, file_object, user_section},
    settings,
    settings::offset,
    syscall, task,
};

/// A NUL-padded name, in words: it is zeroed for every open, and bytes would become a loop.
type WatchedName = [u64; limits::WATCHED_NAME_BYTES / 8];

/// Names of files, or of the directories they are in, whose reads are reported.
#[map]
static WATCHED: HashMap<WatchedName, u8> = HashMap::with_max_entries(limits::WATCHED_NAMES, 0);

const FMODE_WRITE: u32 = 2;
const FMODE_PATH: u32 = 1 << 14;
/// This open made the file (Linux 4.19).
const FMODE_CREATED: u32 = 1 << 20;
const O_CREAT: u32 = 0o100;
const O_TRUNC: u32 = 0o1000;
const O_WRONLY: u32 = 1;
const AT_FDCWD: i32 = -100;

/// The `struct file` behind descriptor `fd` of the current process; 0 when there is none.
#[inline(always)]
pub fn of_descriptor(fd: u64) -> u64 {
    let files = kernel::pointer(task::current(), offset!(task_files));
    let table = kernel::pointer(files, offset!(files_fdt));
    if fd >= u64::from(kernel::read::<u32>(table, offset!(fdtable_max_fds))) {
        return 0;
    }
    kernel::pointer(kernel::pointer(table, offset!(fdtable_fd)), fd as usize * 8)
}

/// The directory that `given` starts from; no section for an absolute path.
#[inline(always)]
pub fn base_section(writer: &mut Writer, tag: u8, directory: Option<i32>, given: u64) {
    if kernel::read_user::<u8>(given) == Some(b'/') || !writer.has_room() {
        return;
    }
    let base = match directory {
        Some(fd) if fd != AT_FDCWD => Path::of_file(of_descriptor(fd as u32 as u64)),
        _ => Path::working_directory(),
    };
    path::section(writer, tag, base);
}

#[tracepoint]
pub fn exit_open(ctx: TracePointContext) -> u32 {
    try_open(syscall::result(&ctx), |registers| {
        syscall::argument::<1>(registers) as u32
    });
    0
}

#[tracepoint]
pub fn exit_openat(ctx: TracePointContext) -> u32 {
    try_open(syscall::result(&ctx), |registers| {
        syscall::argument::<2>(registers) as u32
    });
    0
}

/// openat2 keeps its flags first in `struct open_how`, in the caller's memory.
#[tracepoint]
pub fn exit_openat2(ctx: TracePointContext) -> u32 {
    try_open(syscall::result(&ctx), |registers| {
        kernel::read_user::<u64>(syscall::argument::<2>(registers)).unwrap_or(0) as u32
    });
    0
}

#[tracepoint]
pub fn exit_creat(ctx: TracePointContext) -> u32 {
    try_open(syscall::result(&ctx), |_| O_CREAT | O_WRONLY | O_TRUNC);
    0
}

#[inline(always)]
fn try_open(result: i64, flags: impl Fn(u64) -> u32) -> Option<()> {
    if result < 0 {
        return None;
    }
    let file = of_descriptor(result as u64);
    let mode: u32 = kernel::read(file, offset!(file_mode));
    let writes = mode & FMODE_WRITE != 0;
    let created = mode & FMODE_CREATED != 0;
    if !writes && !created && (mode & FMODE_PATH != 0 || !watched(&Path::of_file(file))) {
        count_filtered(class::FILE);
        return None;
    }
    let (mut writer, payload) = Writer::begin::<Open>(class::FILE, kind::OPEN, TRACEPOINT)?;
    file_object(
        &mut payload.file,
        kernel::pointer(file, offset!(file_inode)),
    );
    payload.result = result;
    payload.flags = flags(syscall::registers());
    payload.outcome = outcome(payload.flags, writes, created);
    path::section(&mut writer, section::PATH, Path::of_file(file));
    writer.send();
    Some(())
}

#[inline(always)]
fn outcome(flags: u32, writes: bool, created: bool) -> u32 {
    let mut outcome = 0;
    if created {
        outcome |= open_outcome::CREATED;
    }
    if writes {
        outcome |= open_outcome::WRITE;
    }
    if flags & O_TRUNC != 0 {
        outcome |= open_outcome::TRUNCATE;
    }
    if outcome == 0 {
        outcome = open_outcome::WATCHED_READ;
    }
    outcome
}

#[inline(always)]
fn watched(path: &Path) -> bool {
    if !settings::watch_reads() {
        return false;
    }
    let (name, directory) = path.last_names();
    watched_name(name) || watched_name(directory)
}

#[inline(always)]
fn watched_name(name: u64) -> bool {
    let mut key: WatchedName = [0; limits::WATCHED_NAME_BYTES / 8];
    // SAFETY: the helper writes at most the key's size and ends it with NUL; the rest stays zero.
    unsafe {
        bpf_probe_read_kernel_str(
            key.as_mut_ptr().cast(),
            limits::WATCHED_NAME_BYTES as u32,
            name as *const _,
        );
        WATCHED.get(key).is_some()
    }
}

#[tracepoint]
pub fn exit_unlink(ctx: TracePointContext) -> u32 {
    let registers = syscall::registers();
    try_unlink(
        syscall::result(&ctx),
        None,
        syscall::argument::<0>(registers),
        0,
    );
    0
}

#[tracepoint]
pub fn exit_rmdir(ctx: TracePointContext) -> u32 {
    const AT_REMOVEDIR: u32 = 0x200;
    let registers = syscall::registers();
    let given = syscall::argument::<0>(registers);
    try_unlink(syscall::result(&ctx), None, given, AT_REMOVEDIR);
    0
}

#[tracepoint]
pub fn exit_unlinkat(ctx: TracePointContext) -> u32 {
    let registers = syscall::registers();
    let directory = syscall::argument::<0>(registers) as i32;
    let given = syscall::argument::<1>(registers);
    let flags = syscall::argument::<2>(registers) as u32;
    try_unlink(syscall::result(&ctx), Some(directory), given, flags);
    0
}

#[inline(always)]
fn try_unlink(result: i64, directory: Option<i32>, given: u64, flags: u32) -> Option<()> {
    let (mut writer, payload) = Writer::begin::<PathCall>(class::FILE, kind::UNLINK, TRACEPOINT)?;
    payload.result = result;
    payload.flags = flags;
    user_section(&mut writer, section::GIVEN, given);
    base_section(&mut writer, section::BASE, directory, given);
    writer.send();
    Some(())
}

#[tracepoint]
pub fn exit_rename(ctx: TracePointContext) -> u32 {
    let registers = syscall::registers();
    let from = syscall::argument::<0>(registers);
    let to = syscall::argument::<1>(registers);
    try_rename(syscall::result(&ctx), (None, from), (None, to), 0);
    0
}

#[tracepoint]
pub fn exit_renameat(ctx: TracePointContext) -> u32 {
    rename_at(&ctx, |_| 0);
    0
}

#[tracepoint]
pub fn exit_renameat2(ctx: TracePointContext) -> u32 {
    rename_at(&ctx, |registers| syscall::argument::<4>(registers) as u32);
    0
}

#[inline(always)]
fn rename_at(ctx: &TracePointContext, flags: impl Fn(u64) -> u32) {
    let registers = syscall::registers();
    let from = Some(syscall::argument::<0>(registers) as i32);
    let from_given = syscall::argument::<1>(registers);
    let to = Some(syscall::argument::<2>(registers) as i32);
    let to_given = syscall::argument::<3>(registers);
    try_rename(
        syscall::result(ctx),
        (from, from_given),
        (to, to_given),
        flags(registers),
    );
}

#[inline(always)]
fn try_rename(
    result: i64,
    from: (Option<i32>, u64),
    to: (Option<i32>, u64),
    flags: u32,
) -> Option<()> {
    let (mut writer, payload) = Writer::begin::<PathCall>(class::FILE, kind::RENAME, TRACEPOINT)?;
    payload.result = result;
    payload.flags = flags;
    user_section(&mut writer, section::GIVEN, from.1);
    user_section(&mut writer, section::TARGET_GIVEN, to.1);
    base_section(&mut writer, section::BASE, from.0, from.1);
    base_section(&mut writer, section::TARGET_BASE, to.0, to.1);
    writer.send();
    Some(())
}
