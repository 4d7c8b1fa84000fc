//! Which hooks are there, and which places can each be attached to, best first?
//!
//! A hook is one row of [`HOOKS`]. Its rungs are tried in order; the first on which everything
//! loads and attaches is used, and the reasons of the others are kept for `doctor`.
//!
//! Where programs at tracepoints cannot be preempted (up to Linux 6.18), the tracepoint rung is the
//! first: nothing is skipped there and it costs least. Later kernels skip a program that another task
//! was preempted in; there kprobes come first.

use std::fmt;

use audit_common::kind;

use crate::calls::{self, Row};

/// Places to attach to, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rung {
    /// The kernel's security modules, of which BPF is one.
    Lsm,
    Fentry,
    Kprobe,
    Tracepoint,
    /// Runs once, over what is there.
    Iterator,
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lsm => "LSM",
            Self::Fentry => "fentry",
            Self::Kprobe => "kprobe",
            Self::Tracepoint => "tracepoint",
            Self::Iterator => "iterator",
        })
    }
}

/// A program and where it goes.
#[derive(Debug, Clone, Copy)]
pub struct Point {
    pub program: &'static str,
    pub place: Place,
}

#[derive(Debug, Clone, Copy)]
pub enum Place {
    /// A typed tracepoint (`tp_btf`).
    Tracepoint(&'static str),
    /// The beginning of a kernel function.
    Kprobe(&'static str),
    /// The same, by a trampoline.
    Fentry(&'static str),
    /// A hook of the kernel's security modules.
    Lsm(&'static str),
    /// A tracepoint, without its types.
    RawTracepoint(&'static str),
    /// Objects of a kind.
    Iterator(&'static str),
}

impl Place {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tracepoint(name)
            | Self::Kprobe(name)
            | Self::Fentry(name)
            | Self::Lsm(name)
            | Self::RawTracepoint(name)
            | Self::Iterator(name) => name,
        }
    }
}

pub struct Hook {
    pub name: &'static str,
    /// Numbers of the kinds that it tells.
    pub kinds: &'static [u16],
    pub points: &'static [Point],
    /// In place of `points` where programs at tracepoints can be preempted; what cannot be preempted
    /// there (it runs in interrupts or under a spin lock) stays at its tracepoint.
    pub probes: &'static [Point],
    /// System calls, whose programs the dispatcher leads to.
    pub calls: &'static [&'static [Row]],
    /// Operations of io_uring, each with the call that it is the same as.
    pub operations: &'static [(u8, &'static str)],
    /// Kernel structs of whose fields none may be missing, besides [`CORE`].
    pub needs: &'static [&'static [&'static str]],
    /// `probes` are better on every kernel that has kprobes, and tried first there.
    pub probes_first: bool,
}

/// Structs that every program reads.
pub const CORE: &[&str] = &["task_struct", "cred", "nsproxy", "pid", "user_namespace"];
const PATHS: &[&str] = &[
    "path",
    "dentry",
    "vfsmount",
    "mount",
    "fs_struct",
    "inode",
    "super_block",
];
const DESCRIPTORS: &[&str] = &["files_struct", "fdtable", "file"];
const SOCKETS: &[&str] = &["inode", "socket", "sock"];
const FILES: &[&[&str]] = &[PATHS, DESCRIPTORS];
const SOCKET_CALLS: &[&[&str]] = &[DESCRIPTORS, SOCKETS];
/// Of the iterator that tells what was there before the agent.
pub const SNAPSHOT_NEEDS: &[&[&str]] = &[CORE, DESCRIPTORS, SOCKETS];

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
        probes: points,
        calls: &[],
        operations: &[],
        needs,
        probes_first: false,
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
        probes: &[],
        calls,
        operations: &[],
        needs,
        probes_first: false,
    }
}

const fn point(program: &'static str, tracepoint: &'static str) -> Point {
    Point {
        program,
        place: Place::Tracepoint(tracepoint),
    }
}

const fn probe(program: &'static str, function: &'static str) -> Point {
    Point {
        program,
        place: Place::Kprobe(function),
    }
}

/// The hook with these points on the kprobe rung.
const fn or(hook: Hook, probes: &'static [Point]) -> Hook {
    Hook { probes, ..hook }
}

/// Leads each returning system call to its program; attached when any hook has calls.
pub const DISPATCHER: Point = point("sys_exit", "sys_exit");
pub const PROBE_DISPATCHER: Point = probe("sys_exit_kprobe", "trace_syscall_exit");
/// The kernel comes by the place of the other only while somebody listens here.
pub const LISTENER: Point = point("empty_sys_exit", "sys_exit");

/// A security hook that path calls come by, and its program on each rung.
pub struct Object {
    function: &'static str,
    hook: &'static str,
    lsm: &'static str,
    fentry: &'static str,
    kprobe: &'static str,
}

impl Object {
    pub fn point(&self, rung: Rung) -> Point {
        let (program, place) = match rung {
            Rung::Lsm => (self.lsm, Place::Lsm(self.hook)),
            Rung::Fentry => (self.fentry, Place::Fentry(self.function)),
            _ => (self.kprobe, Place::Kprobe(self.function)),
        };
        Point { program, place }
    }
}

/// Where [`OBJECTS`] may be seen, best first.
pub const OBJECT_RUNGS: [Rung; 3] = [Rung::Lsm, Rung::Fentry, Rung::Kprobe];

macro_rules! objects {
    ($($hook:literal: $what:literal, $kprobe:literal;)+) => {
        &[$(Object {
            function: concat!("security_", $hook),
            hook: $hook,
            lsm: concat!("lsm_", $what),
            fentry: concat!("enter_", $what),
            kprobe: concat!("see_", $kprobe),
        }),+]
    };
}

/// They see what the calls act on. All of them or none: the programs of the calls' ends rely on them.
pub const OBJECTS: &[Object] = objects! {
    "file_open": "open", "open";
    "path_unlink": "unlink", "entry";
    "path_rmdir": "rmdir", "entry";
    "path_mkdir": "mkdir", "entry";
    "path_mknod": "mknod", "entry";
    "path_symlink": "symlink", "entry";
    "path_link": "link", "link";
    "path_rename": "rename", "rename";
    "path_chmod": "chmod", "path";
    "path_chown": "chown", "path";
    "path_truncate": "truncate", "path";
};

/// The kernel comes by for everything that it frees: open files, and what it has copied paths into.
pub const FREED: Point = Point {
    program: "freed",
    place: Place::RawTracepoint("kmem_cache_free"),
};

/// The same for the copies alone.
pub const NAME_FREED: Point = Point {
    program: "name_freed",
    ..FREED
};

/// Kinds that they tell the objects of.
pub const OBJECT_KINDS: &[u16] = &[
    kind::OPEN,
    kind::UNLINK,
    kind::RENAME,
    kind::LINK,
    kind::MKDIR_MKNOD,
    kind::MODE,
    kind::OWNER,
    kind::TRUNCATE,
];

pub const HOOKS: &[Hook] = &[
    or(
        points(
            "exec",
            &[kind::EXEC],
            &[point("exec", "sched_process_exec")],
            &[&["linux_binprm", "mm_struct"], PATHS],
        ),
        &[probe("exec_kprobe", "finalize_exec")],
    ),
    calls(
        "exec_failed",
        &[kind::EXEC_FAILED],
        &[calls::EXEC_FAILED],
        FILES,
    ),
    or(
        points(
            "fork",
            &[kind::FORK],
            &[point("fork", "sched_process_fork")],
            &[],
        ),
        &[probe("fork_kprobe", "wake_up_new_task")],
    ),
    or(
        points(
            "exit",
            &[kind::EXIT],
            &[point("exit", "sched_process_exit")],
            &[&["signal_struct"]],
        ),
        &[probe("exit_kprobe", "taskstats_exit")],
    ),
    // Without it, containers that end at once may stay unnamed.
    points(
        "cgroup",
        &[],
        &[point("cgroup", "cgroup_mkdir")],
        &[&["cgroup", "cgroup_root", "kernfs_node"]],
    ),
    points(
        "container",
        &[kind::CONTAINER],
        &[point("container", "cgroup_notify_populated")],
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
        probes: &[point("signal", "signal_generate")],
        calls: &[calls::SIGNAL],
        operations: &[],
        needs: &[&["kernel_siginfo"]],
        probes_first: false,
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
        probes: &[point("socket_state", "inet_sock_set_state")],
        calls: &[calls::CONNECT, calls::SOCKETCALL],
        operations: &[],
        needs: &[
            DESCRIPTORS,
            SOCKETS,
            &["unix_sock", "unix_address", "tcp_sock", "inet_sock"],
        ],
        probes_first: false,
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
    // Its sends are told by the programs of "datagram"; "connect" says which descriptors to watch.
    calls(
        "dns",
        &[kind::DNS],
        &[
            calls::DATAGRAM,
            calls::DNS,
            calls::READ_WRITE,
            calls::SOCKETCALL,
        ],
        &[DESCRIPTORS, SOCKETS, &["tcp_sock", "net"]],
    ),
    calls(
        "socket_special",
        &[kind::SOCKET_SPECIAL],
        &[calls::SOCKET],
        SOCKET_CALLS,
    ),
    calls("open", &[kind::OPEN], &[calls::OPEN], FILES),
    Hook {
        name: "close_write",
        kinds: &[kind::CLOSE_WRITE],
        points: &[FREED],
        probes: &[probe("close_write_kprobe", "locks_remove_file")],
        calls: &[calls::READ_WRITE, calls::MOVED],
        operations: &[],
        needs: FILES,
        probes_first: true,
    },
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
        probes: &[],
        calls: &[],
        operations: calls::IO_URING,
        needs: &[
            PATHS,
            DESCRIPTORS,
            SOCKETS,
            &["unix_sock", "unix_address"],
            URING,
        ],
        probes_first: false,
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
    /// Where its objects are seen, not only what the caller's memory says of them; `Err` says why
    /// they are not. `None` for a hook that needs it not.
    pub objects: Option<Result<Rung, String>>,
    /// The texts of its calls are told as the kernel has copied them, so that nobody can change them
    /// any more; `Err` says why not. `None` for a hook without such texts.
    pub texts: Option<Result<(), String>>,
    /// Better rungs that were not taken, and why.
    pub tried: Vec<(Rung, String)>,
}
