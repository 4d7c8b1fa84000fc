//! Programs of the network class: connect, accept, bind, and how undecided connects ended.
//!
//! Addresses come from the socket. Where the socket has none (a failed connect clears it), they
//! come from the caller's memory and the record says so.

use audit_common::{
    class, kind, limits,
    record::{Header, Socket, socket_flags},
};
use aya_ebpf::{
    macros::{btf_tracepoint, map, tracepoint},
    maps::HashMap,
    programs::{BtfTracePointContext, TracePointContext},
};

use crate::{
    file, kernel,
    process::argument,
    record::{BTF_TRACEPOINT, TRACEPOINT, Writer, count_pending_full},
    settings::offset,
    syscall, task,
};

/// A connect that returned before it was decided, by socket.
#[repr(C)]
#[derive(Clone, Copy)]
struct Pending {
    who: Header,
    inode: u64,
}

#[map]
static PENDING: HashMap<u64, Pending> = HashMap::with_max_entries(limits::PENDING_CONNECTS, 0);

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const TCP_ESTABLISHED: u64 = 1;
const TCP_SYN_SENT: u64 = 2;
const TCP_CLOSE: u64 = 7;
const EINPROGRESS: i64 = -115;
const ECANCELED: i64 = -125;

/// A socket of the current process: `struct sock` and the inode of its file.
#[inline(always)]
fn of_descriptor(fd: u64) -> Option<(u64, u64)> {
    const FILE_TYPE: u16 = 0o170_000;
    const SOCKET: u16 = 0o140_000;
    let file = file::of_descriptor(fd);
    let inode = kernel::pointer(file, offset!(file_inode));
    if kernel::read::<u16>(inode, offset!(inode_mode)) & FILE_TYPE != SOCKET {
        return None;
    }
    let socket = kernel::pointer(file, offset!(file_private_data));
    let sock = kernel::pointer(socket, offset!(socket_sk));
    let family: u16 = kernel::read(sock, offset!(sock_family));
    if family != AF_INET && family != AF_INET6 {
        return None;
    }
    Some((sock, kernel::read(inode, offset!(inode_ino))))
}

/// Both ends as the socket has them.
#[inline(always)]
fn describe(payload: &mut Socket, sock: u64, inode: u64) {
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
fn given(address: u64) -> Option<(u16, [u8; 16])> {
    let [family, port]: [u16; 2] = kernel::read_user(address)?;
    let mut bytes = [0; 16];
    match family {
        AF_INET => bytes[..4].copy_from_slice(&kernel::read_user::<[u8; 4]>(address + 4)?),
        AF_INET6 => bytes = kernel::read_user(address + 8)?,
        _ => return None,
    }
    Some((u16::from_be(port), bytes))
}

#[tracepoint]
pub fn exit_connect(ctx: TracePointContext) -> u32 {
    try_connect(syscall::result(&ctx));
    0
}

#[inline(always)]
fn try_connect(result: i64) -> Option<()> {
    let registers = syscall::registers();
    let (sock, inode) = of_descriptor(syscall::argument::<0>(registers))?;
    let (writer, payload) = Writer::begin::<Socket>(class::NETWORK, kind::CONNECT, TRACEPOINT)?;
    payload.result = result;
    describe(payload, sock, inode);
    if payload.peer_port == 0
        && let Some((port, address)) = given(syscall::argument::<1>(registers))
    {
        payload.peer_port = port;
        payload.peer_address = address;
        payload.flags |= socket_flags::PEER_FROM_ARGUMENT;
    }
    writer.send();
    if result == EINPROGRESS {
        expect_outcome(sock, inode);
    }
    Some(())
}

/// Keeps who connected until the socket's state tells the outcome, which may be now: on loopback
/// the peer has answered before connect returns.
#[inline(always)]
fn expect_outcome(sock: u64, inode: u64) {
    // SAFETY: all-zero bytes are a Pending.
    let mut pending: Pending = unsafe { core::mem::zeroed() };
    task::fill(&mut pending.who);
    pending.inode = inode;
    if PENDING.insert(sock, pending, 0).is_err() {
        count_pending_full(class::NETWORK);
        return;
    }
    let state = u64::from(kernel::read::<u8>(sock, offset!(sock_state)));
    if state != TCP_SYN_SENT && PENDING.remove(sock).is_ok() {
        // Whoever removes the entry reports.
        outcome(class::NETWORK, TRACEPOINT, sock, state, &pending);
    }
}

#[inline(always)]
fn outcome(class: u8, via: u8, sock: u64, state: u64, pending: &Pending) -> Option<()> {
    let (writer, payload) = Writer::begin_as::<Socket>(class, kind::CONNECT, via, &pending.who)?;
    describe(payload, sock, pending.inode);
    payload.flags = socket_flags::OUTCOME;
    payload.result = match kernel::read::<i32>(sock, offset!(sock_err)) {
        _ if state != TCP_CLOSE => 0,
        0 => ECANCELED, // the caller closed it first
        error => -i64::from(error),
    };
    writer.send();
    Some(())
}

/// `inet_sock_set_state(sk, oldstate, newstate)`, often in an interrupt.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn socket_state(ctx: BtfTracePointContext) -> i32 {
    let (old, new) = (argument(&ctx, 1) as u32, argument(&ctx, 2) as u32);
    if u64::from(old) == TCP_SYN_SENT {
        try_socket_state(argument(&ctx, 0), new.into());
    }
    0
}

#[inline(always)]
fn try_socket_state(sock: u64, state: u64) -> Option<()> {
    if state != TCP_ESTABLISHED && state != TCP_CLOSE {
        return None;
    }
    // SAFETY: entries are written once, before anyone can find them.
    let pending = unsafe { PENDING.get(sock) }?;
    let pending = *pending;
    if PENDING.remove(sock).is_ok() {
        outcome(class::FLOW, BTF_TRACEPOINT, sock, state, &pending);
    }
    Some(())
}

#[tracepoint]
pub fn exit_accept(ctx: TracePointContext) -> u32 {
    try_accept(syscall::result(&ctx));
    0
}

#[inline(always)]
fn try_accept(result: i64) -> Option<()> {
    if result < 0 {
        return None; // nobody came
    }
    let (sock, inode) = of_descriptor(result as u64)?;
    let (writer, payload) = Writer::begin::<Socket>(class::NETWORK, kind::ACCEPT, TRACEPOINT)?;
    payload.result = result;
    describe(payload, sock, inode);
    writer.send();
    Some(())
}

#[tracepoint]
pub fn exit_bind(ctx: TracePointContext) -> u32 {
    try_bind(syscall::result(&ctx));
    0
}

#[inline(always)]
fn try_bind(result: i64) -> Option<()> {
    let registers = syscall::registers();
    let (sock, inode) = of_descriptor(syscall::argument::<0>(registers))?;
    let (writer, payload) = Writer::begin::<Socket>(class::NETWORK, kind::BIND, TRACEPOINT)?;
    payload.result = result;
    describe(payload, sock, inode);
    if result < 0
        && let Some((port, address)) = given(syscall::argument::<1>(registers))
    {
        payload.local_port = port;
        payload.local_address = address;
        payload.flags |= socket_flags::LOCAL_FROM_ARGUMENT;
    }
    writer.send();
    Some(())
}
