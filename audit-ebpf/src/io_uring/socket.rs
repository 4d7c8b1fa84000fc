//! What does a request ask for that is about a socket? Where the kernel has a copy of an address
//! already, that is taken.

use audit_common::{
    class, kind,
    record::{NO_RESULT, Socket, section, socket_flags},
};

use super::{BIND, CONNECT, Request, SENDMSG, SENDMSG_ZC, file_of, keep, optional};
use crate::{
    kernel, network,
    network::{Peer, UNIX_NAME_BYTES},
    record::Writer,
    settings::{offset, setting},
    task,
};

const AF_UNIX: u16 = 1;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// A family whose connects are told.
#[inline(always)]
fn is_told(family: u16) -> bool {
    family == AF_UNIX || family == AF_INET || family == AF_INET6
}

/// An address that a request has, in the kernel's copy or still in the caller's memory.
struct Address {
    at: u64,
    copied: bool,
}

impl Address {
    #[inline(always)]
    fn of(request: &Request, given: u64) -> Self {
        if request.flags & setting!(uring_has_data) == 0 {
            return Self {
                at: given,
                copied: false,
            };
        }
        let data = kernel::pointer(request.at, offset!(uring_async_data));
        let in_message = data + offset!(uring_message_address) as u64;
        let at = if Self::is_alone(request, data, in_message, given) {
            data
        } else {
            in_message
        };
        Self { at, copied: true }
    }

    /// Of connect and bind some kernels keep nothing but the address, others a whole message; no
    /// type says which. A message begins with a pointer.
    #[inline(always)]
    fn is_alone(request: &Request, data: u64, in_message: u64, given: u64) -> bool {
        if request.opcode != CONNECT && request.opcode != BIND {
            return false;
        }
        is_told(kernel::read(data, 0))
            && (!is_told(kernel::read(in_message, 0))
                || kernel::read_user::<u64>(given)
                    .is_none_or(|given| given == kernel::read(data, 0)))
    }

    #[inline(always)]
    fn family(&self) -> u16 {
        if self.copied {
            kernel::read(self.at, 0)
        } else {
            kernel::read_user(self.at).unwrap_or(0)
        }
    }

    /// Port and bytes of an IPv4 or IPv6 address.
    #[inline(always)]
    fn inet(&self) -> Option<(u16, [u8; 16])> {
        if self.copied {
            network::given_in_kernel(self.at)
        } else {
            network::given(self.at)
        }
    }
}

#[inline(always)]
fn prepare(request: &Request, kind: u16) -> Option<(Writer, &'static mut Socket)> {
    let (writer, payload) = Writer::begin::<Socket>(class::NETWORK, kind, request.origin())?;
    payload.result = NO_RESULT;
    Some((writer, payload))
}

/// Both ends of a socket that is told at once: later the request's own file is asked.
#[inline(always)]
fn describe_now(request: &Request, payload: &mut Socket) {
    if request.now
        && let Some(of) = network::Of::file(file_of(request))
    {
        network::describe(payload, of.sock, of.inode);
    }
}

#[inline(always)]
pub fn connect(request: &Request) -> Option<()> {
    let given = kernel::pointer(request.at, offset!(uring_connect_address));
    let address = Address::of(request, given);
    let family = address.family();
    let kind = if family == AF_UNIX {
        kind::UNIX_CONNECT
    } else {
        kind::CONNECT
    };
    let (mut writer, payload) = prepare(request, kind)?;
    describe_now(request, payload);
    payload.family = family;
    payload.flags |= socket_flags::PEER_FROM_ARGUMENT;
    if let Some((port, bytes)) = address.inet() {
        payload.peer_port = port;
        payload.peer_address = bytes;
    }
    if family == AF_UNIX {
        let size: u32 = kernel::read(request.at, offset!(uring_connect_address_size));
        let size = u64::from(size).wrapping_sub(2);
        let size = if size < UNIX_NAME_BYTES {
            size
        } else {
            UNIX_NAME_BYTES
        };
        let mut open = writer.section(section::SOCKET_NAME);
        let read = if address.copied {
            writer.kernel_bytes::<UNIX_NAME_BYTES>(address.at + 2, size)
        } else {
            writer.user_bytes(address.at + 2, size)
        };
        if !read {
            open.truncated();
        }
        writer.close(open);
    }
    keep(request, writer)
}

#[inline(always)]
pub fn accept(request: &Request) -> Option<()> {
    let (writer, payload) = prepare(request, kind::ACCEPT)?;
    describe_now(request, payload);
    if request.flags & setting!(uring_accepts_many) != 0 && !request.now {
        super::keep_accept(request, &writer);
    }
    keep(request, writer)
}

#[inline(always)]
pub fn socket(request: &Request) -> Option<()> {
    let family: u32 = kernel::read(request.at, offset!(uring_socket_domain));
    let socket_type: u32 = kernel::read(request.at, offset!(uring_socket_type));
    let protocol: u32 = kernel::read(request.at, offset!(uring_socket_protocol));
    if !network::is_special(family.into(), socket_type.into(), protocol.into()) {
        return None;
    }
    let (writer, payload) = prepare(request, kind::SOCKET_SPECIAL)?;
    network::describe_special(payload, family.into(), socket_type.into(), protocol.into());
    keep(request, writer)
}

/// bind and listen.
#[inline(always)]
pub fn local(request: &Request, listens: bool) -> Option<()> {
    let (writer, payload) = prepare(request, if listens { kind::LISTEN } else { kind::BIND })?;
    describe_now(request, payload);
    if listens {
        payload.backlog = kernel::read(request.at, offset!(uring_listen_backlog));
        return keep(request, writer);
    }
    let address = Address::of(request, 0);
    payload.family = address.family();
    if let Some((port, bytes)) = address.inet() {
        payload.local_port = port;
        payload.local_address = bytes;
        payload.flags |= socket_flags::LOCAL_FROM_ARGUMENT;
    }
    keep(request, writer)
}

#[inline(always)]
pub fn send(request: &Request) -> Option<()> {
    let (port, bytes) = destination(request)?.inet()?;
    // Not there yet: a slot that an earlier request of the chain fills.
    if let Some(of) = network::Of::file(file_of(request)) {
        let peer = Peer::of(&of, task::current_pid(), port, bytes);
        if !of.has_messages() || peer.told_lately() {
            return None;
        }
        if request.now {
            peer.remember();
        }
    }
    let (writer, payload) = prepare(request, kind::DATAGRAM)?;
    describe_now(request, payload);
    payload.peer_port = port;
    payload.peer_address = bytes;
    payload.flags |= socket_flags::PEER_FROM_ARGUMENT;
    keep(request, writer)
}

/// Where a message goes; nothing for a connected socket.
#[inline(always)]
fn destination(request: &Request) -> Option<Address> {
    if request.flags & setting!(uring_has_data) != 0 {
        let data = kernel::pointer(request.at, offset!(uring_async_data));
        let named = kernel::pointer(data, offset!(uring_message_name)) != 0;
        return named.then(|| Address::of(request, 0));
    }
    let at = if request.opcode == SENDMSG || request.opcode == SENDMSG_ZC {
        kernel::read_user(kernel::pointer(request.at, offset!(uring_send_message)))?
    } else {
        optional(request.at, offset!(uring_send_address))
    };
    (at != 0).then_some(Address { at, copied: false })
}
