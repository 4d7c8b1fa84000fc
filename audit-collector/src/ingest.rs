//! A session with one agent: Hello, Welcome, batches in order, acknowledgements.
//!
//! Invariants: of one agent at most one session is alive, the newest; a batch is stored only where it
//! belongs into its agent's history, and acknowledged only when it is durable; what a refused batch
//! costs is that batch's session, nothing else.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use audit_ledger::{self as ledger, Gap, Header, Past};
use audit_proto::{
    Message as _, REFUSED_BATCH,
    v1::{
        Ack, Batch, DeliverRequest, DeliverResponse, Hello, Welcome, deliver_request,
        deliver_response, ingest_server::Ingest,
    },
};
use futures::{StreamExt as _, stream::FuturesOrdered};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::{
    access::Caller,
    config,
    history::{self, History, Place, Unfit},
    store::{Prepared, Store, prepare_batch},
    writer::Submission,
};

/// From connecting to Hello; a client that says nothing holds a slot.
const HELLO_TIMEOUT: Duration = Duration::from_secs(30);
/// An id is 32 to 36 characters; more is not an id.
const MAX_ID_BYTES: usize = 256;
/// Answers waiting for an agent that does not read.
const ANSWERS: usize = 64;

#[derive(Debug, Default)]
pub struct Counters {
    pub duplicate: AtomicI64,
    pub rejected: AtomicI64,
}

/// The live session of each agent, by its id.
#[derive(Default)]
pub struct Sessions(Mutex<HashMap<String, Live>>);

struct Live {
    id: u64,
    /// Tells the session to finish.
    end: watch::Sender<bool>,
    /// Closed when it has.
    done: watch::Receiver<()>,
    hello: Hello,
}

/// Removes the session from the list when dropped; then `done` closes.
struct Registered {
    sessions: Arc<Sessions>,
    agent_id: String,
    id: u64,
    end: watch::Receiver<bool>,
    _done: watch::Sender<()>,
}

impl Sessions {
    /// Enters a session after the earlier one of the same agent has finished.
    async fn enter(self: &Arc<Self>, hello: &Hello) -> Registered {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let (end, ended) = watch::channel(false);
        let (done, finished) = watch::channel(());
        let live = Live {
            id,
            end,
            done: finished,
            hello: hello.clone(),
        };
        let older = self.lock().insert(hello.agent_id.clone(), live);
        let registered = Registered {
            sessions: self.clone(),
            agent_id: hello.agent_id.clone(),
            id,
            end: ended,
            _done: done,
        };
        if let Some(mut older) = older {
            older.end.send_replace(true);
            while older.done.changed().await.is_ok() {}
        }
        registered
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Live>> {
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub fn hello(&self, agent_id: &str) -> Option<Hello> {
        self.lock().get(agent_id).map(|live| live.hello.clone())
    }

    pub fn connected(&self) -> Vec<Hello> {
        let live = self.lock();
        live.values().map(|live| live.hello.clone()).collect()
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut map = self.sessions.lock();
        if map
            .get(&self.agent_id)
            .is_some_and(|live| live.id == self.id)
        {
            map.remove(&self.agent_id);
        }
    }
}

#[derive(Clone)]
pub struct IngestService {
    pub config: config::Ingest,
    pub store: Arc<Store>,
    pub sessions: Arc<Sessions>,
    pub counters: Arc<Counters>,
    pub writer: mpsc::WeakSender<Submission>,
    pub slots: Arc<Semaphore>,
    pub bytes: Arc<Semaphore>,
    pub host_id: String,
    pub stop: watch::Receiver<bool>,
}

#[tonic::async_trait]
impl Ingest for IngestService {
    type DeliverStream = ReceiverStream<Result<DeliverResponse, Status>>;

    async fn deliver(
        &self,
        request: Request<Streaming<DeliverRequest>>,
    ) -> Result<Response<Self::DeliverStream>, Status> {
        let slot = self.slots.clone().try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!(
                "{} agents are connected, the limit `ingest.max_sessions`",
                self.config.max_sessions
            ))
        })?;
        let Some(writer) = self.writer.upgrade() else {
            return Err(Status::unavailable("the collector is stopping"));
        };
        let caller = Caller::of(&request)?;
        let (answers, receiver) = mpsc::channel(ANSWERS);
        let service = self.clone();
        tokio::spawn(async move {
            let _slot = slot;
            if let Err(status) = service
                .session(&caller, request.into_inner(), writer, &answers)
                .await
            {
                let _ = answers.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

type Answers = mpsc::Sender<Result<DeliverResponse, Status>>;
type Waiting = FuturesOrdered<oneshot::Receiver<Result<i64, String>>>;

impl IngestService {
    async fn session(
        &self,
        caller: &Caller,
        mut inbound: Streaming<DeliverRequest>,
        writer: mpsc::Sender<Submission>,
        answers: &Answers,
    ) -> Result<(), Status> {
        let hello = read_hello(&mut inbound).await?;
        caller.authorize_stream(&hello)?;
        let registered = self.sessions.enter(&hello).await;
        let mut at = History::begin(&hello, self.store.stream(&hello.agent_id));
        let welcome = Welcome {
            host_id: self.host_id.clone(),
            pid: i64::from(std::process::id()),
            ..at.welcome()
        };
        let last_batch = welcome.last_batch;
        answer(answers, deliver_response::Message::Welcome(welcome)).await?;
        tracing::info!(
            host = hello.host_name,
            run = hello.run,
            version = hello.version,
            last_batch,
            "agent connected"
        );
        let mut waiting = Waiting::new();
        let mut outcome = self
            .receive(
                &mut inbound,
                &writer,
                answers,
                &registered,
                &mut at,
                &mut waiting,
            )
            .await;
        while let Some(reply) = waiting.next().await {
            if let Err(status) = self.acknowledge(reply, answers, &mut at).await {
                outcome = outcome.and(Err(status));
            }
        }
        match &outcome {
            Ok(()) => tracing::info!(
                host = hello.host_name,
                run = hello.run,
                "agent disconnected"
            ),
            Err(status) => tracing::warn!(
                host = hello.host_name,
                run = hello.run,
                reason = status.message(),
                "agent's session ended"
            ),
        }
        drop(registered);
        outcome
    }

    async fn receive(
        &self,
        inbound: &mut Streaming<DeliverRequest>,
        writer: &mpsc::Sender<Submission>,
        answers: &Answers,
        registered: &Registered,
        at: &mut History,
        waiting: &mut Waiting,
    ) -> Result<(), Status> {
        let mut ended = registered.end.clone();
        let mut stop = self.stop.clone();
        loop {
            tokio::select! {
                message = inbound.message(), if waiting.len() < self.config.in_flight_batches => {
                    let message = match message {
                        Ok(Some(message)) => message,
                        Ok(None) => return Ok(()),
                        Err(status) => return self.unreadable(&status, at.last()),
                    };
                    match message.message {
                        Some(deliver_request::Message::Batch(batch)) => {
                            self.batch(batch, writer, answers, at, waiting).await?;
                        }
                        _ => return Err(Status::invalid_argument("expected a Batch after Hello")),
                    }
                }
                Some(reply) = waiting.next(), if !waiting.is_empty() => {
                    self.acknowledge(reply, answers, at).await?;
                }
                () = raised(&mut ended) => {
                    return Err(Status::aborted("a newer session of this agent took over"));
                }
                () = raised(&mut stop) => {
                    return Err(Status::unavailable("the collector is stopping; deliver again later"));
                }
                () = answers.closed() => return Ok(()),
            }
        }
    }

    async fn batch(
        &self,
        batch: Batch,
        writer: &mpsc::Sender<Submission>,
        answers: &Answers,
        at: &mut History,
        waiting: &mut Waiting,
    ) -> Result<(), Status> {
        let header = ledger::header(&batch).map_err(|error| self.refuse(0, error.to_string()))?;
        let number = header.fields.batch;
        let gap = match at.place(&header, || self.store.stream(&at.agent_id)) {
            Ok(Place::Next(gap)) => gap,
            Ok(Place::Stored(stored)) => {
                self.counters.duplicate.fetch_add(1, Ordering::Relaxed);
                if let Some(batch) = stored {
                    answer(answers, deliver_response::Message::Ack(Ack { batch })).await?;
                }
                return Ok(());
            }
            Err(unfit) => return Err(self.unfit(unfit, &batch, number, at)),
        };
        let weight = usize::try_from(header.fields.event_bytes).unwrap_or(usize::MAX);
        let weight = weight.clamp(4096, self.config.in_flight_bytes.min(u32::MAX as usize)) as u32;
        let permit = self.bytes.clone().acquire_many_owned(weight).await;
        let permit = permit.map_err(|_| Status::unavailable("the collector is stopping"))?;
        let past = at.past().cloned();
        let work = tokio::task::spawn_blocking(move || check(batch, header, past.as_ref(), gap));
        let checked = work
            .await
            .map_err(|_| Status::internal("verification stopped"))?;
        let Checked {
            record,
            prepared,
            past,
        } = match checked {
            Ok(checked) => checked,
            Err((unfit, batch)) => return Err(self.unfit(unfit, &batch, number, at)),
        };
        let after = at.last();
        let is_first = at.past().is_none();
        if let Some(missing) = at.take(past.clone()) {
            self.tell_missing(at, is_first, missing);
        }
        let (reply, stored) = oneshot::channel();
        let submission = Submission {
            record,
            prepared,
            after,
            past,
            reply,
            _permit: permit,
        };
        writer
            .send(submission)
            .await
            .map_err(|_| Status::unavailable("the collector is stopping"))?;
        waiting.push_back(stored);
        Ok(())
    }

    fn unfit(&self, unfit: Unfit, batch: &Batch, number: i64, at: &History) -> Status {
        match unfit {
            Unfit::Refused(reason) => self.refuse(number, reason),
            Unfit::Early(reason) => Status::failed_precondition(reason),
            Unfit::Fork => self.fork(batch, number, at),
        }
    }

    /// Keeps the second of two batches with one number, as evidence.
    fn fork(&self, batch: &Batch, number: i64, at: &History) -> Status {
        let reason = format!(
            "agent {} has two histories: batch {number} is not the one that belongs here; its spool was \
             restored or copied, or somebody else has its key",
            at.agent_id
        );
        tracing::error!(agent_id = at.agent_id, batch = number, "{reason}");
        if let Err(error) = self.store.keep_fork(batch) {
            tracing::error!(%error, "and it cannot be kept as evidence");
        }
        self.store
            .problems()
            .set(&format!("fork of {}", at.agent_id), &reason);
        self.counters.rejected.fetch_add(1, Ordering::Relaxed);
        Status::failed_precondition(reason)
    }

    fn tell_missing(&self, at: &History, is_first: bool, (first, last): (i64, i64)) {
        let agent_id = &at.agent_id;
        if is_first {
            tracing::warn!(
                agent_id,
                first_batch = last + 1,
                "the agent's earlier batches went to another collector"
            );
            return;
        }
        let missing = format!(
            "batches {first} to {last} of agent {agent_id} were acknowledged and are not here any more: was \
             the data directory restored from a backup?"
        );
        let problems = self.store.problems();
        problems.set(&format!("batches of {agent_id}"), missing);
    }

    async fn acknowledge(
        &self,
        reply: Result<Result<i64, String>, oneshot::error::RecvError>,
        answers: &Answers,
        at: &mut History,
    ) -> Result<(), Status> {
        match reply {
            Ok(Ok(batch)) => {
                at.store(batch);
                answer(answers, deliver_response::Message::Ack(Ack { batch })).await
            }
            Ok(Err(reason)) => Err(Status::unavailable(reason)),
            Err(_) => Err(Status::unavailable("the collector is stopping")),
        }
    }

    /// A message that is too large or no message is refused and told. A connection that breaks,
    /// which is what a status with a source tells, is an end like any other: the agent comes back.
    fn unreadable(&self, status: &Status, last: i64) -> Result<(), Status> {
        let broken = std::error::Error::source(status).is_some();
        match status.code() {
            Code::OutOfRange | Code::ResourceExhausted | Code::Internal if !broken => Err(self
                .refuse(
                    last + 1,
                    format!(
                        "the message after batch {last} cannot be read: {}",
                        status.message()
                    ),
                )),
            _ => Ok(()),
        }
    }

    /// Of a batch that will never be taken; its number, where it is known, goes with the answer.
    fn refuse(&self, number: i64, reason: impl Into<String>) -> Status {
        self.counters.rejected.fetch_add(1, Ordering::Relaxed);
        let mut status = Status::invalid_argument(reason);
        status.metadata_mut().insert(REFUSED_BATCH, number.into());
        status
    }
}

/// Of a batch that belongs where it is: its record, its rows, and the history with it.
struct Checked {
    record: Vec<u8>,
    prepared: Prepared,
    past: Past,
}

/// Else the batch again.
fn check(
    batch: Batch,
    header: Header,
    past: Option<&Past>,
    gap: Gap,
) -> Result<Checked, (Unfit, Box<Batch>)> {
    let number = header.fields.batch;
    let past = match history::follow(past, &batch, &header, gap) {
        Ok(past) => past,
        Err(unfit) => return Err((unfit, Box::new(batch))),
    };
    let record = batch.encode_to_vec();
    match prepare_batch(batch, header) {
        Ok(prepared) => Ok(Checked {
            record,
            prepared,
            past,
        }),
        Err(error) => {
            let reason = format!("batch {number}: {error}");
            Err((Unfit::Refused(reason), Box::default()))
        }
    }
}

/// Waits for a flag. Drops the guard that `wait_for` returns, which must not live across an await.
pub async fn raised(flag: &mut watch::Receiver<bool>) {
    let _ = flag.wait_for(|raised| *raised).await;
}

async fn answer(answers: &Answers, message: deliver_response::Message) -> Result<(), Status> {
    let response = DeliverResponse {
        message: Some(message),
    };
    let gone = |_| Status::cancelled("the agent went away");
    answers.send(Ok(response)).await.map_err(gone)
}

async fn read_hello(inbound: &mut Streaming<DeliverRequest>) -> Result<Hello, Status> {
    let first = tokio::time::timeout(HELLO_TIMEOUT, inbound.message()).await;
    let first = first.map_err(|_| Status::deadline_exceeded("no Hello within 30 s"))??;
    let Some(DeliverRequest {
        message: Some(deliver_request::Message::Hello(hello)),
    }) = first
    else {
        return Err(Status::invalid_argument("the first message must be Hello"));
    };
    for (name, value) in [
        ("agent_id", &hello.agent_id),
        ("host_id", &hello.host_id),
        ("boot_id", &hello.boot_id),
        ("run", &hello.run),
    ] {
        if value.is_empty() || value.len() > MAX_ID_BYTES {
            return Err(Status::invalid_argument(format!(
                "Hello.{name} must be 1 to {MAX_ID_BYTES} bytes, not {}",
                value.len()
            )));
        }
    }
    Ok(hello)
}
