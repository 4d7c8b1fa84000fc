//! Programs of the network class: connect, accept, bind, listen, socket, datagrams; how undecided
//! connects ended; and what went over a connection.
//!
//! Addresses come from the socket. Where the socket has none (a failed connect clears it, a datagram
//! leaves none), they come from the caller's memory and the record says so.

use audit_common::{
    class, kind, limits,
    record::{Flow, Header, Socket, flow_direction, section, socket_flags},
};
use aya_ebpf::{
    helpers::generated::bpf_ktime_get_boot_ns,
    macros::{btf_tracepoint, map},
    maps::{HashMap, LruHashMap, PerCpuArray},
    programs::BtfTracePointContext,
};

use crate::{
    dns, file,
    gate::Place,
    kernel, objects, policy, preemption,
    process::argument,
    record::{BTF_TRACEPOINT, Origin, Writer, count_filtered, count_pending_full},
    settings::offset,
    syscall::{Call, at_exit},
    task,
};

/// A socket with its owner: a connect that returned before it was decided, or a connection.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Owned {
    pub who: Header,
    pub inode: u64,
    pub begin_ns: u64,
    /// [`flow_direction`]
    pub direction: u64,
}

#[map]
static PENDING: HashMap<u64, Owned> = HashMap::with_max_entries(limits::PENDING_CONNECTS, 0);
/// TCP connections of which the end will be told.
#[map]
pub static FLOWS: HashMap<u64, Owned> = HashMap::with_max_entries(limits::FLOWS, 0);
/// Room for an [`Owned`], which the stack has not: for programs of the network and the flow class.
#[map]
static OWNED: PerCpuArray<Owned> = PerCpuArray::with_max_entries(2, 0);

const AF_UNIX: u16 = 1;
pub const AF_INET: u16 = 2;
pub const AF_INET6: u16 = 10;
pub const IPPROTO_TCP: u16 = 6;
const SOCK_DGRAM: u16 = 2;
const SOCK_RAW: u16 = 3;
/// Number of the flag (enum sock_flags).
pub const SOCK_DONE: u64 = 1;
pub const TCP_ESTABLISHED: u64 = 1;
pub const TCP_SYN_SENT: u64 = 2;
pub const TCP_CLOSE: u64 = 7;
const EINPROGRESS: i64 = -115;
const ECANCELED: i64 = -125;

/// A socket of the current process: `struct sock`, the inode of its file, its family.
pub struct Of {
    pub sock: u64,
    pub inode: u64,
    pub family: u16,
}

impl Of {
    #[inline(always)]
    pub fn descriptor(fd: u64) -> Option<Self> {
        Self::file(file::of_descriptor(fd))
    }

    /// `file`: `struct file *`, or 0.
    #[inline(always)]
    pub fn file(file: u64) -> Option<Self> {
        const FILE_TYPE: u16 = 0o170_000;
        const SOCKET: u16 = 0o140_000;
        let inode = kernel::pointer(file, offset!(file_inode));
        if kernel::read::<u16>(inode, offset!(inode_mode)) & FILE_TYPE != SOCKET {
            return None;
        }
        let socket = kernel::pointer(file, offset!(file_private_data));
        let sock = kernel::pointer(socket, offset!(socket_sk));
        Some(Self {
            sock,
            inode: kernel::read(inode, offset!(inode_ino)),
            family: kernel::read(sock, offset!(sock_family)),
        })
    }

    #[inline(always)]
    pub fn is_inet(&self) -> bool {
        self.family == AF_INET || self.family == AF_INET6
    }

    /// IPv4 or IPv6 without connections.
    #[inline(always)]
    pub fn has_messages(&self) -> bool {
        let socket_type: u16 = kernel::read(self.sock, offset!(sock_type));
        self.is_inet() && (socket_type == SOCK_DGRAM || socket_type == SOCK_RAW)
    }
}

/// Both ends as the socket has them.
#[inline(always)]
pub fn describe(payload: &mut Socket, sock: u64, inode: u64) {
    payload.inode = inode;
    payload.family = kernel::read(sock, offset!(sock_family));
    payload.protocol = kernel::read(sock, offset!(sock_protocol));
    payload.local_port = kernel::read(sock, offset!(sock_num));
    payload.peer_port = u16::from_be(kernel::read(sock, offset!(sock_dport)));
    if payload.family == AF_INET6 {
        payload.local_address = kernel::read(sock, offset!(sock_v6_rcv_saddr));
        payload.peer_address = kernel::read(sock, offset!(sock_v6_daddr));
    } else {
        let local: [u8; 4] = kernel::read(sock, offset!(sock_rcv_saddr));
        let peer: [u8; 4] = kernel::read(sock, offset!(sock_daddr));
        payload.local_address[..4].copy_from_slice(&local);
        payload.peer_address[..4].copy_from_slice(&peer);
    }
}

/// The address in a `struct sockaddr_in` or `sockaddr_in6` of the caller: port and bytes.
#[inline(always)]
pub fn given(address: u64) -> Option<(u16, [u8; 16])> {
    let [family, port]: [u16; 2] = kernel::read_user(address)?;
    let mut bytes = [0; 16];
    match family {
        AF_INET => bytes[..4].copy_from_slice(&kernel::read_user::<[u8; 4]>(address + 4)?),
        AF_INET6 => bytes = kernel::read_user(address + 8)?,
        _ => return None,
    }
    Some((u16::from_be(port), bytes))
}

/// As [`given`], of a copy that the kernel has.
#[inline(always)]
pub fn given_in_kernel(address: u64) -> Option<(u16, [u8; 16])> {
    let [family, port]: [u16; 2] = kernel::read(address, 0);
    let mut bytes = [0; 16];
    match family {
        AF_INET => bytes[..4].copy_from_slice(&kernel::read::<[u8; 4]>(address, 4)),
        AF_INET6 => bytes = kernel::read(address, 8),
        _ => return None,
    }
    Some((u16::from_be(port), bytes))
}

at_exit!(exit_connect, exit_connect_kprobe: |call| {
    try_connect(&call, call.argument::<0>(), call.argument::<1>());
});

#[inline(always)]
fn try_connect(call: &Call, fd: u64, address: u64) -> Option<()> {
    let of = Of::descriptor(fd)?;
    if of.family == AF_UNIX {
        return try_unix_connect(call, &of, address);
    }
    if !of.is_inet() {
        return None;
    }
    let (writer, payload) = Writer::begin::<Socket>(class::NETWORK, kind::CONNECT, call)?;
    payload.result = call.result;
    describe(payload, of.sock, of.inode);
    if payload.peer_port == 0
        && let Some((port, address)) = given(address)
    {
        payload.peer_port = port;
        payload.peer_address = address;
        payload.flags |= socket_flags::PEER_FROM_ARGUMENT;
    }
    dns::connected(fd, payload.peer_port);
    connected(writer, payload, &of);
    Some(())
}

/// Both ends of a socket that was to be connected to the peer that the payload has: its own, where
/// it has one.
#[inline(always)]
pub fn describe_connect(payload: &mut Socket, of: &Of) {
    let (port, address) = (payload.peer_port, payload.peer_address);
    describe(payload, of.sock, of.inode);
    if payload.peer_port == 0 {
        payload.peer_port = port;
        payload.peer_address = address;
    } else {
        payload.flags &= !socket_flags::PEER_FROM_ARGUMENT;
    }
}

/// Sends the record of a connect, and follows what comes of it.
#[inline(always)]
pub fn connected(writer: Writer, payload: &Socket, of: &Of) {
    let who = writer.header();
    let (result, protocol) = (payload.result, payload.protocol);
    writer.send();
    if result == EINPROGRESS {
        expect_outcome(who, of);
    } else if result == 0 && protocol == IPPROTO_TCP {
        follow_flow(who, of, flow_direction::OUT);
    }
}

/// Sends the record of an accepted connection, and follows it.
#[inline(always)]
pub fn accepted(writer: Writer, payload: &Socket, of: &Of) {
    let who = writer.header();
    let protocol = payload.protocol;
    writer.send();
    if protocol == IPPROTO_TCP {
        follow_flow(who, of, flow_direction::IN);
    }
}

/// Who owns the socket, as of now, in this CPU's room for it.
#[inline(always)]
fn owned(who: &Header, of: &Of, direction: u32) -> Option<&'static mut Owned> {
    let owned = OWNED.get_ptr_mut(0)?;
    // SAFETY: a per-CPU map value that the network class alone uses.
    let owned = unsafe { &mut *owned };
    task::copy(&mut owned.who, who);
    policy::of_owner(&mut owned.who);
    owned.inode = of.inode;
    // SAFETY: no arguments.
    owned.begin_ns = unsafe { bpf_ktime_get_boot_ns() };
    owned.direction = direction.into();
    Some(owned)
}

#[inline(always)]
fn follow_flow(who: &Header, of: &Of, direction: u32) -> Option<()> {
    let owned = owned(who, of, direction)?;
    if FLOWS.insert(of.sock, &*owned, 0).is_err() {
        count_pending_full(class::NETWORK);
    }
    Some(())
}

/// Keeps who connected until the socket's state tells the outcome, which may be now: on loopback
/// the peer has answered before connect returns.
#[inline(always)]
fn expect_outcome(who: &Header, of: &Of) -> Option<()> {
    let via = who.via;
    let owned = owned(who, of, flow_direction::OUT)?;
    if PENDING.insert(of.sock, &*owned, 0).is_err() {
        count_pending_full(class::NETWORK);
        return None;
    }
    let state = u64::from(kernel::read::<u8>(of.sock, offset!(sock_state)));
    if state != TCP_SYN_SENT && PENDING.remove(of.sock).is_ok() {
        // Whoever removes the entry reports.
        outcome(class::NETWORK, via, of.sock, state, owned);
    }
    Some(())
}

#[inline(always)]
fn outcome(class: u8, via: u8, sock: u64, state: u64, owned: &Owned) -> Option<()> {
    let (writer, payload) = Writer::begin_as::<Socket>(class, kind::CONNECT, via, &owned.who)?;
    describe(payload, sock, owned.inode);
    payload.flags = socket_flags::OUTCOME;
    payload.result = match kernel::read::<i32>(sock, offset!(sock_err)) {
        _ if state != TCP_CLOSE => 0,
        0 => ECANCELED, // the caller closed it first
        error => -i64::from(error),
    };
    writer.send();
    if state != TCP_CLOSE && FLOWS.insert(sock, owned, 0).is_err() {
        count_pending_full(class);
    }
    Some(())
}

/// `inet_sock_set_state(sk, oldstate, newstate)`, often in an interrupt.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn socket_state(ctx: BtfTracePointContext) -> i32 {
    preemption::at(Place::Socket, || {
        let (old, new) = (argument(&ctx, 1) as u32, argument(&ctx, 2) as u32);
        let (sock, new) = (argument(&ctx, 0), u64::from(new));
        if u64::from(old) == TCP_SYN_SENT {
            try_decided(sock, new);
        } else if new == TCP_CLOSE {
            try_closed(sock);
        }
    })
}

#[inline(always)]
fn try_decided(sock: u64, state: u64) -> Option<()> {
    if state != TCP_ESTABLISHED && state != TCP_CLOSE {
        return None;
    }
    let owned = OWNED.get_ptr_mut(1)?;
    // SAFETY: entries are written once, before anyone can find them; OWNED is this CPU's, and this
    // part of it the flow class's. Copied, because a removed entry may be used again at once.
    let owned = unsafe {
        *owned = *PENDING.get(sock)?;
        &*owned
    };
    if PENDING.remove(sock).is_ok() {
        outcome(class::FLOW, BTF_TRACEPOINT, sock, state, owned);
    }
    Some(())
}

/// A connection has ended: what went over it.
#[inline(always)]
fn try_closed(sock: u64) -> Option<()> {
    // SAFETY: as above; nobody else removes it.
    let owned = unsafe { FLOWS.get(sock) }?;
    let (writer, payload) =
        Writer::begin_as::<Flow>(class::FLOW, kind::CLOSE_FLOW, BTF_TRACEPOINT, &owned.who)?;
    describe(&mut payload.socket, sock, owned.inode);
    if payload.socket.local_port == 0 {
        // The port is given back before the state changes; its copy for sending is still there.
        payload.socket.local_port = u16::from_be(kernel::read(sock, offset!(inet_sport)));
    }
    payload.begin_ns = owned.begin_ns;
    payload.direction = owned.direction as u32;
    let sent: u64 = kernel::read(sock, offset!(tcp_bytes_sent));
    let again: u64 = kernel::read(sock, offset!(tcp_bytes_retransmitted));
    payload.bytes_sent = sent - again;
    // The peer's FIN is counted as a byte; SOCK_DONE says that it came.
    let ended = kernel::read::<u64>(sock, offset!(sock_flags)) >> SOCK_DONE & 1;
    payload.bytes_received = kernel::read::<u64>(sock, offset!(tcp_bytes_received)) - ended;
    payload.segments_sent = kernel::read(sock, offset!(tcp_segs_out));
    payload.segments_received = kernel::read(sock, offset!(tcp_segs_in));
    payload.retransmits = kernel::read(sock, offset!(tcp_total_retrans));
    writer.send();
    let _ = FLOWS.remove(sock);
    Some(())
}

at_exit!(exit_accept, exit_accept_kprobe: |call| {
    try_accept(&call);
});

#[inline(always)]
fn try_accept(call: &Call) -> Option<()> {
    if call.result < 0 {
        return None; // nobody came
    }
    let of = Of::descriptor(call.result as u64)?;
    if !of.is_inet() {
        return None;
    }
    let (writer, payload) = Writer::begin::<Socket>(class::NETWORK, kind::ACCEPT, call)?;
    payload.result = call.result;
    describe(payload, of.sock, of.inode);
    accepted(writer, payload, &of);
    Some(())
}

at_exit!(exit_bind, exit_bind_kprobe: |call| {
    objects::forget(false); // that of a unix socket came by the hook of new files
    try_bind(&call, call.argument::<0>(), call.argument::<1>());
});

#[inline(always)]
fn try_bind(call: &Call, fd: u64, address: u64) -> Option<()> {
    let of = Of::descriptor(fd)?;
    if !of.is_inet() {
        return None;
    }
    let (writer, payload) = Writer::begin::<Socket>(class::NETWORK, kind::BIND, call)?;
    payload.result = call.result;
    describe(payload, of.sock, of.inode);
    if call.result < 0
        && let Some((port, address)) = given(address)
    {
        payload.local_port = port;
        payload.local_address = address;
        payload.flags |= socket_flags::LOCAL_FROM_ARGUMENT;
    }
    writer.send();
    Some(())
}

at_exit!(exit_listen, exit_listen_kprobe: |call| {
    try_listen(&call, call.argument::<0>(), call.argument::<1>());
});

#[inline(always)]
fn try_listen(call: &Call, fd: u64, backlog: u64) -> Option<()> {
    let of = Of::descriptor(fd)?;
    if !of.is_inet() {
        return None;
    }
    let (writer, payload) = Writer::begin::<Socket>(class::NETWORK, kind::LISTEN, call)?;
    payload.result = call.result;
    payload.backlog = backlog as u32;
    describe(payload, of.sock, of.inode);
    writer.send();
    Some(())
}

at_exit!(exit_socket, exit_socket_kprobe: |call| {
    let (family, kind) = (call.argument::<0>(), call.argument::<1>());
    try_socket(&call, family, kind, call.argument::<2>());
});

/// Without SOCK_CLOEXEC and SOCK_NONBLOCK.
const TYPE: u64 = 0xf;

/// Sockets that ordinary programs do not make: raw, packet, vsock, crypto, and the kernel's audit.
#[inline(always)]
pub fn is_special(family: u64, socket_type: u64, protocol: u64) -> bool {
    const AF_NETLINK: u64 = 16;
    const NETLINK_AUDIT: u64 = 9;
    const AF_PACKET: u64 = 17;
    const AF_ALG: u64 = 38;
    const AF_VSOCK: u64 = 40;
    match family as u32 as u64 {
        AF_PACKET | AF_ALG | AF_VSOCK => true,
        AF_NETLINK => protocol as u32 as u64 == NETLINK_AUDIT,
        _ => socket_type & TYPE == SOCK_RAW as u64 && family != 1,
    }
}

#[inline(always)]
pub fn describe_special(payload: &mut Socket, family: u64, socket_type: u64, protocol: u64) {
    payload.family = family as u16;
    payload.protocol = protocol as u16;
    payload.socket_type = (socket_type & TYPE) as u32;
}

#[inline(always)]
fn try_socket(call: &Call, family: u64, socket_type: u64, protocol: u64) -> Option<()> {
    if !is_special(family, socket_type, protocol) {
        return None;
    }
    let (writer, payload) = Writer::begin::<Socket>(class::NETWORK, kind::SOCKET_SPECIAL, call)?;
    payload.result = call.result;
    describe_special(payload, family, socket_type, protocol);
    if let Some(of) = Of::descriptor(call.result as u64) {
        payload.inode = of.inode;
    }
    writer.send();
    Some(())
}

/// `struct sockaddr_un`: two bytes of family, 108 of name.
pub const UNIX_NAME_BYTES: u64 = 108;

/// The peer's name is the socket's own, where it is connected.
#[inline(always)]
fn try_unix_connect(call: &Call, of: &Of, address: u64) -> Option<()> {
    let (mut writer, payload) = Writer::begin::<Socket>(class::NETWORK, kind::UNIX_CONNECT, call)?;
    payload.result = call.result;
    describe_unix(payload, of);
    if call.result != 0 || !unix_peer_section(&mut writer, payload, of) {
        let mut open = writer.section(section::SOCKET_NAME);
        payload.flags |= socket_flags::PEER_FROM_ARGUMENT;
        // The third argument, its size, includes the family.
        let size = call.argument::<2>().wrapping_sub(2);
        let size = if size < UNIX_NAME_BYTES {
            size
        } else {
            UNIX_NAME_BYTES
        };
        if !writer.user_bytes(address + 2, size) {
            open.truncated();
        }
        writer.close(open);
    }
    writer.send();
    Some(())
}

#[inline(always)]
pub fn describe_unix(payload: &mut Socket, of: &Of) {
    payload.inode = of.inode;
    payload.family = of.family;
    payload.socket_type = kernel::read::<u16>(of.sock, offset!(sock_type)).into();
}

/// Who is at the other end of a unix socket, and the name of that; false where it has none.
#[inline(always)]
pub fn unix_peer_section(writer: &mut Writer, payload: &mut Socket, of: &Of) -> bool {
    let peer = kernel::pointer(of.sock, offset!(unix_sock_peer));
    let name = kernel::pointer(peer, offset!(unix_sock_addr));
    if name == 0 {
        return false;
    }
    let pid = kernel::pointer(of.sock, offset!(sock_peer_pid));
    // struct upid { int nr; ... }: the first is the host's.
    payload.peer_pid = kernel::read(pid, offset!(pid_numbers));
    let size = kernel::read::<u32>(name, offset!(unix_address_len)).wrapping_sub(2);
    let text = name + offset!(unix_address_name) as u64 + 2;
    let mut open = writer.section(section::SOCKET_NAME);
    if !writer.kernel_bytes::<UNIX_NAME_BYTES>(text, size.into()) {
        open.truncated();
    }
    writer.close(open);
    true
}

/// Who sends to whom, so that a peer is told once a minute.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Peer {
    address: [u8; 16],
    pid: u32,
    port: u16,
    protocol: u16,
}

impl Peer {
    #[inline(always)]
    pub fn of(of: &Of, pid: u32, port: u16, address: [u8; 16]) -> Self {
        Self {
            address,
            pid,
            port,
            protocol: kernel::read(of.sock, offset!(sock_protocol)),
        }
    }

    /// Counted, where it is so.
    #[inline(always)]
    pub fn told_lately(&self) -> bool {
        // SAFETY: no arguments; a number that is written whole.
        let now = unsafe { bpf_ktime_get_boot_ns() };
        let last = unsafe { PEERS.get(self) }.copied().unwrap_or(0);
        let lately = last != 0 && now - last < limits::DATAGRAM_INTERVAL_NS;
        if lately {
            count_filtered(class::NETWORK);
        }
        lately
    }

    #[inline(always)]
    pub fn remember(&self) {
        // SAFETY: no arguments.
        let now = unsafe { bpf_ktime_get_boot_ns() };
        let _ = PEERS.insert(self, now, 0);
    }
}

#[map]
static PEERS: LruHashMap<Peer, u64> = LruHashMap::with_max_entries(limits::DATAGRAM_PEERS, 0);

at_exit!(exit_sendto, exit_sendto_kprobe: |call| {
    if call.result >= 0 {
        let (fd, address) = (call.argument::<0>(), call.argument::<4>());
        try_datagram(&call, fd, address);
        let memory = (call.argument::<1>(), call.argument::<2>());
        dns::sent(&call, fd, memory, address);
    }
});

at_exit!(exit_sendmsg, exit_sendmsg_kprobe: |call| {
    if call.result >= 0 {
        let (fd, message) = (call.argument::<0>(), call.argument::<1>());
        let address = message_address(message, call.has_short_pointers());
        try_datagram(&call, fd, address.unwrap_or(0));
        dns::sent_message(&call, fd, message);
    }
});

/// The address in `struct msghdr`, its first field.
#[inline(always)]
fn message_address(message: u64, short_pointers: bool) -> Option<u64> {
    if short_pointers {
        kernel::read_user::<u32>(message).map(u64::from)
    } else {
        kernel::read_user(message)
    }
}

// The program may be one of many that send what the first message of the call tells: all messages
// of one sendmmsg are looked at.
at_exit!(exit_sendmmsg, exit_sendmmsg_kprobe: |call| {
    try_messages(&call);
});

#[inline(always)]
fn try_messages(call: &Call) -> Option<()> {
    let batch = MESSAGES.get_ptr_mut(0)?;
    // SAFETY: a per-CPU map value that only this program uses.
    unsafe {
        *batch = Messages {
            fd: call.argument::<0>(),
            first: call.argument::<1>(),
            sent: call.result as u64,
            short_pointers: call.has_short_pointers().into(),
            slot: call.slot.into(),
            via: call.via.into(),
        }
    };
    let mut index = 0;
    while i64::from(index) < call.result && index < limits::MESSAGES {
        if one_message(index) != 0 {
            break;
        }
        index += 1;
    }
    dns::sent_messages(call, call.argument::<0>(), call.argument::<1>());
    Some(())
}

#[map]
static MESSAGES: PerCpuArray<Messages> = PerCpuArray::with_max_entries(1, 0);

/// The messages of a sendmmsg.
#[repr(C)]
struct Messages {
    fd: u64,
    first: u64,
    sent: u64,
    short_pointers: u64,
    slot: u64,
    via: u64,
}

/// A global function, as [`crate::path::climb_steps`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn one_message(index: u32) -> u32 {
    let Some(batch) = MESSAGES.get_ptr_mut(0) else {
        return 1;
    };
    // SAFETY: as in `try_messages`.
    let batch = unsafe { &*batch };
    let short = batch.short_pointers != 0;
    // struct mmsghdr: a msghdr and a length.
    let stride = if short { 32 } else { 64 };
    let message = batch.first + u64::from(index) * stride;
    let address = message_address(message, short).unwrap_or(0);
    let origin = Origin {
        via: batch.via as u8,
        slot: batch.slot as u32,
    };
    datagram(batch.fd, address, origin, batch.sent as i64);
    0
}

#[inline(always)]
fn try_datagram(call: &Call, fd: u64, address: u64) -> Option<()> {
    datagram(fd, address, call.into(), call.result)
}

#[inline(always)]
fn datagram(fd: u64, address: u64, origin: Origin, result: i64) -> Option<()> {
    if address == 0 {
        return None; // connected: connect told the peer
    }
    let of = Of::descriptor(fd)?;
    if !of.has_messages() {
        return None;
    }
    let (port, bytes) = given(address)?;
    let peer = Peer::of(&of, task::current_pid(), port, bytes);
    if peer.told_lately() {
        return None;
    }
    let (writer, payload) = Writer::begin::<Socket>(class::NETWORK, kind::DATAGRAM, origin)?;
    peer.remember();
    describe(payload, of.sock, of.inode);
    payload.result = result;
    payload.peer_port = port;
    payload.peer_address = bytes;
    payload.flags |= socket_flags::PEER_FROM_ARGUMENT;
    writer.send();
    Some(())
}

// `socketcall(call, arguments)` of i386: the arguments are in the caller's memory.
at_exit!(exit_socketcall, exit_socketcall_kprobe: |call| {
    let (number, arguments) = (call.argument::<0>(), call.argument::<1>());
    let (result, via) = (call.result as u64, call.via.into());
    socketcall(number, arguments, result, via);
    dns::dns_socketcall(number, arguments, result, via);
});

/// A global function, as [`crate::path::climb_steps`], because together with what it calls, the
/// program would need more stack than there is.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn socketcall(number: u64, arguments: u64, result: u64, via: u32) -> u32 {
    try_socketcall(&Call::socketcall(number, arguments, result, via));
    0
}

#[inline(always)]
fn try_socketcall(call: &Call) -> Option<()> {
    // include/uapi/linux/net.h
    const SOCKET: u64 = 1;
    const BIND: u64 = 2;
    const CONNECT: u64 = 3;
    const LISTEN: u64 = 4;
    const ACCEPT: u64 = 5;
    const SENDTO: u64 = 11;
    const SENDMSG: u64 = 16;
    const ACCEPT4: u64 = 18;
    let number = call.argument::<0>();
    let [a, b, c]: [u32; 3] = kernel::read_user(call.argument::<1>())?;
    let (a, b, c) = (a.into(), b.into(), c.into());
    match number {
        SOCKET => try_socket(call, a, b, c),
        BIND => try_bind(call, a, b),
        CONNECT => try_connect(call, a, b),
        LISTEN => try_listen(call, a, b),
        ACCEPT | ACCEPT4 => try_accept(call),
        SENDTO if call.result >= 0 => {
            let address: u32 = kernel::read_user(call.argument::<1>() + 16)?;
            try_datagram(call, a, address.into())
        }
        SENDMSG if call.result >= 0 => try_datagram(call, a, message_address(b, true)?),
        _ => None,
    }
}
