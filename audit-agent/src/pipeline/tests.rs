use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    pin::Pin,
    sync::Mutex,
};

use audit_common::{class, kind, record::section};
use audit_proto::{
    Message as _,
    v1::{
        Ack, Batch, DeliverRequest, DeliverResponse, Event, Kind, Welcome, deliver_request,
        deliver_response,
        ingest_server::{Ingest, IngestServer},
    },
};
use tokio::{net::UnixListener, sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status, Streaming};
use zerocopy::IntoBytes as _;

use super::*;
use crate::{
    replay::Replay,
    sample,
    source::{LeftOut, Loss},
};

/// A collector that stores in memory, and may break sessions.
#[derive(Clone, Default)]
struct Collector(Arc<Shared>);

#[derive(Default)]
struct Shared {
    stored: Mutex<Vec<Batch>>,
    received: Mutex<usize>,
    /// A session ends without a word after each so many batches, stored or not by turns.
    break_every: usize,
}

fn number(batch: &Batch) -> i64 {
    header(batch).fields.batch
}

fn header(batch: &Batch) -> audit_ledger::Header {
    audit_ledger::header(batch).expect("header")
}

fn answer(message: deliver_response::Message) -> Result<DeliverResponse, Status> {
    Ok(DeliverResponse {
        message: Some(message),
    })
}

impl Collector {
    fn breaking_every(batches: usize) -> Self {
        Self(Arc::new(Shared {
            break_every: batches,
            ..Shared::default()
        }))
    }

    fn last(&self) -> i64 {
        self.0.stored.lock().expect("lock").last().map_or(0, number)
    }

    /// False: the session is to break before the answer.
    fn take(&self, batch: Batch) -> bool {
        let mut received = self.0.received.lock().expect("lock");
        *received += 1;
        let breaks = self.0.break_every > 0 && received.is_multiple_of(self.0.break_every);
        if breaks && received.is_multiple_of(2 * self.0.break_every) {
            return false;
        }
        // In order, none missing, none stored twice, each signed.
        let header = header(&batch);
        let past = match self.past() {
            Some(past) => past.follow(&batch, &header, audit_ledger::Gap::Refused),
            None => audit_ledger::Past::begin(&batch, &header),
        };
        past.expect("belongs there");
        self.0.stored.lock().expect("lock").push(batch);
        !breaks
    }

    fn past(&self) -> Option<audit_ledger::Past> {
        let stored = self.0.stored.lock().expect("lock");
        stored
            .last()
            .map(|batch| audit_ledger::Past::of(&header(batch)))
    }

    fn events(&self) -> Vec<Event> {
        let batches = self.0.stored.lock().expect("lock").clone();
        let open = batches.iter().flat_map(|batch| {
            let open = audit_ledger::open(batch, &header(batch).fields).expect("verifies");
            let events = open
                .events()
                .map(|bytes| Event::decode(bytes).expect("event"));
            events.collect::<Vec<_>>()
        });
        open.collect()
    }

    /// Serves on a unix socket until the handle is aborted.
    fn serve(&self, socket: &Path) -> JoinHandle<()> {
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket).expect("bind");
        let service = IngestServer::new(self.clone()).max_decoding_message_size(16 << 20);
        tokio::spawn(async move {
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(UnixListenerStream::new(listener))
                .await
                .expect("serves");
        })
    }

    async fn wait_for(&self, what: &str, done: impl Fn(&[Event]) -> bool) {
        let begun = Instant::now();
        while !done(&self.events()) {
            assert!(begun.elapsed() < Duration::from_secs(60), "{what} in time");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tonic::async_trait]
impl Ingest for Collector {
    type DeliverStream =
        Pin<Box<dyn tokio_stream::Stream<Item = Result<DeliverResponse, Status>> + Send>>;

    async fn deliver(
        &self,
        request: Request<Streaming<DeliverRequest>>,
    ) -> Result<Response<Self::DeliverStream>, Status> {
        let mut requests = request.into_inner();
        let (answers, receiver) = mpsc::channel(4);
        let collector = self.clone();
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                let message = match request.message.expect("message") {
                    deliver_request::Message::Hello(hello) => {
                        deliver_response::Message::Welcome(Welcome {
                            last_batch: collector.last(),
                            last_hash: collector.past().unwrap_or_default().hash,
                            host_id: hello.host_id,
                            pid: 1,
                            recent: Vec::new(),
                        })
                    }
                    deliver_request::Message::Batch(batch) => {
                        let batch_number = number(&batch);
                        if !collector.take(batch) {
                            return;
                        }
                        deliver_response::Message::Ack(Ack {
                            batch: batch_number,
                        })
                    }
                };
                if answers.send(answer(message)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

struct Agent {
    dir: tempfile::TempDir,
    stop: watch::Sender<bool>,
    config: Config,
}

impl Agent {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut config = Config {
            server: format!("unix://{}/collector.sock", dir.path().display()),
            state_dir: dir.path().to_owned(),
            ..Config::default()
        };
        config.batch.max_events = 50;
        config.batch.max_delay_ms = 20;
        Self {
            dir,
            stop: watch::channel(false).0,
            config,
        }
    }

    fn socket(&self) -> std::path::PathBuf {
        self.dir.path().join("collector.sock")
    }

    fn replay(&self, records: &[Vec<u8>]) -> Replay {
        let path = self.dir.path().join("records");
        let bytes = Replay::encode(records.iter().map(Vec::as_slice));
        std::fs::write(&path, bytes).expect("write");
        Replay::open(&path, 100).expect("open")
    }

    /// As often as the agent is to begin, one after the other.
    fn start(&self, source: impl Source + 'static) -> JoinHandle<Result<Ended, AgentError>> {
        self.stop.send_replace(false);
        let identity = Identity {
            host_id: "0123456789abcdef0123456789abcdef".to_owned(),
            host_name: "test".to_owned(),
            boot_id: "01234567-89ab-cdef-0123-456789abcdef".to_owned(),
            run: "0123456789ab".to_owned(),
        };
        let (config, stop) = (self.config.clone(), self.stop.subscribe());
        let limits = config.validate().expect("valid").spool;
        let opened = crate::spool::open(&config.state_dir, &identity, limits).expect("spool");
        tokio::spawn(async move { run(source, config, identity, opened, stop.into()).await })
    }

    /// All that a collector has when the agent was stopped after the first event of `kind`.
    async fn record(&self, source: impl Source + 'static, kind: Kind) -> Vec<Event> {
        let collector = Collector::default();
        let _serving = collector.serve(&self.socket());
        let running = self.start(source);
        collector
            .wait_for("the first of the kind", |events| {
                !of_kind(events, kind).is_empty()
            })
            .await;
        self.stop.send(true).expect("running");
        running.await.expect("task").expect("ends well");
        let events = collector.events();
        assert_gapless(&events);
        events
    }
}

fn of_kind(events: &[Event], kind: Kind) -> Vec<&Event> {
    events
        .iter()
        .filter(|event| event.kind == i32::from(kind))
        .collect()
}

/// `count` execs and opens of different processes.
fn records(count: u32) -> Vec<Vec<u8>> {
    let record = |n: u32| {
        let mut sample = sample::record(if n.is_multiple_of(2) {
            kind::EXEC
        } else {
            kind::OPEN
        });
        sample.header.pid = 100_000 + n;
        sample.header.time_ns += u64::from(n);
        sample.header.sequence = u64::from(n / 2 + 1);
        sample.bytes()
    };
    (0..count).map(record).collect()
}

/// Every number of every stream is there once, as an event or in a `lost` event.
fn assert_gapless(events: &[Event]) {
    let mut numbers: BTreeMap<(i32, i32), Vec<i64>> = BTreeMap::new();
    for event in events {
        let stream = (event.class, event.cpu.expect("cpu"));
        numbers
            .entry(stream)
            .or_default()
            .push(event.sequence.expect("sequence"));
        if let Some(lost) = &event.lost
            && let (Some(cpu), Some(first), Some(last)) =
                (lost.cpu, lost.first_sequence, lost.last_sequence)
        {
            numbers
                .entry((lost.class, cpu))
                .or_default()
                .extend(first..=last);
        }
    }
    for (stream, mut numbers) in numbers {
        numbers.sort_unstable();
        let expected: Vec<i64> = (1..=numbers.len() as i64).collect();
        assert_eq!(numbers, expected, "stream {stream:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_event_is_stored_once_though_sessions_break() {
    let agent = Agent::new();
    let collector = Collector::breaking_every(7);
    let _serving = collector.serve(&agent.socket());
    let running = agent.start(agent.replay(&records(3000)));
    collector
        .wait_for("3000 events", |events| events.len() >= 3001)
        .await;
    agent.stop.send(true).expect("running");
    let ended = running.await.expect("task").expect("ends well");

    let events = collector.events();
    assert_eq!(of_kind(&events, Kind::Exec).len(), 1500);
    assert_eq!(of_kind(&events, Kind::Open).len(), 1500);
    let ids: BTreeSet<&str> = events.iter().map(|event| event.id.as_str()).collect();
    assert_eq!(ids.len(), events.len(), "no id twice");
    assert_gapless(&events);
    assert_eq!(
        ended,
        Ended {
            sent: events.len() as u64,
            unsent: 0,
            abandoned: 0,
        }
    );
    let stored = collector.0.stored.lock().expect("lock").len();
    assert!(
        *collector.0.received.lock().expect("lock") > stored,
        "some were sent again"
    );
    let last = events
        .last()
        .expect("events")
        .agent
        .as_ref()
        .expect("agent");
    assert_eq!(
        (last.action.as_str(), last.detail.as_str()),
        ("stop", "stopped")
    );
    assert_eq!(events[0].agent.as_ref().expect("agent").action, "start");
    assert!(
        events
            .iter()
            .all(|event| event.host.as_ref().is_some_and(|h| h.name == "test"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_wait_for_a_collector_that_comes_back() {
    let agent = Agent::new();
    let collector = Collector::default();
    let serving = collector.serve(&agent.socket());
    let running = agent.start(agent.replay(&records(100)));
    collector
        .wait_for("the first part", |events| events.len() > 100)
        .await;
    serving.abort();
    let _ = serving.await;
    // Written while nobody listens: the stop's events, at the latest.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let _serving = collector.serve(&agent.socket());
    agent.stop.send(true).expect("running");
    let ended = running.await.expect("task").expect("ends well");
    assert_eq!(ended.unsent, 0);
    let events = collector.events();
    assert_gapless(&events);
    assert_eq!(of_kind(&events, Kind::Agent).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_memory_cannot_hold_waits_on_disk_and_the_reader_goes_on() {
    let mut agent = Agent::new();
    agent.config.queue.max_bytes = 1 << 20;
    // Noise does not compress, so that memory is full long before the end.
    let noise = |n: u32| {
        let mut state = u64::from(n) + 1;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            b'!' + (state >> 33) as u8 % 90
        };
        let argv: Vec<u8> = (0..4000).map(|_| next()).collect();
        let mut sample = sample::record(kind::EXEC).section(section::ARGV, &argv);
        let mut exec = sample.payload_as::<audit_common::record::Exec>();
        exec.argv_bytes = argv.len() as u64;
        sample.payload = exec.as_bytes().to_vec();
        sample.header.pid = 200_000 + n;
        sample.bytes()
    };
    let running = agent.start(agent.replay(&(0..1000).map(noise).collect::<Vec<_>>()));
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(!running.is_finished());
    let log = agent.dir.path().join("spool");
    assert!(log.is_dir(), "{}", log.display());
    let collector = Collector::default();
    let _serving = collector.serve(&agent.socket());
    collector
        .wait_for("all", |events| of_kind(events, Kind::Exec).len() == 1000)
        .await;
    agent.stop.send(true).expect("running");
    assert_eq!(running.await.expect("task").expect("ends well").unsent, 0);
    let events = collector.events();
    assert_gapless(&events);
    let heartbeats = of_kind(&events, Kind::Heartbeat);
    let told = heartbeats
        .last()
        .expect("heartbeat")
        .agent
        .as_ref()
        .expect("agent");
    assert!(told.detail.contains("spool_waits=0"), "{}", told.detail);
    assert_eq!((told.lost, told.seen), (Some(0), Some(1000)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_sent_is_kept_and_delivered_by_the_next_run() {
    let agent = Agent::new();
    let running = agent.start(agent.replay(&records(10)));
    tokio::time::sleep(Duration::from_millis(300)).await;
    let begun = Instant::now();
    agent.stop.send(true).expect("running");
    let ended = running.await.expect("task").expect("ends well");
    assert!(begun.elapsed() < STOP_DEADLINE + Duration::from_secs(3));
    assert_eq!(
        ended,
        Ended {
            sent: 0,
            unsent: 13,
            abandoned: 0,
        }
    );
    let collector = Collector::default();
    let _serving = collector.serve(&agent.socket());
    let running = agent.start(agent.replay(&records(10)));
    collector
        .wait_for("both runs", |events| {
            of_kind(events, Kind::Exec).len() == 10
        })
        .await;
    agent.stop.send(true).expect("running");
    let ended = running.await.expect("task").expect("ends well");
    let events = collector.events().len() as u64;
    assert_eq!((ended.sent, ended.unsent), (events, 0));
    let last = collector.0.stored.lock().expect("lock").last().map(header);
    let last = last.expect("a batch").fields;
    assert_eq!(last.next_within_ms, 0, "an orderly end");
    assert_eq!(last.epoch, 2, "each run has a key of its own");
}

/// Rounds as given, then silence.
struct Scripted(Vec<Round>);

impl Source for Scripted {
    fn next(&mut self, timeout: Duration, round: &mut Round) -> io::Result<()> {
        match self.0.pop() {
            Some(next) => *round = next,
            None => thread::sleep(timeout),
        }
        Ok(())
    }

    fn counters(&mut self) -> [KernelCounters; 4] {
        Default::default()
    }

    fn ignore(&mut self, _: u32) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_or_not_understood_is_told() {
    let mut round = Round::default();
    round.push(1, b"not a record");
    let mut unknown = sample::record(kind::OPEN);
    unknown.header.kind = 77;
    round.push(2, &unknown.bytes());
    round.push(3, &sample::record(kind::OPEN).bytes());
    round.push_loss(Loss {
        class: class::PROCESS,
        cpu: 0,
        first_sequence: 10,
        last_sequence: 14,
        cause: "ring full",
        place: "ring",
    });
    let agent = Agent::new();
    let events = agent.record(Scripted(vec![round]), Kind::Open).await;
    let lost: Vec<_> = of_kind(&events, Kind::Lost)
        .into_iter()
        .map(|event| event.lost.as_ref().expect("lost"))
        .map(|lost| {
            (
                lost.place.as_str(),
                lost.cause.as_str(),
                lost.class,
                lost.count,
            )
        })
        .collect();
    assert_eq!(
        lost,
        [
            ("ring", "ring full", 1, Some(5)),
            ("decode", "malformed record", 0, Some(1)),
            ("decode", "unknown kind", 3, Some(1)),
        ]
    );
}

/// Records that the kernel's filter has let pass, or left open.
struct Ruled {
    replay: Replay,
    policy: Arc<crate::policy::Policy>,
}

impl Source for Ruled {
    fn next(&mut self, timeout: Duration, round: &mut Round) -> io::Result<()> {
        self.replay.next(timeout, round)
    }

    fn counters(&mut self) -> [KernelCounters; 4] {
        self.replay.counters()
    }

    fn ignore(&mut self, pid: u32) -> io::Result<()> {
        self.replay.ignore(pid)
    }

    fn left_out(&mut self) -> io::Result<LeftOut> {
        Ok(LeftOut {
            rules: Some((1, Arc::clone(&self.policy))),
            shed: Vec::new(),
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_and_long_arguments_leave_no_gaps() {
    let mut agent = Agent::new();
    agent.config.capture.filters = vec![crate::policy::Rule {
        name: "temporary".to_owned(),
        paths: vec!["/tmp/".to_owned()],
        ..Default::default()
    }];
    // As the kernel sends it where it cannot decide about the path.
    let mut open = sample::record(kind::OPEN);
    open.header.generation = 1;
    open.header.candidates = 1;
    let whole = b"first\0second\0".to_vec();
    let mut exec = sample::record(kind::EXEC).section(section::ARGV, &whole[..8]);
    exec.payload.clear();
    let mut payload = sample::record(kind::EXEC).payload_as::<audit_common::record::Exec>();
    payload.argv_bytes = whole.len() as u64;
    exec.payload.extend_from_slice(payload.as_bytes());
    let mut rest = sample::record(kind::EXIT).section(section::ARGV, &whole[8..]);
    rest.header.kind = kind::EXEC_ARGS;
    rest.header.sequence = 2;
    rest.payload = audit_common::record::ExecArgs {
        exec_sequence: 1,
        offset_bytes: 8,
    }
    .as_bytes()
    .to_vec();
    let exit = sample::record(kind::EXIT).bytes();
    let records = [exec.bytes(), rest.bytes(), open.bytes(), exit.clone(), exit];
    let policy = Arc::new(agent.config.policy().expect("policy"));
    let source = Ruled {
        replay: agent.replay(&records),
        policy,
    };
    let events = agent.record(source, Kind::Exit).await;
    assert_eq!(
        of_kind(&events, Kind::Exit).len(),
        1,
        "the second exit is merged"
    );
    assert!(of_kind(&events, Kind::Open).is_empty(), "filtered");
    let exec = of_kind(&events, Kind::Exec)[0]
        .process
        .as_ref()
        .expect("process");
    assert_eq!(exec.argv, ["first", "second"]);
    let exit = of_kind(&events, Kind::Exit)[0]
        .process
        .as_ref()
        .expect("process");
    assert_eq!(exit.exe, "/usr/bin/dash");
    let heartbeat = of_kind(&events, Kind::Heartbeat)[0]
        .agent
        .as_ref()
        .expect("agent");
    assert_eq!(heartbeat.filtered, Some(1));
    assert_eq!(heartbeat.filter_totals, ["temporary hidden=1"]);
    let file = "file seen=1 filtered=1 shed=0 lost=0 sent=0".to_owned();
    assert!(heartbeat.class_totals.contains(&file), "{heartbeat:?}");
    assert!(
        heartbeat.detail.contains("merged_exits=1"),
        "{}",
        heartbeat.detail
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_source_ends_the_agent_after_delivering() {
    struct Failing;
    impl Source for Failing {
        fn next(&mut self, _: Duration, _: &mut Round) -> io::Result<()> {
            Err(io::Error::other("ring gone"))
        }
        fn counters(&mut self) -> [KernelCounters; 4] {
            Default::default()
        }
        fn ignore(&mut self, _: u32) -> io::Result<()> {
            Ok(())
        }
    }
    let agent = Agent::new();
    let collector = Collector::default();
    let _serving = collector.serve(&agent.socket());
    let error = agent
        .start(Failing)
        .await
        .expect("task")
        .expect_err("fails");
    assert!(error.to_string().contains("ring gone"), "{error}");
    let events = collector.events();
    let stop = events
        .last()
        .expect("events")
        .agent
        .as_ref()
        .expect("agent");
    assert_eq!(
        (stop.action.as_str(), stop.detail.as_str()),
        ("stop", "reading failed: ring gone")
    );
}
