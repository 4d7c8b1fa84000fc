//! Who is acting: the record's header from the current task.

use audit_common::record::{Credentials, Header};
use aya_ebpf::helpers::generated::{
    bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_task,
};

use crate::{
    kernel::{self, Struct, with_task},
    record::header_of,
    settings::offset,
};

#[inline(always)]
pub fn current() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_get_current_task() }
}

#[inline(always)]
pub fn current_pid() -> u32 {
    // SAFETY: no arguments.
    (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32
}

/// When the current process (its group leader) began.
#[inline(always)]
pub fn current_start_ns() -> u64 {
    with_task!(|task| {
        let leader = task.pointer(offset!(task_group_leader));
        leader.field(offset!(task_start_boottime))
    })
}

/// Fills what names the process in the header of `class`, with its credentials of this moment. A global
/// function, as [`crate::path::climb_steps`]: every program has it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn fill_actor(class: u32) -> u32 {
    let Some(header) = header_of(class) else {
        return 1;
    };
    // SAFETY: helpers without memory arguments, and one that fills 16 bytes.
    unsafe {
        let both = bpf_get_current_pid_tgid();
        header.pid = (both >> 32) as u32;
        header.tid = both as u32;
        header.cgroup_id = bpf_get_current_cgroup_id();
        let comm = &raw mut header.comm;
        bpf_get_current_comm(comm.cast(), size_of_val(&header.comm) as u32);
    }
    with_task!(|task| fill_from(header, task));
    0
}

/// The same, of another task. Its cgroup stays unknown: the agent looks it up.
#[inline(always)]
pub fn fill_of(header: &mut Header, task: u64) {
    header.pid = kernel::read(task, offset!(task_tgid));
    header.tid = kernel::read(task, offset!(task_pid));
    header.cgroup_id = 0;
    header.comm = kernel::read(task, offset!(task_comm));
    fill_from(header, Struct::<false>::at(task));
}

#[inline(always)]
fn fill_from<const TYPED: bool>(header: &mut Header, task: Struct<TYPED>) {
    let leader = task.pointer(offset!(task_group_leader));
    header.start_time_ns = leader.field(offset!(task_start_boottime));
    let parent = task.pointer(offset!(task_real_parent));
    header.parent_pid = parent.field(offset!(task_tgid));
    let parent_leader = parent.pointer(offset!(task_group_leader));
    header.parent_start_time_ns = parent_leader.field(offset!(task_start_boottime));
    header.loginuid = task.field(offset!(task_loginuid));
    header.session = task.field(offset!(task_sessionid));
    let cred = task.pointer(offset!(task_cred));
    credentials(&mut header.credentials, cred);
    // Two numbers of 32 bits up to Linux 6.2.
    let capabilities = offset!(cred_cap_effective);
    header.capabilities_effective = u64::from(cred.field::<u32>(capabilities))
        | u64::from(cred.field::<u32>(capabilities + 4)) << 32;
    let namespaces = namespaces(task);
    header.pid_namespace = namespaces.pid;
    header.mount_namespace = namespaces.mount;
    header.network_namespace = namespaces.network;
    header.user_namespace = namespaces.user;
}

#[inline(always)]
fn credentials<const TYPED: bool>(credentials: &mut Credentials, cred: Struct<TYPED>) {
    let id = |n: usize| cred.field(offset!(cred_uid) + n * 4);
    *credentials = Credentials {
        uid: id(0),
        gid: id(1),
        suid: id(2),
        sgid: id(3),
        euid: id(4),
        egid: id(5),
        fsuid: id(6),
        fsgid: id(7),
    };
}

pub struct Namespaces {
    pub pid: u32,
    pub mount: u32,
    pub network: u32,
    pub user: u32,
}

/// Of a task: inodes as in /proc/PID/ns.
#[inline(always)]
pub fn namespaces<const TYPED: bool>(task: Struct<TYPED>) -> Namespaces {
    let proxy = task.pointer(offset!(task_nsproxy));
    let mount = proxy.pointer(offset!(nsproxy_mnt_ns));
    let network = proxy.pointer(offset!(nsproxy_net_ns));
    let user = task
        .pointer(offset!(task_cred))
        .pointer(offset!(cred_user_ns));
    Namespaces {
        pid: pid_namespace(task),
        mount: mount.field(offset!(mnt_namespace_inum)),
        network: network.field(offset!(net_inum)),
        user: user.field(offset!(user_namespace_inum)),
    }
}

/// The process's own pid namespace is that of its innermost number; nsproxy has the children's.
#[inline(always)]
fn pid_namespace<const TYPED: bool>(task: Struct<TYPED>) -> u32 {
    /// struct upid { int nr; struct pid_namespace *ns; } since Linux 2.6.24
    const UPID_BYTES: u64 = 16;
    const UPID_NS: usize = 8;
    let numbers = offset!(pid_numbers);
    let pid = task.pointer(offset!(task_thread_pid));
    let level: u32 = pid.field(offset!(pid_level));
    if level == 0 {
        let own = pid.pointer(numbers + UPID_NS);
        return own.field(offset!(pid_namespace_inum));
    }
    // By plain numbers, to which the verifier lets a variable be added.
    let pid = kernel::pointer(task.address(), offset!(task_thread_pid));
    let own = pid + numbers as u64 + u64::from(level) * UPID_BYTES;
    kernel::read(kernel::pointer(own, UPID_NS), offset!(pid_namespace_inum))
}

/// As [`fill_actor`], from a header kept earlier.
#[inline(always)]
pub fn copy(header: &mut Header, from: &Header) {
    header.pid = from.pid;
    header.tid = from.tid;
    header.start_time_ns = from.start_time_ns;
    header.parent_start_time_ns = from.parent_start_time_ns;
    header.parent_pid = from.parent_pid;
    header.loginuid = from.loginuid;
    header.session = from.session;
    header.pid_namespace = from.pid_namespace;
    header.mount_namespace = from.mount_namespace;
    header.network_namespace = from.network_namespace;
    header.user_namespace = from.user_namespace;
    header.credentials = from.credentials;
    header.capabilities_effective = from.capabilities_effective;
    header.cgroup_id = from.cgroup_id;
    header.comm = from.comm;
    header.generation = from.generation;
    header.candidates = from.candidates;
}
