//! How did a request end? Its kept record gets the result, and what the request made or used.

use audit_common::{
    class, kind,
    limits::{URING_BATCH, URING_RECORD_BYTES, URING_SOCKET_BYTES},
    offsets::MISSING,
    record::{self, Header, Open, Socket, section},
};
use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};

use super::{
    FSETXATTR, FTRUNCATE, Kept, Numbered, SocketRecord, accepting, argument, call_of,
    describe_file, fixed_file, forget, forget_accept, kept, numbered, optional,
};
use crate::{
    file,
    gate::Place,
    inode::file_object,
    kernel::{self, Block},
    network::{self, Peer},
    path::{self, Path},
    preemption,
    record::{Writer, count_filtered},
    settings::{offset, setting},
    task, written,
};

/// `io_uring_complete(ring, request, ...)`; the rest is the entry of the completion queue, or its
/// fields.
#[btf_tracepoint(function = "io_uring_complete")]
pub fn uring_complete(ctx: BtfTracePointContext) -> i32 {
    preemption::at(Place::UringComplete, || {
        let (ring, request) = (argument(&ctx, 0), argument(&ctx, 1));
        if request != 0 {
            uring_finish(request);
            return;
        }
        let entry = setting!(uring_complete_entry) != 0;
        let (user_data, result) = if entry {
            let entry = argument(&ctx, 2);
            let result: i32 = kernel::read(entry, offset!(uring_cqe_result));
            (kernel::read(entry, offset!(uring_cqe_user_data)), result)
        } else {
            (argument(&ctx, 2), argument(&ctx, 3) as i32)
        };
        one_accepted(Numbered { ring, user_data }, result.into());
    })
}

/// `io_uring_cqe_overflow(ring, user_data, result, flags, entry)`: a result found no room in the
/// queue. It is of the request that this worker of the kernel has at hand; or of one of those that
/// the ring is done with; or of one that accepts many.
#[btf_tracepoint(function = "io_uring_cqe_overflow")]
pub fn uring_overflow(ctx: BtfTracePointContext) -> i32 {
    preemption::at(Place::UringOverflow, || {
        /// The completion is one of several (`IORING_CQE_F_MORE`).
        const MORE: u32 = 2;
        let (ring, user_data) = (argument(&ctx, 0), argument(&ctx, 1));
        let (result, flags) = (argument(&ctx, 2) as i32, argument(&ctx, 3) as u32);
        let numbered = Numbered { ring, user_data };
        if flags & MORE != 0 {
            one_accepted(numbered, result.into());
            return;
        }
        let at_hand = at_hand();
        if at_hand != 0 && self::numbered(at_hand) == numbered {
            uring_finish(at_hand);
            return;
        }
        if offset!(uring_done) != MISSING as usize && offset!(uring_listed) != MISSING as usize {
            let mut node = kernel::pointer(ring, offset!(uring_done));
            let mut seen = 0;
            while node != 0 && seen < URING_BATCH {
                node = uring_listed(node);
                seen += 1;
            }
        }
    })
}

/// The request of the current thread, if that is one of the kernel's workers; else 0.
#[inline(always)]
fn at_hand() -> u64 {
    const PF_IO_WORKER: u32 = 0x10;
    if offset!(task_worker) == MISSING as usize
        || offset!(worker_work) == MISSING as usize
        || offset!(uring_work) == MISSING as usize
    {
        return 0;
    }
    let task = task::current();
    if kernel::read::<u32>(task, offset!(task_flags)) & PF_IO_WORKER == 0 {
        return 0;
    }
    let worker = kernel::pointer(task, offset!(task_worker));
    match kernel::pointer(worker, offset!(worker_work)) {
        0 => 0,
        work => work - offset!(uring_work) as u64,
    }
}

/// Ends the request of a list's node, which the ring is done with; the next node. A global function,
/// as [`crate::path::climb_steps`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn uring_listed(node: u64) -> u64 {
    uring_finish(node - offset!(uring_listed) as u64);
    kernel::pointer(node, 0)
}

/// The request is done. A global function: there is much of it, and programs have it twice.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn uring_finish(request: u64) -> u32 {
    try_finish(request);
    0
}

#[inline(always)]
fn try_finish(request: u64) -> Option<()> {
    let opcode: u8 = kernel::read(request, offset!(uring_opcode));
    // What is kept may be of an older request at the same place, if this one is of those not told.
    if call_of(opcode) == 0 {
        return None;
    }
    let kept = kept(request)?;
    // SAFETY: a header is at the beginning of every kept record.
    let (class, kind, pid) = unsafe {
        let header = kept.cast::<Header>();
        ((*header).class, (*header).kind, (*header).pid)
    };
    // The request's own result: an entry of the queue is in memory that the process can write to.
    let result: i32 = kernel::read(request, offset!(uring_result));
    let done = Done {
        request,
        kept,
        result: result.into(),
        own: pid == task::current_pid(),
    };
    match kind {
        kind::OPEN => complete_open(&done),
        kind::CONNECT | kind::UNIX_CONNECT => complete_connect(&done, kind),
        kind::ACCEPT => complete_accept(&done),
        kind::SOCKET_SPECIAL => complete_socket(&done),
        kind::BIND | kind::LISTEN => complete_local(&done, kind),
        kind::DATAGRAM => complete_send(&done),
        _ => complete_call(&done, class),
    };
    forget(request);
    Some(())
}

/// A completed request.
struct Done {
    request: u64,
    kept: *const Kept,
    result: i64,
    /// Descriptors are those of the process that asked.
    own: bool,
}

impl Done {
    #[inline(always)]
    fn restore<T>(&self, class: u8) -> Option<(Writer, &'static mut T)> {
        Writer::restore::<T, URING_RECORD_BYTES>(class, self.kept.cast())
    }

    #[inline(always)]
    fn file(&self) -> u64 {
        kernel::pointer(self.request, offset!(uring_file))
    }

    /// The file that the request made: behind a descriptor, or in a slot of the ring.
    #[inline(always)]
    fn new_file(&self, slot: u32) -> u64 {
        /// Any free slot; the result is its number.
        const ANY: u32 = u32::MAX;
        let ring = kernel::pointer(self.request, offset!(uring_ctx));
        match slot {
            0 if self.own => file::of_descriptor(self.result as u64),
            0 => 0,
            ANY => fixed_file(ring, self.result as u64),
            slot => fixed_file(ring, u64::from(slot) - 1),
        }
    }
}

#[inline(always)]
fn complete_open(done: &Done) -> Option<()> {
    if done.result < 0 {
        if done.result == file::EPERM || done.result == file::EACCES {
            let (writer, payload) = done.restore::<Open>(class::FILE)?;
            payload.result = done.result;
            writer.send();
        }
        return None;
    }
    let slot: u32 = optional(done.request, offset!(uring_open_slot));
    let file = Block::of_file(done.new_file(slot))?;
    let path = Path::of(&file);
    let mode: u32 = file.field(offset!(file_mode));
    let writes = mode & file::FMODE_WRITE != 0;
    let created = mode & file::FMODE_CREATED != 0;
    let known = file.base() != 0;
    if known && !file::is_reported(mode, &path) {
        count_filtered(class::FILE);
        return None;
    }
    let (mut writer, payload) = done.restore::<Open>(class::FILE)?;
    payload.result = done.result;
    if known {
        file_object(&mut payload.file, file.field(offset!(file_inode)));
        payload.outcome = file::outcome(payload.flags, writes, created);
        writer.drop_sections::<Open>();
        path::section(&mut writer, section::PATH, path);
        written::opened(&file, payload, writer.header().time_ns);
    }
    writer.send();
    Some(())
}

#[inline(always)]
fn complete_call(done: &Done, class: u8) -> Option<()> {
    let (mut writer, payload) = done.restore::<record::Call>(class)?;
    payload.result = done.result;
    let opcode: u8 = kernel::read(done.request, offset!(uring_opcode));
    if opcode == FTRUNCATE || opcode == FSETXATTR {
        describe_file(&mut writer, payload, done.file());
    }
    writer.send();
    Some(())
}

#[inline(always)]
fn complete_connect(done: &Done, kind: u16) -> Option<()> {
    let of = network::Of::file(done.file())?;
    if kind == kind::UNIX_CONNECT {
        let (mut writer, payload) = done.restore::<Socket>(class::NETWORK)?;
        payload.result = done.result;
        network::describe_unix(payload, &of);
        if done.result == 0 {
            writer.drop_sections::<Socket>();
            network::unix_peer_section(&mut writer, payload, &of);
        }
        writer.send();
        return Some(());
    }
    if !of.is_inet() {
        return None;
    }
    let (writer, payload) = done.restore::<Socket>(class::NETWORK)?;
    payload.result = done.result;
    network::describe_connect(payload, &of);
    network::connected(writer, payload, &of);
    Some(())
}

#[inline(always)]
fn complete_accept(done: &Done) -> Option<()> {
    let slot: u32 = optional(done.request, offset!(uring_accept_slot));
    if setting!(uring_accepts_many) != 0
        && kernel::read::<u32>(done.request, offset!(uring_flags)) & setting!(uring_accepts_many)
            != 0
    {
        forget_accept(numbered(done.request));
    }
    if done.result < 0 {
        return None; // nobody came
    }
    accepted::<URING_RECORD_BYTES>(done.new_file(slot), done.kept.cast(), done.result)
}

/// Sends the accept whose record is at `kept`, of the connection that it made.
#[inline(always)]
fn accepted<const BYTES: usize>(file: u64, kept: *const u8, result: i64) -> Option<()> {
    let of = network::Of::file(file);
    if file != 0 && !of.as_ref()?.is_inet() {
        return None;
    }
    let (writer, payload) = Writer::restore::<Socket, BYTES>(class::NETWORK, kept)?;
    payload.result = result;
    match of {
        Some(of) => {
            network::describe(payload, of.sock, of.inode);
            network::accepted(writer, payload, &of);
        }
        None => writer.send(),
    }
    Some(())
}

/// One more connection of a request that accepts many: the completion names the ring only, and the
/// number that the request has of its submitter.
#[inline(always)]
fn one_accepted(numbered: Numbered, result: i64) -> Option<()> {
    let accepting = accepting(numbered)?;
    if result < 0 {
        return None;
    }
    // SAFETY: a record of a socket is at the beginning of the value.
    let (pid, in_slots) = unsafe { ((*accepting).pid(), (*accepting).in_slots()) };
    let file = if in_slots {
        fixed_file(numbered.ring, result as u64)
    } else if pid == task::current_pid() {
        file::of_descriptor(result as u64)
    } else {
        0
    };
    accepted::<URING_SOCKET_BYTES>(file, accepting.cast(), result)
}

#[inline(always)]
fn complete_socket(done: &Done) -> Option<()> {
    let (writer, payload) = done.restore::<Socket>(class::NETWORK)?;
    payload.result = done.result;
    if done.result >= 0 {
        let slot: u32 = optional(done.request, offset!(uring_socket_slot));
        let of = network::Of::file(done.new_file(slot));
        payload.inode = of.map_or(0, |of| of.inode);
    }
    writer.send();
    Some(())
}

#[inline(always)]
fn complete_local(done: &Done, kind: u16) -> Option<()> {
    let of = network::Of::file(done.file())?;
    if !of.is_inet() {
        return None;
    }
    let (writer, payload) = done.restore::<Socket>(class::NETWORK)?;
    payload.result = done.result;
    let (port, address) = (payload.local_port, payload.local_address);
    network::describe(payload, of.sock, of.inode);
    if kind == kind::BIND && done.result < 0 {
        payload.local_port = port;
        payload.local_address = address;
    }
    writer.send();
    Some(())
}

#[inline(always)]
fn complete_send(done: &Done) -> Option<()> {
    let of = network::Of::file(done.file())?;
    if done.result < 0 || !of.has_messages() {
        return None;
    }
    // SAFETY: the kept record is a header and a socket, and stays until it is removed.
    let SocketRecord { header, socket } = unsafe { &*done.kept.cast::<SocketRecord>() };
    let (port, address) = (socket.peer_port, socket.peer_address);
    let peer = Peer::of(&of, header.pid, port, address);
    if peer.told_lately() {
        return None;
    }
    peer.remember();
    let (writer, payload) = done.restore::<Socket>(class::NETWORK)?;
    network::describe(payload, of.sock, of.inode);
    payload.result = done.result;
    payload.peer_port = port;
    payload.peer_address = address;
    writer.send();
    Some(())
}
