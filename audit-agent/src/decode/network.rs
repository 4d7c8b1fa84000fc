//! connect, accept, bind.

use std::net::{Ipv4Addr, Ipv6Addr};

use audit_common::record::{self, Record, socket_flags};
use audit_proto::v1::{Endpoint, Event, Socket};

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

fn socket(record: &Record<'_>, direction: &str, event: &mut Event) -> Option<()> {
    let socket: record::Socket = record.payload()?;
    let end = |address: &[u8; 16], port: u16| endpoint(socket.family, address, port, false);
    event.socket = Some(Socket {
        family: family(socket.family),
        protocol: protocol(socket.protocol),
        direction: direction.to_owned(),
        local: end(&socket.local_address, socket.local_port),
        peer: end(&socket.peer_address, socket.peer_port),
        inode: (socket.inode != 0).then_some(socket.inode as i64),
        outcome: (socket.flags & socket_flags::OUTCOME != 0).then_some(true),
    });
    event.result = Some(result(socket.result));
    Some(())
}

fn family(family: u16) -> String {
    match i32::from(family) {
        libc::AF_INET => "ipv4".to_owned(),
        libc::AF_INET6 => "ipv6".to_owned(),
        other => other.to_string(),
    }
}

fn protocol(protocol: u16) -> String {
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
