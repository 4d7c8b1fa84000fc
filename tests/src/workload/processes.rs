//! What processes do to themselves and to each other: credentials, namespaces, signals, ptrace; and
//! to the kernel: modules, BPF, clocks, settings.

use std::{
    fs,
    os::fd::AsRawFd as _,
    process::{Child, Command, Stdio},
};

use anyhow::{Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::{Workload, ours, quoted, system};

const WELL: &str = "result_error is null";

/// Changes of user and group, by a thread, because a process could not go back.
pub fn credentials(work: &mut Workload) -> Result<()> {
    std::thread::spawn(|| {
        system::call(libc::SYS_setresgid, [100, 101, 102])?;
        system::call(libc::SYS_setresuid, [1000, 1001, 1002])?;
        ensure!(system::call(libc::SYS_setuid, [0, 0, 0]).is_err());
        Ok(())
    })
    .join()
    .expect("the thread")?;
    let us = ours();
    let of = |call: &str| format!("kind = 'credentials' and {us} and syscall_name = '{call}'");
    work.once(
        "setresgid",
        format!(
            "{} and new_credentials_gid = 100 and new_credentials_egid = 101 \
             and new_credentials_sgid = 102 and process_gid = 0 and {WELL}",
            of("setresgid")
        ),
    );
    work.once(
        "setresuid",
        format!(
            "{} and new_credentials_uid = 1000 and new_credentials_euid = 1001 \
             and new_credentials_suid = 1002 and process_uid = 0 \
             and new_credentials_privileges_grew = false and {WELL}",
            of("setresuid")
        ),
    );
    work.once(
        "a setuid that fails",
        format!(
            "{} and result_error = 'EPERM' and new_credentials_uid = 1000",
            of("setuid")
        ),
    );
    Ok(())
}

/// A process that waits, in a group of its own.
fn sleeper() -> Result<Child> {
    Ok(Command::new("sleep")
        .arg("600")
        .stdin(Stdio::null())
        .spawn()?)
}

pub fn signals(work: &mut Workload) -> Result<()> {
    let mut child = sleeper()?;
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::CHILD)?;
    system::call(
        libc::SYS_tgkill,
        [pid_of(&child), pid_of(&child), libc::SIGKILL.into()],
    )?;
    child.wait()?;
    ensure!(kill_process(Pid::from_raw(4_190_000).expect("a pid"), Signal::TERM).is_err());
    let target = format!("target_process_pid = {}", child.id());
    let us = ours();
    for (what, number) in [("kill", 17), ("tgkill", 9)] {
        work.once(
            what,
            format!(
                "kind = 'signal' and {us} and {target} and target_process_signal = {number} \
                 and target_process_exe like '%/%' and target_process_exec_id is not null"
            ),
        );
    }
    work.once(
        "a kill that fails",
        format!(
            "kind = 'signal' and {us} and target_process_pid = 4190000 \
             and target_process_signal = 15 and result_error = 'ESRCH'"
        ),
    );
    Ok(())
}

fn pid_of(child: &Child) -> i64 {
    child.id().into()
}

pub fn tracing(work: &mut Workload) -> Result<()> {
    const PTRACE_ATTACH: i64 = 16;
    const PTRACE_DETACH: i64 = 17;
    const PTRACE_SEIZE: i64 = 0x4206;
    let mut child = sleeper()?;
    let pid = pid_of(&child);
    system::call(libc::SYS_ptrace, [PTRACE_ATTACH, pid, 0])?;
    system::wait_stopped(child.id())?;
    system::call(libc::SYS_ptrace, [PTRACE_DETACH, pid, 0])?;
    system::call(libc::SYS_ptrace, [PTRACE_SEIZE, pid, 0])?;
    child.kill()?;
    child.wait()?;
    let us = ours();
    for (what, request) in [("attach", PTRACE_ATTACH), ("seize", PTRACE_SEIZE)] {
        work.once(
            what,
            format!(
                "kind = 'ptrace' and {us} and target_process_pid = {pid} \
                 and target_process_exec_id is not null and syscall_a0 = {request} and {WELL}"
            ),
        );
    }
    work.number(
        "and no other request",
        format!("kind = 'ptrace' and {us}"),
        2,
    );
    Ok(())
}

/// Leaves its namespaces, and joins one again.
pub fn namespaces(work: &mut Workload) -> Result<()> {
    let number = |name: &str| -> Result<String> {
        let link = fs::read_link(format!("/proc/self/ns/{name}"))?;
        let text = link.to_string_lossy().into_owned();
        Ok(text.trim_matches(|c: char| !c.is_ascii_digit()).to_owned())
    };
    let old = fs::File::open("/proc/self/ns/uts")?;
    let (old_net, old_uts) = (number("net")?, number("uts")?);
    let flags = libc::CLONE_NEWUTS | libc::CLONE_NEWNET | libc::CLONE_NEWNS;
    system::call(libc::SYS_unshare, [flags.into(), 0, 0])?;
    let (net, uts) = (number("net")?, number("uts")?);
    let name = "hostaudit-test";
    system::set_host_name(name)?;
    system::call(
        libc::SYS_setns,
        [old.as_raw_fd().into(), libc::CLONE_NEWUTS.into(), 0],
    )?;
    let us = ours();
    work.once(
        "unshare",
        format!(
            "kind = 'namespace' and {us} and syscall_flags = {flags} and {WELL} \
             and new_namespaces_network = {net} and new_namespaces_uts = {uts} \
             and process_network_namespace = {old_net}"
        ),
    );
    work.once(
        "setns",
        format!(
            "kind = 'namespace' and {us} and syscall_name = 'setns' and {WELL} \
             and new_namespaces_uts = {old_uts} and file_inode = {old_uts}"
        ),
    );
    work.once(
        "sethostname",
        format!(
            "kind = 'system' and {us} and syscall_name = 'sethostname' \
             and syscall_text = '{name}' and {WELL}"
        ),
    );
    Ok(())
}

/// Attempts that the kernel refuses, so that the host stays as it is; and harmless ones.
pub fn kernel(work: &mut Workload) -> Result<()> {
    system::refused_kernel_changes()?;
    let memfd = rustix::fs::memfd_create("of-a-test", rustix::fs::MemfdFlags::CLOEXEC)?;
    let map = system::make_bpf_map("hostaudit_test")?;
    drop((memfd, map));
    anyhow::ensure!(
        system::disturb_bpf_maps("IGNORED")? > 0,
        "no agent has a map IGNORED"
    );
    let us = ours();
    work.once(
        "somebody else's hand in the agent's map",
        format!(
            "kind = 'bpf' and {us} and bpf_command = 'map_delete_elem' and bpf_name = 'IGNORED' \
             and result_error = 'ENOENT'"
        ),
    );
    work.once(
        "memfd",
        format!(
            "kind = 'memfd' and {us} and file_path = '/memfd:of-a-test' and file_memfd = true \
             and syscall_flags = 1"
        ),
    );
    work.once(
        "a BPF map",
        format!(
            "kind = 'bpf' and {us} and bpf_command = 'map_create' and bpf_type = 'array' \
             and bpf_name = 'hostaudit_test' and bpf_id is not null and {WELL}"
        ),
    );
    for (what, condition) in [
        (
            "init_module",
            "kind = 'module' and module_parameters = 'a=1' and result_error is not null",
        ),
        (
            "delete_module",
            "kind = 'module' and module_name = 'no_such_module' and result_error is not null",
        ),
        ("reboot", "kind = 'system' and result_error is not null"),
        (
            "clock_settime",
            "kind = 'time_change' and result_error = 'EINVAL'",
        ),
        (
            "umount2",
            "kind = 'mount' and file_path = '/no/such/mount' and result_error = 'ENOENT'",
        ),
        (
            "swapon",
            "kind = 'system' and file_path = '/no/such/swap' and result_error is not null",
        ),
        (
            "add_key",
            "kind = 'system' and syscall_text = 'hostaudit:test'",
        ),
        ("personality", "kind = 'system' and result_value = 0"),
    ] {
        work.once(
            what,
            format!("{us} and syscall_name = '{what}' and {condition}"),
        );
    }
    mounts(work)
}

fn mounts(work: &mut Workload) -> Result<()> {
    let place = work.path("mounted");
    fs::create_dir(&place)?;
    system::own_mounts()?;
    system::mount_tmpfs(&place)?;
    system::unmount(&place)?;
    let (us, place) = (ours(), quoted(&place));
    work.once(
        "mount",
        format!(
            "kind = 'mount' and {us} and file_path = {place} and mount_type = 'tmpfs' \
             and mount_source = 'tmpfs' and {WELL}"
        ),
    );
    work.once(
        "umount",
        format!(
            "kind = 'mount' and {us} and file_path = {place} and syscall_name = 'umount2' and {WELL}"
        ),
    );
    Ok(())
}
