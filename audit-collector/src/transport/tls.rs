//! TLS of the TCP listener: handshakes, files that change, certificates that end.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use audit_pki::{Certificate, ServerFiles, ServerTls, certificate::expiry, server::TlsError};
use futures::stream::{Stream, StreamExt as _};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc, watch},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;

use super::Connection;
use crate::{access::Caller, problems::Problems};

/// How long another file goes unnoticed.
const RELOAD_EVERY: Duration = Duration::from_secs(1);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes at once, each of some 30 KiB; more wait in the listener's backlog.
const HANDSHAKES: usize = 256;
/// Connections that the server has not taken over yet.
const ACCEPTED: usize = 16;
/// A listener that cannot accept, mostly for want of descriptors, tries again after this.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// Enough to join.
const WITHOUT_CERTIFICATE: Duration = Duration::from_secs(30);
/// Peers named in one line of `problems`.
const NAMED: usize = 5;

/// Names under which it states problems.
const FILES: &str = "listen.tls";
const OWN: &str = "certificate";
const PEERS: &str = "certificates of clients";

pub struct Tls {
    files: ServerFiles,
    current: watch::Sender<Arc<ServerTls>>,
    problems: Arc<Problems>,
    /// Certificates of those connected, by serial, and how many connections each has.
    peers: Mutex<BTreeMap<String, (Arc<Certificate>, usize)>>,
}

impl Tls {
    pub fn load(files: ServerFiles, problems: Arc<Problems>) -> Result<Self, TlsError> {
        let current = watch::Sender::new(Arc::new(files.load()?));
        let tls = Self {
            files,
            current,
            problems,
            peers: Mutex::default(),
        };
        tls.warn(SystemTime::now());
        Ok(tls)
    }

    /// Reads the files again when they change, and says when certificates end, until `stop`.
    pub async fn watch(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        let mut stamp = self.files.stamp();
        let mut failed = false;
        loop {
            tokio::select! {
                () = crate::ingest::raised(&mut stop) => return,
                () = sleep(RELOAD_EVERY) => {}
            }
            let now = self.files.stamp();
            // After a failure again, too: certificate and key may have been replaced one by one.
            if now != stamp || failed {
                stamp = now;
                failed = self.reload().is_err();
            }
            self.warn(SystemTime::now());
        }
    }

    fn reload(&self) -> Result<(), TlsError> {
        match self.files.load() {
            Ok(loaded) => {
                self.current.send_replace(Arc::new(loaded));
                self.problems.clear(FILES);
                tracing::info!("TLS: certificates and revocation list were read again");
                Ok(())
            }
            Err(error) => {
                let message = format!("not reloaded, what was read before stays in force: {error}");
                self.problems.set(FILES, message);
                Err(error)
            }
        }
    }

    /// Whose certificates end when, in seconds since the Unix epoch: its own first, and then, once for each
    /// name, the one that lasts longest.
    pub fn certificates(&self) -> Vec<(String, i64)> {
        let own = self.current.borrow().validity.not_after_s;
        let peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ends: BTreeMap<String, i64> = BTreeMap::new();
        for (certificate, _) in peers.values() {
            let end = ends.entry(certificate.peer.to_string()).or_default();
            *end = certificate.validity.not_after_s.max(*end);
        }
        let own = std::iter::once(("this collector".to_owned(), own));
        own.chain(ends).collect()
    }

    fn warn(&self, now: SystemTime) {
        let own = self.current.borrow().validity;
        if own.is_ending(now) {
            let message = format!(
                "the collector's own certificate ({}) {}; issue another with `hostaudit pki issue` \
                 or `hostaudit pki rotate`, it needs no restart",
                self.files.certificate.display(),
                expiry(own.expires_in(now))
            );
            self.problems.set(OWN, message);
        } else {
            self.problems.clear(OWN);
        }
        let peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let ending = peers.values().map(|(certificate, _)| certificate);
        let ending: Vec<_> = ending.filter(|one| one.validity.is_ending(now)).collect();
        let named = ending.iter().take(NAMED).map(|one| {
            let left = one.validity.expires_in(now);
            format!("{} {}", one.peer, expiry(left))
        });
        let named: Vec<String> = named.collect();
        match ending.len() {
            0 => self.problems.clear(PEERS),
            many => self.problems.set(
                PEERS,
                format!(
                    "{many} of those connected must be renewed (`hostaudit pki rotate` there): {}",
                    named.join(", ")
                ),
            ),
        }
    }

    /// Connections whose handshake is done.
    pub fn accept(
        self: Arc<Self>,
        listener: TcpListener,
    ) -> impl Stream<Item = io::Result<Connection>> + Send + 'static {
        let (accepted, connections) = mpsc::channel(ACCEPTED);
        tokio::spawn(self.run(listener, accepted));
        ReceiverStream::new(connections).map(Ok)
    }

    /// Until the server is gone.
    async fn run(self: Arc<Self>, listener: TcpListener, accepted: mpsc::Sender<Connection>) {
        let slots = Arc::new(Semaphore::new(HANDSHAKES));
        loop {
            let Ok(slot) = slots.clone().acquire_owned().await else {
                return;
            };
            let stream = tokio::select! {
                () = accepted.closed() => return,
                stream = listener.accept() => stream,
            };
            let stream = match stream {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!(%error, "a connection could not be accepted");
                    sleep(ACCEPT_AGAIN).await;
                    continue;
                }
            };
            let (tls, accepted) = (self.clone(), accepted.clone());
            tokio::spawn(async move {
                let _slot = slot;
                match timeout(HANDSHAKE_TIMEOUT, tls.handshake(stream)).await {
                    // Nobody takes it only when the server is gone.
                    Ok(Ok(connection)) => drop(accepted.send(connection).await),
                    Ok(Err(error)) => tracing::info!(%error, "TLS: a client was refused"),
                    Err(_) => tracing::debug!("TLS: a client did not finish its handshake"),
                }
            });
        }
    }

    async fn handshake(self: &Arc<Self>, stream: TcpStream) -> io::Result<Connection> {
        stream.set_nodelay(true)?;
        // Before the handshake, so that a revocation in between is seen.
        let current = self.current.subscribe();
        let config = current.borrow().config.clone();
        let stream = TlsAcceptor::from(config).accept(stream).await?;
        let Some(certificate) = presented(&stream)? else {
            return Ok(Connection {
                stream: Box::new(stream),
                caller: Caller::Unknown,
                over: Some(Box::pin(async {
                    sleep(WITHOUT_CERTIFICATE).await;
                    "it has no certificate"
                })),
            });
        };
        let certificate = Arc::new(certificate);
        let entered = Entered::new(self.clone(), certificate.clone());
        Ok(Connection {
            stream: Box::new(stream),
            caller: Caller::Certified(certificate.clone()),
            over: Some(Box::pin(async move {
                let _entered = entered;
                over(&certificate, current).await
            })),
        })
    }
}

fn presented(stream: &TlsStream<TcpStream>) -> io::Result<Option<Certificate>> {
    let chain = stream.get_ref().1.peer_certificates();
    let Some(first) = chain.and_then(<[_]>::first) else {
        return Ok(None);
    };
    Certificate::of_der(first)
        .map(Some)
        .map_err(io::Error::other)
}

async fn over(
    certificate: &Certificate,
    mut current: watch::Receiver<Arc<ServerTls>>,
) -> &'static str {
    let left = certificate.validity.expires_in(SystemTime::now());
    let revoked = current.wait_for(|tls| tls.revoked.contains(&certificate.serial));
    tokio::select! {
        () = sleep(left) => "its certificate has expired",
        revoked = revoked => match revoked {
            Ok(_) => "its certificate has been revoked",
            Err(_) => "the collector is stopping",
        }
    }
}

/// A connection's place among the peers.
struct Entered {
    tls: Arc<Tls>,
    certificate: Arc<Certificate>,
}

impl Entered {
    fn new(tls: Arc<Tls>, certificate: Arc<Certificate>) -> Self {
        let mut peers = tls.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = peers.entry(certificate.serial.clone());
        entry.or_insert((certificate.clone(), 0)).1 += 1;
        drop(peers);
        Self { tls, certificate }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut peers = self
            .tls
            .peers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some((_, connections)) = peers.get_mut(&self.certificate.serial) {
            *connections -= 1;
            if *connections == 0 {
                peers.remove(&self.certificate.serial);
            }
        }
    }
}
