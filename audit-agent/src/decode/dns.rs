//! DNS: whose datagram or piece of a stream it is; and the event's part that a message fills.
//!
//! What is in the bytes, [`crate::dns`] says: a message may lie in several records, and a record
//! may have several messages.

use audit_common::record::{self, Record, dns_flags, section};
use audit_proto::v1::{self, Event};

use super::network;
use crate::dns::{Way, message::Message, stream::Piece, summary::Summary};

/// The socket; the message is not the record's to tell.
pub(super) fn dns(record: &Record<'_>, event: &mut Event) -> Option<()> {
    let dns: record::Dns = record.payload()?;
    let direction = match way(&dns) {
        Way::Sent => "out",
        Way::Received => "in",
    };
    event.socket = Some(network::describe(&dns.socket, direction));
    Some(())
}

/// What a record has of the traffic.
#[derive(Debug, Clone, Copy)]
pub struct Captured<'a> {
    /// The socket's network namespace, by its inode.
    pub namespace: u32,
    pub way: Way,
    /// The inode of the socket.
    pub socket: u64,
    pub form: Form<'a>,
}

#[derive(Debug, Clone, Copy)]
pub enum Form<'a> {
    Datagram(&'a [u8]),
    Piece(Piece<'a>),
}

/// None for a record that is not one of DNS.
pub fn captured<'a>(record: &Record<'a>) -> Option<Captured<'a>> {
    let dns: record::Dns = record.payload()?;
    let bytes = record
        .section(section::DNS)
        .map_or(&[][..], |section| section.bytes);
    let is_stream = i32::from(dns.socket.protocol) == libc::IPPROTO_TCP;
    Some(Captured {
        namespace: dns.network_namespace,
        way: way(&dns),
        socket: dns.socket.inode,
        form: match is_stream {
            true => Form::Piece(Piece {
                sequence: Some(dns.sequence),
                bytes,
                wire_bytes: u32::try_from(dns.wire_bytes).unwrap_or(u32::MAX),
            }),
            false => Form::Datagram(bytes),
        },
    })
}

fn way(dns: &record::Dns) -> Way {
    if dns.flags & dns_flags::SENT != 0 {
        Way::Sent
    } else {
        Way::Received
    }
}

/// What the event tells of a message.
pub fn told(message: &Message<'_>) -> v1::Dns {
    let Summary {
        id,
        response,
        query_name,
        query_type,
        response_code,
        answers,
        answers_omitted,
        truncated,
    } = Summary::of(message);
    v1::Dns {
        query_name,
        query_type,
        response_code,
        answers,
        answers_omitted: (answers_omitted != 0).then_some(answers_omitted),
        id: Some(id),
        response: Some(response),
        truncated: truncated.then_some(true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;
    use audit_common::kind;
    use zerocopy::IntoBytes as _;

    #[test]
    fn a_record_says_whose_bytes_they_are_and_which_way_they_went() {
        let mut sample = sample::record(kind::DNS);
        let event = sample.event();
        let socket = event.socket.expect("socket");
        assert_eq!(socket.direction, "in");
        assert_eq!(socket.peer.expect("peer").port, Some(53));
        assert_eq!(event.dns, None);

        let mut dns = sample.payload_as::<record::Dns>();
        dns.flags = dns_flags::SENT;
        dns.socket.protocol = libc::IPPROTO_TCP as u16;
        dns.sequence = 77;
        dns.wire_bytes = 1 << 40;
        sample.payload = dns.as_bytes().to_vec();
        assert_eq!(sample.event().socket.expect("socket").direction, "out");
        let bytes = sample.bytes();
        let record = Record::parse(&bytes).expect("record");
        let captured = captured(&record).expect("captured");
        assert_eq!((captured.way, captured.socket), (Way::Sent, 99));
        let Form::Piece(piece) = captured.form else {
            panic!("a datagram: {captured:?}");
        };
        assert_eq!((piece.sequence, piece.wire_bytes), (Some(77), u32::MAX));
    }

    #[test]
    fn what_a_message_has_not_is_absent() {
        let query = crate::dns::sample_query("www.example");
        let message = Message::parse(&query).expect("message");
        let told = told(&message);
        assert_eq!(told.query_name, "www.example");
        assert_eq!(
            (told.query_type.as_str(), told.response),
            ("A", Some(false))
        );
        assert_eq!((told.answers_omitted, told.truncated), (None, None));
        assert_eq!(told.response_code, "");
    }
}
