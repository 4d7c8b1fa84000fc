//! Which hooks are there, and which places can each be attached to, best first?
//!
//! A hook is one row of [`HOOKS`]. Its rungs are tried in order; the first on which everything
//! loads and attaches is used, and the reasons of the others are kept for `doctor`. This version
//! has programs for the tracepoint rung; trampolines and kprobes come before it in [`Rung`].

use std::fmt;

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

/// One program and where it goes.
#[derive(Debug, Clone, Copy)]
pub enum Point {
    /// `tp_btf`: a tracepoint whose arguments are typed.
    Btf {
        program: &'static str,
        tracepoint: &'static str,
    },
    /// `syscalls:sys_exit_NAME`; absent where the architecture has no such call.
    Exit {
        program: &'static str,
        call: &'static str,
    },
}

pub struct Hook {
    pub name: &'static str,
    pub kinds: &'static [&'static str],
    pub points: &'static [Point],
    /// Kernel structs of whose fields none may be missing, besides [`CORE`].
    pub needs: &'static [&'static str],
}

/// Structs that every program reads.
pub const CORE: &[&str] = &["task_struct", "cred", "nsproxy", "pid", "user_namespace"];
const FILES: &[&str] = &[
    "files_struct",
    "fdtable",
    "file",
    "path",
    "dentry",
    "vfsmount",
    "mount",
    "fs_struct",
    "inode",
];
const SOCKETS: &[&str] = &["files_struct", "fdtable", "file", "inode", "socket", "sock"];

const fn btf(program: &'static str, tracepoint: &'static str) -> Point {
    Point::Btf {
        program,
        tracepoint,
    }
}

const fn exit(program: &'static str, call: &'static str) -> Point {
    Point::Exit { program, call }
}

pub const HOOKS: &[Hook] = &[
    Hook {
        name: "exec",
        kinds: &["exec"],
        points: &[btf("exec", "sched_process_exec")],
        needs: &[
            "linux_binprm",
            "mm_struct",
            "path",
            "dentry",
            "vfsmount",
            "mount",
            "fs_struct",
            "inode",
        ],
    },
    Hook {
        name: "exec_failed",
        kinds: &["exec_failed"],
        points: &[
            exit("exit_execve", "execve"),
            exit("exit_execveat", "execveat"),
        ],
        needs: FILES,
    },
    Hook {
        name: "fork",
        kinds: &["fork"],
        points: &[btf("fork", "sched_process_fork")],
        needs: &[],
    },
    Hook {
        name: "exit",
        kinds: &["exit"],
        points: &[btf("exit", "sched_process_exit")],
        needs: &["signal_struct"],
    },
    // Without it, containers that end at once may stay unnamed.
    Hook {
        name: "cgroup",
        kinds: &[],
        points: &[btf("cgroup", "cgroup_mkdir")],
        needs: &["cgroup", "cgroup_root", "kernfs_node"],
    },
    Hook {
        name: "open",
        kinds: &["open"],
        points: &[
            exit("exit_open", "open"),
            exit("exit_openat", "openat"),
            exit("exit_openat2", "openat2"),
            exit("exit_creat", "creat"),
        ],
        needs: FILES,
    },
    Hook {
        name: "unlink",
        kinds: &["unlink"],
        points: &[
            exit("exit_unlink", "unlink"),
            exit("exit_unlinkat", "unlinkat"),
            exit("exit_rmdir", "rmdir"),
        ],
        needs: FILES,
    },
    Hook {
        name: "rename",
        kinds: &["rename"],
        points: &[
            exit("exit_rename", "rename"),
            exit("exit_renameat", "renameat"),
            exit("exit_renameat2", "renameat2"),
        ],
        needs: FILES,
    },
    Hook {
        name: "connect",
        kinds: &["connect"],
        points: &[
            exit("exit_connect", "connect"),
            btf("socket_state", "inet_sock_set_state"),
        ],
        needs: SOCKETS,
    },
    Hook {
        name: "accept",
        kinds: &["accept"],
        points: &[
            exit("exit_accept", "accept"),
            exit("exit_accept", "accept4"),
        ],
        needs: SOCKETS,
    },
    Hook {
        name: "bind",
        kinds: &["bind"],
        points: &[exit("exit_bind", "bind")],
        needs: SOCKETS,
    },
];

/// What a hook got.
#[derive(Debug, Clone)]
pub struct HookStatus {
    pub name: &'static str,
    pub kinds: &'static [&'static str],
    pub attached: Option<Rung>,
    /// Better rungs that were not taken, and why.
    pub tried: Vec<(Rung, String)>,
}
