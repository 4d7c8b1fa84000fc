//! A real collector on a unix socket in a temporary directory, and an agent's side of the protocol.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use arrow::{array::RecordBatch, ipc::reader::StreamReader};
use audit_collector::{Config, Running};
use audit_ledger::{Key, Origin, Sealer, Summary};
use audit_proto::v1::{
    Batch, BatchHeader, DeliverRequest, DeliverResponse, Event, Hello, Host, Kind, Process,
    QueryRequest, StatusRequest, StatusResponse, TailRequest, TailResponse,
    collector_client::CollectorClient, deliver_request, deliver_response,
    ingest_client::IngestClient,
};
use sha2::{Digest as _, Sha256};
use tokio::sync::{mpsc, watch};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Status, Streaming, transport::Channel};

pub struct Collector {
    pub dir: PathBuf,
    stop: watch::Sender<bool>,
    running: Option<Running>,
    pub channel: Channel,
}

pub fn config(dir: &Path) -> Config {
    let mut config = Config {
        data_dir: dir.join("data"),
        ..Config::default()
    };
    config.listen.unix = dir.join("collector.sock");
    config.listen.tcp = String::new();
    config.detect.builtin_rules = false;
    config
}

impl Collector {
    pub async fn start(config: Config) -> Self {
        let (stop, stopped) = watch::channel(false);
        let dir = config.data_dir.clone();
        let socket = config.listen.unix.clone();
        let running = audit_collector::start(config, stopped)
            .await
            .expect("starts");
        Self {
            dir,
            stop,
            running: Some(running),
            channel: connect(&socket).await,
        }
    }

    pub fn running(&self) -> &Running {
        self.running.as_ref().expect("running")
    }

    pub fn client(&self) -> CollectorClient<Channel> {
        client(&self.channel)
    }

    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        self.running
            .take()
            .expect("running")
            .wait()
            .await
            .expect("stops cleanly");
    }
}

/// A collector as a process; SIGKILL ends it, at the latest when this is dropped, so also when a test fails.
pub struct Spawned(pub Child);

impl Spawned {
    pub fn kill(&mut self) {
        self.0.kill().expect("SIGKILL");
        self.0.wait().expect("reaped");
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn spawn(dir: &Path, options: &[&str]) -> Spawned {
    let mut command = Command::new(env!("CARGO_BIN_EXE_audit-collector"));
    for option in [
        format!("data_dir={}", dir.join("data").display()),
        format!("listen.unix={}", dir.join("collector.sock").display()),
        "listen.tcp=".to_owned(),
        "detect.builtin_rules=false".to_owned(),
    ] {
        command.args(["-o", &option]);
    }
    for option in options {
        command.args(["-o", option]);
    }
    let config = dir.join("none.yaml");
    std::fs::write(&config, "").expect("write");
    let child = command
        .arg("--config")
        .arg(config)
        .stderr(Stdio::null())
        .spawn();
    Spawned(child.expect("starts"))
}

pub fn client(channel: &Channel) -> CollectorClient<Channel> {
    CollectorClient::new(channel.clone())
        .accept_compressed(tonic::codec::CompressionEncoding::Zstd)
        .max_decoding_message_size(audit_proto::MAX_MESSAGE_BYTES)
}

pub async fn connect(socket: &Path) -> Channel {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("unix://{}", socket.display()))
        .expect("endpoint");
    for _ in 0..200 {
        if let Ok(channel) = endpoint.connect().await {
            return channel;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("nobody answers on {}", socket.display());
}

/// Makes the batches of one agent.
pub struct Agent {
    pub hello: Hello,
    pub sealer: Sealer,
    sequence: i64,
}

impl Agent {
    /// `run` names it: another one is another agent on the same host.
    pub fn new(run: &str) -> Self {
        let origin = Origin {
            host_id: "host-1".into(),
            boot_id: "boot-1".into(),
            run: run.into(),
        };
        let seed = Sha256::digest(run).into();
        let sealer = Sealer::begin(Key::new(1, seed), origin, None);
        let hello = Hello {
            agent_id: sealer.agent_id().into(),
            host_id: "host-1".into(),
            host_name: "testhost".into(),
            boot_id: "boot-1".into(),
            run: run.into(),
            version: "test".into(),
            pid: 1,
            first_batch: 1,
        };
        Self {
            hello,
            sealer,
            sequence: 0,
        }
    }

    pub fn event(&mut self, exe: &str) -> Event {
        self.sequence += 1;
        Event {
            id: format!("{}-process-0-{}", self.hello.run, self.sequence),
            time: 1_795_000_000_000_000 + self.sequence * 1000,
            boot_time_ns: self.sequence,
            kind: Kind::Exec.into(),
            sequence: Some(self.sequence),
            host: Some(Host {
                name: "testhost".into(),
                ..Host::default()
            }),
            process: Some(Process {
                exec_id: format!("x-{}", self.sequence),
                pid: Some(self.sequence % 1000),
                exe: exe.into(),
                argv: vec![exe.into(), String::new(), "a\\xff b".into()],
                loginuid: Some(-1),
                ..Process::default()
            }),
            ..Event::default()
        }
    }

    pub fn events(&mut self, count: usize) -> Vec<Event> {
        (0..count).map(|_| self.event("/usr/bin/true")).collect()
    }

    pub fn seal(&mut self, events: &[Event]) -> Batch {
        self.seal_bytes(
            &events
                .iter()
                .map(audit_proto::Message::encode_to_vec)
                .collect::<Vec<_>>(),
            events,
        )
    }

    pub fn seal_bytes(&mut self, encoded: &[Vec<u8>], events: &[Event]) -> Batch {
        let summary = Summary {
            sealed_time: 1_795_000_000_000_000 + self.sequence * 1000,
            first_time: events.iter().map(|e| e.time).min().unwrap_or_default(),
            last_time: events.iter().map(|e| e.time).max().unwrap_or_default(),
            ..Summary::default()
        };
        let batch = self.sealer.seal(&encoded.iter().collect(), summary);
        // Written a second time on purpose: the collector's own must agree.
        assert_eq!(header(&batch).root, root(encoded));
        batch
    }

    pub fn batches(&mut self, count: usize, events: usize) -> Vec<Batch> {
        (0..count)
            .map(|_| {
                let events = self.events(events);
                self.seal(&events)
            })
            .collect()
    }
}

pub fn header(batch: &Batch) -> BatchHeader {
    audit_ledger::header(batch).expect("header").fields
}

/// RFC 6962 by its definition.
fn root(leaves: &[Vec<u8>]) -> [u8; 32] {
    let hash = |parts: &[&[u8]]| -> [u8; 32] { Sha256::digest(parts.concat()).into() };
    match leaves {
        [] => hash(&[]),
        [leaf] => hash(&[&[0], leaf]),
        _ => {
            let split = leaves.len().next_power_of_two() / 2;
            hash(&[&[1], &root(&leaves[..split]), &root(&leaves[split..])])
        }
    }
}

pub struct Session {
    out: mpsc::Sender<DeliverRequest>,
    answers: Streaming<DeliverResponse>,
    pub welcome: i64,
}

impl Session {
    pub async fn open(channel: &Channel, hello: &Hello) -> Self {
        let (out, requests) = mpsc::channel(64);
        let mut client = IngestClient::new(channel.clone())
            .send_compressed(tonic::codec::CompressionEncoding::Zstd)
            .max_encoding_message_size(audit_proto::MAX_MESSAGE_BYTES);
        let message = Some(deliver_request::Message::Hello(hello.clone()));
        out.send(DeliverRequest { message }).await.expect("sends");
        let mut answers = client
            .deliver(ReceiverStream::new(requests))
            .await
            .expect("accepted")
            .into_inner();
        let first = answers.message().await.expect("answer").expect("welcome");
        let Some(deliver_response::Message::Welcome(welcome)) = first.message else {
            panic!("no welcome: {first:?}");
        };
        Self {
            out,
            answers,
            welcome: welcome.last_batch,
        }
    }

    pub async fn send(&self, batch: &Batch) {
        let message = Some(deliver_request::Message::Batch(batch.clone()));
        let _ = self.out.send(DeliverRequest { message }).await;
    }

    pub async fn ack(&mut self) -> Result<i64, Status> {
        match self.answers.message().await?.and_then(|m| m.message) {
            Some(deliver_response::Message::Ack(ack)) => Ok(ack.batch),
            other => Err(Status::unknown(format!("{other:?}"))),
        }
    }

    pub async fn acked(&mut self, batch: i64) {
        while self.ack().await.expect("ack") < batch {}
    }
}

/// Delivers and waits for the last acknowledgement.
pub async fn deliver(channel: &Channel, agent: &Agent, batches: &[Batch]) {
    let mut session = Session::open(channel, &agent.hello).await;
    for batch in batches {
        session.send(batch).await;
    }
    let last = header(batches.last().expect("batches")).batch;
    session.acked(last).await;
}

pub async fn query(channel: &Channel, sql: &str) -> Result<Vec<RecordBatch>, Status> {
    let request = QueryRequest {
        sql: sql.into(),
        limit: 0,
    };
    let mut stream = client(channel).query(request).await?.into_inner();
    let mut bytes = Vec::new();
    while let Some(piece) = stream.message().await? {
        bytes.extend_from_slice(&piece.arrow_ipc);
    }
    let reader = StreamReader::try_new(&bytes[..], None).expect("arrow stream");
    Ok(reader.collect::<Result<_, _>>().expect("batches"))
}

/// A result as text, for comparing.
pub async fn table(channel: &Channel, sql: &str) -> String {
    let batches = query(channel, sql).await.expect("query");
    arrow::util::pretty::pretty_format_batches(&batches)
        .expect("formats")
        .to_string()
}

pub async fn number(channel: &Channel, sql: &str) -> i64 {
    use arrow::{array::AsArray as _, datatypes::Int64Type};
    let batches = query(channel, sql).await.expect("query");
    batches[0].column(0).as_primitive::<Int64Type>().value(0)
}

pub async fn status(channel: &Channel) -> StatusResponse {
    client(channel)
        .status(StatusRequest {})
        .await
        .expect("status")
        .into_inner()
}

pub async fn tail(channel: &Channel, request: TailRequest) -> Vec<TailResponse> {
    let stream = client(channel)
        .tail(request)
        .await
        .expect("tail")
        .into_inner();
    stream
        .collect::<Result<Vec<_>, _>>()
        .await
        .expect("tail to its end")
}

/// Waits until `check` holds, at most 20 s.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut check: impl FnMut() -> F) {
    for _ in 0..200 {
        if check().await {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("did not happen: {what}");
}

/// In order of their names, which is that of their events.
pub fn parquet_files(data: &Path) -> Vec<PathBuf> {
    let days = std::fs::read_dir(data.join("events")).expect("events");
    let mut files: Vec<PathBuf> = days
        .flat_map(|day| std::fs::read_dir(day.expect("day").path()).expect("day"))
        .map(|file| file.expect("file").path())
        .filter(|path| path.extension().is_some_and(|e| e == "parquet"))
        .collect();
    files.sort();
    files
}
