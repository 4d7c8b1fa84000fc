//! Which hooks are there, and which places can each be attached to, best first?
//!
//! A hook is one row of [`HOOKS`]. Its rungs are tried in order; the first on which everything
//! loads and attaches is used, and the reasons of the others are kept for `doctor`. This version
//! has programs for the tracepoint rung; trampolines and kprobes come before it in [`Rung`].

use std::fmt;

use audit_common::kind;

use crate::calls::{self, Row};

/// Places to attach to, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rung {
    /// fentry, fexit, LSM.
    Trampoline,
    Kprobe,
    Tracepoint,
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Trampoline => "fentry/LSM",
            Self::Kprobe => "kprobe",
            Self::Tracepoint => "tracepoint",
        })
    }
}

/// A program and the typed tracepoint (`tp_btf`) that it is for.
#[derive(Debug, Clone, Copy)]
pub struct Point {
    pub program: &'static str,
    pub tracepoint: &'static str,
}

pub struct Hook {
    pub name: &'static str,
    /// Numbers of the kinds that it tells.
    pub kinds: &'static [u16],
    pub points: &'static [Point],
    /// System calls, whose programs the dispatcher at `sys_exit` leads to.
    pub calls: &'static [&'static [Row]],
    /// Operations of io_uring, each with the call that it is the same as.
    pub operations: &'static [(u8, &'static str)],
    /// Kernel structs of whose fields none may be missing, besides [`CORE`].
    pub needs: &'static [&'static [&'static str]],
}

/// Structs that every program reads.
pub const CORE: &[&str] = &["task_struct", "cred", "nsproxy", "pid", "user_namespace"];
const PATHS: &[&str] = &["path", "dentry", "vfsmount", "mount", "fs_struct", "inode"];
const DESCRIPTORS: &[&str] = &["files_struct", "fdtable", "file"];
const SOCKETS: &[&str] = &["inode", "socket", "sock"];
const FILES: &[&[&str]] = &[PATHS, DESCRIPTORS];
const SOCKET_CALLS: &[&[&str]] = &[DESCRIPTORS, SOCKETS];

/// What attaches to typed tracepoints.
const fn points(
    name: &'static str,
    kinds: &'static [u16],
    points: &'static [Point],
    needs: &'static [&'static [&'static str]],
) -> Hook {
    Hook {
        name,
        kinds,
        points,
        calls: &[],
        operations: &[],
        needs,
    }
}

/// What the ends of system calls tell.
const fn calls(
    name: &'static str,
    kinds: &'static [u16],
    calls: &'static [&'static [Row]],
    needs: &'static [&'static [&'static str]],
) -> Hook {
    Hook {
        name,
        kinds,
        points: &[],
        calls,
        operations: &[],
        needs,
    }
}

const fn point(program: &'static str, tracepoint: &'static str) -> Point {
    Point {
        program,
        tracepoint,
    }
}

/// Leads each returning system call to its program; attached when any hook has calls.
pub const DISPATCHER: Point = point("sys_exit", "sys_exit");

pub const HOOKS: &[Hook] = &[
    points(
        "exec",
        &[kind::EXEC],
        &[point("exec", "sched_process_exec")],
        &[&["linux_binprm", "mm_struct"], PATHS],
    ),
    calls(
        "exec_failed",
        &[kind::EXEC_FAILED],
        &[calls::EXEC_FAILED],
        FILES,
    ),
    points(
        "fork",
        &[kind::FORK],
        &[point("fork", "sched_process_fork")],
        &[],
    ),
    points(
        "exit",
        &[kind::EXIT],
        &[point("exit", "sched_process_exit")],
        &[&["signal_struct"]],
    ),
    // Without it, containers that end at once may stay unnamed.
    points(
        "cgroup",
        &[],
        &[point("cgroup", "cgroup_mkdir")],
        &[&["cgroup", "cgroup_root", "kernfs_node"]],
    ),
    calls(
        "credentials",
        &[kind::CREDENTIALS],
        &[calls::CREDENTIALS],
        FILES,
    ),
    calls("ptrace", &[kind::PTRACE], &[calls::PTRACE], FILES),
    Hook {
        name: "signal",
        kinds: &[kind::SIGNAL],
        points: &[point("signal", "signal_generate")],
        calls: &[calls::SIGNAL],
        operations: &[],
        needs: &[&["kernel_siginfo"]],
    },
    calls(
        "namespace",
        &[kind::NAMESPACE],
        &[calls::NAMESPACE],
        &[
            &["uts_namespace", "ipc_namespace", "cgroup_namespace"],
            PATHS,
            DESCRIPTORS,
        ],
    ),
    calls("module", &[kind::MODULE], &[calls::MODULE], FILES),
    calls(
        "bpf",
        &[kind::BPF],
        &[calls::BPF],
        &[&["bpf_prog", "bpf_prog_aux", "bpf_map"], DESCRIPTORS],
    ),
    calls("memfd", &[kind::MEMFD], &[calls::MEMFD], FILES),
    calls(
        "memory_exec",
        &[kind::MEMORY_EXEC],
        &[calls::MEMORY_EXEC],
        FILES,
    ),
    calls("mount", &[kind::MOUNT], &[calls::MOUNT], FILES),
    calls(
        "time_change",
        &[kind::TIME_CHANGE],
        &[calls::TIME_CHANGE],
        FILES,
    ),
    calls("system", &[kind::SYSTEM], &[calls::SYSTEM], FILES),
    Hook {
        name: "connect",
        kinds: &[kind::CONNECT, kind::UNIX_CONNECT, kind::CLOSE_FLOW],
        points: &[point("socket_state", "inet_sock_set_state")],
        calls: &[calls::CONNECT, calls::SOCKETCALL],
        operations: &[],
        needs: &[
            DESCRIPTORS,
            SOCKETS,
            &["unix_sock", "unix_address", "tcp_sock", "inet_sock"],
        ],
    },
    calls("accept", &[kind::ACCEPT], &[calls::ACCEPT], SOCKET_CALLS),
    calls("bind", &[kind::BIND], &[calls::BIND], SOCKET_CALLS),
    calls("listen", &[kind::LISTEN], &[calls::LISTEN], SOCKET_CALLS),
    calls(
        "datagram",
        &[kind::DATAGRAM],
        &[calls::DATAGRAM],
        SOCKET_CALLS,
    ),
    calls(
        "socket_special",
        &[kind::SOCKET_SPECIAL],
        &[calls::SOCKET],
        SOCKET_CALLS,
    ),
    calls("open", &[kind::OPEN], &[calls::OPEN], FILES),
    calls("unlink", &[kind::UNLINK], &[calls::UNLINK], FILES),
    calls("rename", &[kind::RENAME], &[calls::RENAME], FILES),
    calls("link", &[kind::LINK], &[calls::LINK], FILES),
    calls(
        "mkdir_mknod",
        &[kind::MKDIR_MKNOD],
        &[calls::MKDIR_MKNOD],
        FILES,
    ),
    calls("mode", &[kind::MODE], &[calls::MODE], FILES),
    calls("owner", &[kind::OWNER], &[calls::OWNER], FILES),
    calls("truncate", &[kind::TRUNCATE], &[calls::TRUNCATE], FILES),
    calls("xattr", &[kind::XATTR], &[calls::XATTR], FILES),
    // After all whose calls it is the same as: it tells what they do not leave out.
    Hook {
        name: "io_uring",
        kinds: &[],
        points: &[],
        calls: &[],
        operations: calls::IO_URING,
        needs: &[
            PATHS,
            DESCRIPTORS,
            SOCKETS,
            &["unix_sock", "unix_address"],
            URING,
        ],
    },
];

/// Requests of io_uring, as far as every kernel has them whose requests can be told.
const URING: &[&str] = &[
    "filename",
    "io_kiocb",
    "io_open",
    "io_unlink",
    "io_rename",
    "io_hardlink",
    "io_symlink",
    "io_mkdir",
    "io_connect",
    "io_accept",
    "io_sr_msg",
];

/// What a hook got.
#[derive(Debug, Clone)]
pub struct HookStatus {
    pub name: &'static str,
    pub kinds: Vec<&'static str>,
    pub attached: Option<Rung>,
    /// The configuration leaves all of its kinds out.
    pub off: bool,
    /// Better rungs that were not taken, and why.
    pub tried: Vec<(Rung, String)>,
}
