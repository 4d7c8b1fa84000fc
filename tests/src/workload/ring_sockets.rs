//! Sockets that are used through io_uring.

use std::{
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::{
        fd::AsRawFd as _,
        unix::{ffi::OsStrExt as _, net::UnixListener},
    },
    path::Path,
    ptr,
};

use anyhow::{Context as _, Result, ensure};
use io_uring::{
    opcode::{Accept, AcceptMulti, Bind, Connect, Listen, Send, SendMsg, Socket},
    types::Fd,
};
use rustix::net::{AddressFamily, SocketType};

use super::{
    Workload,
    network::end,
    ours, quoted,
    rings::{Ring, descriptor},
};

/// As the kernel takes an IPv4 address.
fn inet(address: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr {
            s_addr: u32::from_ne_bytes(address.ip().octets()),
        },
        sin_zero: [0; 8],
    }
}

const INET_BYTES: u32 = size_of::<libc::sockaddr_in>() as u32;

fn local(listener: &TcpListener) -> Result<SocketAddrV4> {
    match listener.local_addr()? {
        std::net::SocketAddr::V4(address) => Ok(address),
        other @ std::net::SocketAddr::V6(_) => anyhow::bail!("{other} is not IPv4"),
    }
}

fn stream() -> Result<std::os::fd::OwnedFd> {
    Ok(rustix::net::socket(
        AddressFamily::INET,
        SocketType::STREAM,
        None,
    )?)
}

pub(super) fn sockets(work: &mut Workload, ring: &mut Ring) -> Result<()> {
    connection(work, ring)?;
    refused(work, ring)?;
    many_accepted(work, ring)?;
    listener(work, ring)?;
    datagrams(work, ring)?;
    unix(work, ring)?;
    special(work, ring)
}

/// Both ends, and the end of it.
fn connection(work: &mut Workload, ring: &mut Ring) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let server = local(&listener)?;
    let socket = stream()?;
    let address = inet(server);
    let results = ring.ask([
        Accept::new(Fd(listener.as_raw_fd()), ptr::null_mut(), ptr::null_mut()).build(),
        Connect::new(
            Fd(socket.as_raw_fd()),
            (&raw const address).cast(),
            INET_BYTES,
        )
        .build(),
    ])?;
    let [accepted, connected] = results[..] else {
        anyhow::bail!("two results, not {results:?}");
    };
    ensure!(connected == 0, "connect: {connected}");
    let accepted = TcpStream::from(descriptor(accepted)?);
    let socket = TcpStream::from(socket);
    let client = socket.local_addr()?;
    drop(socket);
    drop(accepted);
    let shared = format!("{} and socket_protocol = 'tcp' and {}", ours(), ring.well());
    if !ring.tells_results() {
        let to = end("peer", server.into());
        let connect = format!(
            "kind = 'connect' and {} and {to} and {}",
            ours(),
            ring.well()
        );
        work.once(ring.name("connect"), connect);
        return Ok(());
    }
    let ends = |local, peer| format!("{} and {}", end("local", local), end("peer", peer));
    let out = ends(client, server.into());
    let incoming = ends(server.into(), client);
    work.once(
        ring.name("connect"),
        format!("kind = 'connect' and {shared} and {out}"),
    );
    work.once(
        ring.name("accept"),
        format!("kind = 'accept' and {shared} and {incoming}"),
    );
    for (direction, ends) in [("out", out), ("in", incoming)] {
        work.once(
            ring.name(&format!("the end of it, {direction}")),
            format!(
                "kind = 'close_flow' and {} and socket_direction = '{direction}' and {ends}",
                ours()
            ),
        );
    }
    Ok(())
}

fn refused(work: &mut Workload, ring: &mut Ring) -> Result<()> {
    let nobody = local(&TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?)?;
    let socket = stream()?;
    let address = inet(nobody);
    let connect = Connect::new(
        Fd(socket.as_raw_fd()),
        (&raw const address).cast(),
        INET_BYTES,
    );
    ensure!(ring.one(connect.build())? == -libc::ECONNREFUSED);
    let refused = ring.result("result_error = 'ECONNREFUSED'");
    let to = end("peer", nobody.into());
    work.once(
        ring.name("a connect that is refused"),
        format!("kind = 'connect' and {} and {to} and {refused}", ours()),
    );
    Ok(())
}

/// One request that accepts until it is cancelled; another of the same number has been before.
fn many_accepted(work: &mut Workload, ring: &mut Ring) -> Result<()> {
    const NUMBER: usize = 3;
    if !ring.tells_results() {
        return Ok(()); // of Linux 5.19
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let server = local(&listener)?;
    let short = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    for listener in [&listener, &short] {
        ring.submit([AcceptMulti::new(Fd(listener.as_raw_fd())).build()])?;
    }
    end_request(ring, &short)?;
    let mut clients = Vec::new();
    for _ in 0..NUMBER {
        let client = TcpStream::connect(server)?;
        for accepted in ring.next(1)? {
            descriptor(accepted)?;
        }
        clients.push(client);
    }
    end_request(ring, &listener)?;
    let of = format!(
        "from events where kind = 'accept' and {} and {} and {}",
        ours(),
        end("local", server.into()),
        ring.well()
    );
    let number = NUMBER as i64;
    work.answer(
        ring.name("one request that accepts all"),
        format!("select count(*) {of}"),
        number,
    );
    work.answer(
        ring.name("each of them"),
        format!("select count(distinct socket_peer_port) {of}"),
        number,
    );
    Ok(())
}

/// A listener's end is that of the request that waits for it, which answers once more.
fn end_request(ring: &mut Ring, listener: &TcpListener) -> Result<()> {
    rustix::net::shutdown(listener, rustix::net::Shutdown::Both)?;
    let last = ring.next(1)?;
    ensure!(last.iter().all(|last| *last < 0), "{last:?}");
    Ok(())
}

fn listener(work: &mut Workload, ring: &mut Ring) -> Result<()> {
    if !ring.supports(Listen::CODE) {
        return Ok(());
    }
    let free = local(&TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?)?;
    let (socket, second) = (stream()?, stream()?);
    let address = inet(free);
    let bind = |fd| Bind::new(Fd(fd), (&raw const address).cast(), INET_BYTES).build();
    ensure!(ring.one(bind(socket.as_raw_fd()))? == 0);
    ensure!(ring.one(Listen::new(Fd(socket.as_raw_fd()), 9).build())? == 0);
    ensure!(ring.one(bind(second.as_raw_fd()))? == -libc::EADDRINUSE);
    let at = format!("{} and {}", ours(), end("local", free.into()));
    let well = ring.well();
    work.once(
        ring.name("bind"),
        format!("kind = 'bind' and {at} and {well}"),
    );
    let taken = ring.result("result_error = 'EADDRINUSE'");
    work.once(
        ring.name("bind to a port in use"),
        format!("kind = 'bind' and {at} and {taken}"),
    );
    work.once(
        ring.name("listen"),
        format!("kind = 'listen' and {at} and socket_backlog = 9 and {well}"),
    );
    Ok(())
}

fn datagrams(work: &mut Workload, ring: &mut Ring) -> Result<()> {
    if !ring.tells_results() {
        return Ok(()); // send to an address is of Linux 6.0
    }
    let receivers = [0; 2].map(|_| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)));
    let [by_send, by_message] = receivers;
    let (by_send, by_message) = (by_send?, by_message?);
    let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let at = Fd(sender.as_raw_fd());
    let port = |socket: &UdpSocket| socket.local_addr().map(|address| address.port());
    let address = |socket| {
        Ok::<_, std::io::Error>(inet(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port(socket)?)))
    };
    let (to_first, mut to_second) = (address(&by_send)?, address(&by_message)?);
    let mut word = *b"word";
    let mut part = libc::iovec {
        iov_base: word.as_mut_ptr().cast(),
        iov_len: word.len(),
    };
    let message = message(&mut to_second, &mut part);
    let send = || {
        Send::new(at, b"x".as_ptr(), 1)
            .dest_addr((&raw const to_first).cast())
            .dest_addr_len(INET_BYTES)
            .build()
    };
    let results = ring.ask([send(), send(), SendMsg::new(at, &raw const message).build()])?;
    ensure!(results == [1, 1, 4], "{results:?}");
    let from = port(&sender)?;
    for (what, to, bytes) in [
        ("send, twice, told once", &by_send, 1),
        ("sendmsg", &by_message, 4),
    ] {
        work.once(
            ring.name(what),
            format!(
                "kind = 'datagram' and {} and socket_peer_address = '127.0.0.1' \
                 and socket_peer_port = {} and socket_local_port = {from} \
                 and socket_protocol = 'udp' and {}",
                ours(),
                port(to)?,
                ring.result(&format!("result_value = {bytes}"))
            ),
        );
    }
    Ok(())
}

fn message(to: &mut libc::sockaddr_in, part: &mut libc::iovec) -> libc::msghdr {
    libc::msghdr {
        msg_name: ptr::from_mut(to).cast(),
        msg_namelen: INET_BYTES,
        msg_iov: part,
        msg_iovlen: 1,
        msg_control: ptr::null_mut(),
        msg_controllen: 0,
        msg_flags: 0,
    }
}

/// As the kernel takes a unix socket's name, and how long that is.
fn unix_address(path: &Path) -> Result<(libc::sockaddr_un, u32)> {
    let mut address = libc::sockaddr_un {
        sun_family: libc::AF_UNIX as u16,
        sun_path: [0; 108],
    };
    let name = path.as_os_str().as_bytes();
    let room = address.sun_path.get_mut(..name.len());
    for (to, from) in room.context("the path is too long")?.iter_mut().zip(name) {
        *to = *from as libc::c_char;
    }
    Ok((address, 2 + name.len() as u32 + 1))
}

fn unix(work: &mut Workload, ring: &mut Ring) -> Result<()> {
    let there = work.path(format!("socket-{}", ring.way));
    let missing = work.path(format!("no-socket-{}", ring.way));
    let _listener = UnixListener::bind(&there)?;
    for (path, expected) in [(&there, 0), (&missing, -libc::ENOENT)] {
        let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
        let (address, bytes) = unix_address(path)?;
        let connect = Connect::new(Fd(socket.as_raw_fd()), (&raw const address).cast(), bytes);
        let result = ring.one(connect.build())?;
        ensure!(result == expected, "{}: {result}", path.display());
        let result = match expected {
            0 => ring.well(),
            _ => ring.result("result_error = 'ENOENT'"),
        };
        work.once(
            ring.name("connect of a unix socket"),
            format!(
                "kind = 'unix_connect' and {} and socket_path = {} and {result}",
                ours(),
                quoted(path)
            ),
        );
    }
    Ok(())
}

fn special(work: &mut Workload, ring: &mut Ring) -> Result<()> {
    if !ring.supports(Socket::CODE) {
        return Ok(());
    }
    let protocol = match ring.way {
        "plain" => libc::IPPROTO_ICMP,
        "async" => libc::IPPROTO_TCP,
        _ => libc::IPPROTO_UDP,
    };
    let results = ring.ask([
        Socket::new(libc::AF_INET, libc::SOCK_RAW, protocol).build(),
        Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).build(),
    ])?;
    for result in results {
        descriptor(result)?;
    }
    let name = match ring.way {
        "plain" => "1",
        "async" => "tcp",
        _ => "udp",
    };
    let of = format!(
        "kind = 'socket_special' and {} and socket_type = 'raw' and socket_protocol = '{name}'",
        ours()
    );
    let inode = if ring.tells_results() {
        "socket_inode > 0"
    } else {
        "true"
    };
    work.once(
        ring.name("a raw socket, and no ordinary one"),
        format!("{of} and {inode} and {}", ring.well()),
    );
    Ok(())
}
