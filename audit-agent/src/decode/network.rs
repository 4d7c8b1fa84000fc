//! Sockets: connect, accept, bind, listen, datagrams, unix sockets, special ones, ended connections.

use std::net::{Ipv4Addr, Ipv6Addr};

use audit_common::record::{self, Record, flow_direction, section, socket_flags};
use audit_proto::{
    text::escape,
    v1::{Endpoint, Event, Flow, Socket, TargetProcess},
};

use super::result;

pub(super) fn connect(record: &Record<'_>, event: &mut Event) -> Option<()> {
    socket(record, "out", event)
}

pub(super) fn accept(record: &Record<'_>, event: &mut Event) -> Option<()> {
    socket(record, "in", event)
}

pub(super) fn bind(record: &Record<'_>, event: &mut Event) -> Option<()> {
    socket(record, "", event)?;
    let socket = event.socket.as_mut()?;
    // "Every address" is what a listener asks for; the other end it has none yet.
    let payload: record::Socket = record.payload()?;
    socket.local = endpoint(
        payload.family,
        &payload.local_address,
        payload.local_port,
        true,
    );
    socket.peer = None;
    Some(())
}

/// The peer's name, and who listens.
pub(super) fn unix_connect(record: &Record<'_>, event: &mut Event) -> Option<()> {
    socket(record, "out", event)?;
    let payload: record::Socket = record.payload()?;
    let name = record
        .section(section::SOCKET_NAME)
        .map_or(&[][..], |section| section.bytes);
    let socket = event.socket.as_mut()?;
    socket.path = unix_name(name);
    if payload.peer_pid != 0 {
        event.target_process = Some(TargetProcess {
            pid: Some(payload.peer_pid.into()),
            ..TargetProcess::default()
        });
    }
    Some(())
}

/// A path ends at its NUL; an abstract name begins with one, and is shown with "@" in its place.
fn unix_name(name: &[u8]) -> String {
    match name.split_first() {
        None => String::new(),
        Some((0, rest)) => {
            // What a caller pads its abstract name with is part of it, but says nothing.
            let end = rest.iter().rposition(|byte| *byte != 0);
            let rest = rest.get(..end.map_or(0, |end| end + 1)).unwrap_or_default();
            format!("@{}", escape(rest))
        }
        Some(_) => {
            let end = name.iter().position(|byte| *byte == 0);
            escape(&name[..end.unwrap_or(name.len())]).into_owned()
        }
    }
}

pub(super) fn special(record: &Record<'_>, event: &mut Event) -> Option<()> {
    socket(record, "", event)
}

pub(super) fn close_flow(record: &Record<'_>, event: &mut Event) -> Option<()> {
    let flow: record::Flow = record.payload()?;
    let direction = match flow.direction {
        flow_direction::OUT => "out",
        flow_direction::IN => "in",
        _ => "",
    };
    event.socket = Some(describe(&flow.socket, direction));
    let known = flow.begin_ns != 0;
    let duration = record.header.time_ns.saturating_sub(flow.begin_ns);
    event.flow = Some(Flow {
        bytes_sent: Some(flow.bytes_sent as i64),
        bytes_received: Some(flow.bytes_received as i64),
        segments_sent: Some(flow.segments_sent.into()),
        segments_received: Some(flow.segments_received.into()),
        retransmits: Some(flow.retransmits.into()),
        duration_ns: known.then_some(duration as i64),
    });
    Some(())
}

fn socket(record: &Record<'_>, direction: &str, event: &mut Event) -> Option<()> {
    let socket: record::Socket = record.payload()?;
    event.result = result(socket.result);
    event.socket = Some(describe(&socket, direction));
    Some(())
}

pub(super) fn describe(socket: &record::Socket, direction: &str) -> Socket {
    let end = |address: &[u8; 16], port: u16| endpoint(socket.family, address, port, false);
    Socket {
        family: family(socket.family),
        protocol: protocol(socket.family, socket.protocol),
        direction: direction.to_owned(),
        local: end(&socket.local_address, socket.local_port),
        peer: end(&socket.peer_address, socket.peer_port),
        inode: (socket.inode != 0).then_some(socket.inode as i64),
        outcome: (socket.flags & socket_flags::OUTCOME != 0).then_some(true),
        r#type: socket_type(socket.socket_type),
        path: String::new(),
        backlog: (socket.backlog != 0).then_some(socket.backlog.into()),
    }
}

fn family(family: u16) -> String {
    match i32::from(family) {
        libc::AF_INET => "ipv4".to_owned(),
        libc::AF_INET6 => "ipv6".to_owned(),
        libc::AF_UNIX => "unix".to_owned(),
        libc::AF_PACKET => "packet".to_owned(),
        libc::AF_NETLINK => "netlink".to_owned(),
        libc::AF_VSOCK => "vsock".to_owned(),
        libc::AF_ALG => "alg".to_owned(),
        other => other.to_string(),
    }
}

/// Absent where the record does not tell it.
fn socket_type(socket_type: u32) -> String {
    match socket_type as i32 {
        0 => String::new(),
        libc::SOCK_STREAM => "stream".to_owned(),
        libc::SOCK_DGRAM => "datagram".to_owned(),
        libc::SOCK_RAW => "raw".to_owned(),
        libc::SOCK_SEQPACKET => "seqpacket".to_owned(),
        other => other.to_string(),
    }
}

fn protocol(family: u16, protocol: u16) -> String {
    if ![libc::AF_INET, libc::AF_INET6].contains(&family.into()) {
        return match protocol {
            0 => String::new(),
            other => other.to_string(),
        };
    }
    match i32::from(protocol) {
        libc::IPPROTO_TCP => "tcp".to_owned(),
        libc::IPPROTO_UDP => "udp".to_owned(),
        other => other.to_string(),
    }
}

/// An end of a socket. The zero address stands for "not known yet" unless `any` means something.
fn endpoint(family: u16, address: &[u8; 16], port: u16, any: bool) -> Option<Endpoint> {
    let known = any || *address != [0; 16];
    let address = match i32::from(family) {
        libc::AF_INET => {
            let [a, b, c, d, ..] = *address;
            Some(Ipv4Addr::new(a, b, c, d).to_string())
        }
        libc::AF_INET6 => Some(ipv6(Ipv6Addr::from(*address))),
        _ => None,
    };
    let address = address.filter(|_| known).unwrap_or_default();
    if address.is_empty() && port == 0 {
        return None;
    }
    Some(Endpoint {
        address,
        port: Some(port.into()),
        name: String::new(),
    })
}

fn ipv6(address: Ipv6Addr) -> String {
    match address.to_ipv4_mapped() {
        Some(mapped) => mapped.to_string(),
        None => address.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;
    use audit_common::kind;
    use zerocopy::IntoBytes as _;

    fn event_of(kind: u16, change: impl FnOnce(&mut record::Socket)) -> Event {
        let mut sample = sample::record(kind);
        let mut socket = sample.payload_as::<record::Socket>();
        change(&mut socket);
        sample.payload = socket.as_bytes().to_vec();
        sample.event()
    }

    #[test]
    fn a_connect_names_both_ends() {
        let event = event_of(kind::CONNECT, |_| {});
        let socket = event.socket.expect("socket");
        let peer = socket.peer.expect("peer");
        let local = socket.local.expect("local");
        assert_eq!((peer.address.as_str(), peer.port), ("192.0.2.7", Some(443)));
        assert_eq!(
            (local.address.as_str(), local.port),
            ("10.0.0.1", Some(40_000))
        );
        assert_eq!(
            (socket.family.as_str(), socket.protocol.as_str()),
            ("ipv4", "tcp")
        );
        assert_eq!((socket.direction.as_str(), socket.inode), ("out", Some(99)));
        assert_eq!(socket.outcome, None);
        assert_eq!(event.result.expect("result").error, "EINPROGRESS");
    }

    #[test]
    fn mapped_addresses_are_written_as_ipv4() {
        let event = event_of(kind::ACCEPT, |socket| {
            socket.family = libc::AF_INET6 as u16;
            socket.peer_address = Ipv4Addr::new(198, 51, 100, 3).to_ipv6_mapped().octets();
            socket.local_address = Ipv6Addr::LOCALHOST.octets();
            socket.flags = socket_flags::OUTCOME;
        });
        let socket = event.socket.expect("socket");
        assert_eq!(socket.family, "ipv6");
        assert_eq!(socket.peer.expect("peer").address, "198.51.100.3");
        assert_eq!(socket.local.expect("local").address, "::1");
        assert_eq!(
            (socket.direction.as_str(), socket.outcome),
            ("in", Some(true))
        );
    }

    #[test]
    fn no_address_is_absent_but_a_listener_may_ask_for_all() {
        let none = |socket: &mut record::Socket| {
            socket.local_address = [0; 16];
            socket.local_port = 0;
            socket.protocol = 132;
        };
        let event = event_of(kind::CONNECT, none);
        let socket = event.socket.expect("socket");
        assert_eq!((socket.local, socket.protocol.as_str()), (None, "132"));
        let event = event_of(kind::BIND, |socket| {
            none(socket);
            socket.local_port = 80;
        });
        let socket = event.socket.expect("socket");
        let local = socket.local.expect("local");
        assert_eq!((local.address.as_str(), local.port), ("0.0.0.0", Some(80)));
        assert_eq!((socket.peer, socket.direction.as_str()), (None, ""));
    }
}
