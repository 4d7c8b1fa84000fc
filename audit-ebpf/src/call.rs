//! A call that is told by its arguments: one program for all of them, led by the call's
//! [`Shape`](audit_common::call::Shape).
//!
//! Paths and structures are read from the caller's memory when the call returns, a descriptor's
//! file from the kernel.

use audit_common::{
    call::{NONE, Shape, flags},
    class, kind,
    record::{self, FileObject, form, section},
};

use crate::{
    copies::{self, FIRST, SECOND},
    file,
    inode::file_object,
    kernel, objects,
    objects::Taken,
    path,
    path::Path,
    record::{Writer, user_section},
    settings::offset,
    syscall::{Call, at_exit},
    task,
};

at_exit!(call, call_kprobe: |call| {
    if let Some(shape) = call.shape()
        && try_call(&call, shape).is_none()
        && has_object(shape.kind)
    {
        objects::forget(false); // or the next call would take it for its own
    }
});

/// Does the shape's filter let this call pass?
#[inline(always)]
fn wanted(call: &Call, shape: &Shape) -> bool {
    let left_out = if call.result < 0 {
        flags::ONLY_SUCCESS
    } else {
        flags::ONLY_FAILURE
    };
    if shape.flags & left_out != 0 {
        return false;
    }
    if shape.flags & flags::STRUCTURE_SET != 0 {
        let first = kernel::read_user::<u32>(copies::argument(shape.structure));
        return first.is_some_and(|first| first != 0);
    }
    if shape.filter == NONE {
        return true;
    }
    let value = copies::argument(shape.filter) as u32;
    if shape.flags & flags::VALUES == 0 {
        return value & shape.mask != 0;
    }
    value == shape.also || (value < 32 && shape.mask >> value & 1 != 0)
}

#[inline(always)]
fn try_call(call: &Call, shape: &Shape) -> Option<()> {
    copies::take(call, shape.path != NONE)?;
    if !wanted(call, shape) {
        return None;
    }
    let (mut writer, payload) = Writer::begin::<record::Call>(shape.class, shape.kind, call)?;
    writer.header().form = form::CALL;
    payload.result = call.result;
    payload.slot = call.slot;
    payload.is_x32 = call.is_x32.into();
    payload.arguments[..6].copy_from_slice(&call.arguments());
    if shape.class == class::PROCESS && shape.kind == kind::NAMESPACE {
        namespaces(&mut payload.namespaces);
    }
    if shape.descriptor != NONE {
        let file = file::of_descriptor(copies::argument(shape.descriptor));
        file_object(
            &mut payload.file,
            kernel::pointer(file, offset!(file_inode)),
        );
        path::section(&mut writer, section::PATH, Path::of_file(file));
    }
    if shape.path != NONE && has_object(shape.kind) {
        objects(&mut writer, &mut payload.file, call);
    }
    let (second, tag) = match shape.target_path {
        NONE => (shape.text, section::TEXT),
        position => (position, section::TARGET_GIVEN),
    };
    copies::section(&mut writer, section::GIVEN, FIRST, shape.path);
    copies::section(&mut writer, tag, SECOND, second);
    if shape.second_text != NONE && writer.has_room() {
        let address = copies::argument(shape.second_text);
        user_section(&mut writer, section::SECOND_TEXT, address);
    }
    let first = (shape.path, shape.directory);
    base(&mut writer, FIRST, first, section::BASE);
    let target = (shape.target_path, shape.target_directory);
    base(&mut writer, SECOND, target, section::TARGET_BASE);
    structure(&mut writer, shape);
    copies::now(&mut writer, section::NOW, FIRST, shape.path);
    copies::now(&mut writer, section::TARGET_NOW, SECOND, second);
    writer.send();
    Some(())
}

/// Do the calls of `kind` come by a hook that sees what they act on? What is kept by then may be of
/// another call: one that made a file on its way (open), or was told otherwise.
#[inline(always)]
fn has_object(kind: u16) -> bool {
    use audit_common::kind::{LINK, MKDIR_MKNOD, MODE, OWNER, RENAME, TRUNCATE, UNLINK};
    matches!(
        kind,
        UNLINK | RENAME | LINK | MKDIR_MKNOD | MODE | OWNER | TRUNCATE
    )
}

/// What the kernel acted on, if a hook saw it.
#[inline(always)]
fn objects(writer: &mut Writer, file: &mut FileObject, call: &Call) {
    if call.result < 0 {
        objects::forget(false);
    } else if let Some(taken) = Taken::of_current(false) {
        *file = taken.file();
        taken.put(writer);
    }
}

#[inline(always)]
fn base(writer: &mut Writer, which: u32, (given, directory): (u8, u8), tag: u8) {
    if given == NONE {
        return;
    }
    let directory = match directory {
        NONE => file::AT_FDCWD,
        position => copies::argument(position) as i32,
    };
    file::base_section(writer, tag, directory, copies::is_absolute(which, given));
}

#[inline(always)]
fn structure(writer: &mut Writer, shape: &Shape) {
    let address = copies::argument(shape.structure);
    if shape.structure == NONE || address == 0 || !writer.has_room() {
        return;
    }
    let mut open = writer.section(section::STRUCTURE);
    if !writer.user_bytes(address, shape.structure_bytes.into()) {
        open.truncated();
    }
    writer.close(open);
}

#[inline(always)]
fn namespaces(namespaces: &mut record::Namespaces) {
    let proxy = kernel::pointer(task::current(), offset!(task_nsproxy));
    let pid = kernel::pointer(proxy, offset!(nsproxy_pid_ns));
    namespaces.pid_for_children = kernel::read(pid, offset!(pid_namespace_inum));
    let uts = kernel::pointer(proxy, offset!(nsproxy_uts_ns));
    namespaces.uts = kernel::read(uts, offset!(uts_namespace_inum));
    let ipc = kernel::pointer(proxy, offset!(nsproxy_ipc_ns));
    namespaces.ipc = kernel::read(ipc, offset!(ipc_namespace_inum));
    let cgroup = kernel::pointer(proxy, offset!(nsproxy_cgroup_ns));
    namespaces.cgroup = kernel::read(cgroup, offset!(cgroup_namespace_inum));
}
