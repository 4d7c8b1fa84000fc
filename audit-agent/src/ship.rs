//! How do sealed batches reach the collector? In sessions: Hello, Welcome, batches in order, Acks.
//!
//! Invariants: a batch stays in the spool until the collector says that it is stored; a session
//! begins behind the last batch that the collector says it has; nothing here changes or reorders
//! batches. The collector drops what it sees twice, so each event is stored exactly once. A collector
//! that is slow or away slows this task, and nothing before the spool.

pub mod session;

use std::{
    collections::hash_map::RandomState,
    fmt::Write as _,
    hash::{BuildHasher as _, Hasher as _},
    sync::{
        Arc,
        mpsc::{SyncSender, TrySendError},
    },
    time::Duration,
};

use audit_proto::{
    MAX_MESSAGE_BYTES, REFUSED_BATCH,
    v1::{
        BatchRange, DeliverRequest, DeliverResponse, Hello, Welcome, deliver_request,
        deliver_response, ingest_client::IngestClient,
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
    server::Server,
    spool::{Next, Spool},
};
use session::{Reaction, Refusals, Session, Wrong};

/// From the call to the collector's first answer.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(5);
/// A collector that has not acknowledged anything for so long, with batches sent, is taken for dead.
const ACK_TIMEOUT: Duration = Duration::from_secs(30);
/// Between looks at a channel that is full.
const FULL: Duration = Duration::from_millis(100);
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
    #[error(transparent)]
    Wrong(#[from] Wrong),
}

impl SessionError {
    /// The batch that the collector has read and will not have, now or later.
    fn refused(&self) -> Option<(i64, String)> {
        match self {
            Self::Status(status) if status.code() == tonic::Code::InvalidArgument => {
                let number = status.metadata().get(REFUSED_BATCH)?.to_str().ok()?;
                Some((number.parse().ok()?, status.message().to_owned()))
            }
            _ => None,
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

/// The shipping task of one history.
pub struct Ship {
    pub server: Server,
    pub identity: Identity,
    pub spool: Arc<Spool>,
    pub counters: Arc<Counters>,
    pub requests: SyncSender<Request>,
    /// Batches that the collector will never get, for the next header.
    pub gaps: SyncSender<BatchRange>,
}

/// What the reader is to do.
#[derive(Debug)]
pub enum Request {
    /// Leave a collector on this host out of the record: its pid.
    Ignore(u32),
    Tell(Gone),
}

/// Sealed events that the collector will never have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gone {
    /// 0 where they are of several.
    pub class: i32,
    /// None where nobody knows how many.
    pub events: Option<i64>,
    /// "spool" or "collector".
    pub place: &'static str,
    pub cause: String,
}

/// Why a history cannot be delivered any more.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Diverged(String);

impl Ship {
    /// Runs sessions until the spool is closed and everything in it is acknowledged.
    pub async fn run(&self) -> Result<(), Diverged> {
        let mut backoff = Backoff::default();
        let mut reported = false;
        let mut refusals = Refusals::default();
        loop {
            let before = counters::get(&self.counters.sent);
            match self.session().await {
                Ok(()) => return Ok(()),
                Err(error @ SessionError::Wrong(Wrong::Diverged(_))) => {
                    return Err(Diverged(error.to_string()));
                }
                Err(error) => {
                    if let Some((number, reason)) = error.refused() {
                        match refusals.refused(number) {
                            Reaction::Again => {}
                            Reaction::DropEvents => self.refuse(number, reason).await,
                            Reaction::GiveUp => return Err(Diverged(error.to_string())),
                        }
                    }
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
                () = self.spool.drained() => return Ok(()),
            }
        }
    }

    /// The rest of the history must not wait for a batch that is never taken.
    async fn refuse(&self, number: i64, reason: String) {
        let events = self.spool.refuse(number, &format!("refused: {reason}"));
        tracing::error!(
            number,
            events,
            reason,
            "the collector refuses a batch; its events are lost"
        );
        let gone = Gone {
            class: 0,
            events: i64::try_from(events).ok(),
            place: "spool",
            cause: format!("the collector refuses batch {number}: {reason}"),
        };
        self.tell(gone).await;
    }

    /// Waits for room: what is lost must be told. Gives up only when the reader is gone.
    pub async fn tell(&self, gone: Gone) {
        let mut request = Request::Tell(gone);
        while let Err(TrySendError::Full(refused)) = self.requests.try_send(request) {
            request = refused;
            sleep(FULL).await;
        }
    }

    async fn session(&self) -> Result<(), SessionError> {
        let channel = self.server.connect().await.map_err(SessionError::Connect)?;
        let mut client = IngestClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let (requests, receiver) = mpsc::channel(REQUESTS);
        // Before the call, because a collector may read it before it answers anything.
        let hello = self.hello();
        let first_batch = hello.first_batch;
        let hello = request(deliver_request::Message::Hello(hello));
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
        let session = self.welcomed(first_batch, welcome).await?;
        self.deliver(requests, answers, session).await
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
            agent_id: self.spool.agent_id().to_owned(),
            first_batch: self.spool.begin_at(),
        }
    }

    async fn welcomed(&self, first: i64, welcome: Welcome) -> Result<Session, SessionError> {
        let pid = match welcome.host_id == self.identity.host_id && self.server.is_local() {
            true => u32::try_from(welcome.pid).ok(),
            false => None,
        };
        let (session, lost) = Session::begin(&self.spool, first, welcome)?;
        if let Some((first, last)) = lost {
            self.lost_by_collector(first, last).await;
        }
        let last_batch = session.acknowledged();
        self.stored(last_batch);
        counters::add(&self.counters.sessions, 1);
        tracing::info!(server = %self.server, last_batch, "session with the collector");
        if let Some(pid) = pid
            && is_collector(pid)
        {
            // The channel holds more than one session asks for; a full one asked already.
            let _ = self.requests.try_send(Request::Ignore(pid));
        }
        Ok(session)
    }

    /// It had acknowledged them, and they are gone here.
    async fn lost_by_collector(&self, first: i64, last: i64) {
        tracing::error!(
            server = %self.server, first, last,
            "the collector lost batches that it had acknowledged; was its data removed?"
        );
        // A full channel holds as much already; the next session says it again.
        let range = BatchRange {
            first_batch: first,
            last_batch: last,
        };
        if self.gaps.try_send(range).is_ok() {
            let gone = Gone {
                class: 0,
                events: None,
                place: "collector",
                cause: format!("the collector no longer has batches {first} to {last}"),
            };
            self.tell(gone).await;
        }
    }

    fn stored(&self, batch: i64) {
        let events = self.spool.acknowledge(batch);
        counters::add(&self.counters.sent, events);
    }

    async fn deliver(
        &self,
        requests: mpsc::Sender<DeliverRequest>,
        mut answers: Streaming<DeliverResponse>,
        mut session: Session,
    ) -> Result<(), SessionError> {
        let mut next: Option<Next> = None;
        let mut closed = false;
        let mut progress = Instant::now();
        loop {
            if closed && next.is_none() && !session.is_owed() {
                return Ok(());
            }
            tokio::select! {
                answer = answers.message() => {
                    let answer = answer?.ok_or(SessionError::Closed)?;
                    if let Some(deliver_response::Message::Ack(ack)) = answer.message {
                        session.acknowledge(ack.batch)?;
                        progress = Instant::now();
                        self.stored(session.acknowledged());
                    }
                }
                permit = requests.reserve(), if next.is_some() => {
                    let permit = permit.map_err(|_| SessionError::Closed)?;
                    if let Some(batch) = next.take() {
                        if !session.is_owed() {
                            progress = Instant::now();
                        }
                        session.sending(batch.number);
                        permit.send(request(deliver_request::Message::Batch(batch.batch)));
                    }
                }
                batch = self.spool.after(session.sent()), if next.is_none() && !closed => match batch {
                    Some(batch) => {
                        session.check(&batch)?;
                        next = Some(batch);
                    }
                    None => closed = true,
                },
                () = sleep_until(progress + ACK_TIMEOUT), if session.is_owed() => {
                    return Err(SessionError::Silent);
                }
            }
        }
    }
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
