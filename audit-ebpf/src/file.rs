//! Programs of the file class: open; and how a file descriptor leads to its file.
//!
//! An open is described by the file that it got, one that was refused by what it asked for.

use audit_common::{
    call::{NONE, Shape},
    class, kind, limits,
    record::{Open, open_outcome, section},
};
use aya_ebpf::{
    helpers::generated::bpf_probe_read_kernel_str,
    macros::{btf_tracepoint, map},
    maps::HashMap,
    programs::BtfTracePointContext,
};

use crate::{
    kernel, path,
    path::Path,
    record::{Writer, count_filtered, file_object, user_section},
    settings,
    settings::offset,
    syscall::Call,
    task,
};

/// A NUL-padded name, in words: it is zeroed for every open, and bytes would become a loop.
type WatchedName = [u64; limits::WATCHED_NAME_BYTES / 8];

/// Names of files, or of the directories they are in, whose reads are reported.
#[map]
static WATCHED: HashMap<WatchedName, u8> = HashMap::with_max_entries(limits::WATCHED_NAMES, 0);

pub const FMODE_WRITE: u32 = 2;
pub const FMODE_PATH: u32 = 1 << 14;
/// This open made the file (Linux 4.19).
pub const FMODE_CREATED: u32 = 1 << 20;
const O_CREAT: u32 = 0o100;
pub const O_TRUNC: u32 = 0o1000;
const O_WRONLY: u32 = 1;
pub const O_ACCMODE: u32 = 3;
pub const EPERM: i64 = -1;
pub const EACCES: i64 = -13;
pub const AT_FDCWD: i32 = -100;

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
pub fn base_section(writer: &mut Writer, tag: u8, directory: i32, given: u64) {
    if kernel::read_user::<u8>(given) == Some(b'/') || !writer.has_room() {
        return;
    }
    let base = if directory == AT_FDCWD {
        Path::working_directory()
    } else {
        Path::of_file(of_descriptor(directory as u32 as u64))
    };
    path::section(writer, tag, base);
}

#[btf_tracepoint(function = "sys_exit")]
pub fn exit_open(ctx: BtfTracePointContext) -> i32 {
    let call = Call::of(&ctx);
    if let Some(shape) = call.shape() {
        if call.result >= 0 {
            try_open(&call, shape);
        } else if call.result == EPERM || call.result == EACCES {
            try_refused(&call, shape);
        }
    }
    0
}

/// The flags as given: an argument, the first field of openat2's `struct open_how`, or creat's.
#[inline(always)]
fn open_flags(call: &Call, shape: &Shape) -> u32 {
    if shape.structure != NONE {
        let how = call.argument_at(shape.structure);
        return kernel::read_user::<u64>(how).unwrap_or(0) as u32;
    }
    if shape.filter == NONE {
        return O_CREAT | O_WRONLY | O_TRUNC;
    }
    call.argument_at(shape.filter) as u32
}

#[inline(always)]
fn try_open(call: &Call, shape: &Shape) -> Option<()> {
    let file = of_descriptor(call.result as u64);
    let mode: u32 = kernel::read(file, offset!(file_mode));
    let writes = mode & FMODE_WRITE != 0;
    let created = mode & FMODE_CREATED != 0;
    if !writes && !created && (mode & FMODE_PATH != 0 || !watched(&Path::of_file(file))) {
        count_filtered(class::FILE);
        return None;
    }
    let (mut writer, payload) = Writer::begin::<Open>(class::FILE, kind::OPEN, call.via())?;
    file_object(
        &mut payload.file,
        kernel::pointer(file, offset!(file_inode)),
    );
    payload.result = call.result;
    payload.flags = open_flags(call, shape);
    payload.outcome = outcome(payload.flags, writes, created);
    path::section(&mut writer, section::PATH, Path::of_file(file));
    writer.send();
    Some(())
}

#[inline(always)]
fn try_refused(call: &Call, shape: &Shape) -> Option<()> {
    let (mut writer, payload) = Writer::begin::<Open>(class::FILE, kind::OPEN, call.via())?;
    payload.result = call.result;
    payload.flags = open_flags(call, shape);
    payload.outcome = outcome(payload.flags, payload.flags & O_ACCMODE != 0, false);
    if shape.path != NONE {
        let given = call.argument_at(shape.path);
        user_section(&mut writer, section::GIVEN, given);
        let directory = call.directory(shape.directory);
        base_section(&mut writer, section::BASE, directory, given);
    }
    writer.send();
    Some(())
}

#[inline(always)]
pub fn outcome(flags: u32, writes: bool, created: bool) -> u32 {
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
pub fn watched(path: &Path) -> bool {
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
