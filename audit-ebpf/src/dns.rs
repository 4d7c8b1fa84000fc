//! DNS: what processes sent to and received from port 53, as datagrams and as pieces of TCP streams.
//!
//! The bytes are read from the caller's memory when its call returns: of an answer, before the
//! caller itself can have looked at it. Sockets of other peers cost the way from the descriptor to
//! the socket's port.
//!
//! read and write are every file's, so for DNS their programs only ask whether the process has
//! connected this descriptor to port 53 (Go's resolver and glibc's streams do so). Not seen: io_uring;
//! and read or write on a socket that was connected by another process, or under another number
//! (dup), since the agent began. The same programs count for [`written`].

use audit_common::{
    class, kind, limits,
    record::{Dns, dns_flags, section, socket_flags},
};
use aya_ebpf::{
    macros::map,
    maps::{LruHashMap, PerCpuArray},
};

use crate::{
    file, kernel,
    network::{AF_INET, AF_INET6, IPPROTO_TCP, Of, SOCK_DONE, describe, given},
    record::{Origin, Writer},
    settings::offset,
    syscall::{Call, at_exit},
    task, written,
};

const PORT: u16 = 53;
const MSG_PEEK: u64 = 2;

/// What [`dns_peer`] says of a socket: none that is of interest, one connected to port 53, one
/// whose peer is told by an address.
const OTHER: u32 = 0;
const CONNECTED: u32 = 1;
const NAMED: u32 = 2;

/// What a call has moved between a socket and its caller's memory.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Moved {
    fd: u64,
    /// The peer's `struct sockaddr`; 0 for none.
    name: u64,
    /// The buffer; with `segments` an array of `struct iovec`.
    memory: u64,
    segments: u64,
    /// What of the bytes is in memory, or what of that is still to be copied.
    left: u64,
    bytes: u64,
    /// [`dns_flags`]
    flags: u64,
    short_pointers: u64,
    via: u64,
    slot: u64,
}

#[map]
static MOVED: PerCpuArray<Moved> = PerCpuArray::with_max_entries(1, 0);

impl Moved {
    /// What `call` moved, as its result says.
    #[inline(always)]
    fn new(call: &Call, fd: u64, flags: u64) -> Self {
        Self {
            fd,
            name: 0,
            memory: 0,
            segments: 0,
            left: call.result as u64,
            bytes: call.result as u64,
            flags,
            short_pointers: call.has_short_pointers().into(),
            via: call.via.into(),
            slot: call.slot.into(),
        }
    }
}

#[inline(always)]
fn received(message_flags: u64) -> u64 {
    if message_flags & MSG_PEEK != 0 {
        dns_flags::PEEKED.into()
    } else {
        0
    }
}

const SENT: u64 = dns_flags::SENT as u64;

/// A call with a buffer and perhaps an address.
#[inline(always)]
pub fn sent(call: &Call, fd: u64, (memory, room): (u64, u64), name: u64) {
    buffer(Moved::new(call, fd, SENT), (memory, room), name);
}

#[inline(always)]
fn buffer(mut moved: Moved, (memory, room): (u64, u64), name: u64) {
    moved.memory = memory;
    moved.name = name;
    if room < moved.left {
        moved.left = room; // MSG_TRUNC: the result is the datagram's size
    }
    consider(&moved, dns_peer(moved.fd, moved.flags as u32));
}

/// A call with a `struct msghdr`.
#[inline(always)]
pub fn sent_message(call: &Call, fd: u64, header: u64) {
    message(Moved::new(call, fd, SENT), header);
}

#[inline(always)]
fn message(mut moved: Moved, header: u64) {
    let peer = dns_peer(moved.fd, moved.flags as u32);
    if peer != OTHER && moved.gather(header).is_some() {
        consider(&moved, peer);
    }
}

impl Moved {
    /// Name and memory of a `struct msghdr`: its first four fields.
    #[inline(always)]
    fn gather(&mut self, header: u64) -> Option<()> {
        if self.short_pointers != 0 {
            let [name, _, memory, segments]: [u32; 4] = kernel::read_user(header)?;
            (self.name, self.memory, self.segments) = (name.into(), memory.into(), segments.into());
        } else {
            let [name, _, memory, segments]: [u64; 4] = kernel::read_user(header)?;
            (self.name, self.memory, self.segments) = (name, memory, segments);
        }
        (self.segments != 0).then_some(())
    }
}

/// Tells it, if the peer is at the port of DNS.
#[inline(always)]
fn consider(moved: &Moved, peer: u32) {
    if peer == OTHER || peer == NAMED && !at_port(moved.name) {
        return;
    }
    if let Some(place) = MOVED.get_ptr_mut(0) {
        // SAFETY: a per-CPU map value, and programs of one class never interrupt each other.
        unsafe { *place = *moved };
        tell_dns();
    }
}

#[inline(always)]
fn at_port(name: u64) -> bool {
    // Every family of interest has the port behind the family.
    name != 0 && kernel::read_user::<u16>(name + 2) == Some(PORT.to_be())
}

/// Where a socket's peer is, as far as the socket says. A call that moved bytes has succeeded on
/// it, so the descriptor is taken for a socket's without a look at the inode.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn dns_peer(fd: u64, flags: u32) -> u32 {
    let file = file::of_descriptor(fd);
    let socket = kernel::pointer(file, offset!(file_private_data));
    let sock = kernel::pointer(socket, offset!(socket_sk));
    let port: u16 = kernel::read(sock, offset!(sock_dport));
    let port = u16::from_be(port);
    // Of what is sent, an address counts also on a socket that is connected.
    if port != PORT && port != 0 && flags & dns_flags::SENT == 0 {
        return OTHER;
    }
    let family: u16 = kernel::read(sock, offset!(sock_family));
    if family != AF_INET && family != AF_INET6 {
        return OTHER;
    }
    if port == PORT { CONNECTED } else { NAMED }
}

/// Sends the record of what [`MOVED`] describes. A global function, as
/// [`crate::path::climb_steps`]: many programs end here.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tell_dns() -> u32 {
    try_tell();
    0
}

#[inline(always)]
fn try_tell() -> Option<()> {
    let moved = MOVED.get_ptr_mut(0)?;
    // SAFETY: as in `consider`.
    let moved = unsafe { &mut *moved };
    let of = Of::descriptor(moved.fd)?;
    let protocol: u16 = kernel::read(of.sock, offset!(sock_protocol));
    let port: u16 = kernel::read(of.sock, offset!(sock_dport));
    let is_tcp = protocol == IPPROTO_TCP;
    if !is_tcp && moved.left < limits::DNS_HEADER_BYTES {
        return None;
    }
    // A stream ignores addresses once it is connected.
    let by_name = moved.name != 0 && (port == 0 || (moved.flags & SENT != 0 && !is_tcp));
    let name = if by_name { given(moved.name) } else { None };
    if name.map_or(u16::from_be(port), |(port, _)| port) != PORT {
        return None;
    }
    let origin = Origin {
        via: moved.via as u8,
        slot: moved.slot as u32,
    };
    let (mut writer, payload) = Writer::begin::<Dns>(class::NETWORK, kind::DNS, origin)?;
    describe(&mut payload.socket, of.sock, of.inode);
    if let Some((port, address)) = name {
        payload.socket.peer_port = port;
        payload.socket.peer_address = address;
        payload.socket.flags |= socket_flags::PEER_FROM_ARGUMENT;
    }
    payload.socket.result = moved.bytes as i64;
    payload.wire_bytes = moved.bytes;
    payload.flags = moved.flags as u32;
    let net = kernel::pointer(of.sock, offset!(sock_net));
    payload.network_namespace = kernel::read(net, offset!(net_inum));
    if is_tcp {
        payload.sequence = position(of.sock, moved);
    }
    bytes(&mut writer, moved);
    writer.send();
    Some(())
}

/// Where in the stream the bytes begin: the call has moved the stream's place behind them.
#[inline(always)]
fn position(sock: u64, moved: &Moved) -> u32 {
    let bytes = moved.bytes as u32;
    if moved.flags & SENT != 0 {
        let end: u32 = kernel::read(sock, offset!(tcp_write_seq));
        return end.wrapping_sub(bytes);
    }
    let end: u32 = kernel::read(sock, offset!(tcp_copied_seq));
    if moved.flags & u64::from(dns_flags::PEEKED) != 0 {
        return end;
    }
    // The peer's FIN has a number too; SOCK_DONE says that it came.
    let came = kernel::read::<u64>(sock, offset!(sock_flags)) >> SOCK_DONE & 1 != 0;
    let passed = came && end == kernel::read::<u32>(sock, offset!(tcp_rcv_nxt));
    end.wrapping_sub(bytes).wrapping_sub(passed.into())
}

#[inline(always)]
fn bytes(writer: &mut Writer, moved: &mut Moved) {
    if moved.left > limits::DNS_BYTES {
        moved.left = limits::DNS_BYTES;
    }
    let open = writer.section(section::DNS);
    if moved.segments == 0 {
        writer.user_bytes(moved.memory, moved.left);
    } else {
        writer.suspend();
        let mut index = 0;
        while index < limits::DNS_SEGMENTS && dns_segment(index) == CONTINUE {
            index += 1;
        }
        writer.reload();
    }
    writer.close(open);
}

const CONTINUE: u32 = 0;
const STOP: u32 = 1;

/// Copies one segment; a global function, as [`crate::path::climb_steps`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn dns_segment(index: u32) -> u32 {
    match try_segment(index) {
        Some(true) => CONTINUE,
        _ => STOP,
    }
}

/// True when there is more.
#[inline(always)]
fn try_segment(index: u32) -> Option<bool> {
    let moved = MOVED.get_ptr_mut(0)?;
    // SAFETY: as in `consider`.
    let moved = unsafe { &mut *moved };
    let mut writer = Writer::resume(class::NETWORK)?;
    let at = u64::from(index);
    let (memory, size) = if moved.short_pointers != 0 {
        let [memory, size]: [u32; 2] = kernel::read_user(moved.memory + at * 8)?;
        (u64::from(memory), u64::from(size))
    } else {
        let [memory, size]: [u64; 2] = kernel::read_user(moved.memory + at * 16)?;
        (memory, size)
    };
    let size = if size < moved.left { size } else { moved.left };
    if !writer.user_bytes(memory, size) {
        return None;
    }
    writer.suspend();
    moved.left -= size;
    Some(moved.left > 0 && at + 1 < moved.segments)
}

/// Messages of a sendmmsg or recvmmsg, of which the first is at `next`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Batch {
    moved: Moved,
    next: u64,
    peer: u64,
}

#[map]
static BATCH: PerCpuArray<Batch> = PerCpuArray::with_max_entries(1, 0);

#[inline(always)]
pub fn sent_messages(call: &Call, fd: u64, first: u64) {
    messages(call, Moved::new(call, fd, SENT), first);
}

/// The result is how many of them were moved.
#[inline(always)]
fn messages(call: &Call, moved: Moved, first: u64) {
    let peer = dns_peer(moved.fd, moved.flags as u32);
    let Some(batch) = BATCH.get_ptr_mut(0) else {
        return;
    };
    if peer == OTHER {
        return;
    }
    // SAFETY: as in `consider`.
    unsafe {
        *batch = Batch {
            moved,
            next: first,
            peer: peer.into(),
        }
    };
    let mut index = 0;
    while i64::from(index) < call.result
        && index < limits::MESSAGES
        && dns_message(index) == CONTINUE
    {
        index += 1;
    }
}

/// A global function, as [`crate::path::climb_steps`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn dns_message(_index: u32) -> u32 {
    match try_message() {
        Some(()) => CONTINUE,
        None => STOP,
    }
}

#[inline(always)]
fn try_message() -> Option<()> {
    let batch = BATCH.get_ptr_mut(0)?;
    // SAFETY: as in `consider`.
    let batch = unsafe { &mut *batch };
    // struct mmsghdr: a msghdr and how many bytes were moved.
    let (length_at, stride) = if batch.moved.short_pointers != 0 {
        (28, 32)
    } else {
        (56, 64)
    };
    let header = batch.next;
    batch.next += stride;
    let mut moved = batch.moved;
    moved.bytes = kernel::read_user::<u32>(header + length_at)?.into();
    moved.left = moved.bytes;
    if moved.gather(header).is_some() {
        consider(&moved, batch.peer as u32);
    }
    Some(())
}

at_exit!(exit_recvfrom, exit_recvfrom_kprobe: |call| {
    if call.result > 0 {
        let memory = (call.argument::<1>(), call.argument::<2>());
        let flags = received(call.argument::<3>());
        let moved = Moved::new(&call, call.argument::<0>(), flags);
        buffer(moved, memory, call.argument::<4>());
    }
});

at_exit!(exit_recvmsg, exit_recvmsg_kprobe: |call| {
    if call.result > 0 {
        let flags = received(call.argument::<2>());
        let moved = Moved::new(&call, call.argument::<0>(), flags);
        message(moved, call.argument::<1>());
    }
});

at_exit!(exit_recvmmsg, exit_recvmmsg_kprobe: |call| {
    if call.result > 0 {
        let flags = received(call.argument::<3>());
        let moved = Moved::new(&call, call.argument::<0>(), flags);
        messages(&call, moved, call.argument::<1>());
    }
});

/// Descriptors that their process has connected to port 53.
#[map]
static CONNECTIONS: LruHashMap<u64, u8> = LruHashMap::with_max_entries(limits::DNS_CONNECTIONS, 0);

#[inline(always)]
fn connection(fd: u64) -> u64 {
    connection_of(task::current_pid(), fd)
}

#[inline(always)]
fn connection_of(pid: u32, fd: u64) -> u64 {
    u64::from(pid) << 32 | u64::from(fd as u32)
}

/// The current process connects `fd`.
#[inline(always)]
pub fn connected(fd: u64, port: u16) {
    if port == PORT {
        let _ = CONNECTIONS.insert(connection(fd), 1, 0);
    }
}

/// A process has had `fd` connected before we came.
#[inline(always)]
pub fn was_connected(pid: u32, fd: u64, port: u16) {
    if port == PORT {
        let _ = CONNECTIONS.insert(connection_of(pid, fd), 1, 0);
    }
}

/// Whether `fd` may be such a descriptor; it may have been closed and be another's.
#[inline(always)]
fn is_connection(call: &Call, fd: u64) -> bool {
    // SAFETY: only the presence of the key is used.
    call.result > 0 && unsafe { CONNECTIONS.get(connection(fd)) }.is_some()
}

/// What read, write (`segments` is 0), readv or writev have moved.
#[inline(always)]
fn plain(call: &Call, flags: u64, segments: impl Fn(&Call) -> u64) {
    let fd = call.argument::<0>();
    if !is_connection(call, fd) {
        return;
    }
    if dns_peer(fd, 0) != CONNECTED {
        let _ = CONNECTIONS.remove(connection(fd));
        return;
    }
    let mut moved = Moved::new(call, fd, flags);
    moved.memory = call.argument::<1>();
    moved.segments = segments(call);
    consider(&moved, CONNECTED);
}

at_exit!(exit_read, exit_read_kprobe: |call| {
    written::count(call.argument::<0>(), call.result, false);
    plain(&call, 0, |_| 0);
});

at_exit!(exit_write, exit_write_kprobe: |call| {
    written::count(call.argument::<0>(), call.result, true);
    plain(&call, SENT, |_| 0);
});

at_exit!(exit_readv, exit_readv_kprobe: |call| {
    written::count(call.argument::<0>(), call.result, false);
    plain(&call, 0, |call| call.argument::<2>());
});

at_exit!(exit_writev, exit_writev_kprobe: |call| {
    written::count(call.argument::<0>(), call.result, true);
    plain(&call, SENT, |call| call.argument::<2>());
});

/// `socketcall(call, arguments)` of i386: the arguments are in the caller's memory. A global
/// function, as [`crate::network::socketcall`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn dns_socketcall(number: u64, arguments: u64, result: u64, via: u32) -> u32 {
    try_socketcall(&Call::socketcall(number, arguments, result, via));
    0
}

#[inline(always)]
fn try_socketcall(call: &Call) -> Option<()> {
    // include/uapi/linux/net.h
    const SEND: u64 = 9;
    const RECV: u64 = 10;
    const SENDTO: u64 = 11;
    const RECVFROM: u64 = 12;
    const SENDMSG: u64 = 16;
    const RECVMSG: u64 = 17;
    const RECVMMSG: u64 = 19;
    const SENDMMSG: u64 = 20;
    let number = call.argument::<0>();
    if call.result <= 0 || number < SEND {
        return None;
    }
    let arguments = call.argument::<1>();
    let [fd, a, b]: [u32; 3] = kernel::read_user(arguments)?;
    let (fd, a, b) = (u64::from(fd), u64::from(a), u64::from(b));
    // The fourth and the fifth; not every call has them.
    let more = |at: u64| kernel::read_user::<u32>(arguments + at * 4).map_or(0, u64::from);
    let flags = match number {
        RECV | RECVFROM | RECVMMSG => received(more(3)),
        RECVMSG => received(b),
        _ => SENT,
    };
    let moved = Moved::new(call, fd, flags);
    match number {
        SEND | RECV => buffer(moved, (a, b), 0),
        SENDTO | RECVFROM => buffer(moved, (a, b), more(4)),
        SENDMSG | RECVMSG => message(moved, a),
        SENDMMSG | RECVMMSG => messages(call, moved, a),
        _ => {}
    }
    Some(())
}
