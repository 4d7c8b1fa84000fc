//! How do sealed batches reach the collector? In sessions: Hello, Welcome, batches in order, Acks.
//!
//! Invariants: a batch stays in the queue until the collector says that it is stored; a session
//! begins behind the last batch that the collector says it has; nothing here changes or reorders
//! batches. The collector drops what it sees twice, so each event is stored exactly once.

use std::{
    collections::hash_map::RandomState,
    fmt::Write as _,
    hash::{BuildHasher as _, Hasher as _},
    sync::{Arc, mpsc::SyncSender},
    time::Duration,
};

use audit_proto::{
    MAX_MESSAGE_BYTES,
    v1::{
        Batch, DeliverRequest, DeliverResponse, Hello, Welcome, deliver_request, deliver_response,
        ingest_client::IngestClient,
    },
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::{
    counters::{self, Counters},
    identity::Identity,
    queue::Queue,
    server::Server,
};

/// From the call to the collector's first answer.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(5);
/// A collector that has not acknowledged anything for so long, with batches sent, is taken for dead.
const ACK_TIMEOUT: Duration = Duration::from_secs(30);
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LAST_BACKOFF: Duration = Duration::from_secs(5);
/// Messages between the session and the connection; the queue is the buffer, this only decouples.
const REQUESTS: usize = 2;

/// Why a session ended. The reaction is always to wait and try again.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("cannot connect: {}; is the collector running?", chain(.0))]
    Connect(tonic::transport::Error),
    #[error("refused or broken: {} ({})", .0.message(), .0.code())]
    Status(Box<tonic::Status>),
    #[error("the collector ended the session")]
    Closed,
    #[error("the collector's first answer was not Welcome within {} s", WELCOME_TIMEOUT.as_secs())]
    NoWelcome,
    #[error("no acknowledgement for {} s", ACK_TIMEOUT.as_secs())]
    Silent,
    #[error(
        "the collector claims batch {claimed} of this run, of which only {sent} exist; is another agent using the same ids?"
    )]
    Claim { claimed: i64, sent: i64 },
}

impl SessionError {
    /// The collector has read what it was sent and will not have it, now or later.
    fn is_refusal(&self) -> bool {
        match self {
            Self::Status(status) => matches!(
                status.code(),
                tonic::Code::FailedPrecondition | tonic::Code::InvalidArgument
            ),
            Self::Claim { .. } => true,
            _ => false,
        }
    }
}

impl From<tonic::Status> for SessionError {
    fn from(status: tonic::Status) -> Self {
        Self::Status(Box::new(status))
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        // Some of tonic's errors say their cause themselves.
        if !text.ends_with(&cause) {
            let _ = write!(text, ": {cause}");
        }
        source = error.source();
    }
    text
}

/// The shipping task.
#[derive(Debug)]
pub struct Ship {
    pub server: Server,
    pub identity: Identity,
    pub queue: Arc<Queue>,
    pub counters: Arc<Counters>,
    pub requests: SyncSender<Request>,
}

/// What the reader is to do.
#[derive(Debug)]
pub enum Request {
    /// Leave a collector on this host out of the record: its pid.
    Ignore(u32),
    Tell(Refused),
}

/// What a former run had left, and the collector will never take.
#[derive(Debug)]
pub struct Refused {
    pub run: String,
    pub events: u64,
    pub reason: String,
}

impl Ship {
    /// Runs sessions until the queue is closed and everything in it is acknowledged.
    pub async fn run(self) {
        // Nothing is final: the collector may be put right, and what waits is not lost.
        let _ = self.deliver_all(|_| false).await;
    }

    /// The same for what a former run has left, unless the collector will never take it: this run
    /// must not wait for that.
    pub async fn offer(self) -> Result<(), Refused> {
        let delivered = self.deliver_all(SessionError::is_refusal).await;
        delivered.map_err(|error| Refused {
            run: self.identity.run.clone(),
            events: self.queue.depth().events,
            reason: error.to_string(),
        })
    }

    async fn deliver_all(
        &self,
        is_final: impl Fn(&SessionError) -> bool,
    ) -> Result<(), SessionError> {
        let mut backoff = Backoff::default();
        let mut reported = false;
        loop {
            let before = counters::get(&self.counters.sent);
            match self.session().await {
                Ok(()) => return Ok(()),
                Err(error) if is_final(&error) => return Err(error),
                Err(error) => {
                    // A session in which nothing was stored is no reason to hurry, nor news.
                    if counters::get(&self.counters.sent) != before {
                        backoff = Backoff::default();
                        reported = false;
                    }
                    if reported {
                        tracing::debug!(server = %self.server, %error, "still no session");
                    } else {
                        tracing::warn!(server = %self.server, %error, "no session with the collector; batches wait and are sent again");
                    }
                    reported = true;
                }
            }
            tokio::select! {
                () = sleep(backoff.next()) => {}
                () = self.queue.drained() => return Ok(()),
            }
        }
    }

    async fn session(&self) -> Result<(), SessionError> {
        let channel = self.server.connect().await.map_err(SessionError::Connect)?;
        let mut client = IngestClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let (requests, receiver) = mpsc::channel(REQUESTS);
        // Before the call, because a collector may read it before it answers anything.
        let hello = request(deliver_request::Message::Hello(self.hello()));
        requests
            .send(hello)
            .await
            .map_err(|_| SessionError::Closed)?;
        let first = async {
            let call = client.deliver(ReceiverStream::new(receiver)).await?;
            let mut answers = call.into_inner();
            match answers.message().await?.and_then(|answer| answer.message) {
                Some(deliver_response::Message::Welcome(welcome)) => Ok((answers, welcome)),
                Some(_) => Err(SessionError::NoWelcome),
                None => Err(SessionError::Closed),
            }
        };
        let (answers, welcome) = timeout(WELCOME_TIMEOUT, first)
            .await
            .map_err(|_| SessionError::NoWelcome)??;
        self.welcomed(&welcome)?;
        self.deliver(requests, answers, welcome.last_batch).await
    }

    fn hello(&self) -> Hello {
        let Identity {
            host_id,
            host_name,
            boot_id,
            run,
        } = self.identity.clone();
        Hello {
            host_id,
            host_name,
            boot_id,
            run,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id().into(),
        }
    }

    fn welcomed(&self, welcome: &Welcome) -> Result<(), SessionError> {
        let Welcome {
            last_batch,
            host_id,
            pid,
        } = welcome;
        let sent = self.queue.last_pushed();
        if *last_batch > sent {
            return Err(SessionError::Claim {
                claimed: *last_batch,
                sent,
            });
        }
        if let Some(first) = self.queue.first()
            && *last_batch + 1 < first
        {
            tracing::error!(
                server = %self.server, missing_from = last_batch + 1, missing_to = first - 1,
                "the collector lost batches that it had acknowledged; was its data removed?"
            );
        }
        self.stored(*last_batch);
        counters::add(&self.counters.sessions, 1);
        tracing::info!(server = %self.server, last_batch, "session with the collector");
        if *host_id == self.identity.host_id
            && self.server.is_local()
            && let Ok(pid) = u32::try_from(*pid)
            && is_collector(pid)
        {
            // The channel holds more than one session asks for; a full one asked already.
            let _ = self.requests.try_send(Request::Ignore(pid));
        }
        Ok(())
    }

    fn stored(&self, batch: i64) {
        let events = self.queue.acknowledge(batch);
        counters::add(&self.counters.sent, events);
    }

    async fn deliver(
        &self,
        requests: mpsc::Sender<DeliverRequest>,
        mut answers: Streaming<DeliverResponse>,
        mut acknowledged: i64,
    ) -> Result<(), SessionError> {
        let mut sent = acknowledged;
        let mut next: Option<Batch> = None;
        let mut closed = false;
        let mut progress = Instant::now();
        loop {
            if closed && next.is_none() && acknowledged >= sent {
                return Ok(());
            }
            tokio::select! {
                answer = answers.message() => {
                    let answer = answer?.ok_or(SessionError::Closed)?;
                    if let Some(deliver_response::Message::Ack(ack)) = answer.message {
                        if ack.batch > sent {
                            return Err(SessionError::Claim { claimed: ack.batch, sent });
                        }
                        acknowledged = acknowledged.max(ack.batch);
                        progress = Instant::now();
                        self.stored(acknowledged);
                    }
                }
                permit = requests.reserve(), if next.is_some() => {
                    let permit = permit.map_err(|_| SessionError::Closed)?;
                    if let Some(batch) = next.take() {
                        if sent == acknowledged {
                            progress = Instant::now();
                        }
                        sent = number(&batch);
                        permit.send(request(deliver_request::Message::Batch(batch)));
                    }
                }
                batch = self.queue.after(sent), if next.is_none() && !closed => match batch {
                    Some(batch) => next = Some(batch),
                    None => closed = true,
                },
                () = sleep_until(progress + ACK_TIMEOUT), if sent > acknowledged => {
                    return Err(SessionError::Silent);
                }
            }
        }
    }
}

fn number(batch: &Batch) -> i64 {
    batch.header.as_ref().map_or(0, |header| header.batch)
}

fn request(message: deliver_request::Message) -> DeliverRequest {
    DeliverRequest {
        message: Some(message),
    }
}

/// A pid that a collector sends may be of another pid namespace, where it names someone else: only
/// a process that runs our own programs is left out of the record.
fn is_collector(pid: u32) -> bool {
    let exe = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    let name = exe
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    pid > 1
        && matches!(
            name.trim_end_matches(" (deleted)"),
            "audit-collector" | "hostaudit"
        )
}

/// Doubles up to a limit; each wait is between half and all of it, so that agents which lost one
/// collector together do not come back together.
#[derive(Debug)]
struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            next: FIRST_BACKOFF,
        }
    }
}

impl Backoff {
    fn next(&mut self) -> Duration {
        let whole = self.next;
        self.next = (whole * 2).min(LAST_BACKOFF);
        let random = RandomState::new().build_hasher().finish() % 1000;
        whole / 2 + whole.mul_f64(random as f64 / 2000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_five_seconds_and_never_above() {
        let mut backoff = Backoff::default();
        let waits: Vec<Duration> = (0..12).map(|_| backoff.next()).collect();
        assert!(waits[0] >= FIRST_BACKOFF / 2 && waits[0] <= FIRST_BACKOFF);
        assert!(waits.iter().all(|wait| *wait <= LAST_BACKOFF));
        assert!(waits[11] >= LAST_BACKOFF / 2);
    }

    #[test]
    fn only_our_own_programs_are_left_out() {
        assert!(!is_collector(1));
        assert!(!is_collector(std::process::id()), "a test is no collector");
    }
}
