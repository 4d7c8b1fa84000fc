//! exec, exec_failed, fork, exit.

use audit_common::record::{
    Exec, ExecFailed, Exit, FileObject, Fork, Populated, Record, Signal, layer, section,
    section_flags,
};
use audit_proto::{
    text::escape,
    v1::{self, Container, Event, NewNamespaces, TargetProcess},
};

use super::{file, known, number, result, text};
use crate::container::path;

pub(super) fn exec(record: &Record<'_>, event: &mut Event) -> Option<()> {
    let exec: Exec = record.payload()?;
    let program = text::walked(record, section::PATH).unwrap_or_default();
    let invoked = text::given(record, section::INVOKED).map_or_else(String::new, |(text, _)| text);
    let interpreter = text::given(record, section::INTERPRETER).map(|(text, _)| text);
    let cwd = text::walked(record, section::CWD).unwrap_or_default();
    let arguments = record
        .section(section::ARGV)
        .map_or(&[][..], |section| section.bytes);
    let process = event.process.get_or_insert_default();

    process.argv = split_arguments(arguments);
    let missing = exec.argv_bytes.saturating_sub(arguments.len() as u64);
    process.argv_truncated_bytes = (missing > 0).then_some(missing as i64);
    process.script = match interpreter {
        Some(interpreter) if interpreter != invoked => below(&cwd.path, &invoked),
        _ => String::new(),
    };
    process.exe_invoked = invoked;
    process.exe = program.path;
    process.root = if program.root.is_empty() {
        cwd.root
    } else {
        program.root
    };
    process.cwd = cwd.path;
    process.exe_deleted = program.deleted.then_some(true);
    process.exe_memfd = program.memfd.then_some(true);
    let FileObject {
        inode,
        size_bytes: _,
        device,
        mode,
        owner_uid,
        owner_gid,
        generation,
        layer,
        real_device,
        reserved: _,
        real_inode,
    } = exec.file;
    let known = inode != 0 || mode != 0;
    process.exe_inode = known.then_some(inode as i64);
    process.exe_device = known.then_some(device.into());
    process.exe_mode = known.then_some(mode.into());
    process.exe_owner_uid = number(owner_uid).filter(|_| known);
    process.exe_owner_gid = number(owner_gid).filter(|_| known);
    process.exe_generation = (generation != 0).then_some(generation.into());
    layer::name(layer).clone_into(&mut process.exe_layer);
    process.exe_real_inode = (layer != layer::NONE).then_some(real_inode as i64);
    process.exe_real_device = (layer != layer::NONE).then_some(real_device.into());
    Some(())
}

/// Of any cgroup; for one that is no container's, `event.container` has no id.
pub(super) fn container(record: &Record<'_>, event: &mut Event) -> Option<()> {
    let Populated {
        cgroup_id,
        populated,
    } = record.payload()?;
    let cgroup = record.section(section::CGROUP)?;
    // Nobody did it.
    (event.process, event.parent) = (None, None);
    event.container = path::of_container_itself(cgroup.bytes).map(|container| Container {
        action: if populated == 0 { "stop" } else { "start" }.to_owned(),
        cgroup_id: Some(cgroup_id as i64),
        ..container
    });
    Some(())
}

/// `path` as seen from directory `dir`, by joining only.
fn below(dir: &str, path: &str) -> String {
    if path.starts_with('/') || !dir.starts_with('/') {
        return path.to_owned();
    }
    let path = path.strip_prefix("./").unwrap_or(path);
    format!("{}/{path}", dir.trim_end_matches('/'))
}

/// Arguments, each ended by NUL; the last may have been cut.
pub fn split_arguments(bytes: &[u8]) -> Vec<String> {
    if bytes.is_empty() {
        return Vec::new();
    }
    let bytes = bytes.strip_suffix(b"\0").unwrap_or(bytes);
    bytes
        .split(|byte| *byte == 0)
        .map(|argument| escape(argument).into_owned())
        .collect()
}

pub(super) fn exec_failed(record: &Record<'_>, event: &mut Event) -> Option<()> {
    let failed: ExecFailed = record.payload()?;
    event.file = Some(file::named(record, section::GIVEN, section::BASE, event));
    event.result = result(failed.result);
    // The process still runs what it ran; what it asked for is the target's.
    let arguments = record.section(section::ARGV);
    let cut = arguments.is_some_and(|s| s.header.flags & section_flags::TRUNCATED != 0);
    let unread = i64::from(failed.unread_arguments).max(cut.into());
    event.target_process = Some(TargetProcess {
        argv: arguments.map_or_else(Vec::new, |section| split_arguments(section.bytes)),
        // At least the NUL of each.
        argv_truncated_bytes: (unread > 0).then_some(unread),
        ..TargetProcess::default()
    });
    Some(())
}

pub(super) fn fork(record: &Record<'_>, event: &mut Event) -> Option<()> {
    let fork: Fork = record.payload()?;
    event.target_process = Some(TargetProcess {
        pid: Some(fork.child_pid.into()),
        start_time_ns: Some(fork.child_start_time_ns as i64),
        ..TargetProcess::default()
    });
    let header = &record.header;
    let same = fork.pid_namespace == header.pid_namespace
        && fork.mount_namespace == header.mount_namespace
        && fork.network_namespace == header.network_namespace
        && fork.user_namespace == header.user_namespace;
    event.new_namespaces = (!same).then(|| NewNamespaces {
        pid: known(fork.pid_namespace),
        mount: known(fork.mount_namespace),
        network: known(fork.network_namespace),
        user: known(fork.user_namespace),
        ..NewNamespaces::default()
    });
    Some(())
}

pub(super) fn signal(record: &Record<'_>, event: &mut Event) -> Option<()> {
    let signal: Signal = record.payload()?;
    event.target_process = Some(TargetProcess {
        pid: Some(signal.target_pid.into()),
        start_time_ns: Some(signal.target_start_time_ns as i64),
        signal: Some(signal.signal.into()),
        ..TargetProcess::default()
    });
    event.result = result(0);
    Some(())
}

pub(super) fn exit(record: &Record<'_>, event: &mut Event) -> Option<()> {
    let exit: Exit = record.payload()?;
    let signal = exit.status & 0x7f;
    let duration = record
        .header
        .time_ns
        .saturating_sub(record.header.start_time_ns);
    let page_bytes = rustix::param::page_size() as u64;
    event.exit = Some(v1::Exit {
        code: (signal == 0).then_some(i64::from((exit.status >> 8) & 0xff)),
        signal: (signal != 0).then_some(signal.into()),
        core_dumped: (signal != 0).then_some(exit.status & 0x80 != 0),
        duration_ns: Some(duration as i64),
        user_time_ns: Some(exit.user_time_ns as i64),
        system_time_ns: Some(exit.system_time_ns as i64),
        max_rss_bytes: Some(exit.max_rss_pages.saturating_mul(page_bytes) as i64),
    });
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;
    use audit_common::kind;
    use zerocopy::IntoBytes as _;

    #[test]
    fn an_exec_is_told_whole() {
        let event = sample::record(kind::EXEC).event();
        let process = event.process.expect("process");
        assert_eq!(process.exe, "/usr/bin/dash");
        assert_eq!(process.exe_invoked, "./run.sh");
        assert_eq!(process.script, "/home/u/run.sh");
        assert_eq!(process.cwd, "/home/u");
        assert_eq!(process.argv, ["/bin/sh", "./run.sh", ""]);
        assert_eq!(process.argv_truncated_bytes, None);
        assert_eq!(process.exe_inode, Some(42));
        assert_eq!(process.exe_mode, Some(0o100_755));
        assert_eq!(process.exe_deleted, None);
    }

    #[test]
    fn missing_arguments_are_counted() {
        let mut sample = sample::record(kind::EXEC);
        let mut exec = sample.payload_as::<Exec>();
        exec.argv_bytes += 100;
        sample.payload = exec.as_bytes().to_vec();
        let process = sample.event().process.expect("process");
        assert_eq!(process.argv_truncated_bytes, Some(100));
    }

    #[test]
    fn a_failed_exec_names_what_was_asked_for() {
        let event = sample::record(kind::EXEC_FAILED).event();
        assert_eq!(event.file.expect("file").path, "/home/u/missing");
        let target = event.target_process.expect("target");
        assert_eq!(target.argv, ["missing", "-x"]);
        assert_eq!(target.argv_truncated_bytes, None);
        assert_eq!(event.result.expect("result").error, "ENOENT");
    }

    #[test]
    fn a_status_is_a_code_or_a_signal() {
        let exit_of = |status: u32| {
            let mut sample = sample::record(kind::EXIT);
            let mut exit = sample.payload_as::<Exit>();
            exit.status = status;
            sample.payload = exit.as_bytes().to_vec();
            sample.event().exit.expect("exit")
        };
        let code = exit_of(3 << 8);
        assert_eq!(
            (code.code, code.signal, code.core_dumped),
            (Some(3), None, None)
        );
        let killed = exit_of(9);
        assert_eq!((killed.code, killed.signal), (None, Some(9)));
        assert_eq!(killed.core_dumped, Some(false));
        assert_eq!(exit_of(11 | 0x80).core_dumped, Some(true));
        assert_eq!(code.duration_ns, Some(5_000_000));
        assert_eq!(
            code.max_rss_bytes,
            Some(10 * rustix::param::page_size() as i64)
        );
    }

    #[test]
    fn a_fork_names_the_child() {
        let target = sample::record(kind::FORK)
            .event()
            .target_process
            .expect("target");
        assert_eq!(
            (target.pid, target.start_time_ns),
            (Some(4321), Some(77_000_000))
        );
    }

    #[test]
    fn arguments_split_at_their_nul() {
        assert_eq!(split_arguments(b""), Vec::<String>::new());
        assert_eq!(split_arguments(b"\0"), [""]);
        assert_eq!(split_arguments(b"a\0\0b\0"), ["a", "", "b"]);
        assert_eq!(split_arguments(b"a\0cu"), ["a", "cu"]);
    }
}
