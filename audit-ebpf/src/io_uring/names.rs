//! What does a request ask for that names files? The paths are the kernel's own copies.

use audit_common::{
    call::Shape,
    class, kind,
    record::{self, NO_RESULT, Open, form, section},
};

use super::{
    FSETXATTR, FTRUNCATE, LINKAT, MKDIRAT, RENAMEAT, Request, SETXATTR, SYMLINKAT, UNLINKAT,
    describe_file, descriptor, file_of, keep, optional,
};
use crate::{
    file, kernel, path,
    path::Path,
    record::{Writer, kernel_section},
    settings::offset,
};

/// The text in a `struct filename`.
#[inline(always)]
fn name(filename: u64) -> u64 {
    kernel::pointer(filename, offset!(filename_name))
}

/// What the caller gave, which is in its memory.
#[inline(always)]
fn given(filename: u64) -> u64 {
    optional(filename, offset!(filename_uptr))
}

#[inline(always)]
fn base_section(writer: &mut Writer, tag: u8, directory: i32, name: u64) {
    if kernel::read::<u8>(name, 0) == b'/' || !writer.has_room() {
        return;
    }
    let base = if directory == file::AT_FDCWD {
        Path::working_directory()
    } else {
        Path::of_file(file::of_descriptor(directory as u32 as u64))
    };
    path::section(writer, tag, base);
}

#[inline(always)]
fn text_section(writer: &mut Writer, tag: u8, text: u64) {
    if text != 0 && writer.has_room() {
        kernel_section(writer, tag, text);
    }
}

#[inline(always)]
pub fn open(request: &Request) -> Option<()> {
    let (mut writer, payload) = Writer::begin::<Open>(class::FILE, kind::OPEN, request.origin())?;
    payload.result = NO_RESULT;
    payload.flags = kernel::read::<u64>(request.at, offset!(uring_open_flags)) as u32;
    let writes = payload.flags & file::O_ACCMODE != 0;
    payload.outcome = file::outcome(payload.flags, writes, false);
    let name = name(kernel::pointer(request.at, offset!(uring_open_name)));
    let directory = kernel::read(request.at, offset!(uring_open_directory));
    text_section(&mut writer, section::GIVEN, name);
    base_section(&mut writer, section::BASE, directory, name);
    keep(request, writer)
}

/// What a call by names is about.
#[derive(Default)]
struct Names {
    directory: i32,
    target_directory: i32,
    name: u64,
    target: u64,
    text: u64,
}

#[inline(always)]
pub fn call(request: &Request, shape: &Shape) -> Option<()> {
    let (mut writer, payload) =
        Writer::begin::<record::Call>(shape.class, shape.kind, request.origin())?;
    writer.header().form = form::CALL;
    payload.result = NO_RESULT;
    payload.slot = request.slot;
    let names = names(request, &mut payload.arguments)?;
    if request.opcode == FTRUNCATE || request.opcode == FSETXATTR {
        if request.now {
            describe_file(&mut writer, payload, file_of(request));
        }
    } else {
        text_section(&mut writer, section::GIVEN, names.name);
        text_section(&mut writer, section::TARGET_GIVEN, names.target);
    }
    text_section(&mut writer, section::TEXT, names.text);
    if names.name != 0 {
        base_section(&mut writer, section::BASE, names.directory, names.name);
    }
    if names.target != 0 {
        base_section(
            &mut writer,
            section::TARGET_BASE,
            names.target_directory,
            names.target,
        );
    }
    keep(request, writer)
}

/// The arguments of the system call that the request is the same as.
#[inline(always)]
fn names(request: &Request, arguments: &mut [u64; 8]) -> Option<Names> {
    let at = request.at;
    let mut names = Names::default();
    match request.opcode {
        UNLINKAT => {
            let name = kernel::pointer(at, offset!(uring_unlink_name));
            names.directory = kernel::read(at, offset!(uring_unlink_directory));
            names.name = self::name(name);
            let flags: u32 = kernel::read(at, offset!(uring_unlink_flags));
            arguments[0] = names.directory as i64 as u64;
            arguments[1] = given(name);
            arguments[2] = flags.into();
        }
        MKDIRAT => {
            let name = kernel::pointer(at, offset!(uring_mkdir_name));
            names.directory = kernel::read(at, offset!(uring_mkdir_directory));
            names.name = self::name(name);
            let mode: u16 = kernel::read(at, offset!(uring_mkdir_mode));
            arguments[0] = names.directory as i64 as u64;
            arguments[1] = given(name);
            arguments[2] = mode.into();
        }
        SYMLINKAT => {
            let text = kernel::pointer(at, offset!(uring_symlink_text));
            let name = kernel::pointer(at, offset!(uring_symlink_name));
            names.directory = kernel::read(at, offset!(uring_symlink_directory));
            names.name = self::name(name);
            names.text = self::name(text);
            arguments[0] = given(text);
            arguments[1] = names.directory as i64 as u64;
            arguments[2] = given(name);
        }
        RENAMEAT => {
            let name = kernel::pointer(at, offset!(uring_rename_name));
            let target = kernel::pointer(at, offset!(uring_rename_target_name));
            names.directory = kernel::read(at, offset!(uring_rename_directory));
            names.target_directory = kernel::read(at, offset!(uring_rename_target_directory));
            two_names(&mut names, arguments, name, target);
            let flags: u32 = kernel::read(at, offset!(uring_rename_flags));
            arguments[4] = flags.into();
        }
        LINKAT => {
            let name = kernel::pointer(at, offset!(uring_link_name));
            let target = kernel::pointer(at, offset!(uring_link_target_name));
            names.directory = kernel::read(at, offset!(uring_link_directory));
            names.target_directory = kernel::read(at, offset!(uring_link_target_directory));
            two_names(&mut names, arguments, name, target);
            let flags: u32 = kernel::read(at, offset!(uring_link_flags));
            arguments[4] = flags.into();
        }
        SETXATTR | FSETXATTR => attribute(request, &mut names, arguments),
        FTRUNCATE => {
            arguments[0] = descriptor(at);
            arguments[1] = kernel::read(at, offset!(uring_truncate_size));
        }
        _ => return None,
    }
    Some(names)
}

#[inline(always)]
fn attribute(request: &Request, names: &mut Names, arguments: &mut [u64; 8]) {
    let at = request.at;
    names.text = kernel::pointer(at, offset!(uring_xattr_attribute));
    let flags: u32 = kernel::read(at, offset!(uring_xattr_flags));
    arguments[3] = kernel::read(at, offset!(uring_xattr_size));
    arguments[4] = flags.into();
    if request.opcode == SETXATTR {
        let name = kernel::pointer(at, offset!(uring_xattr_name));
        names.directory = file::AT_FDCWD;
        names.name = self::name(name);
        arguments[0] = given(name);
    } else {
        arguments[0] = descriptor(at);
    }
}

#[inline(always)]
fn two_names(names: &mut Names, arguments: &mut [u64; 8], name: u64, target: u64) {
    names.name = self::name(name);
    names.target = self::name(target);
    arguments[0] = names.directory as i64 as u64;
    arguments[1] = given(name);
    arguments[2] = names.target_directory as i64 as u64;
    arguments[3] = given(target);
}
