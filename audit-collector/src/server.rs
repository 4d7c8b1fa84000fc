//! Where clients connect, and what stands in the way.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::{fs::PermissionsExt as _, net::UnixStream as StdUnixStream},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use audit_proto::{
    FILE_DESCRIPTOR_SET, MAX_MESSAGE_BYTES,
    v1::{
        collector_server::{self, CollectorServer},
        identity_server::{self, IdentityServer},
        ingest_server::{self, IngestServer},
        ledger_server::{self, LedgerServer},
    },
};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::watch,
    task::JoinSet,
};
use tonic::{codec::CompressionEncoding, service::Routes, transport::Server};
use tonic_health::pb::health_server;
use tonic_reflection::pb::v1::server_reflection_server;

use crate::{
    access::Authorize,
    export::LedgerService,
    identity::IdentityService,
    ingest::{IngestService, raised},
    metrics::Metrics,
    service::CollectorService,
    status::StatusSource,
    transport::{self, Incoming, Tls, Trusted},
};

#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error(
        "{address} is in use by another program; stop that one (`ss -ltnp` names it), or set another \
         `{key}`"
    )]
    PortInUse {
        address: SocketAddr,
        key: &'static str,
    },
    #[error("cannot listen on {address}: {source}")]
    Tcp {
        address: SocketAddr,
        source: io::Error,
    },
    #[error(
        "{}: another collector answers on this socket; stop it, or set another `listen.unix`",
        .0.display()
    )]
    SocketInUse(PathBuf),
    #[error("{}: there is something that is not a socket; remove it, or set another `listen.unix`", .0.display())]
    NotASocket(PathBuf),
    #[error("cannot listen on {}: {source}", path.display())]
    Unix { path: PathBuf, source: io::Error },
}

pub struct Listeners {
    pub tcp: Option<(TcpListener, SocketAddr)>,
    pub unix: Option<(UnixListener, PathBuf)>,
    pub metrics: Option<(TcpListener, SocketAddr)>,
}

/// Listens, before anything slow is done, so that a conflict is told at once.
pub async fn listen(
    tcp: Option<SocketAddr>,
    unix: &Path,
    metrics: Option<SocketAddr>,
) -> Result<Listeners, ListenError> {
    let tcp = listen_tcp(tcp, "listen.tcp").await?;
    let metrics = listen_tcp(metrics, "listen.metrics").await?;
    let unix = match unix.as_os_str().is_empty() {
        true => None,
        false => Some((listen_unix(unix)?, unix.to_path_buf())),
    };
    Ok(Listeners { tcp, unix, metrics })
}

async fn listen_tcp(
    address: Option<SocketAddr>,
    key: &'static str,
) -> Result<Option<(TcpListener, SocketAddr)>, ListenError> {
    let Some(address) = address else {
        return Ok(None);
    };
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::PortInUse { address, key },
        _ => ListenError::Tcp { address, source },
    };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok(Some((listener, bound)))
}

/// Binds beside the path and renames, so that the socket appears with its mode.
fn listen_unix(path: &Path) -> Result<UnixListener, ListenError> {
    use std::os::unix::fs::FileTypeExt as _;
    let failed = |source| ListenError::Unix {
        path: path.to_path_buf(),
        source,
    };
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    if let Ok(found) = fs::symlink_metadata(path) {
        if !found.file_type().is_socket() {
            return Err(ListenError::NotASocket(path.to_path_buf()));
        }
        if StdUnixStream::connect(path).is_ok() {
            return Err(ListenError::SocketInUse(path.to_path_buf()));
        }
        tracing::info!(path = %path.display(), "replacing the socket of a collector that is gone");
    }
    let new = path.with_extension("new");
    let _ = fs::remove_file(&new);
    let listener = UnixListener::bind(&new).map_err(failed)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o660)).map_err(failed)?;
    fs::rename(&new, path).map_err(failed)?;
    Ok(listener)
}

#[derive(Debug, thiserror::Error)]
#[error("gRPC reflection: {0}")]
pub struct ReflectionError(#[from] tonic_reflection::server::Error);

/// What is served, and to whom.
pub struct Services {
    pub ingest: IngestService,
    pub collector: CollectorService,
    pub identity: Option<IdentityService>,
    pub tls: Option<Arc<Tls>>,
    pub trusted: Trusted,
    pub status: Arc<StatusSource>,
}

/// All services; the same for every listener.
async fn routes(
    ingest: IngestService,
    collector: CollectorService,
    identity: Option<IdentityService>,
) -> Result<Routes, ReflectionError> {
    let ingest = IngestServer::new(ingest)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .accept_compressed(CompressionEncoding::Zstd);
    let ledger = LedgerServer::new(LedgerService {
        store: collector.store.clone(),
        readers: collector.readers.clone(),
    })
    .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let collector = CollectorServer::new(collector)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
        .accept_compressed(CompressionEncoding::Zstd)
        .send_compressed(CompressionEncoding::Zstd);
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<IngestServer<IngestService>>().await;
    reporter
        .set_serving::<CollectorServer<CollectorService>>()
        .await;
    reporter.set_serving::<LedgerServer<LedgerService>>().await;
    let mut reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
    // What is served, of all that the contract has.
    let joining = identity.as_ref().map(|_| identity_server::SERVICE_NAME);
    let names = [
        ingest_server::SERVICE_NAME,
        collector_server::SERVICE_NAME,
        ledger_server::SERVICE_NAME,
        health_server::SERVICE_NAME,
        server_reflection_server::SERVICE_NAME,
    ];
    for name in names.into_iter().chain(joining) {
        reflection = reflection.with_service_name(name);
    }
    let reflection = reflection.build_v1()?;
    let mut routes = Routes::builder();
    routes
        .add_service(ingest)
        .add_service(collector)
        .add_service(ledger)
        .add_service(health)
        .add_service(reflection);
    if let Some(identity) = identity {
        routes.add_service(IdentityServer::new(identity));
    }
    Ok(routes.routes())
}

/// Dead peers are noticed after about these two together.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

fn server() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        // Room for one whole message in flight, so that large batches do not wait for window updates.
        .initial_stream_window_size(Some(MAX_MESSAGE_BYTES as u32))
        .initial_connection_window_size(Some(2 * MAX_MESSAGE_BYTES as u32))
}

/// One server per listener, until `stop` and then until open requests have ended.
pub async fn start(
    listeners: Listeners,
    services: Services,
    stop: &watch::Receiver<bool>,
) -> Result<JoinSet<Result<(), tonic::transport::Error>>, ReflectionError> {
    let Services {
        ingest,
        collector,
        identity,
        tls,
        trusted,
        status,
    } = services;
    let routes = routes(ingest, collector, identity).await?;
    let mut tasks = JoinSet::new();
    let mut serve = |incoming: Incoming| {
        let server = server().layer(Authorize).add_routes(routes.clone());
        let mut stop = stop.clone();
        let stopped = async move { raised(&mut stop).await };
        tasks.spawn(server.serve_with_incoming_shutdown(incoming, stopped));
    };
    if let Some((listener, _)) = listeners.tcp {
        serve(transport::tcp(listener, tls.clone()));
    }
    if let Some((listener, _)) = listeners.unix {
        serve(transport::unix(listener, trusted));
    }
    if let Some((listener, _)) = listeners.metrics {
        let tls = tls.clone();
        let metrics = Metrics { status, tls };
        let stop = stop.clone();
        tasks.spawn(async move {
            metrics.serve(listener, stop).await;
            Ok(())
        });
    }
    if let Some(tls) = tls {
        let stop = stop.clone();
        tasks.spawn(async move {
            tls.watch(stop).await;
            Ok(())
        });
    }
    Ok(tasks)
}
