//! The wiring: the only place that makes channels, threads and tasks, and the order in which they
//! start and end.
//!
//! Start: listen, open store and alerts, then writer, compactor, detector, sinks, server. End: the
//! server stops accepting and its sessions end; the writer's queue closes with the last session and
//! it drains; then the threads are told to stop and joined.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::JoinSet,
};

use crate::{
    alerts::{AlertLog, AlertsError},
    config::{self, Config, InvalidConfig},
    detect::{DetectError, Detector, Rules},
    identity::IdentityService,
    ingest::{Counters, IngestService, Sessions, raised},
    problems::Problems,
    query::Engine,
    server::{self, ListenError, Listeners, ReflectionError, Services},
    service::CollectorService,
    sinks,
    status::StatusSource,
    store::{Compactor, OpenError, Store},
    transport::{Tls, Trusted},
    writer,
};

/// From the stop until requests that still run are cut off.
const DRAIN: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum CollectorError {
    #[error(transparent)]
    Config(#[from] InvalidConfig),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("configuration key `listen.tls`: {0}")]
    Tls(#[from] audit_pki::server::TlsError),
    #[error("configuration key `listen.tls.authority`: {0}")]
    Authority(#[from] audit_pki::AuthorityError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Alerts(#[from] AlertsError),
    #[error("detection: {0}")]
    Detect(#[from] DetectError),
    #[error("query engine: {0}")]
    Query(#[from] datafusion::error::DataFusionError),
    #[error(transparent)]
    Reflection(#[from] ReflectionError),
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("server: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// Where a running collector listens.
#[derive(Debug, Clone, Default)]
pub struct Addresses {
    pub unix: Option<PathBuf>,
    pub tcp: Option<SocketAddr>,
    pub metrics: Option<SocketAddr>,
}

/// A collector that answers.
pub struct Running {
    pub addresses: Addresses,
    stop: watch::Receiver<bool>,
    servers: JoinSet<Result<(), tonic::transport::Error>>,
    writer_sender: mpsc::Sender<writer::Submission>,
    writer_thread: JoinHandle<()>,
    threads: Vec<JoinHandle<()>>,
    threads_stop: Arc<AtomicBool>,
    query_threads: tokio::runtime::Runtime,
}

/// Runs until `stop` is true and everything accepted is on disk.
pub async fn run(config: Config, stop: watch::Receiver<bool>) -> Result<(), CollectorError> {
    start(config, stop).await?.wait().await
}

/// Returns when the collector listens and its store is open.
pub async fn start(config: Config, stop: watch::Receiver<bool>) -> Result<Running, CollectorError> {
    config.validate()?;
    let listeners = server::listen(
        config.tcp_address()?,
        &config.listen.unix,
        config.metrics_address()?,
    )
    .await?;
    let addresses = Addresses {
        unix: listeners.unix.as_ref().map(|(_, path)| path.clone()),
        tcp: listeners.tcp.as_ref().map(|(_, address)| *address),
        metrics: listeners.metrics.as_ref().map(|(_, address)| *address),
    };
    let problems = Arc::new(Problems::default());
    let transport = Transport::open(&config.listen, &problems)?;
    let opened = {
        let (config, problems) = (config.clone(), problems.clone());
        tokio::task::spawn_blocking(move || open(&config, &problems)).await
    };
    let opened = opened.map_err(std::io::Error::other)??;
    let running = wire(
        config, stop, listeners, transport, addresses, problems, opened,
    )
    .await?;
    tracing::info!(unix = ?running.addresses.unix, tcp = ?running.addresses.tcp, "collector listens");
    Ok(running)
}

/// What stands between the listeners and the services.
struct Transport {
    tls: Option<Arc<Tls>>,
    identity: Option<IdentityService>,
    trusted: Trusted,
}

impl Transport {
    fn open(listen: &config::Listen, problems: &Arc<Problems>) -> Result<Self, CollectorError> {
        let files = listen.tls.files()?;
        let joining = files.as_ref().is_some_and(|files| files.joining);
        let tls = match files {
            Some(files) => Some(Arc::new(Tls::load(files, problems.clone())?)),
            None => None,
        };
        let authority = &listen.tls.authority;
        if joining {
            // A broken one is told now, and not by the first host that wants to join.
            audit_pki::Authority::open(authority)?;
        }
        Ok(Self {
            tls,
            identity: joining.then(|| IdentityService::new(authority.clone())),
            trusted: Trusted::new(&listen.unix_admin_uids),
        })
    }

    fn services(self, ingest: IngestService, collector: CollectorService) -> Services {
        Services {
            ingest,
            status: collector.status.clone(),
            collector,
            identity: self.identity,
            tls: self.tls,
            trusted: self.trusted,
        }
    }
}

struct Opened {
    store: Arc<Store>,
    alerts: Arc<AlertLog>,
    rules: Arc<Rules>,
    detector: Option<Detector>,
}

fn open(config: &Config, problems: &Arc<Problems>) -> Result<Opened, CollectorError> {
    let wal = config.ingest.wal_segment_bytes;
    let store = Store::open(
        &config.data_dir,
        config.table.clone(),
        wal,
        problems.clone(),
    )?;
    let (alerts, recovery) = AlertLog::open(&config.data_dir)?;
    crate::store::report_recovery("alert log", &recovery, problems);
    let rules = Arc::new(Rules::load(&config.detect));
    rules.report(problems);
    let detector = match config.detect.enabled {
        true => Some(Detector::new(
            rules.clone(),
            store.clone(),
            alerts.clone(),
            problems.clone(),
            config.detect.ancestry_entries,
        )?),
        false => {
            store.set_detected(u64::MAX >> 21);
            None
        }
    };
    Ok(Opened {
        store,
        alerts,
        rules,
        detector,
    })
}

async fn wire(
    config: Config,
    stop: watch::Receiver<bool>,
    listeners: Listeners,
    transport: Transport,
    addresses: Addresses,
    problems: Arc<Problems>,
    Opened {
        store,
        alerts,
        rules,
        detector,
    }: Opened,
) -> Result<Running, CollectorError> {
    let threads_stop = Arc::new(AtomicBool::new(false));
    let mut threads = sinks::start(
        &config.sinks,
        store.dir(),
        &alerts,
        &problems,
        &threads_stop,
    )?;
    let (writer_sender, queue) = mpsc::channel(writer::QUEUE);
    let writer_thread = {
        let (store, stop) = (store.clone(), threads_stop.clone());
        thread("writer", move || writer::run(&store, queue, &stop))?
    };
    threads.extend(background(&store, detector, config.nice, &threads_stop)?);
    let query_threads = query_threads(config.nice)?;
    let engine = Arc::new(Engine::new(
        config.query.clone(),
        query_threads.handle().clone(),
        store.clone(),
        alerts.clone(),
    )?);
    threads.extend(sinks::events::start(
        &config.sinks,
        &engine,
        &problems,
        &threads_stop,
    )?);
    let (sessions, counters) = (Arc::new(Sessions::default()), Arc::new(Counters::default()));
    let status = StatusSource {
        store: store.clone(),
        alerts: alerts.clone(),
        rules,
        sessions: sessions.clone(),
        counters: counters.clone(),
        problems,
        start_time: now_us(),
    };
    let ingest = IngestService {
        slots: Arc::new(Semaphore::new(config.ingest.max_sessions)),
        bytes: Arc::new(Semaphore::new(config.ingest.in_flight_bytes)),
        config: config.ingest,
        store: store.clone(),
        sessions,
        counters,
        writer: writer_sender.downgrade(),
        host_id: host_id(),
        stop: stop.clone(),
    };
    let collector = CollectorService {
        engine,
        store,
        alerts,
        status: Arc::new(status),
        readers: Arc::new(Semaphore::new(config.query.max_tails)),
        stop: stop.clone(),
    };
    let services = transport.services(ingest, collector);
    let servers = server::start(listeners, services, &stop).await?;
    Ok(Running {
        addresses,
        stop,
        servers,
        writer_sender,
        writer_thread,
        threads,
        threads_stop,
        query_threads,
    })
}

/// Queries have threads of their own, so that a heavy one does not delay an acknowledgement.
fn query_threads(nice: u8) -> std::io::Result<tokio::runtime::Runtime> {
    let cpus = std::thread::available_parallelism().map_or(2, usize::from);
    tokio::runtime::Builder::new_multi_thread()
        .thread_name("query")
        .on_thread_start(move || give_way(nice))
        .worker_threads(cpus.max(2))
        .enable_all()
        .build()
}

/// The threads for which nobody waits.
fn background(
    store: &Arc<Store>,
    detector: Option<Detector>,
    nice: u8,
    stop: &Arc<AtomicBool>,
) -> std::io::Result<Vec<JoinHandle<()>>> {
    let compactor = Compactor::new(store.clone());
    let flag = stop.clone();
    let mut threads = vec![thread("compactor", move || {
        give_way(nice);
        compactor.run(&flag);
    })?];
    if let Some(mut detector) = detector {
        let flag = stop.clone();
        threads.push(thread("detector", move || {
            give_way(nice);
            detector.run(&flag);
        })?);
    }
    Ok(threads)
}

/// The calling thread, and those that it starts, leave the processor to others first.
pub fn give_way(nice: u8) {
    if let Err(error) = rustix::process::setpriority_process(None, nice.into()) {
        tracing::warn!(%error, nice, "priority cannot be lowered");
    }
}

/// Empty where the host has none.
fn host_id() -> String {
    let text = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    text.trim().to_owned()
}

fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
}

fn now_us() -> i64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(now.as_micros()).unwrap_or(i64::MAX)
}

impl Running {
    /// Until the stop, or until a server fails; then drains.
    pub async fn wait(mut self) -> Result<(), CollectorError> {
        let mut outcome = Ok(());
        tokio::select! {
            () = raised(&mut self.stop) => {}
            Some(ended) = self.servers.join_next() => {
                if let Ok(Err(error)) = ended {
                    outcome = Err(error.into());
                }
            }
        }
        tracing::info!("stopping: no new connections, draining");
        let drained = tokio::time::timeout(DRAIN, async {
            while self.servers.join_next().await.is_some() {}
        });
        if drained.await.is_err() {
            tracing::warn!(
                "requests still ran after {} s and were cut off",
                DRAIN.as_secs()
            );
            self.servers.abort_all();
        }
        drop(self.writer_sender);
        self.threads_stop.store(true, Ordering::Release);
        let (writer, threads) = (self.writer_thread, self.threads);
        let joined = tokio::task::spawn_blocking(move || {
            let failed = std::iter::once(writer)
                .chain(threads)
                .filter_map(|t| t.join().err())
                .count();
            if failed > 0 {
                tracing::error!(failed, "threads had panicked");
            }
        });
        let _ = tokio::time::timeout(DRAIN, joined).await;
        self.query_threads.shutdown_background();
        if let Some(path) = &self.addresses.unix {
            let _ = std::fs::remove_file(path);
        }
        tracing::info!("stopped");
        outcome
    }
}
