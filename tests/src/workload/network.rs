//! Connections on loopback: both ends, every outcome.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    time::Duration,
};

use anyhow::{Result, ensure};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType},
};

use super::{Workload, ours, system};

pub fn network(work: &mut Workload) -> Result<()> {
    tcp(work, "IPv4", (Ipv4Addr::LOCALHOST, 0).into(), "ipv4")?;
    tcp(work, "IPv6", (Ipv6Addr::LOCALHOST, 0).into(), "ipv6")?;
    mapped(work)?;
    refused(work)?;
    taken(work)?;
    datagrams(work)?;
    local(work)?;
    undecided(work)?;
    register(work)?;
    many(work)
}

pub(super) fn end(side: &str, address: SocketAddr) -> String {
    format!(
        "socket_{side}_address = '{}' and socket_{side}_port = {}",
        address.ip().to_canonical(),
        address.port()
    )
}

/// Bind, connect and accept of one connection.
fn tcp(work: &mut Workload, what: &str, any: SocketAddr, family: &str) -> Result<()> {
    let listener = TcpListener::bind(any)?;
    let server = listener.local_addr()?;
    let stream = TcpStream::connect(server)?;
    let client = stream.local_addr()?;
    let (_accepted, peer) = listener.accept()?;
    ensure!(peer == client);
    let shared = format!(
        "{} and socket_family = '{family}' and socket_protocol = 'tcp'",
        ours()
    );
    work.once(
        format!("{what}: connect"),
        format!(
            "kind = 'connect' and {shared} and {} and {} and socket_direction = 'out' \
             and result_value = 0 and result_error is null and socket_outcome is null",
            end("local", client),
            end("peer", server)
        ),
    );
    work.once(
        format!("{what}: accept"),
        format!(
            "kind = 'accept' and {shared} and {} and {} and socket_direction = 'in' \
             and result_value >= 0",
            end("local", server),
            end("peer", client)
        ),
    );
    work.once(
        format!("{what}: bind"),
        format!(
            "kind = 'bind' and {shared} and {} and result_value = 0",
            end("local", server)
        ),
    );
    Ok(())
}

/// An IPv6 socket to an IPv4 address.
fn mapped(work: &mut Workload) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let server = listener.local_addr()?;
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST.to_ipv6_mapped(), server.port()))?;
    let client = stream.local_addr()?;
    work.once(
        "IPv4-mapped IPv6",
        format!(
            "kind = 'connect' and {} and socket_family = 'ipv6' and {} and {} and result_value = 0",
            ours(),
            end("local", client),
            end("peer", server)
        ),
    );
    Ok(())
}

/// The kernel looks at the lower half of the register that has a descriptor.
fn register(work: &mut Workload) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let server = listener.local_addr()?;
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
    system::connect_with_full_register(&socket, server.port())?;
    work.once(
        "a descriptor with more in its register",
        format!(
            "kind = 'connect' and {} and {} and result_value = 0",
            ours(),
            end("peer", server)
        ),
    );
    Ok(())
}

/// A port on which nobody listens any more.
fn free(address: impl Into<std::net::IpAddr>) -> Result<SocketAddr> {
    Ok(TcpListener::bind((address.into(), 0))?.local_addr()?)
}

fn refused(work: &mut Workload) -> Result<()> {
    for address in [free(Ipv4Addr::LOCALHOST)?, free(Ipv6Addr::LOCALHOST)?] {
        ensure!(TcpStream::connect(address).is_err());
        work.once(
            format!("refused by {address}"),
            format!(
                "kind = 'connect' and {} and {} and result_error = 'ECONNREFUSED'",
                ours(),
                end("peer", address)
            ),
        );
    }
    Ok(())
}

fn taken(work: &mut Workload) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    ensure!(TcpListener::bind(address).is_err());
    work.once(
        "bind to a port in use",
        format!(
            "kind = 'bind' and {} and {} and result_error = 'EADDRINUSE'",
            ours(),
            end("local", address)
        ),
    );
    Ok(())
}

fn datagrams(work: &mut Workload) -> Result<()> {
    let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    client.connect(server.local_addr()?)?;
    work.once(
        "UDP connect",
        format!(
            "kind = 'connect' and {} and socket_protocol = 'udp' and {} and {} and result_value = 0",
            ours(),
            end("local", client.local_addr()?),
            end("peer", server.local_addr()?)
        ),
    );
    Ok(())
}

/// Unix sockets are another kind, of a later version.
fn local(work: &mut Workload) -> Result<()> {
    let path = work.path("socket");
    let _listener = UnixListener::bind(&path)?;
    UnixStream::connect(&path)?;
    work.number(
        "a unix socket is no network connection",
        format!(
            "kind in ('connect', 'bind') and {} and (socket_family is null \
             or socket_family not in ('ipv4', 'ipv6'))",
            ours()
        ),
        0,
    );
    Ok(())
}

fn socket_without_wait() -> Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    Ok(rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        flags,
        None,
    )?)
}

fn decided(socket: &OwnedFd) -> Result<()> {
    let mut wait = [PollFd::new(socket, PollFlags::OUT)];
    let limit = Timespec::try_from(Duration::from_secs(20))?;
    ensure!(
        poll(&mut wait, Some(&limit))? == 1,
        "not decided within 20 s"
    );
    Ok(())
}

/// Connects that return before they are decided. A listener whose queue is full leaves the first
/// packet unanswered; the second, a second later, finds room, or nobody.
fn undecided(work: &mut Workload) -> Result<()> {
    let listener = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
    rustix::net::bind(&listener, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    rustix::net::listen(&listener, 0)?;
    let server: SocketAddr = rustix::net::getsockname(&listener)?.try_into()?;
    let _fills = TcpStream::connect(server)?;

    let [accepted, refused] = [socket_without_wait()?, socket_without_wait()?];
    ensure!(rustix::net::connect(&accepted, &server) == Err(Errno::INPROGRESS));
    let _first = rustix::net::accept(&listener)?;
    decided(&accepted)?;
    ensure!(rustix::net::connect(&refused, &server) == Err(Errno::INPROGRESS));
    let inodes = [&accepted, &refused].map(|socket| rustix::fs::fstat(socket).map(|s| s.st_ino));
    drop(listener);
    decided(&refused)?;
    for (inode, end_of_it) in inodes
        .into_iter()
        .zip(["result_value = 0", "result_error = 'ECONNREFUSED'"])
    {
        let socket = format!(
            "kind = 'connect' and {} and socket_inode = {}",
            ours(),
            inode?
        );
        work.once(
            "a connect that does not wait",
            format!("{socket} and result_error = 'EINPROGRESS' and socket_outcome is null"),
        );
        work.once(
            format!("its outcome, {end_of_it}"),
            format!(
                "{socket} and socket_outcome and {end_of_it} and {}",
                end("peer", server)
            ),
        );
        work.number("nothing else of that socket", socket, 2);
    }
    Ok(())
}

fn many(work: &mut Workload) -> Result<()> {
    const THREADS: usize = 8;
    const EACH: usize = 20;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let server = listener.local_addr()?;
    let open: Vec<TcpStream> = std::thread::scope(|scope| {
        let accepting = scope.spawn(|| {
            let accepted: Result<Vec<_>, _> =
                (0..THREADS * EACH).map(|_| listener.accept()).collect();
            accepted.map(|accepted| accepted.len())
        });
        let connecting: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| {
                    (0..EACH)
                        .map(|_| TcpStream::connect(server))
                        .collect::<Result<Vec<_>, _>>()
                })
            })
            .collect();
        let mut open = Vec::new();
        for thread in connecting {
            open.extend(
                thread
                    .join()
                    .map_err(|_| anyhow::anyhow!("a thread panicked"))??,
            );
        }
        let accepted = accepting
            .join()
            .map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        ensure!(accepted == THREADS * EACH);
        Ok(open)
    })?;
    let number = open.len() as i64;
    for (kind, side) in [("connect", "local"), ("accept", "peer")] {
        let other = if side == "local" { "peer" } else { "local" };
        let from = format!(
            "from events where kind = '{kind}' and {} and {}",
            ours(),
            end(other, server)
        );
        work.answer(
            format!("{kind} by many threads"),
            format!("select count(*) {from}"),
            number,
        );
        work.answer(
            format!("{kind}: each once"),
            format!("select count(distinct socket_{side}_port) {from}"),
            number,
        );
    }
    work.answer(
        "by which thread",
        format!(
            "select count(distinct process_tid) from events where kind = 'connect' and {} and {}",
            ours(),
            end("peer", server)
        ),
        THREADS as i64,
    );
    Ok(())
}
