//! What is a connection, and who is at its other end? Unix sockets by the credentials that the kernel
//! tells, TLS by the certificate, all as one type for one server.
//!
//! Invariants: a connection does not outlive its certificate, neither its end nor its revocation;
//! one without a certificate lives long enough to get one; a client that does not finish its
//! handshake holds up nobody.

mod tls;

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures::{StreamExt as _, stream::BoxStream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
};
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::transport::server::Connected;

use crate::access::Caller;
pub use tls::Tls;

pub type Incoming = BoxStream<'static, io::Result<Connection>>;

/// Any stream of bytes.
trait Bytes: AsyncRead + AsyncWrite + Send + Unpin {}

impl Bytes for TcpStream {}
impl Bytes for UnixStream {}
impl Bytes for TlsStream<TcpStream> {}

pub struct Connection {
    stream: Box<dyn Bytes>,
    caller: Caller,
    /// Ends when the connection has to.
    over: Option<Pin<Box<dyn Future<Output = &'static str> + Send>>>,
}

/// Which users of this host are trusted with everything.
#[derive(Debug, Clone)]
pub struct Trusted {
    own_uid: u32,
    others: Arc<[u32]>,
}

impl Trusted {
    pub fn new(others: &[u32]) -> Self {
        Self {
            own_uid: rustix::process::geteuid().as_raw(),
            others: others.into(),
        }
    }

    fn has(&self, uid: u32) -> bool {
        uid == 0 || uid == self.own_uid || self.others.contains(&uid)
    }
}

pub fn unix(listener: UnixListener, trusted: Trusted) -> Incoming {
    let accepted = UnixListenerStream::new(listener);
    let connections = accepted.map(move |stream| {
        let stream = stream?;
        let uid = stream.peer_cred()?.uid();
        let trusted = trusted.has(uid);
        Ok(Connection {
            stream: Box::new(stream),
            caller: Caller::Local { uid, trusted },
            over: None,
        })
    });
    connections.boxed()
}

/// With TLS where there is one.
pub fn tcp(listener: TcpListener, tls: Option<Arc<Tls>>) -> Incoming {
    if let Some(tls) = tls {
        return tls.accept(listener).boxed();
    }
    let accepted = TcpListenerStream::new(listener);
    let connections = accepted.map(|stream| {
        Ok(Connection {
            stream: Box::new(stream?),
            caller: Caller::Open,
            over: None,
        })
    });
    connections.boxed()
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(over) = &mut self.over
            && let Poll::Ready(reason) = over.as_mut().poll(context)
        {
            tracing::info!(caller = %self.caller, reason, "connection ended");
            self.over = Some(Box::pin(std::future::ready(reason)));
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                reason,
            )));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
