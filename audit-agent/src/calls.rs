//! Which system calls are recorded, which kernel program serves each, and what their arguments mean.
//!
//! This is the one list: the probe fills the kernel programs' maps from it, and [`crate::decode`]
//! reads records with it. A new call of a known form is a row here.
//!
//! Numbers: `arch/x86/entry/syscalls/syscall_{64,32}.tbl`, `include/uapi/asm-generic/unistd.h`, as
//! of Linux 6.18; they never change.

use std::sync::LazyLock;

use audit_common::{
    call::{COMPAT_SLOT, NONE, SLOTS, Shape, flags},
    kind,
};

/// The number of x86_64's read.
pub const ZERO: u16 = u16::MAX;

fn number(of_table: u16) -> u32 {
    if of_table == ZERO { 0 } else { of_table.into() }
}

/// One system call.
#[derive(Debug)]
pub struct Row {
    pub name: &'static str,
    /// The kernel program that its slot leads to.
    pub program: &'static str,
    /// x86_64, arm64, i386, and where x32 has a number of its own; 0 for none, [`ZERO`] for 0.
    numbers: [u16; 4],
    pub shape: Shape,
    /// Positions of arguments that the record's readers name.
    pub meaning: Meaning,
}

/// Where a call has its flags, the mode of a file, its owner, a size.
#[derive(Debug, Clone, Copy)]
pub struct Meaning {
    pub flags: u8,
    pub mode: u8,
    /// The group is the next argument.
    pub owner: u8,
    pub size: u8,
    pub device: u8,
    pub target_pid: u8,
}

const PLAIN: Meaning = Meaning {
    flags: NONE,
    mode: NONE,
    owner: NONE,
    size: NONE,
    device: NONE,
    target_pid: NONE,
};

const fn shape(kind: u16) -> Shape {
    let mut at = 0;
    while at < kind::ALL.len() {
        if kind::ALL[at].number == kind {
            return Shape::new(kind, kind::ALL[at].class);
        }
        at += 1;
    }
    panic!("no such kind")
}

/// A path from the working directory.
const fn path(kind: u16, path: u8) -> Shape {
    Shape {
        path,
        ..shape(kind)
    }
}

/// A path from a directory's descriptor.
const fn path_at(kind: u16, directory: u8, path: u8) -> Shape {
    Shape {
        path,
        directory,
        ..shape(kind)
    }
}

/// The same, and a final symbolic link is followed.
const fn follow(shape: Shape) -> Shape {
    Shape {
        flags: shape.flags | flags::FOLLOW,
        ..shape
    }
}

const fn to(shape: Shape, target_path: u8) -> Shape {
    Shape {
        target_path,
        ..shape
    }
}

const fn to_at(shape: Shape, target_directory: u8, target_path: u8) -> Shape {
    Shape {
        target_path,
        target_directory,
        ..shape
    }
}

const fn descriptor(kind: u16, descriptor: u8) -> Shape {
    Shape {
        descriptor,
        ..shape(kind)
    }
}

const fn text(shape: Shape, text: u8) -> Shape {
    Shape { text, ..shape }
}

const fn structure(shape: Shape, structure: u8, structure_bytes: u8) -> Shape {
    Shape {
        structure,
        structure_bytes,
        ..shape
    }
}

/// Only with one of these bits in that argument.
const fn bits(shape: Shape, filter: u8, mask: u32) -> Shape {
    Shape {
        filter,
        mask,
        ..shape
    }
}

/// Only with one of these values, below 32, or with `also`.
const fn values(shape: Shape, filter: u8, values: &[u32], also: u32) -> Shape {
    let (mut mask, mut at) = (0, 0);
    while at < values.len() {
        mask |= 1 << values[at];
        at += 1;
    }
    Shape {
        filter,
        mask,
        also,
        flags: shape.flags | flags::VALUES,
        ..shape
    }
}

const fn only_success(shape: Shape) -> Shape {
    Shape {
        flags: shape.flags | flags::ONLY_SUCCESS,
        ..shape
    }
}

/// Only if the structure begins with something.
const fn asked(shape: Shape) -> Shape {
    Shape {
        flags: shape.flags | flags::STRUCTURE_SET,
        ..shape
    }
}

const fn row(
    name: &'static str,
    program: &'static str,
    [x86_64, arm64, i386]: [u16; 3],
    shape: Shape,
) -> Row {
    Row {
        name,
        program,
        numbers: [x86_64, arm64, i386, 0],
        shape,
        meaning: PLAIN,
    }
}

/// Served by the program for calls that their arguments tell.
const fn call(name: &'static str, numbers: [u16; 3], shape: Shape) -> Row {
    row(name, "call", numbers, shape)
}

impl Row {
    const fn x32(mut self, number: u16) -> Self {
        self.numbers[3] = number;
        self
    }

    const fn flags(mut self, position: u8) -> Self {
        self.meaning.flags = position;
        self
    }

    const fn mode(mut self, position: u8) -> Self {
        self.meaning.mode = position;
        self
    }

    const fn owner(mut self, position: u8) -> Self {
        self.meaning.owner = position;
        self
    }

    const fn size(mut self, position: u8) -> Self {
        self.meaning.size = position;
        self
    }

    const fn device(mut self, position: u8) -> Self {
        self.meaning.device = position;
        self
    }

    const fn target(mut self, position: u8) -> Self {
        self.meaning.target_pid = position;
        self
    }

    /// Its number by each way of calling, 0 for none. A 64-bit call without a number of its own in
    /// x32 is called there by its 64-bit number.
    pub fn numbers(&self) -> [(&'static str, u16); 4] {
        let [x86_64, arm64, i386, x32] = self.numbers;
        [
            ("x86_64", x86_64),
            ("i386", i386),
            ("x32", if x32 == 0 { x86_64 } else { x32 }),
            ("arm64", arm64),
        ]
    }

    /// Slots of this call on this architecture.
    pub fn slots(&self) -> impl Iterator<Item = u32> + use<> {
        let [x86_64, arm64, i386, x32] = self.numbers;
        let slots = if cfg!(target_arch = "aarch64") {
            // The numbers of arm's 32-bit calls are those of i386 where both are old; they are not
            // in the table yet.
            [(arm64, 0), (0, 0), (0, 0)]
        } else {
            [(x86_64, 0), (i386, COMPAT_SLOT), (x32, 0)]
        };
        let known = slots.into_iter().filter(|(of_table, _)| *of_table != 0);
        known.map(|(of_table, first)| number(of_table) + first)
    }
}

/// The call of a slot, and how it is called there: "x86_64", "i386", "x32", "arm64". By its 64-bit
/// number a call may be x32's as well, which its record tells.
pub fn of_slot(slot: u32) -> Option<(&'static Row, &'static str)> {
    static SLOT: LazyLock<Vec<Option<&'static Row>>> = LazyLock::new(|| {
        let mut slots = vec![None; SLOTS as usize];
        for row in ALL.iter().copied().flatten() {
            for slot in row.slots() {
                if let Some(place) = slots.get_mut(slot as usize) {
                    *place = Some(row);
                }
            }
        }
        slots
    });
    let row = (*SLOT.get(slot as usize)?)?;
    let abi = match slot {
        COMPAT_SLOT.. => "i386",
        512.. => "x32",
        _ if cfg!(target_arch = "aarch64") => "arm64",
        _ => "x86_64",
    };
    Some((row, abi))
}

/// Every table below.
pub const ALL: &[&[Row]] = &[
    EXEC_FAILED,
    CREDENTIALS,
    PTRACE,
    SIGNAL,
    NAMESPACE,
    MODULE,
    BPF,
    MEMFD,
    MEMORY_EXEC,
    MOUNT,
    TIME_CHANGE,
    SYSTEM,
    CONNECT,
    ACCEPT,
    BIND,
    LISTEN,
    DATAGRAM,
    DNS,
    READ_WRITE,
    SOCKET,
    SOCKETCALL,
    OPEN,
    MOVED,
    UNLINK,
    RENAME,
    LINK,
    MKDIR_MKNOD,
    MODE,
    OWNER,
    TRUNCATE,
    XATTR,
];

pub const EXEC_FAILED: &[Row] = &[
    row(
        "execve",
        "exit_exec",
        [59, 221, 11],
        text(path(kind::EXEC_FAILED, 0), 1),
    )
    .x32(520),
    row(
        "execveat",
        "exit_exec",
        [322, 281, 358],
        text(path_at(kind::EXEC_FAILED, 0, 1), 2),
    )
    .x32(545),
];

const CREDENTIAL: Shape = shape(kind::CREDENTIALS);
pub const CREDENTIALS: &[Row] = &[
    call("setuid", [105, 146, 23], CREDENTIAL),
    call("setgid", [106, 144, 46], CREDENTIAL),
    call("setreuid", [113, 145, 70], CREDENTIAL),
    call("setregid", [114, 143, 71], CREDENTIAL),
    call("setresuid", [117, 147, 164], CREDENTIAL),
    call("setresgid", [119, 149, 170], CREDENTIAL),
    call("setfsuid", [122, 151, 138], CREDENTIAL),
    call("setfsgid", [123, 152, 139], CREDENTIAL),
    call("setgroups", [116, 159, 81], CREDENTIAL),
    call("capset", [126, 91, 185], CREDENTIAL),
    call("setuid32", [0, 0, 213], CREDENTIAL),
    call("setgid32", [0, 0, 214], CREDENTIAL),
    call("setreuid32", [0, 0, 203], CREDENTIAL),
    call("setregid32", [0, 0, 204], CREDENTIAL),
    call("setresuid32", [0, 0, 208], CREDENTIAL),
    call("setresgid32", [0, 0, 210], CREDENTIAL),
    call("setfsuid32", [0, 0, 215], CREDENTIAL),
    call("setfsgid32", [0, 0, 216], CREDENTIAL),
    call("setgroups32", [0, 0, 206], CREDENTIAL),
];

/// POKETEXT, POKEDATA, POKEUSER, SETREGS, ATTACH, SETFPREGS; SEIZE. (PEEK and CONT are what a
/// debugger does thousands of times after that.)
const PTRACES: Shape = values(shape(kind::PTRACE), 0, &[4, 5, 6, 13, 15, 16], 0x4206);
pub const PTRACE: &[Row] = &[
    call("ptrace", [101, 117, 26], PTRACES).x32(521).target(1),
    call("process_vm_writev", [311, 271, 348], shape(kind::PTRACE))
        .x32(540)
        .target(0),
    call("pidfd_getfd", [438, 438, 438], descriptor(kind::PTRACE, 0)),
];

/// What is delivered, the kernel tells itself (`signal_generate`); these are for what is not.
pub const SIGNAL: &[Row] = &[
    call("kill", [62, 129, 37], REFUSED_SIGNAL).target(0),
    call("tkill", [200, 130, 238], REFUSED_SIGNAL).target(0),
    call("tgkill", [234, 131, 270], REFUSED_SIGNAL).target(0),
    call("rt_sigqueueinfo", [129, 138, 178], REFUSED_SIGNAL)
        .x32(524)
        .target(0),
    call("pidfd_send_signal", [424, 424, 424], REFUSED_SIGNAL),
];
const REFUSED_SIGNAL: Shape = Shape {
    flags: flags::ONLY_FAILURE,
    ..shape(kind::SIGNAL)
};

/// CLONE_NEWTIME, NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
const NEW_NAMESPACES: u32 = 0x7e02_0080;
pub const NAMESPACE: &[Row] = &[
    call(
        "unshare",
        [272, 97, 310],
        bits(shape(kind::NAMESPACE), 0, NEW_NAMESPACES),
    )
    .flags(0),
    call("setns", [308, 268, 346], descriptor(kind::NAMESPACE, 0)).flags(1),
];

pub const MODULE: &[Row] = &[
    call("init_module", [175, 105, 128], text(shape(kind::MODULE), 2)),
    call(
        "finit_module",
        [313, 273, 350],
        text(descriptor(kind::MODULE, 0), 1),
    )
    .flags(2),
    call(
        "delete_module",
        [176, 106, 129],
        text(shape(kind::MODULE), 0),
    )
    .flags(1),
];

pub const BPF: &[Row] = &[row("bpf", "exit_bpf", [321, 280, 357], shape(kind::BPF))];

pub const MEMFD: &[Row] = &[call(
    "memfd_create",
    [319, 279, 356],
    only_success(text(shape(kind::MEMFD), 0)),
)
.flags(1)];

/// PROT_EXEC of mprotect, pkey_mprotect; mmap of a program is not one of them.
pub const MEMORY_EXEC: &[Row] = &[
    call(
        "mprotect",
        [10, 226, 125],
        only_success(bits(shape(kind::MEMORY_EXEC), 2, 4)),
    )
    .flags(2),
    call(
        "pkey_mprotect",
        [329, 288, 380],
        only_success(bits(shape(kind::MEMORY_EXEC), 2, 4)),
    )
    .flags(2),
];

pub const MOUNT: &[Row] = &[
    call(
        "mount",
        [165, 40, 21],
        Shape {
            text: 0,
            second_text: 2,
            ..follow(path(kind::MOUNT, 1))
        },
    )
    .flags(3),
    call("umount", [0, 0, 22], follow(path(kind::MOUNT, 0))),
    call("umount2", [166, 39, 52], follow(path(kind::MOUNT, 0))).flags(1),
    call(
        "move_mount",
        [429, 429, 429],
        to_at(path_at(kind::MOUNT, 0, 1), 2, 3),
    )
    .flags(4),
    call("pivot_root", [155, 41, 217], to(path(kind::MOUNT, 0), 1)),
];

const TIMES: Shape = shape(kind::TIME_CHANGE);
pub const TIME_CHANGE: &[Row] = &[
    call("clock_settime", [227, 112, 264], structure(TIMES, 1, 16)),
    call("clock_settime64", [0, 0, 404], structure(TIMES, 1, 16)),
    call("settimeofday", [164, 170, 79], structure(TIMES, 0, 16)),
    call("stime", [0, 0, 25], structure(TIMES, 0, 4)),
    // Called all day to ask; `modes`, the first field, is 0 then.
    call("adjtimex", [159, 171, 124], asked(structure(TIMES, 0, 4))),
    call(
        "clock_adjtime",
        [305, 266, 343],
        asked(structure(TIMES, 1, 4)),
    ),
    call(
        "clock_adjtime64",
        [0, 0, 405],
        asked(structure(TIMES, 1, 4)),
    ),
];

const SYSTEMS: Shape = shape(kind::SYSTEM);
/// KEYCTL_UPDATE 2, REVOKE 3, CHOWN 4, SETPERM 5, CLEAR 7, LINK 8, UNLINK 9, READ 11,
/// INSTANTIATE 12, INVALIDATE 21.
const KEYCTL: Shape = values(SYSTEMS, 0, &[2, 3, 4, 5, 7, 8, 9, 11, 12, 21], 2);
pub const SYSTEM: &[Row] = &[
    call("reboot", [169, 142, 88], SYSTEMS),
    call("kexec_load", [246, 104, 283], SYSTEMS).x32(528),
    call(
        "kexec_file_load",
        [320, 294, 0],
        descriptor(kind::SYSTEM, 0),
    )
    .flags(4),
    call("sethostname", [170, 161, 74], text(SYSTEMS, 0)),
    call("setdomainname", [171, 162, 121], text(SYSTEMS, 0)),
    call("swapon", [167, 224, 87], follow(path(kind::SYSTEM, 0))).flags(1),
    call("swapoff", [168, 225, 115], follow(path(kind::SYSTEM, 0))),
    call("quotactl", [179, 60, 131], SYSTEMS),
    call("syslog", [103, 116, 103], SYSTEMS),
    call("sysinfo", [99, 179, 116], SYSTEMS),
    call("personality", [135, 92, 136], SYSTEMS),
    call("keyctl", [250, 219, 288], KEYCTL),
    call("add_key", [248, 217, 286], text(SYSTEMS, 1)),
    call("request_key", [249, 218, 287], text(SYSTEMS, 1)),
    call("perf_event_open", [298, 241, 336], SYSTEMS),
    call("iopl", [172, 0, 110], SYSTEMS),
    call("ioperm", [173, 0, 101], SYSTEMS),
];

pub const CONNECT: &[Row] = &[row(
    "connect",
    "exit_connect",
    [42, 203, 362],
    shape(kind::CONNECT),
)];
pub const ACCEPT: &[Row] = &[
    row("accept", "exit_accept", [43, 202, 0], shape(kind::ACCEPT)),
    row(
        "accept4",
        "exit_accept",
        [288, 242, 364],
        shape(kind::ACCEPT),
    ),
];
pub const BIND: &[Row] = &[row("bind", "exit_bind", [49, 200, 361], shape(kind::BIND))];
pub const LISTEN: &[Row] = &[row(
    "listen",
    "exit_listen",
    [50, 201, 363],
    shape(kind::LISTEN),
)];
pub const DATAGRAM: &[Row] = &[
    row(
        "sendto",
        "exit_sendto",
        [44, 206, 369],
        shape(kind::DATAGRAM),
    ),
    row(
        "sendmsg",
        "exit_sendmsg",
        [46, 211, 370],
        shape(kind::DATAGRAM),
    )
    .x32(518),
    row(
        "sendmmsg",
        "exit_sendmmsg",
        [307, 269, 345],
        shape(kind::DATAGRAM),
    )
    .x32(538),
];
/// Calls that are of interest for DNS only.
pub const DNS: &[Row] = &[
    row(
        "recvfrom",
        "exit_recvfrom",
        [45, 207, 371],
        shape(kind::DNS),
    )
    .x32(517),
    row("recvmsg", "exit_recvmsg", [47, 212, 372], shape(kind::DNS)).x32(519),
    row(
        "recvmmsg",
        "exit_recvmmsg",
        [299, 243, 337],
        shape(kind::DNS),
    )
    .x32(537),
    row(
        "recvmmsg_time64",
        "exit_recvmmsg",
        [0, 0, 417],
        shape(kind::DNS),
    ),
];
/// Of DNS where the descriptor is connected to port 53; of files that are open for writing they
/// count the bytes.
pub const READ_WRITE: &[Row] = &[
    row("read", "exit_read", [ZERO, 63, 3], shape(kind::DNS)),
    row("readv", "exit_readv", [19, 65, 145], shape(kind::DNS)).x32(515),
    row("write", "exit_write", [1, 64, 4], shape(kind::DNS)),
    row("writev", "exit_writev", [20, 66, 146], shape(kind::DNS)).x32(516),
];
pub const SOCKET: &[Row] = &[row(
    "socket",
    "exit_socket",
    [41, 198, 359],
    shape(kind::SOCKET_SPECIAL),
)];
/// All of them, as i386 did before it had a call for each.
pub const SOCKETCALL: &[Row] = &[row(
    "socketcall",
    "exit_socketcall",
    [0, 0, 102],
    shape(kind::CONNECT),
)];

/// Here `filter` is the position of the flags: none are filtered.
const fn open_flags(shape: Shape, filter: u8) -> Shape {
    Shape { filter, ..shape }
}

pub const OPEN: &[Row] = &[
    row(
        "open",
        "exit_open",
        [2, 0, 5],
        open_flags(path(kind::OPEN, 0), 1),
    ),
    row(
        "openat",
        "exit_open",
        [257, 56, 295],
        open_flags(path_at(kind::OPEN, 0, 1), 2),
    ),
    row(
        "openat2",
        "exit_open",
        [437, 437, 437],
        structure(path_at(kind::OPEN, 0, 1), 2, 8),
    ),
    row("creat", "exit_open", [85, 0, 8], path(kind::OPEN, 0)),
    row(
        "open_by_handle_at",
        "exit_open",
        [304, 265, 342],
        open_flags(shape(kind::OPEN), 2),
    ),
];

/// Moves bytes from the file behind one descriptor, or to that behind another.
const fn moves(source: u8, sink: u8) -> Shape {
    Shape {
        source,
        sink,
        ..shape(kind::CLOSE_WRITE)
    }
}

const READS: Shape = moves(0, NONE);
const WRITES: Shape = moves(NONE, 0);

/// Calls whose bytes are counted for the close of a file. Those of [`READ_WRITE`] are too.
pub const MOVED: &[Row] = &[
    row("pread64", "exit_moved", [17, 67, 180], READS),
    row("pwrite64", "exit_moved", [18, 68, 181], WRITES),
    row("preadv", "exit_moved", [295, 69, 333], READS).x32(534),
    row("pwritev", "exit_moved", [296, 70, 334], WRITES).x32(535),
    row("preadv2", "exit_moved", [327, 286, 378], READS).x32(546),
    row("pwritev2", "exit_moved", [328, 287, 379], WRITES).x32(547),
    row("sendfile", "exit_moved", [40, 71, 187], moves(1, 0)),
    row("sendfile64", "exit_moved", [0, 0, 239], moves(1, 0)),
    row("splice", "exit_moved", [275, 76, 313], moves(0, 2)),
    row(
        "copy_file_range",
        "exit_moved",
        [326, 285, 377],
        moves(0, 2),
    ),
];

pub const UNLINK: &[Row] = &[
    call("unlink", [87, 0, 10], path(kind::UNLINK, 0)),
    call("unlinkat", [263, 35, 301], path_at(kind::UNLINK, 0, 1)).flags(2),
    call("rmdir", [84, 0, 40], path(kind::UNLINK, 0)),
];

pub const RENAME: &[Row] = &[
    call("rename", [82, 0, 38], to(path(kind::RENAME, 0), 1)),
    call(
        "renameat",
        [264, 38, 302],
        to_at(path_at(kind::RENAME, 0, 1), 2, 3),
    ),
    call(
        "renameat2",
        [316, 276, 353],
        to_at(path_at(kind::RENAME, 0, 1), 2, 3),
    )
    .flags(4),
];

pub const LINK: &[Row] = &[
    call("link", [86, 0, 9], to(path(kind::LINK, 0), 1)),
    call(
        "linkat",
        [265, 37, 303],
        to_at(path_at(kind::LINK, 0, 1), 2, 3),
    )
    .flags(4),
    // What a symbolic link says is a text, not a file.
    call("symlink", [88, 0, 83], text(path(kind::LINK, 1), 0)),
    call(
        "symlinkat",
        [266, 36, 304],
        text(path_at(kind::LINK, 1, 2), 0),
    ),
];

pub const MKDIR_MKNOD: &[Row] = &[
    call("mkdir", [83, 0, 39], path(kind::MKDIR_MKNOD, 0)).mode(1),
    call("mkdirat", [258, 34, 296], path_at(kind::MKDIR_MKNOD, 0, 1)).mode(2),
    call("mknod", [133, 0, 14], path(kind::MKDIR_MKNOD, 0))
        .mode(1)
        .device(2),
    call("mknodat", [259, 33, 297], path_at(kind::MKDIR_MKNOD, 0, 1))
        .mode(2)
        .device(3),
];

pub const MODE: &[Row] = &[
    call("chmod", [90, 0, 15], follow(path(kind::MODE, 0))).mode(1),
    call("fchmod", [91, 52, 94], descriptor(kind::MODE, 0)).mode(1),
    call(
        "fchmodat",
        [268, 53, 306],
        follow(path_at(kind::MODE, 0, 1)),
    )
    .mode(2),
    call(
        "fchmodat2",
        [452, 452, 452],
        follow(path_at(kind::MODE, 0, 1)),
    )
    .mode(2)
    .flags(3),
];

pub const OWNER: &[Row] = &[
    call("chown", [92, 0, 182], follow(path(kind::OWNER, 0))).owner(1),
    call("lchown", [94, 0, 16], path(kind::OWNER, 0)).owner(1),
    call("fchown", [93, 55, 95], descriptor(kind::OWNER, 0)).owner(1),
    call(
        "fchownat",
        [260, 54, 298],
        follow(path_at(kind::OWNER, 0, 1)),
    )
    .owner(2)
    .flags(4),
    call("chown32", [0, 0, 212], follow(path(kind::OWNER, 0))).owner(1),
    call("lchown32", [0, 0, 198], path(kind::OWNER, 0)).owner(1),
    call("fchown32", [0, 0, 207], descriptor(kind::OWNER, 0)).owner(1),
];

pub const TRUNCATE: &[Row] = &[
    call("truncate", [76, 45, 92], follow(path(kind::TRUNCATE, 0))).size(1),
    call("ftruncate", [77, 46, 93], descriptor(kind::TRUNCATE, 0)).size(1),
    // The size is in two arguments, low half first.
    call("truncate64", [0, 0, 193], follow(path(kind::TRUNCATE, 0))).size(1),
    call("ftruncate64", [0, 0, 194], descriptor(kind::TRUNCATE, 0)).size(1),
];

pub const XATTR: &[Row] = &[
    call(
        "setxattr",
        [188, 5, 226],
        follow(text(path(kind::XATTR, 0), 1)),
    )
    .flags(4),
    call("lsetxattr", [189, 6, 227], text(path(kind::XATTR, 0), 1)).flags(4),
    call(
        "fsetxattr",
        [190, 7, 228],
        text(descriptor(kind::XATTR, 0), 1),
    )
    .flags(4),
    call(
        "removexattr",
        [197, 14, 235],
        follow(text(path(kind::XATTR, 0), 1)),
    ),
    call(
        "lremovexattr",
        [198, 15, 236],
        text(path(kind::XATTR, 0), 1),
    ),
    call(
        "fremovexattr",
        [199, 16, 237],
        text(descriptor(kind::XATTR, 0), 1),
    ),
    call(
        "setxattrat",
        [463, 463, 463],
        follow(text(path_at(kind::XATTR, 0, 1), 3)),
    )
    .flags(2),
    call(
        "removexattrat",
        [466, 466, 466],
        follow(text(path_at(kind::XATTR, 0, 1), 3)),
    )
    .flags(2),
];

/// Operations of io_uring (`enum io_uring_op`), by the call that each is the same as.
pub const IO_URING: &[(u8, &str)] = &[
    (9, "sendmsg"),
    (13, "accept4"),
    (16, "connect"),
    (18, "openat"),
    (26, "sendto"),
    (28, "openat2"),
    (35, "renameat2"),
    (36, "unlinkat"),
    (37, "mkdirat"),
    (38, "symlinkat"),
    (39, "linkat"),
    (41, "fsetxattr"),
    (42, "setxattr"),
    (45, "socket"),
    (47, "sendto"),  // SEND_ZC
    (48, "sendmsg"), // SENDMSG_ZC
    (55, "ftruncate"),
    (56, "bind"),
    (57, "listen"),
];

/// The slot of a native call.
pub fn slot(name: &str) -> Option<u32> {
    let mut rows = ALL.iter().copied().flatten();
    rows.find(|row| row.name == name)?.slots().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel's own list, of the installed headers.
    fn header(name: &str, file: &str) -> Option<Vec<(String, u32)>> {
        let path = format!("/usr/include/x86_64-linux-gnu/asm/{file}");
        let Ok(text) = std::fs::read_to_string(&path) else {
            eprintln!("SKIPPED ({name}): no {path}");
            return None;
        };
        let lines = text.lines().filter_map(|line| {
            let (name, number) = line.strip_prefix("#define __NR_")?.split_once(' ')?;
            let number = number.trim_start_matches("(__X32_SYSCALL_BIT + ");
            Some((name.to_owned(), number.trim_end_matches(')').parse().ok()?))
        });
        Some(lines.collect())
    }

    #[test]
    fn numbers_are_the_kernels() {
        for (file, at) in [("unistd_64.h", 0), ("unistd_32.h", 2), ("unistd_x32.h", 3)] {
            let Some(known) = header("numbers_are_the_kernels", file) else {
                return;
            };
            for row in ALL.iter().copied().flatten() {
                if row.numbers[at] == 0 {
                    continue;
                }
                let number = number(row.numbers[at]);
                match known.iter().find(|(name, _)| name == row.name) {
                    Some((_, expected)) => assert_eq!(number, *expected, "{} in {file}", row.name),
                    // Newer than the headers.
                    None => assert!(number > 450, "{} is not in {file}", row.name),
                }
            }
        }
    }

    #[test]
    fn each_slot_leads_to_one_call() {
        let mut seen = std::collections::BTreeMap::new();
        for row in ALL.iter().copied().flatten() {
            for slot in row.slots() {
                assert!(slot < SLOTS);
                assert_eq!(seen.insert(slot, row.name), None, "{}", row.name);
                assert_eq!(of_slot(slot).map(|(found, _)| found.name), Some(row.name));
            }
        }
        assert!(of_slot(SLOTS).is_none());
    }

    #[test]
    fn each_operation_of_io_uring_is_a_call() {
        for (operation, name) in IO_URING {
            assert!(u32::from(*operation) < audit_common::limits::URING_OPERATIONS);
            let (found, abi) = slot(name).and_then(of_slot).expect(name);
            assert_eq!(found.name, *name);
            assert!(["x86_64", "arm64"].contains(&abi), "{name}: {abi}");
        }
        assert_eq!(slot("no_such_call"), None);
    }
}
