//! Programs of the file class: open; and how a file descriptor leads to its file.
//!
//! An open is described by the file that it got, one that was refused by what it asked for.

use audit_common::{
    call::{NONE, Shape},
    class, kind, limits,
    record::{Open, open_outcome, section},
};
use aya_ebpf::{helpers::generated::bpf_probe_read_kernel_str, macros::map, maps::HashMap};

use crate::{
    copies::{self, FIRST},
    inode::file_object,
    kernel::{self, Block, with_task},
    objects::{self, Taken},
    path,
    path::Path,
    record::{Writer, count_filtered},
    settings,
    settings::offset,
    syscall::{Call, at_exit},
    written,
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
const ENOENT: i64 = -2;
pub const EACCES: i64 = -13;
pub const AT_FDCWD: i32 = -100;

/// The `struct file` behind descriptor `fd` of the current process; 0 when there is none.
#[inline(always)]
pub fn of_descriptor(fd: u64) -> u64 {
    // As the kernel takes it: the upper half of the register says nothing.
    let fd = u64::from(fd as u32);
    let (room, files): (u32, u64) = with_task!(|task| {
        let table = task
            .pointer(offset!(task_files))
            .pointer(offset!(files_fdt));
        (
            table.field(offset!(fdtable_max_fds)),
            table.field(offset!(fdtable_fd)),
        )
    });
    if fd >= u64::from(room) {
        return 0;
    }
    kernel::pointer(files, fd as usize * 8)
}

/// The directory that `given` starts from; no section for an absolute path.
#[inline(always)]
pub fn base_section(writer: &mut Writer, tag: u8, directory: i32, is_absolute: bool) {
    if is_absolute || !writer.has_room() {
        return;
    }
    let base = if directory == AT_FDCWD {
        Path::working_directory()
    } else {
        Path::of_file(of_descriptor(directory as u32 as u64))
    };
    path::section(writer, tag, base);
}

at_exit!(exit_open, exit_open_kprobe: |call| {
    if let Some(shape) = call.shape() {
        copies::take(&call, shape.path != NONE);
        if call.result >= 0 {
            try_open(&call, shape);
        } else {
            objects::forget(true);
            if call.result != ENOENT {
                objects::forget(false); // it may have come by the hook of new files
            }
        }
        if call.result == EPERM || call.result == EACCES {
            try_refused(&call, shape);
        }
    }
});

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
    // What the hook saw, or else what is behind the descriptor now: another thread may have put
    // another file there meanwhile.
    let taken = Taken::of_current(true);
    let file = Block::of_file(match &taken {
        Some(taken) => taken.opened(),
        None => of_descriptor(call.result as u64),
    })?;
    let path = Path::of(&file);
    let mode: u32 = match &taken {
        Some(taken) => taken.mode(),
        None => file.field(offset!(file_mode)),
    };
    if mode & FMODE_CREATED != 0 {
        objects::forget(false); // by the hook of new files
    }
    let reported = match &taken {
        Some(_) => true,
        // Also where a hook looks: what it kept may have been evicted, or it was skipped.
        None => is_reported(mode, &path),
    };
    if !reported {
        count_filtered(class::FILE);
        return None;
    }
    let Some((mut writer, payload)) = Writer::begin::<Open>(class::FILE, kind::OPEN, call) else {
        objects::forget(true); // or the next open would take it for its own
        return None;
    };
    payload.result = call.result;
    payload.flags = open_flags(call, shape);
    payload.outcome = outcome(
        payload.flags,
        mode & FMODE_WRITE != 0,
        mode & FMODE_CREATED != 0,
    );
    match &taken {
        Some(taken) => payload.file = taken.file(),
        None => file_object(&mut payload.file, file.field(offset!(file_inode))),
    }
    if !taken.is_some_and(|taken| taken.put(&mut writer)) {
        path::section(&mut writer, section::PATH, path);
    }
    written::opened(&file, payload, writer.header().time_ns);
    writer.send();
    Some(())
}

/// Is an open in this mode worth an event? `FMODE_*` of include/linux/fs.h.
#[inline(always)]
pub fn is_reported(mode: u32, path: &Path) -> bool {
    mode & (FMODE_WRITE | FMODE_CREATED) != 0 || (mode & FMODE_PATH == 0 && watched(path))
}

#[inline(always)]
fn try_refused(call: &Call, shape: &Shape) -> Option<()> {
    let (mut writer, payload) = Writer::begin::<Open>(class::FILE, kind::OPEN, call)?;
    payload.result = call.result;
    payload.flags = open_flags(call, shape);
    payload.outcome = outcome(payload.flags, payload.flags & O_ACCMODE != 0, false);
    if shape.path != NONE {
        copies::section(&mut writer, section::GIVEN, FIRST, shape.path);
        let directory = call.directory(shape.directory);
        let is_absolute = copies::is_absolute(FIRST, shape.path);
        base_section(&mut writer, section::BASE, directory, is_absolute);
        copies::now(&mut writer, section::NOW, FIRST, shape.path);
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
