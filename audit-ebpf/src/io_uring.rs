//! What is asked of the kernel through io_uring: the same kinds as the system calls, which are not
//! called then.
//!
//! When a request is submitted, the kernel has copied the paths and addresses that it will use, so
//! no thread can change them any more. Then and there its record is begun, with who asks, and kept
//! until the completion tells the result; that may be in another thread. Invariants: what is kept
//! is sent once; where a result will not come, or will not be found (a submitter that wants to hear
//! of failures only, a kernel whose completions do not name the request, a full map, a record too
//! long to keep), the record is sent at once, without it.

mod complete;
mod names;
mod socket;

use audit_common::{
    limits::{URING_OPERATIONS, URING_RECORD_BYTES, URING_REQUESTS, URING_SOCKET_BYTES},
    offsets::MISSING,
    record::{self, Header, Socket, section, via},
};
use aya_ebpf::{
    EbpfContext as _,
    bindings::BPF_F_NO_PREALLOC,
    helpers::generated::bpf_map_update_elem,
    macros::{btf_tracepoint, map},
    maps::{Array, HashMap},
    programs::BtfTracePointContext,
};

use crate::{
    file,
    gate::Place,
    inode::file_object,
    kernel, path,
    path::Path,
    preemption,
    record::{Origin, Writer, count_pending_full},
    settings::{offset, setting},
    syscall,
};

/// For each operation the slot of the system call that it is the same as; 0 for those not told.
#[map]
static URING_CALLS: Array<u32> = Array::with_max_entries(URING_OPERATIONS, 0);
/// By request (`struct io_kiocb *`).
#[map]
static URING_REQUESTS_KEPT: HashMap<u64, Kept> =
    HashMap::with_max_entries(URING_REQUESTS, BPF_F_NO_PREALLOC);
/// Requests that accept many connections, by what names them when they have accepted one.
#[map]
static URING_ACCEPTING: HashMap<Numbered, Accepting> =
    HashMap::with_max_entries(URING_REQUESTS, BPF_F_NO_PREALLOC);

/// A record that waits for its result.
#[repr(C, align(8))]
struct Kept([u8; URING_RECORD_BYTES]);

/// A ring, and the number that a submitter gave to a request of it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
struct Numbered {
    ring: u64,
    user_data: u64,
}

/// How a record of a socket begins; it has no more, if it is not of a unix socket.
#[repr(C)]
struct SocketRecord {
    header: Header,
    socket: Socket,
}

/// The record of every connection that such requests accept, and how many requests.
#[repr(C)]
struct Accepting {
    record: SocketRecord,
    room: [u8; URING_SOCKET_BYTES - size_of::<SocketRecord>()],
    requests: u64,
    in_slots: u64,
}

impl Accepting {
    #[inline(always)]
    fn pid(&self) -> u32 {
        self.record.header.pid
    }

    /// Its connections get no descriptor, but a slot of the ring.
    #[inline(always)]
    fn in_slots(&self) -> bool {
        self.in_slots != 0
    }
}

// enum io_uring_op of include/uapi/linux/io_uring.h
const SENDMSG: u8 = 9;
const ACCEPT: u8 = 13;
const CONNECT: u8 = 16;
const OPENAT: u8 = 18;
const SEND: u8 = 26;
const OPENAT2: u8 = 28;
const RENAMEAT: u8 = 35;
const UNLINKAT: u8 = 36;
const MKDIRAT: u8 = 37;
const SYMLINKAT: u8 = 38;
const LINKAT: u8 = 39;
const FSETXATTR: u8 = 41;
const SETXATTR: u8 = 42;
const SOCKET: u8 = 45;
const SEND_ZC: u8 = 47;
const SENDMSG_ZC: u8 = 48;
const FTRUNCATE: u8 = 55;
const BIND: u8 = 56;
const LISTEN: u8 = 57;

/// Bits of `io_kiocb.flags`, the same as those of a submission (`IOSQE_*`).
const FIXED_FILE: u32 = 1;
const SKIP_SUCCESS: u32 = 1 << 6;

/// A request as submitted.
struct Request {
    /// `struct io_kiocb *`
    at: u64,
    flags: u32,
    opcode: u8,
    /// It is told now, for no result will be found.
    now: bool,
    /// Of the system call that it is the same as.
    slot: u32,
}

impl Request {
    #[inline(always)]
    fn origin(&self) -> Origin {
        Origin {
            via: via::IO_URING,
            slot: self.slot,
        }
    }
}

/// `io_uring_submit_req(request)`, `io_uring_submit_sqe(request, ...)`, or before Linux 6.0
/// `io_uring_submit_sqe(ring, request, ...)`.
#[btf_tracepoint(function = "io_uring_submit_req")]
pub fn uring_submit(ctx: BtfTracePointContext) -> i32 {
    preemption::at(Place::UringSubmit, || {
        try_submit(argument(&ctx, setting!(uring_submit_request)));
    })
}

/// An argument of the tracepoint, read as memory: at a position that the agent has found, and as a
/// number where the verifier knows the type behind a pointer, and would refuse to have added to it
/// what stands for a field that the type has not.
#[inline(always)]
fn argument(ctx: &BtfTracePointContext, position: u32) -> u64 {
    kernel::pointer(ctx.as_ptr().addr() as u64, position as usize * 8)
}

/// The slot of the call that an operation is the same as; 0 for one that is not told.
#[inline(always)]
fn call_of(opcode: u8) -> u32 {
    URING_CALLS.get(opcode.into()).copied().unwrap_or(0)
}

#[inline(always)]
fn try_submit(at: u64) -> Option<()> {
    let opcode: u8 = kernel::read(at, offset!(uring_opcode));
    let slot = call_of(opcode);
    if slot == 0 {
        return None;
    }
    let shape = syscall::shape_of(slot)?;
    if shape.kind == 0 {
        return None; // no hook for it
    }
    forget_older(at);
    let flags: u32 = kernel::read(at, offset!(uring_flags));
    let request = Request {
        at,
        flags,
        opcode,
        now: setting!(uring_complete_request) == MISSING || flags & SKIP_SUCCESS != 0,
        slot,
    };
    match opcode {
        OPENAT | OPENAT2 => names::open(&request),
        CONNECT => socket::connect(&request),
        ACCEPT => socket::accept(&request),
        SOCKET => socket::socket(&request),
        BIND | LISTEN => socket::local(&request, opcode == LISTEN),
        SEND | SEND_ZC | SENDMSG | SENDMSG_ZC => socket::send(&request),
        _ => names::call(&request, shape),
    }
}

/// The kernel uses the memory of a request again: the one before it has ended, and its completion
/// was not seen.
#[inline(always)]
fn forget_older(at: u64) {
    if let Some(kept) = kept(at) {
        // SAFETY: a header is at the beginning of every kept record.
        let class = unsafe { (*kept.cast::<Header>()).class };
        if let Some((writer, _)) = Writer::restore::<u64, URING_RECORD_BYTES>(class, kept.cast()) {
            writer.send();
        }
        forget(at);
    }
}

#[inline(always)]
fn kept(request: u64) -> Option<*const Kept> {
    URING_REQUESTS_KEPT.get_ptr(request)
}

#[inline(always)]
fn forget(request: u64) {
    let _ = URING_REQUESTS_KEPT.remove(request);
}

/// Who asks may have been another when the ring was told of it (IORING_REGISTER_PERSONALITY).
#[inline(always)]
fn credentials(request: &Request, header: &mut Header) {
    if request.flags & setting!(uring_has_credentials) != 0 {
        let cred = kernel::pointer(request.at, offset!(uring_creds));
        header.credentials = kernel::read(cred, offset!(cred_uid));
        header.capabilities_effective = kernel::read(cred, offset!(cred_cap_effective));
    }
}

/// Keeps the record until its request is completed; sends it, where it cannot be kept.
#[inline(always)]
fn keep(request: &Request, writer: Writer) -> Option<()> {
    credentials(request, writer.header());
    if !request.now && writer.end() <= URING_RECORD_BYTES as u64 {
        writer.suspend();
        // SAFETY: the record's buffer is larger than a map value.
        let failed = unsafe {
            bpf_map_update_elem(
                (&raw const URING_REQUESTS_KEPT).cast_mut().cast(),
                (&raw const request.at).cast(),
                writer.base().cast(),
                0,
            )
        };
        if failed == 0 {
            return Some(());
        }
        count_pending_full(writer.class());
    }
    writer.send();
    Some(())
}

/// Keeps the record of a request that accepts many, for all but the last of its connections.
#[inline(always)]
fn keep_accept(request: &Request, writer: &Writer) -> Option<()> {
    let numbered = numbered(request.at);
    credentials(request, writer.header());
    if let Some(other) = accepting_mut(numbered) {
        // SAFETY: changed under the ring's lock only, which submission holds.
        unsafe { (*other).requests += 1 };
        return Some(());
    }
    let slot: u32 = optional(request.at, offset!(uring_accept_slot));
    writer.suspend();
    let value = writer.base().cast_mut().cast::<Accepting>();
    // SAFETY: the record's buffer is larger than the value, and its record smaller.
    let failed = unsafe {
        (&raw mut (*value).requests).write(1);
        (&raw mut (*value).in_slots).write(u64::from(slot != 0));
        bpf_map_update_elem(
            (&raw const URING_ACCEPTING).cast_mut().cast(),
            (&raw const numbered).cast(),
            value.cast(),
            0,
        )
    };
    if failed != 0 {
        count_pending_full(writer.class());
    }
    Some(())
}

#[inline(always)]
fn accepting(numbered: Numbered) -> Option<*const Accepting> {
    URING_ACCEPTING.get_ptr(numbered)
}

#[inline(always)]
fn accepting_mut(numbered: Numbered) -> Option<*mut Accepting> {
    URING_ACCEPTING.get_ptr_mut(numbered)
}

/// One request less that accepts many under that number.
#[inline(always)]
fn forget_accept(numbered: Numbered) -> Option<()> {
    let accepting = accepting_mut(numbered)?;
    // SAFETY: changed under the ring's lock only, which what polls a socket holds.
    let left = unsafe {
        (*accepting).requests -= 1;
        (*accepting).requests
    };
    if left == 0 {
        let _ = URING_ACCEPTING.remove(numbered);
    }
    Some(())
}

#[inline(always)]
fn numbered(request: u64) -> Numbered {
    Numbered {
        ring: kernel::pointer(request, offset!(uring_ctx)),
        user_data: kernel::read(request, offset!(uring_user_data)),
    }
}

/// A field that not every kernel has; 0 there.
#[inline(always)]
fn optional<T: Copy + Default>(base: u64, offset: usize) -> T {
    if offset == MISSING as usize {
        return T::default();
    }
    kernel::read(base, offset)
}

#[inline(always)]
fn descriptor(request: u64) -> u64 {
    optional::<u32>(request, offset!(uring_fd)).into()
}

/// The file that a submitted request names: the request has it already, or only its number.
#[inline(always)]
fn file_of(request: &Request) -> u64 {
    let file = kernel::pointer(request.at, offset!(uring_file));
    if file != 0 {
        return file;
    }
    let number = descriptor(request.at);
    if request.flags & FIXED_FILE == 0 {
        return file::of_descriptor(number);
    }
    fixed_file(kernel::pointer(request.at, offset!(uring_ctx)), number)
}

/// The file at `index` of those that the ring has for itself.
#[inline(always)]
fn fixed_file(ring: u64, index: u64) -> u64 {
    /// Lower bits of the word say what the file can do.
    const FLAGS: u64 = 7;
    let index = index as usize * 8;
    let word = if offset!(uring_nodes) != MISSING as usize {
        let nodes = kernel::pointer(ring, offset!(uring_nodes));
        let node = kernel::pointer(nodes, index);
        if node == 0 {
            return 0;
        }
        kernel::pointer(node, offset!(uring_node_file))
    } else if offset!(uring_files) != MISSING as usize {
        let files = kernel::pointer(ring, offset!(uring_files));
        kernel::pointer(files, index)
    } else {
        0
    };
    word & !FLAGS
}

#[inline(always)]
fn describe_file(writer: &mut Writer, payload: &mut record::Call, file: u64) {
    file_object(
        &mut payload.file,
        kernel::pointer(file, offset!(file_inode)),
    );
    path::section(writer, section::PATH, Path::of_file(file));
}
