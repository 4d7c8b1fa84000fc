//! The one event table: number, name, class, payload and what it means. Numbers are for ever and
//! equal `Kind` in the public proto.

use crate::class;

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    pub number: u16,
    pub name: &'static str,
    pub class: u8,
    pub doc: &'static str,
}

macro_rules! events {
    ($($(#[doc = $doc:literal])+ $number:literal $name:ident $text:literal $class:ident;)+) => {
        $($(#[doc = $doc])+ pub const $name: u16 = $number;)+

        /// Every kind that comes from the kernel.
        pub const ALL: &[Kind] = &[$(Kind {
            number: $number,
            name: $text,
            class: class::$class,
            doc: concat!($($doc),+),
        }),+];
    };
}

events! {
    /// A process began to run another program.
    1 EXEC "exec" PROCESS;
    /// execve or execveat failed.
    2 EXEC_FAILED "exec_failed" PROCESS;
    /// A process was created; threads are not events.
    3 FORK "fork" PROCESS;
    /// The last thread of a process ended.
    4 EXIT "exit" PROCESS;
    /// A process changed its user, group or capabilities.
    5 CREDENTIALS "credentials" PROCESS;
    /// A process attached to another, or wrote to its memory or registers.
    6 PTRACE "ptrace" PROCESS;
    /// A process sent a signal to another.
    7 SIGNAL "signal" PROCESS;
    /// A process left or joined a namespace.
    8 NAMESPACE "namespace" PROCESS;
    /// A kernel module was loaded or removed.
    9 MODULE "module" PROCESS;
    /// A BPF program or map was made, attached or changed.
    10 BPF "bpf" PROCESS;
    /// A file without a name was made in memory.
    11 MEMFD "memfd" PROCESS;
    /// Memory was made executable. Off by default.
    12 MEMORY_EXEC "memory_exec" PROCESS;
    /// A file system was mounted, moved or unmounted.
    13 MOUNT "mount" PROCESS;
    /// The clock was set.
    14 TIME_CHANGE "time_change" PROCESS;
    /// A system-wide setting or secret was used: reboot, kexec_load, sethostname, swapon, keyctl, ...
    15 SYSTEM "system" PROCESS;
    /// connect on an IPv4 or IPv6 socket, or the later outcome of one that did not wait.
    20 CONNECT "connect" NETWORK;
    /// A connection was accepted.
    21 ACCEPT "accept" NETWORK;
    /// A socket got its local address by bind.
    22 BIND "bind" NETWORK;
    /// A socket waits for connections.
    23 LISTEN "listen" NETWORK;
    /// A TCP connection ended.
    24 CLOSE_FLOW "close_flow" FLOW;
    /// A datagram was sent to a peer by a socket that is not connected, first per peer and minute.
    25 DATAGRAM "datagram" NETWORK;
    /// A process sent a DNS query or received an answer: a message to or from port 53, UDP or TCP.
    26 DNS "dns" NETWORK;
    /// connect on a unix socket.
    27 UNIX_CONNECT "unix_connect" NETWORK;
    /// A raw, packet, vsock, crypto or audit socket was made.
    28 SOCKET_SPECIAL "socket_special" NETWORK;
    /// A file was opened: created, truncated, for writing, or read when watched.
    40 OPEN "open" FILE;
    /// A file that was open for writing was closed for the last time.
    41 CLOSE_WRITE "close_write" FILE;
    /// A name was removed: unlink, unlinkat, rmdir.
    42 UNLINK "unlink" FILE;
    /// A name was changed: rename, renameat, renameat2.
    43 RENAME "rename" FILE;
    /// A second name was made: link, symlink.
    44 LINK "link" FILE;
    /// A directory, device, pipe or socket was made by name.
    45 MKDIR_MKNOD "mkdir_mknod" FILE;
    /// A file's mode was changed.
    46 MODE "mode" FILE;
    /// A file's owner was changed.
    47 OWNER "owner" FILE;
    /// A file was cut or extended by truncate.
    48 TRUNCATE "truncate" FILE;
    /// An extended attribute was set or removed.
    49 XATTR "xattr" FILE;
    /// The first process of a container began, or its last one ended.
    60 CONTAINER "container" PROCESS;
}

/// A piece of a long argv; joined to the exec before it, never an event of its own.
pub const EXEC_ARGS: u16 = 0x8001;

/// Where a new cgroup is, so that what runs in it has a container even when it ends at once; never
/// an event of its own.
pub const CGROUP: u16 = 0x8002;

/// Is the record told whatever rules and budgets say? Without them nobody would know what a process
/// is that others tell of.
pub const fn is_kept(kind: u16) -> bool {
    matches!(kind, EXEC | FORK | EXIT | EXEC_ARGS | CGROUP | CONTAINER)
}

/// The row of `number`; a number of another version has none.
pub fn from_number(number: u16) -> Option<&'static Kind> {
    ALL.iter().find(|kind| kind.number == number)
}
