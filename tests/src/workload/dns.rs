//! Names: what is asked of a name server, by glibc and by hand, in every way that a program can
//! send and receive; and the connections to what it answered.

mod server;

use std::{
    fs,
    io::{IoSlice, IoSliceMut, Read as _, Write as _},
    net::{
        IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _,
        UdpSocket,
    },
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use rustix::net::{RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags};
use server::{A, AAAA, ALIAS, BIG, FOUR, LARGE, NONE, SIX, TALK, TXT, WEB, framed, many, query};

use super::{Workload, ours, places::namespace, system};

const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 53);
const SERVER6: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), 53);

/// In a network of its own; a thread's, because the name server of this host stays as it is.
pub fn dns(work: &mut Workload) -> Result<()> {
    system::own_network(FOUR, SIX)?;
    server::start()?;
    let mut told = 0;
    told += resolver(work)?;
    told += datagrams(work)?;
    told += segments(work)?;
    told += batches(work)?;
    told += plain(work)?;
    told += junk()?;
    told += streams(work)?;
    resolver_stream(work)?;
    connections(work)?;
    elsewhere(work)?;
    work.number(
        "and nothing else, of the server neither",
        format!(
            "kind = 'dns' and {} and dns_query_name <> '{LARGE}'",
            ours()
        ),
        told,
    );
    Ok(())
}

/// A question for an IPv4 address.
pub fn query_address(id: u16, name: &str) -> Vec<u8> {
    query(id, name, A)
}

/// An exchange as the record must have it: by which protocol, with whom, what, and its answers.
struct Exchange<'a> {
    how: &'a str,
    server: SocketAddr,
    protocol: &'a str,
    name: &'a str,
    record_type: &'a str,
    /// More about the answer.
    answer: String,
}

impl Exchange<'_> {
    /// Two events.
    fn expect(&self, work: &mut Workload) -> i64 {
        let Self {
            how,
            server,
            protocol,
            name,
            record_type,
            answer,
        } = self;
        let of = format!(
            "kind = 'dns' and {} and dns_query_name = '{name}' and dns_query_type = '{record_type}' \
             and socket_protocol = '{protocol}' and socket_peer_port = 53 \
             and socket_peer_address = '{}' and process_network_namespace is not null",
            ours(),
            server.ip()
        );
        work.once(
            format!("{how}: asks for {record_type} of {name}"),
            format!(
                "{of} and dns_response = false and socket_direction = 'out' \
                 and dns_response_code is null and dns_answers is null"
            ),
        );
        work.once(
            format!("{how}: is told {record_type} of {name}"),
            format!("{of} and dns_response and socket_direction = 'in' and {answer}"),
        );
        2
    }
}

fn answers<T: ToString>(answers: impl IntoIterator<Item = T>) -> String {
    let texts: Vec<String> = answers.into_iter().map(|a| a.to_string()).collect();
    format!(
        "dns_response_code = 'NOERROR' and dns_answers = {}",
        super::list(texts)
    )
}

/// glibc's own, with an /etc that only this process sees.
fn resolver(work: &mut Workload) -> Result<i64> {
    // A host without these files would do as well.
    let own = work.path("etc");
    fs::create_dir(&own)?;
    fs::write(own.join("resolv.conf"), "nameserver 127.0.0.1\n")?;
    fs::write(own.join("nsswitch.conf"), "hosts: dns\n")?;
    system::own_mounts()?;
    system::bind_mount(&own, std::path::Path::new("/etc"))?;
    let found: Vec<IpAddr> = (ALIAS, 80).to_socket_addrs()?.map(|a| a.ip()).collect();
    ensure!(
        found.contains(&FOUR.into()) && found.contains(&SIX.into()),
        "{found:?}"
    );
    let mut told = 0;
    for (record_type, address) in [("A", IpAddr::from(FOUR)), ("AAAA", SIX.into())] {
        told += Exchange {
            how: "getaddrinfo",
            server: SERVER,
            protocol: "udp",
            name: ALIAS,
            record_type,
            answer: answers([WEB.to_owned(), address.to_string()]),
        }
        .expect(work);
    }
    Ok(told)
}

/// glibc asks again by TCP, both types at once; what it had by UDP until then is not certain.
fn resolver_stream(work: &mut Workload) -> Result<()> {
    let found = (LARGE, 80).to_socket_addrs()?.count();
    ensure!(found == many(LARGE).count(), "{found} addresses");
    for (record_type, answer) in [
        ("A", answers(many(LARGE))),
        ("AAAA", "dns_response_code = 'NOERROR'".to_owned()),
    ] {
        Exchange {
            how: "getaddrinfo by TCP",
            server: SERVER,
            protocol: "tcp",
            name: LARGE,
            record_type,
            answer,
        }
        .expect(work);
    }
    Ok(())
}

/// read and write, readv and writev, as on any file; which the descriptor is afterwards.
fn plain(work: &mut Workload) -> Result<i64> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.connect(SERVER)?;
    let mut file = fs::File::from(OwnedFd::from(socket));
    let (one, two) = (
        query(51, "read.plain.test", A),
        query(52, "readv.plain.test", A),
    );
    let (first, second) = two.split_at(9);
    let mut room = [0; 512];
    ensure!(file.write(&one)? == one.len());
    ensure!(file.read(&mut room)? > 12);
    ensure!(file.write_vectored(&[IoSlice::new(first), IoSlice::new(second)])? == two.len());
    let (start, rest) = room.split_at_mut(10);
    let parts = &mut [IoSliceMut::new(start), IoSliceMut::new(rest)];
    ensure!(file.read_vectored(parts)? > 12);
    let number = file.as_raw_fd();
    drop(file);
    let mut other = fs::File::open("/dev/zero")?;
    ensure!(other.as_raw_fd() == number, "another descriptor");
    other.read_exact(&mut room)?;
    let mut told = 0;
    for name in ["read.plain.test", "readv.plain.test"] {
        told += Exchange {
            how: name.split('.').next().unwrap_or_default(),
            server: SERVER,
            protocol: "udp",
            name,
            record_type: "A",
            answer: "dns_response_code = 'NXDOMAIN'".to_owned(),
        }
        .expect(work);
    }
    Ok(told)
}

/// Sockets that are not connected, to both addresses.
fn datagrams(work: &mut Workload) -> Result<i64> {
    let mut told = 0;
    let mut room = [0; 512];
    for (id, server, any) in [
        (11, SERVER, IpAddr::from(Ipv4Addr::LOCALHOST)),
        (12, SERVER6, Ipv6Addr::LOCALHOST.into()),
    ] {
        let socket = UdpSocket::bind((any, 0))?;
        socket.send_to(&query(id, TALK, TXT), server)?;
        let (_, from) = socket.recv_from(&mut room)?;
        ensure!(from == server);
        let local = socket.local_addr()?.port();
        let answer = format!(
            "{} and dns_id = {id} and socket_local_port = {local}",
            answers(["hello world"])
        );
        told += Exchange {
            how: "sendto",
            server,
            protocol: "udp",
            name: TALK,
            record_type: "TXT",
            answer,
        }
        .expect(work);
    }
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    // The address counts, also where another peer is connected.
    socket.connect((Ipv4Addr::LOCALHOST, 9))?;
    rustix::net::sendto(&socket, &query(13, NONE, A), SendFlags::empty(), &SERVER)?;
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.connect(SERVER)?;
    socket.send(&query(14, NONE, AAAA))?;
    let size = socket.recv(&mut room)?;
    ensure!(size > 0);
    let of = format!("kind = 'dns' and {} and dns_query_name = '{NONE}'", ours());
    work.once(
        "sendto past a connected peer",
        format!(
            "{of} and dns_id = 13 and dns_query_type = 'A' and socket_peer_port = 53 \
             and socket_peer_address = '127.0.0.1'"
        ),
    );
    work.once(
        "a name that is not there",
        format!(
            "{of} and dns_id = 14 and dns_response and dns_response_code = 'NXDOMAIN' \
             and dns_answers is null"
        ),
    );
    Ok(told + 3)
}

/// sendmsg and recvmsg, with messages in several segments.
fn segments(work: &mut Workload) -> Result<i64> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let message = query(21, WEB, A);
    let parts: Vec<IoSlice<'_>> = message.chunks(7).map(IoSlice::new).collect();
    rustix::net::sendmsg_addr(
        &socket,
        &SERVER,
        &parts,
        &mut SendAncillaryBuffer::default(),
        SendFlags::empty(),
    )?;
    let (mut first, mut second) = ([0; 3], [0; 509]);
    let received = rustix::net::recvmsg(
        &socket,
        &mut [IoSliceMut::new(&mut first), IoSliceMut::new(&mut second)],
        &mut RecvAncillaryBuffer::default(),
        RecvFlags::empty(),
    )?;
    ensure!(received.bytes > 12);
    let exchange = Exchange {
        how: "sendmsg",
        server: SERVER,
        protocol: "udp",
        name: WEB,
        record_type: "A",
        answer: "dns_response_code = 'NXDOMAIN'".to_owned(),
    };
    Ok(exchange.expect(work))
}

/// sendmmsg and recvmmsg.
fn batches(work: &mut Workload) -> Result<i64> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.connect(SERVER)?;
    let names = ["a.batch.test", "b.batch.test", "c.batch.test"];
    let mut messages: Vec<_> = (31..)
        .zip(names)
        .map(|(id, name)| query(id, name, A))
        .collect();
    system::send_messages(socket.as_fd(), &mut messages)?;
    // All three must be there when it looks, or it returns with fewer.
    let mut last = [0; 512];
    while socket.peek(&mut last)? == 0 {}
    thread::sleep(std::time::Duration::from_millis(300));
    let mut room = vec![vec![0; 512]; names.len()];
    system::receive_messages(socket.as_fd(), &mut room)?;
    let mut told = 0;
    for name in &names[1..] {
        told += Exchange {
            how: "sendmmsg",
            server: SERVER,
            protocol: "udp",
            name,
            record_type: "A",
            answer: "dns_response_code = 'NXDOMAIN'".to_owned(),
        }
        .expect(work);
    }
    work.number(
        "what is looked at and then taken is told twice",
        format!(
            "kind = 'dns' and {} and dns_query_name = '{}' and dns_response",
            ours(),
            names[0]
        ),
        2,
    );
    Ok(told + 3)
}

/// Not DNS: counted by the agent, and no event.
fn junk() -> Result<i64> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.send_to(&[0xff; 40], SERVER)?;
    socket.send_to(b"short", SERVER)?;
    Ok(0)
}

/// Messages in pieces, and several in one piece.
fn streams(work: &mut Workload) -> Result<i64> {
    let mut room = [0; 512];
    let asking = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    asking.send_to(&query(41, BIG, A), SERVER)?;
    asking.recv_from(&mut room)?;
    let mut told = Exchange {
        how: "too much for a datagram",
        server: SERVER,
        protocol: "udp",
        name: BIG,
        record_type: "A",
        answer: "dns_truncated and dns_answers is null".to_owned(),
    }
    .expect(work);

    let mut stream = TcpStream::connect(SERVER)?;
    let message = framed(&query(42, BIG, A));
    for part in [&message[..1], &message[1..20], &message[20..]] {
        stream.write_all(part)?;
    }
    let mut start = [0; 9];
    stream.peek(&mut start[..1])?;
    stream.read_exact(&mut start)?;
    let length = usize::from(u16::from_be_bytes([start[0], start[1]]));
    let mut rest = vec![0; length + 2 - start.len()];
    let (middle, end) = rest.split_at_mut(100);
    stream.read_exact(middle)?;
    stream.read_exact(end)?;
    told += Exchange {
        how: "a stream in pieces",
        server: SERVER,
        protocol: "tcp",
        name: BIG,
        record_type: "A",
        answer: answers(many(BIG)),
    }
    .expect(work);

    let both = [
        framed(&query(43, TALK, TXT)),
        framed(&query(44, ALIAS, AAAA)),
    ]
    .concat();
    let mut stream = TcpStream::connect(SERVER6)?;
    stream.write_all(&both)?;
    stream.shutdown(std::net::Shutdown::Write)?;
    // The connection is at its end before the process has read what it carried.
    stream.read_exact(&mut [0; 20])?;
    await_end(&stream)?;
    stream.read_to_end(&mut Vec::new())?;
    for (name, record_type, found) in [
        (TALK, "TXT", vec!["hello world".to_owned()]),
        (ALIAS, "AAAA", vec![WEB.to_owned(), SIX.to_string()]),
    ] {
        told += Exchange {
            how: "two in one piece",
            server: SERVER6,
            protocol: "tcp",
            name,
            record_type,
            answer: answers(found),
        }
        .expect(work);
    }
    Ok(told)
}

fn await_end(stream: &TcpStream) -> Result<()> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let most = Timespec {
        tv_sec: 10,
        tv_nsec: 0,
    };
    let ready = poll(&mut [PollFd::new(stream, PollFlags::RDHUP)], Some(&most))?;
    anyhow::ensure!(ready == 1, "the server does not close the connection");
    Ok(())
}

/// To what was answered: the connection has the name that was asked, not the one behind it.
fn connections(work: &mut Workload) -> Result<()> {
    let last = many(BIG).last().context("addresses")?;
    for (what, address, name) in [
        ("an IPv4 address", IpAddr::from(FOUR), Some(ALIAS)),
        ("an IPv6 address", SIX.into(), Some(ALIAS)),
        ("an address told by TCP", last.into(), Some(BIG)),
        (
            "an address that nobody told",
            Ipv4Addr::new(192, 0, 2, 99).into(),
            None,
        ),
    ] {
        let listener = TcpListener::bind((address, 0))?;
        let port = listener.local_addr()?.port();
        drop(TcpStream::connect((address, port))?);
        drop(listener.accept()?);
        let named = match name {
            Some(name) => format!("socket_peer_name = '{name}'"),
            None => "socket_peer_name is null".to_owned(),
        };
        let of = format!("{} and socket_peer_address = '{address}'", ours());
        for kind in ["connect", "close_flow"] {
            work.once(
                format!("{kind} to {what}"),
                format!(
                    "kind = '{kind}' and {of} and socket_peer_port = {port} \
                     and socket_direction = 'out' and {named}"
                ),
            );
        }
        work.once(
            format!("who accepts at {what} asked for no name"),
            format!(
                "kind = 'accept' and {} and socket_local_address = '{address}' \
                 and socket_local_port = {port} and socket_peer_name is null",
                ours()
            ),
        );
    }
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.send_to(b"x", (FOUR, 9999))?;
    work.once(
        "a datagram to an IPv4 address",
        format!(
            "kind = 'datagram' and {} and socket_peer_port = 9999 and socket_peer_name = '{ALIAS}'",
            ours()
        ),
    );
    Ok(())
}

/// The same address in another network namespace, where nobody asked.
fn elsewhere(work: &mut Workload) -> Result<()> {
    let asked_in = namespace("net")?;
    let port = thread::spawn(|| -> Result<u16> {
        system::own_network(FOUR, SIX)?;
        let listener = TcpListener::bind((FOUR, 0))?;
        let port = listener.local_addr()?.port();
        TcpStream::connect((FOUR, port))?;
        Ok(port)
    });
    let port = port.join().expect("the thread")?;
    work.once(
        "in another namespace the address has no name",
        format!(
            "kind = 'connect' and {} and socket_peer_address = '{FOUR}' and socket_peer_port = {port} \
             and socket_peer_name is null and process_network_namespace <> {asked_in}",
            ours()
        ),
    );
    Ok(())
}
