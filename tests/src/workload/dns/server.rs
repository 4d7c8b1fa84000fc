//! A name server for one process: answers what it knows on port 53 of both loopback addresses, by
//! UDP and TCP, until the process ends.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket},
    thread,
};

pub const A: u16 = 1;
pub const CNAME: u16 = 5;
pub const TXT: u16 = 16;
pub const AAAA: u16 = 28;

/// What [`ALIAS`] leads to.
pub const FOUR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
pub const SIX: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10);
/// A CNAME of [`WEB`], which has both addresses.
pub const ALIAS: &str = "alias.audit.test";
pub const WEB: &str = "web.audit.test";
/// Its addresses, told by [`many`], do not fit in a datagram.
pub const BIG: &str = "big.audit.test";
/// Neither does what this one has, says the server. It is less, because glibc asks again where it
/// has no room for all.
pub const LARGE: &str = "large.audit.test";
/// Has a text.
pub const TALK: &str = "talk.audit.test";
/// Is not there.
pub const NONE: &str = "none.audit.test";

pub fn start() -> io::Result<()> {
    for address in [
        IpAddr::from(Ipv4Addr::LOCALHOST),
        Ipv6Addr::LOCALHOST.into(),
    ] {
        let datagrams = UdpSocket::bind((address, 53))?;
        let listener = TcpListener::bind((address, 53))?;
        thread::spawn(move || -> io::Result<()> {
            let mut room = [0; 512];
            loop {
                let (size, client) = datagrams.recv_from(&mut room)?;
                if let Some(answer) = answer(&room[..size], true) {
                    datagrams.send_to(&answer, client)?;
                }
            }
        });
        thread::spawn(move || -> io::Result<()> {
            for client in listener.incoming() {
                // A client that goes away is no reason to stop.
                let _ = serve(client?);
            }
            Ok(())
        });
    }
    Ok(())
}

fn serve(mut client: TcpStream) -> io::Result<()> {
    loop {
        let mut length = [0; 2];
        client.read_exact(&mut length)?;
        let mut query = vec![0; u16::from_be_bytes(length).into()];
        client.read_exact(&mut query)?;
        if let Some(answer) = answer(&query, false) {
            client.write_all(&framed(&answer))?;
        }
    }
}

/// As TCP has a message.
pub fn framed(message: &[u8]) -> Vec<u8> {
    let length = message.len() as u16;
    [&length.to_be_bytes(), message].concat()
}

/// The addresses of [`BIG`] or [`LARGE`].
pub fn many(name: &str) -> impl Iterator<Item = Ipv4Addr> {
    let last = if name == BIG { 100..140 } else { 200..205 };
    last.map(|last| Ipv4Addr::new(192, 0, 2, last))
}

pub fn query(id: u16, name: &str, record_type: u16) -> Vec<u8> {
    let mut message = header(id, 0x0100, 1, 0);
    message.extend(encoded(name));
    message.extend([record_type, 1].map(u16::to_be_bytes).concat());
    message
}

fn header(id: u16, flags: u16, questions: u16, answers: u16) -> Vec<u8> {
    [id, flags, questions, answers, 0, 0]
        .map(u16::to_be_bytes)
        .concat()
}

fn encoded(name: &str) -> Vec<u8> {
    let labels = name.split('.').filter(|label| !label.is_empty());
    let mut bytes: Vec<u8> = labels
        .flat_map(|label| std::iter::once(label.len() as u8).chain(label.bytes()))
        .collect();
    bytes.push(0);
    bytes
}

/// The name in a question, and where what follows it begins.
fn decoded(mut bytes: &[u8]) -> Option<(String, &[u8])> {
    let mut labels = Vec::new();
    loop {
        let (length, rest) = bytes.split_first()?;
        let (label, rest) = rest.split_at_checked((*length).into())?;
        bytes = rest;
        if label.is_empty() {
            return Some((labels.join("."), bytes));
        }
        labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
    }
}

/// None to what is no query.
fn answer(query: &[u8], datagram: bool) -> Option<Vec<u8>> {
    const RESPONSE: u16 = 0x8180;
    const TRUNCATED: u16 = 0x0200;
    const NXDOMAIN: u16 = 3;
    let id = u16::from_be_bytes(*query.first_chunk()?);
    let (name, behind) = decoded(query.get(12..)?)?;
    let asked = u16::from_be_bytes(*behind.first_chunk()?);
    let question = query.get(12..query.len() - behind.len() + 4)?;
    let (mut flags, mut records) = (RESPONSE, Vec::new());
    match name.as_str() {
        ALIAS => {
            records.push(record(ALIAS, CNAME, &encoded(WEB)));
            match asked {
                A => records.push(record(WEB, A, &FOUR.octets())),
                AAAA => records.push(record(WEB, AAAA, &SIX.octets())),
                _ => {}
            }
        }
        BIG | LARGE if asked != A => {}
        BIG | LARGE if datagram => flags |= TRUNCATED,
        BIG | LARGE => records.extend(many(&name).map(|a| record(&name, A, &a.octets()))),
        TALK => records.push(record(TALK, TXT, b"\x05hello\x06 world")),
        _ => flags |= NXDOMAIN,
    }
    let mut message = header(id, flags, 1, records.len() as u16);
    message.extend_from_slice(question);
    message.extend(records.concat());
    Some(message)
}

fn record(name: &str, record_type: u16, data: &[u8]) -> Vec<u8> {
    let ttl = 60_u32.to_be_bytes();
    let mut record = encoded(name);
    record.extend([record_type, 1].map(u16::to_be_bytes).concat());
    record.extend(ttl);
    record.extend((data.len() as u16).to_be_bytes());
    record.extend_from_slice(data);
    record
}
