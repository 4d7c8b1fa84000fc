//! Sockets besides connections: listeners, datagrams, unix sockets, special ones; and what went over
//! a connection.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream},
    },
};

use anyhow::{Result, ensure};
use rustix::net::{AddressFamily, SocketType, netlink};

use super::{Workload, ours, quoted};

pub fn sockets(work: &mut Workload) -> Result<()> {
    listeners(work)?;
    flows(work)?;
    datagrams(work)?;
    unix(work)?;
    special(work)
}

fn listeners(work: &mut Workload) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    rustix::net::listen(&listener, 7)?;
    let port = listener.local_addr()?.port();
    let inode = rustix::fs::fstat(&listener)?.st_ino;
    let us = ours();
    let of = format!(
        "kind = 'listen' and {us} and socket_local_address = '127.0.0.1' \
         and socket_local_port = {port} and socket_protocol = 'tcp' and socket_inode = {inode}"
    );
    work.once("listen", format!("{of} and socket_backlog = 7"));
    work.number("listen, and the library's own before it", of, 2);
    Ok(())
}

/// A connection that says 5 bytes and hears 3; both of its ends.
fn flows(work: &mut Workload) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let server = listener.local_addr()?.port();
    let mut client = TcpStream::connect(listener.local_addr()?)?;
    let port = client.local_addr()?.port();
    let (mut accepted, _) = listener.accept()?;
    client.write_all(b"hello")?;
    accepted.read_exact(&mut [0; 5])?;
    accepted.write_all(b"bye")?;
    client.read_exact(&mut [0; 3])?;
    drop(client);
    ensure!(accepted.read(&mut [0; 1])? == 0);
    drop(accepted);
    let us = ours();
    let of = |direction: &str, local: u16, peer: u16, sent: u32, received: u32| {
        format!(
            "kind = 'close_flow' and {us} and socket_direction = '{direction}' \
             and socket_local_port = {local} and socket_peer_port = {peer} \
             and flow_bytes_received = {received} and flow_bytes_sent = {sent} \
             and flow_duration_ns > 0"
        )
    };
    work.once(
        "the end of a connection, its maker",
        of("out", port, server, 5, 3),
    );
    work.once(
        "the end of a connection, its acceptor",
        of("in", server, port, 3, 5),
    );
    Ok(())
}

fn datagrams(work: &mut Workload) -> Result<()> {
    let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    for _ in 0..3 {
        sender.send_to(b"x", receiver.local_addr()?)?;
    }
    let (from, to) = (sender.local_addr()?.port(), receiver.local_addr()?.port());
    work.once(
        "three datagrams to one peer, told once",
        format!(
            "kind = 'datagram' and {} and socket_protocol = 'udp' \
             and socket_peer_address = '127.0.0.1' and socket_peer_port = {to} \
             and socket_local_port = {from} and result_value = 1",
            ours()
        ),
    );
    Ok(())
}

fn unix(work: &mut Workload) -> Result<()> {
    let path = work.path("socket");
    let _listener = UnixListener::bind(&path)?;
    let _stream = UnixStream::connect(&path)?;
    let name = format!("hostaudit-test-{}", std::process::id());
    let _abstract = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
    let _other = UnixStream::connect_addr(&SocketAddr::from_abstract_name(&name)?)?;
    let missing = work.path("no-socket");
    ensure!(UnixStream::connect(&missing).is_err());
    let datagram = work.path("datagram");
    let _receiver = UnixDatagram::bind(&datagram)?;
    UnixDatagram::unbound()?.connect(&datagram)?;
    let us = ours();
    let of = |path: &str, more: &str| {
        format!("kind = 'unix_connect' and {us} and socket_path = {path} and {more}")
    };
    let peer = format!(
        "target_process_pid = {} and result_value = 0",
        std::process::id()
    );
    work.once(
        "a unix socket",
        of(
            &quoted(&path),
            &format!("socket_type = 'stream' and {peer}"),
        ),
    );
    work.once("an abstract name", of(&format!("'@{name}'"), &peer));
    work.once(
        "a unix socket that is not there",
        of(&quoted(&missing), "result_error = 'ENOENT'"),
    );
    work.once(
        "a datagram socket",
        of(&quoted(&datagram), "socket_type = 'datagram'"),
    );
    Ok(())
}

fn special(work: &mut Workload) -> Result<()> {
    use rustix::net::socket;
    let packet = socket(AddressFamily::PACKET, SocketType::RAW, None)?;
    let raw = socket(
        AddressFamily::INET,
        SocketType::RAW,
        Some(rustix::net::ipproto::ICMP),
    )?;
    let audit = socket(
        AddressFamily::NETLINK,
        SocketType::RAW,
        Some(netlink::AUDIT),
    )?;
    let ordinary = socket(AddressFamily::NETLINK, SocketType::RAW, None)?;
    drop((packet, raw, audit, ordinary));
    let us = ours();
    for (what, condition) in [
        (
            "a packet socket",
            "socket_family = 'packet' and socket_type = 'raw'",
        ),
        (
            "a raw socket",
            "socket_family = 'ipv4' and socket_type = 'raw'",
        ),
        (
            "an audit socket",
            "socket_family = 'netlink' and socket_protocol = '9'",
        ),
    ] {
        let of = format!("kind = 'socket_special' and {us} and {condition} and result_value > 0");
        work.once(what, of);
    }
    work.number(
        "and no others",
        format!("kind = 'socket_special' and {us}"),
        3,
    );
    Ok(())
}
