//! One record: a [`Header`] (who and when), a fixed payload of the kind (to what), then sections
//! (variable bytes: paths, argv). Never the worst-case size.
//!
//! ```text
//! Header | payload of header.payload_size bytes | { SectionHeader | bytes }* up to header.size
//! ```
//!
//! Kernel programs write it; [`Record::parse`] reads it without unsafe and without copying.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::limits::{COMM_BYTES, OBJECT_BYTES};

/// Who did it and when, the same for every kind. Times are the boot clock (suspend included).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Header {
    pub time_ns: u64,
    /// In the stream (cpu, class), from 1.
    pub sequence: u64,
    /// Of the whole record.
    pub size: u32,
    pub cpu: u32,
    pub kind: u16,
    pub payload_size: u16,
    pub class: u8,
    /// [`via`].
    pub via: u8,
    /// [`form`]
    pub form: u16,
    /// The process (thread group) and the thread.
    pub pid: u32,
    pub tid: u32,
    /// Start of the process (its group leader).
    pub start_time_ns: u64,
    pub parent_start_time_ns: u64,
    pub parent_pid: u32,
    pub loginuid: u32,
    pub session: u32,
    pub pid_namespace: u32,
    pub mount_namespace: u32,
    pub network_namespace: u32,
    pub user_namespace: u32,
    /// Of the rules in `candidates`.
    pub generation: u32,
    pub credentials: Credentials,
    pub capabilities_effective: u64,
    /// Inode of the cgroup v2 directory.
    pub cgroup_id: u64,
    /// NUL-padded.
    pub comm: [u8; COMM_BYTES],
    /// Filter rules ([`crate::policy`]) that the record satisfies but for its path, which the kernel
    /// does not know for sure: the agent decides. 0 for nearly all.
    pub candidates: u64,
}

/// In the order in which `struct cred` has them, so that one read fills all eight.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Credentials {
    pub uid: u32,
    pub gid: u32,
    pub suid: u32,
    pub sgid: u32,
    pub euid: u32,
    pub egid: u32,
    pub fsuid: u32,
    pub fsgid: u32,
}

/// What the payload is.
pub mod form {
    /// The struct of the record's kind.
    pub const OF_KIND: u16 = 0;
    /// A [`super::Call`], whatever the kind.
    pub const CALL: u16 = 1;
}

/// In place of a result: what was asked for is known, how it ended is not.
pub const NO_RESULT: i64 = i64::MIN;

/// Raised when a record, or what programs keep in maps that outlive them, gets another meaning. An
/// agent does not decode the records of programs with another layout, and its programs do not take
/// over their maps.
pub const LAYOUT: u32 = 2;

/// Which kind of hook wrote the record.
pub mod via {
    pub const BTF_TRACEPOINT: u8 = 1;
    /// `sys_exit`, at the end of a system call.
    pub const SYS_EXIT: u8 = 2;
    pub const KPROBE: u8 = 3;
    /// A request of io_uring.
    pub const IO_URING: u8 = 4;
    pub const RAW_TRACEPOINT: u8 = 5;
    /// It was so when the agent began.
    pub const SNAPSHOT: u8 = 6;

    pub const fn name(via: u8) -> Option<&'static str> {
        Some(match via {
            BTF_TRACEPOINT => "tp_btf",
            SYS_EXIT => "sys_exit",
            KPROBE => "kprobe",
            IO_URING => "io_uring",
            RAW_TRACEPOINT => "raw_tp",
            SNAPSHOT => "snapshot",
            _ => return None,
        })
    }
}

/// A file object, as its inode says.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FileObject {
    pub inode: u64,
    pub size_bytes: u64,
    /// major << 20 | minor
    pub device: u32,
    /// With the file type, as in stat.
    pub mode: u32,
    pub owner_uid: u32,
    pub owner_gid: u32,
    /// Tells apart files that had the same inode number one after the other; 0 where the file system
    /// has none.
    pub generation: u32,
    /// [`layer`]
    pub layer: u32,
    /// Of a file of overlayfs: the file that holds it, in that layer.
    pub real_device: u32,
    pub reserved: u32,
    pub real_inode: u64,
}

/// Where a file of overlayfs is.
pub mod layer {
    /// Not on overlayfs, or not known.
    pub const NONE: u32 = 0;
    /// Made or changed since the overlay was mounted: in a container, not of its image.
    pub const UPPER: u32 = 1;
    /// As it is in one of the layers below.
    pub const LOWER: u32 = 2;

    pub const fn name(layer: u32) -> &'static str {
        match layer {
            UPPER => "upper",
            LOWER => "lower",
            _ => "",
        }
    }
}

/// [`crate::kind::EXEC`]. Sections: PATH (program), INVOKED, INTERPRETER, CWD, ARGV.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Exec {
    pub file: FileObject,
    /// Bytes of the whole argv, each argument with its NUL; what this record's ARGV section does
    /// not hold follows in EXEC_ARGS records of the same (cpu, class).
    pub argv_bytes: u64,
    pub argc: u32,
    pub reserved: u32,
}

/// [`crate::kind::EXEC_ARGS`]. Section: ARGV.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ExecArgs {
    /// Sequence of the exec record that this continues.
    pub exec_sequence: u64,
    /// Where these bytes begin in the whole argv.
    pub offset_bytes: u64,
}

/// [`crate::kind::CGROUP`]. Section: CGROUP, its path below the root of cgroup v2.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Cgroup {
    /// As in [`Header::cgroup_id`].
    pub id: u64,
}

/// [`crate::kind::CONTAINER`]. Section: CGROUP, its path below the root of cgroup v2. Of every
/// cgroup: which are containers' only their names say. The header is nobody's: the last process of a
/// cgroup may be gone before the kernel takes notice.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Populated {
    /// As in [`Header::cgroup_id`].
    pub cgroup_id: u64,
    /// 1 when the first process came into it or a cgroup below, 0 when the last is gone.
    pub populated: u64,
}

/// [`crate::kind::EXEC_FAILED`]. Sections: GIVEN, BASE (directory that GIVEN is relative to), ARGV.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ExecFailed {
    /// -errno
    pub result: i64,
    /// Arguments that could not be read or did not fit.
    pub unread_arguments: u32,
    pub reserved: u32,
}

/// [`crate::kind::FORK`]: the header's process made this one.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Fork {
    pub child_start_time_ns: u64,
    pub child_pid: u32,
    /// The child's, which differ from the header's after clone with CLONE_NEW*.
    pub pid_namespace: u32,
    pub mount_namespace: u32,
    pub network_namespace: u32,
    pub user_namespace: u32,
    pub reserved: u32,
}

/// [`crate::kind::EXIT`].
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Exit {
    pub user_time_ns: u64,
    pub system_time_ns: u64,
    pub max_rss_pages: u64,
    /// As wait() gives it: code << 8 | core << 7 | signal.
    pub status: u32,
    pub reserved: u32,
}

/// [`crate::kind::CONNECT`], ACCEPT, BIND.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Socket {
    /// What the call returned.
    pub result: i64,
    /// Of the socket's file.
    pub inode: u64,
    /// IPv4 in the first four bytes.
    pub local_address: [u8; 16],
    pub peer_address: [u8; 16],
    /// Host byte order.
    pub local_port: u16,
    pub peer_port: u16,
    /// AF_*
    pub family: u16,
    /// IPPROTO_*
    pub protocol: u16,
    /// [`socket_flags`]
    pub flags: u32,
    /// SOCK_*
    pub socket_type: u32,
    /// Of listen; 0 otherwise.
    pub backlog: u32,
    /// Of a unix socket: who listens.
    pub peer_pid: u32,
}

pub mod socket_flags {
    /// Tells how an earlier connect of this socket ended.
    pub const OUTCOME: u32 = 1;
    /// The peer is what the caller's memory said; the socket had none (any more).
    pub const PEER_FROM_ARGUMENT: u32 = 2;
    /// The local address is what the caller's memory said.
    pub const LOCAL_FROM_ARGUMENT: u32 = 4;
}

/// [`crate::kind::OPEN`]. Sections: PATH.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Open {
    pub file: FileObject,
    pub result: i64,
    /// As given to the call (O_*).
    pub flags: u32,
    /// [`open_outcome`]
    pub outcome: u32,
}

pub mod open_outcome {
    /// This call made the file (FMODE_CREATED).
    pub const CREATED: u32 = 1;
    /// Open for writing.
    pub const WRITE: u32 = 2;
    pub const TRUNCATE: u32 = 4;
    /// Only reads; reported because its name is watched.
    pub const WATCHED_READ: u32 = 8;
}

/// [`crate::kind::CLOSE_WRITE`]. Sections: PATH, unless it is not known any more.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CloseWrite {
    pub file: FileObject,
    /// 0 where the open was not seen; then nothing was counted either.
    pub opened_ns: u64,
    pub bytes_read: u64,
    pub bytes_written: u64,
    /// Where the next read or write would have been.
    pub position_bytes: u64,
    /// [`open_outcome`]
    pub outcome: u32,
    /// The inode is gone, and with it what it said of size and owner.
    pub inode_gone: u32,
}

/// Any call that is told by its arguments alone; [`crate::call::Shape`] says which sections it has:
/// GIVEN, BASE, TARGET_GIVEN, TARGET_BASE, PATH (of the descriptor's file), TEXT, SECOND_TEXT,
/// STRUCTURE.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Call {
    /// Of the descriptor; zero where the call has none.
    pub file: FileObject,
    pub result: i64,
    /// As in the registers; the last two are room, so that a position can be masked.
    pub arguments: [u64; 8],
    /// [`crate::call`]
    pub slot: u32,
    /// 1 for a call by its x32 number.
    pub is_x32: u32,
    /// The namespaces that the header does not tell, after the call.
    pub namespaces: Namespaces,
}

/// Inodes, as in /proc/PID/ns.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Namespaces {
    pub pid_for_children: u32,
    pub uts: u32,
    pub ipc: u32,
    pub cgroup: u32,
}

/// [`crate::kind::SIGNAL`], as the kernel delivers it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Signal {
    pub target_start_time_ns: u64,
    pub target_pid: u32,
    pub signal: u32,
    /// SI_USER, SI_QUEUE, SI_TKILL.
    pub code: i32,
    /// Whole process, not one thread.
    pub group: u32,
}

/// [`crate::kind::BPF`]. Section: STRUCTURE (the first bytes of `union bpf_attr`).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Bpf {
    pub result: i64,
    pub command: u32,
    /// `enum bpf_prog_type` or `enum bpf_map_type` of the object.
    pub object_type: u32,
    pub object_id: u32,
    /// A program and not a map.
    pub is_program: u32,
    pub tag: [u8; 8],
    /// NUL-padded.
    pub name: [u8; 16],
}

/// [`crate::kind::CLOSE_FLOW`].
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Flow {
    pub socket: Socket,
    /// When it was connected or accepted; 0 when that was before the agent began.
    pub begin_ns: u64,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    pub segments_sent: u32,
    pub segments_received: u32,
    pub retransmits: u32,
    /// [`flow_direction`]
    pub direction: u32,
}

pub mod flow_direction {
    pub const OUT: u32 = 0;
    /// It was accepted here.
    pub const IN: u32 = 1;
    /// It was there before the agent began.
    pub const UNKNOWN: u32 = 2;
}

/// [`crate::kind::DNS`]: a datagram, or a piece of a TCP stream. Section: DNS, its beginning.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Dns {
    pub socket: Socket,
    /// Of the whole datagram or piece.
    pub wire_bytes: u64,
    /// TCP's number of the piece's first byte.
    pub sequence: u32,
    /// [`dns_flags`]
    pub flags: u32,
    /// Of the socket, which may have come from another namespace than its user's.
    pub network_namespace: u32,
    pub reserved: u32,
}

pub mod dns_flags {
    /// The process wrote it; else it read it.
    pub const SENT: u32 = 1;
    /// The process left it where it was (MSG_PEEK).
    pub const PEEKED: u32 = 2;
}

/// What a security hook saw of a call, until its end; value of the map `SEEN`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Seen {
    /// Of the sections; 0 where they were too long.
    pub size: u64,
    pub file: FileObject,
    /// The `struct file` of an open.
    pub opened: u64,
    pub mode: u64,
    /// Filter rules that ask for the first path and are satisfied by it, and their generation; 0
    /// where the path is not known for sure.
    pub path_rules: u64,
    pub generation: u64,
    /// As a record has them.
    pub sections: [u8; OBJECT_BYTES],
}

pub const SEEN_BYTES: usize = size_of::<Seen>();

/// Before each section's bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SectionHeader {
    /// [`section`]
    pub tag: u8,
    /// [`section_flags`]
    pub flags: u8,
    /// Of a walked path: how many of its bytes lie below the process's root. What follows is the
    /// path of that root itself in its mount namespace; nothing follows in the common case.
    pub root_at: u16,
    pub size: u32,
}

pub mod section {
    /// A walked path: components from the last to the first, each ended by NUL; see
    /// [`super::walked_path`].
    pub const PATH: u8 = 1;
    pub const CWD: u8 = 2;
    /// The directory that a given path starts from, walked: of the fd, or the working directory.
    /// Absent for an absolute path.
    pub const BASE: u8 = 3;
    pub const TARGET_BASE: u8 = 4;
    /// Text from user memory, without NUL.
    pub const GIVEN: u8 = 5;
    pub const TARGET_GIVEN: u8 = 6;
    /// execve's path, and the program that the kernel started for it (differs for "#!").
    pub const INVOKED: u8 = 7;
    pub const INTERPRETER: u8 = 8;
    /// Arguments, each ended by NUL.
    pub const ARGV: u8 = 9;
    pub const CGROUP: u8 = 10;
    /// Texts of a call that are not paths.
    pub const TEXT: u8 = 11;
    pub const SECOND_TEXT: u8 = 12;
    /// The caller's structure, as it was when the call returned.
    pub const STRUCTURE: u8 = 13;
    /// The name of a unix socket's peer: a path, or NUL and an abstract name.
    pub const SOCKET_NAME: u8 = 14;
    /// Walked paths of what the call really acted on.
    pub const OBJECT: u8 = 15;
    pub const TARGET_OBJECT: u8 = 16;
    /// What was sent or received.
    pub const DNS: u8 = 17;
    /// What the caller's memory said when the call returned, where GIVEN, TARGET_GIVEN or TEXT is the
    /// kernel's copy.
    pub const NOW: u8 = 30;
    pub const TARGET_NOW: u8 = 31;
}

pub mod section_flags {
    /// Something did not fit or could not be read.
    pub const TRUNCATED: u8 = 1;
    /// The object has no name any more.
    pub const DELETED: u8 = 2;
    /// The object never had one: memfd, pipe, socket; the single component is its description.
    pub const PSEUDO: u8 = 4;
    /// The walk ended at a mount that is not below the process's root (detached, or outside a
    /// chroot).
    pub const UNREACHABLE: u8 = 8;
    /// A given text is the kernel's own copy of it.
    pub const COPIED: u8 = 16;
}

/// Why bytes are not a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// Shorter than a header, or than the size it states.
    Short,
    /// A payload or section reaches past the end.
    Overrun,
}

/// A record's parts, borrowed.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    pub header: Header,
    payload: &'a [u8],
    tail: &'a [u8],
}

/// A section's header and bytes.
#[derive(Debug, Clone, Copy)]
pub struct Section<'a> {
    pub header: SectionHeader,
    pub bytes: &'a [u8],
}

impl<'a> Record<'a> {
    /// Splits `bytes`; every section is checked, so [`Record::sections`] cannot fail later.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (header, _) = Header::read_from_prefix(bytes).map_err(|_| Malformed::Short)?;
        let bytes = bytes.get(..header.size as usize).ok_or(Malformed::Short)?;
        let rest = bytes.get(size_of::<Header>()..).ok_or(Malformed::Short)?;
        let (payload, tail) = rest
            .split_at_checked(header.payload_size.into())
            .ok_or(Malformed::Overrun)?;
        let mut check = Sections { rest: tail };
        for _ in check.by_ref() {}
        if !check.rest.is_empty() {
            return Err(Malformed::Overrun);
        }
        Ok(Self {
            header,
            payload,
            tail,
        })
    }

    /// The payload as `T`; a longer payload (of a newer kernel program) is cut.
    pub fn payload<T: FromBytes>(&self) -> Option<T> {
        T::read_from_prefix(self.payload)
            .ok()
            .map(|(value, _)| value)
    }

    pub fn sections(&self) -> Sections<'a> {
        Sections { rest: self.tail }
    }

    /// The first section with `tag`.
    pub fn section(&self, tag: u8) -> Option<Section<'a>> {
        self.sections().find(|section| section.header.tag == tag)
    }
}

/// Iterates over a record's sections.
pub struct Sections<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Sections<'a> {
    type Item = Section<'a>;

    fn next(&mut self) -> Option<Section<'a>> {
        let (header, rest) = SectionHeader::read_from_prefix(self.rest).ok()?;
        let (bytes, rest) = rest.split_at_checked(header.size as usize)?;
        self.rest = rest;
        Some(Section { header, bytes })
    }
}

/// The components of a walked path, from the root down: those below the process's root, and those
/// of that root itself (empty unless the process is in a chroot).
pub fn walked_path<'a>(
    section: &Section<'a>,
) -> (
    impl Iterator<Item = &'a [u8]> + use<'a>,
    impl Iterator<Item = &'a [u8]> + use<'a>,
) {
    let at = usize::from(section.header.root_at).min(section.bytes.len());
    let (below, above) = section.bytes.split_at(at);
    (components(below), components(above))
}

fn components(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes
        .rsplit(|byte| *byte == 0)
        .filter(|component| !component.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    extern crate std;
    use std::vec::Vec;

    fn record(tail: &[u8]) -> Vec<u8> {
        let mut header = Header::new_zeroed();
        header.payload_size = size_of::<Fork>() as u16;
        header.size = (size_of::<Header>() + size_of::<Fork>() + tail.len()) as u32;
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend_from_slice(Fork::new_zeroed().as_bytes());
        bytes.extend_from_slice(tail);
        bytes
    }

    use zerocopy::FromZeros as _;

    fn section_bytes(tag: u8, root_at: u16, bytes: &[u8]) -> Vec<u8> {
        let header = SectionHeader {
            tag,
            flags: 0,
            root_at,
            size: bytes.len() as u32,
        };
        let mut out = header.as_bytes().to_vec();
        out.extend_from_slice(bytes);
        out
    }

    #[test]
    fn sizes_are_the_abi() {
        assert_eq!(size_of::<Header>(), 160);
        assert_eq!(size_of::<SectionHeader>(), 8);
    }

    #[test]
    fn sections_come_back_in_order() {
        let mut tail = section_bytes(section::GIVEN, 0, b"x");
        tail.extend(section_bytes(section::BASE, 5, b"etc\0\0"));
        let bytes = record(&tail);
        let parsed = Record::parse(&bytes).expect("well formed");
        let tags: Vec<u8> = parsed.sections().map(|s| s.header.tag).collect();
        assert_eq!(tags, [section::GIVEN, section::BASE]);
        assert_eq!(parsed.payload::<Fork>(), Some(Fork::new_zeroed()));
    }

    #[test]
    fn walked_paths_read_from_the_root_down() {
        let bytes = section_bytes(section::PATH, 12, b"file\0deeper\0jail\0srv\0");
        let s = Section {
            header: SectionHeader::read_from_prefix(&bytes).expect("header").0,
            bytes: &bytes[8..],
        };
        let (below, above) = walked_path(&s);
        assert_eq!(below.collect::<Vec<_>>(), [b"deeper".as_slice(), b"file"]);
        assert_eq!(above.collect::<Vec<_>>(), [b"srv".as_slice(), b"jail"]);
    }

    #[test]
    fn every_cut_of_a_record_is_refused() {
        let bytes = record(&section_bytes(section::GIVEN, 0, b"some path"));
        for end in 0..bytes.len() {
            assert!(Record::parse(&bytes[..end]).is_err(), "cut at {end}");
        }
        let mut lying = bytes.clone();
        let at = size_of::<Header>() + size_of::<Fork>() + 4;
        lying[at] = 200;
        assert_eq!(Record::parse(&lying).err(), Some(Malformed::Overrun));
    }
}
