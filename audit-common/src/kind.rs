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
    /// connect on an IPv4 or IPv6 socket, or the later outcome of one that did not wait.
    20 CONNECT "connect" NETWORK;
    /// A connection was accepted.
    21 ACCEPT "accept" NETWORK;
    /// A socket got its local address by bind.
    22 BIND "bind" NETWORK;
    /// A file was opened: created, truncated, for writing, or read when watched.
    40 OPEN "open" FILE;
    /// A name was removed: unlink, unlinkat, rmdir.
    42 UNLINK "unlink" FILE;
    /// A name was changed: rename, renameat, renameat2.
    43 RENAME "rename" FILE;
}

/// A piece of a long argv; joined to the exec before it, never an event of its own.
pub const EXEC_ARGS: u16 = 0x8001;

/// Where a new cgroup is, so that what runs in it has a container even when it ends at once; never
/// an event of its own.
pub const CGROUP: u16 = 0x8002;

/// The row of `number`; a number of another version has none.
pub fn from_number(number: u16) -> Option<&'static Kind> {
    ALL.iter().find(|kind| kind.number == number)
}
