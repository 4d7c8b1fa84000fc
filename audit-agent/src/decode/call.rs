//! Calls that their arguments tell: everything that the kernel programs report as a
//! [`Call`], by what [`crate::calls`] says of the call.

use audit_common::{
    call::NONE,
    kind,
    record::{Call, Namespaces, Record, section},
};
use audit_proto::v1::{
    Event, File, Module, Mount, NewCredentials, NewNamespaces, Syscall, TargetProcess,
};

use super::{DecodeError, file, known, number, result, text};
use crate::{
    calls::{self, Row},
    clock::Clock,
};

pub(super) fn call(
    record: &Record<'_>,
    clock: &Clock,
    event: &mut Event,
) -> Result<(), DecodeError> {
    let kind = record.header.kind;
    let call: Call = record.payload().ok_or(DecodeError::Payload(kind))?;
    let (row, abi) =
        calls::of_slot(call.slot).ok_or(DecodeError::UnknownCall { slot: call.slot })?;
    event.result = result(call.result);
    event.syscall = Some(syscall(&call, row, abi));
    file(record, &call, row, event);
    let text = given(record, section::TEXT, event);
    match record.header.kind {
        kind::CREDENTIALS => event.new_credentials = Some(credentials(record)),
        kind::NAMESPACE => event.new_namespaces = Some(namespaces(record, call.namespaces)),
        kind::MEMFD => event.file = Some(memfd(text)),
        kind::MODULE => event.module = Some(module(row, text)),
        kind::MOUNT => {
            let mount = Mount {
                source: text,
                r#type: given(record, section::SECOND_TEXT, event),
            };
            // An object of nothing is none: columns could not tell it from that.
            event.mount = Some(mount).filter(|mount| *mount != Mount::default());
        }
        kind::TIME_CHANGE => {
            let step = time_step_ns(record, row, clock);
            event.syscall.get_or_insert_default().time_step_ns = step;
        }
        kind::XATTR => event.file.get_or_insert_default().attribute = text,
        kind::LINK => link(row, text, event),
        kind::UNLINK if row.name == "rmdir" => {
            // As unlinkat says it: AT_REMOVEDIR.
            event.syscall.get_or_insert_default().flags = Some(0x200);
        }
        _ => event.syscall.get_or_insert_default().text = text,
    }
    if let Some(pid) = argument(&call, row.meaning.target_pid) {
        let signal = argument(&call, if row.name == "tgkill" { 2 } else { 1 });
        event.target_process = Some(TargetProcess {
            pid: Some(i64::from(pid as i32)),
            signal: signal
                .filter(|_| record.header.kind == kind::SIGNAL)
                .map(|signal| i64::from(signal as i32)),
            ..TargetProcess::default()
        });
    }
    Ok(())
}

/// A text of the call that is no path.
fn given(record: &Record<'_>, tag: u8, event: &mut Event) -> String {
    let Some((text, cut)) = text::given(record, tag) else {
        return String::new();
    };
    if cut {
        event.syscall.get_or_insert_default().text_truncated_bytes = Some(1);
    }
    text
}

fn argument(call: &Call, position: u8) -> Option<u64> {
    (position != NONE).then(|| call.arguments.get(usize::from(position)).copied())?
}

fn syscall(call: &Call, row: &Row, abi: &str) -> Syscall {
    let [a0, a1, a2, a3, a4, a5, ..] = call.arguments.map(|value| Some(value as i64));
    Syscall {
        flags: match argument(call, row.meaning.flags) {
            Some(flags) => Some(i64::from(flags as u32)),
            // unlink and rename have none, which is the same as zero.
            None if row.meaning.mode == NONE && row.shape.path != NONE => Some(0),
            None => None,
        },
        name: row.name.to_owned(),
        abi: if call.is_x32 != 0 { "x32" } else { abi }.to_owned(),
        a0,
        a1,
        a2,
        a3,
        a4,
        a5,
        text: String::new(),
        time_step_ns: None,
        text_truncated_bytes: None,
    }
}

/// The files that the call names, and what it asked for.
fn file(record: &Record<'_>, call: &Call, row: &Row, event: &mut Event) {
    if row.shape.descriptor != NONE {
        event.file = Some(of_descriptor(record, call, event));
    }
    if row.shape.path != NONE && record.section(section::GIVEN).is_some() {
        event.file = Some(file::named(record, section::GIVEN, section::BASE, event));
    }
    if row.shape.target_path != NONE {
        let target = file::named(record, section::TARGET_GIVEN, section::TARGET_BASE, event);
        event.target_file = Some(target);
    }
    if let Some(file) = &mut event.file
        && let Some(root) = seen(record, section::OBJECT, file)
    {
        file::object(&call.file, file);
        if let Some(process) = &mut event.process {
            process.root = root;
        }
    }
    if let Some(target) = &mut event.target_file {
        seen(record, section::TARGET_OBJECT, target);
    }
    let Some(file) = &mut event.file else {
        return;
    };
    let meaning = &row.meaning;
    let mode = argument(call, meaning.mode);
    file.new_mode = mode.map(|mode| i64::from(mode as u32 & 0o177_777));
    file.new_size_bytes = argument(call, meaning.size).map(|size| size as i64);
    let device = argument(call, meaning.device);
    file.new_device = device.map(|device| kernel_device(device as u32));
    if let Some(owner) = argument(call, meaning.owner) {
        let group = argument(call, meaning.owner + 1).unwrap_or_default();
        file.new_owner_uid = number(owner as u32);
        file.new_owner_gid = number(group as u32);
    }
}

/// What the kernel acted on, where a hook saw it, in place of what the caller's memory said. Answers
/// the process's root.
fn seen(record: &Record<'_>, tag: u8, file: &mut File) -> Option<String> {
    let walked = text::walked(record, tag)?;
    if file.path_given.is_empty() && file.path != walked.path {
        file.path_given = std::mem::take(&mut file.path);
    }
    file.path = walked.path;
    file.path_source = "kernel".to_owned();
    file.path_truncated_bytes = text::cut_bytes(walked.truncated);
    Some(walked.root)
}

/// From the form of system calls (`new_decode_dev` of include/linux/kdev_t.h) to the kernel's own.
fn kernel_device(device: u32) -> i64 {
    let major = (device & 0xfff00) >> 8;
    let minor = (device & 0xff) | ((device >> 12) & 0xfff00);
    i64::from(major << 20 | minor)
}

fn of_descriptor(record: &Record<'_>, call: &Call, event: &mut Event) -> File {
    let walked = text::walked(record, section::PATH).unwrap_or_default();
    if call.file.inode == 0 && call.file.mode == 0 {
        return File::default(); // no such descriptor
    }
    if let Some(process) = &mut event.process {
        process.root = walked.root;
    }
    let mut file = File {
        path: walked.path,
        path_source: "kernel".to_owned(),
        path_truncated_bytes: text::cut_bytes(walked.truncated),
        deleted: walked.deleted.then_some(true),
        memfd: walked.memfd.then_some(true),
        ..File::default()
    };
    file::object(&call.file, &mut file);
    file
}

fn credentials(record: &Record<'_>) -> NewCredentials {
    let new = &record.header.credentials;
    NewCredentials {
        uid: number(new.uid),
        gid: number(new.gid),
        euid: number(new.euid),
        egid: number(new.egid),
        suid: number(new.suid),
        sgid: number(new.sgid),
        fsuid: number(new.fsuid),
        fsgid: number(new.fsgid),
        capabilities_effective: Some(record.header.capabilities_effective as i64),
        privileges_grew: None,
    }
}

fn namespaces(record: &Record<'_>, more: Namespaces) -> NewNamespaces {
    let header = &record.header;
    NewNamespaces {
        pid: known(header.pid_namespace),
        pid_for_children: known(more.pid_for_children),
        mount: known(header.mount_namespace),
        network: known(header.network_namespace),
        user: known(header.user_namespace),
        uts: known(more.uts),
        ipc: known(more.ipc),
        cgroup: known(more.cgroup),
    }
}

/// As a descriptor's path names it.
fn memfd(name: String) -> File {
    File {
        path: format!("/memfd:{name}"),
        path_source: "kernel".to_owned(),
        memfd: Some(true),
        ..File::default()
    }
}

fn module(row: &Row, text: String) -> Module {
    let (name, parameters) = match row.name {
        "delete_module" => (text, String::new()),
        // The name is in the file itself.
        _ => (String::new(), text),
    };
    Module { name, parameters }
}

/// A symbolic link has a text where another link has a file.
fn link(row: &Row, text: String, event: &mut Event) {
    if !row.name.starts_with("symlink") {
        return;
    }
    let mut link = event.file.take().unwrap_or_default();
    link.link_text = text;
    event.target_file = Some(link);
}

/// How far a clock went forward: what it was set to, less what it showed.
fn time_step_ns(record: &Record<'_>, row: &Row, clock: &Clock) -> Option<i64> {
    const CLOCK_REALTIME: u64 = 0;
    let bytes = record.section(section::STRUCTURE)?.bytes;
    let call: Call = record.payload()?;
    let long = |at: usize| -> Option<i64> {
        Some(i64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
    };
    let short = |at: usize| -> Option<i64> {
        Some(i32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?).into())
    };
    let is_short = call.slot >= audit_common::call::COMPAT_SLOT && row.name != "clock_settime64";
    let pair = || match is_short {
        true => Some((short(0)?, short(4)?)),
        false => Some((long(0)?, long(8)?)),
    };
    let (seconds, nanoseconds) = match row.name {
        "clock_settime" | "clock_settime64" if call.arguments[0] == CLOCK_REALTIME => pair()?,
        "settimeofday" => {
            let (seconds, micros) = pair()?;
            (seconds, micros.checked_mul(1000)?)
        }
        "stime" => (short(0)?, 0),
        _ => return None,
    };
    let new = seconds
        .checked_mul(1_000_000_000)?
        .checked_add(nanoseconds)?;
    let shown = clock.wall(record.header.time_ns as i64);
    let shown = shown
        .micros
        .checked_mul(1000)?
        .checked_add(shown.remainder_ns.into())?;
    new.checked_sub(shown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;
    use zerocopy::IntoBytes as _;

    #[test]
    fn a_name_in_a_walked_directory_is_the_callers() {
        let event = sample::record(kind::UNLINK).event();
        let file = event.file.expect("file");
        assert_eq!(
            (file.path.as_str(), file.path_source.as_str()),
            ("/tmp/gone", "argument")
        );
        assert_eq!(file.path_given, "gone");
        let syscall = event.syscall.expect("syscall");
        assert_eq!(
            (syscall.name.as_str(), syscall.abi.as_str()),
            ("unlinkat", "x86_64")
        );
    }

    #[test]
    fn what_a_hook_saw_comes_before_what_the_caller_said() {
        let mut sample = sample::record(kind::RENAME)
            .walked(section::OBJECT, "/tmp/real")
            .walked(section::TARGET_OBJECT, "/srv/a/new");
        let mut call: Call = sample.payload_as();
        call.file.inode = 42;
        call.file.mode = 0o100_600;
        sample.payload = call.as_bytes().to_vec();
        let event = sample.event();
        let (file, target) = (
            event.file.expect("file"),
            event.target_file.expect("target"),
        );
        assert_eq!(
            (file.path.as_str(), file.path_given.as_str()),
            ("/tmp/real", "old")
        );
        assert_eq!(
            (file.path_source.as_str(), file.inode),
            ("kernel", Some(42))
        );
        assert_eq!(
            (target.path.as_str(), target.path_given.as_str()),
            ("/srv/a/new", "")
        );
        assert_eq!(
            (target.path_source.as_str(), target.inode),
            ("kernel", None)
        );
    }

    #[test]
    fn a_rename_has_both_files() {
        let event = sample::record(kind::RENAME).event();
        let file = event.file.expect("file");
        let target = event.target_file.expect("target");
        assert_eq!(
            (file.path.as_str(), file.path_given.as_str()),
            ("/tmp/old", "old")
        );
        assert_eq!(
            (target.path.as_str(), target.path_given.as_str()),
            ("/srv/a/new", "")
        );
        assert_eq!(target.path_source, "lexical");
        assert_eq!(event.syscall.expect("syscall").flags, Some(2));
    }

    #[test]
    fn a_clock_that_was_set_tells_its_step() {
        let mut sample = sample::record(kind::TIME_CHANGE);
        // The sample's time is 55,000,123 ns, the clock's offset zero.
        let set = [1_i64, 55_000_123];
        sample = sample.section(section::STRUCTURE, set.as_bytes());
        let syscall = sample.event().syscall.expect("syscall");
        assert_eq!(syscall.time_step_ns, Some(1_000_000_000));
    }

    #[test]
    fn device_numbers_are_the_kernels() {
        assert_eq!(kernel_device(0x0103), 1 << 20 | 3);
        let given = 300_u32;
        let encoded = given & 0xff | 259 << 8 | (given & !0xff) << 12;
        assert_eq!(kernel_device(encoded), 259 << 20 | 300);
    }
}
