//! The gRPC service `Ledger`: stored batches as they were sealed, for whoever verifies them.
//!
//! Invariant: of each agent an unbroken run of batches is sent, whatever the clocks say, so that what a
//! part of the record leaves out is never taken for missing.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use audit_proto::{
    Message as _,
    v1::{Batch, ExportEnd, ExportRequest, ExportResponse, ledger_server::Ledger},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::store::Store;

/// Of one response: far below the message limit, as one batch may be nearly as large.
const PAGE_BYTES: usize = 1 << 20;
/// Responses waiting for a slow reader.
const PAGES: usize = 2;
/// Batches that cannot be read, told one by one; the first say what is wrong.
const MAX_UNREADABLE: usize = 100;

#[derive(Clone)]
pub struct LedgerService {
    pub store: Arc<Store>,
    pub readers: Arc<Semaphore>,
}

type Answers = mpsc::Sender<Result<ExportResponse, Status>>;

#[tonic::async_trait]
impl Ledger for LedgerService {
    type ExportStream = ReceiverStream<Result<ExportResponse, Status>>;

    async fn export(
        &self,
        request: Request<ExportRequest>,
    ) -> Result<Response<Self::ExportStream>, Status> {
        let permit = self.readers.clone().try_acquire_owned().map_err(|_| {
            Status::resource_exhausted("as many readers as `query.max_tails` allows are connected")
        })?;
        let (answers, receiver) = mpsc::channel(PAGES);
        let store = self.store.clone();
        let request = request.into_inner();
        tokio::task::spawn_blocking(move || send(&store, &request, &answers, permit));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// Until everything is sent or the reader is gone.
fn send(store: &Store, request: &ExportRequest, answers: &Answers, _held: OwnedSemaphorePermit) {
    // Of what is stored by now: sending it may take longer than an agent is silent.
    let time = now();
    let batches = match store.sealed() {
        Ok(batches) => batches,
        Err(error) => {
            let _ = answers.blocking_send(Err(Status::internal(error.to_string())));
            return;
        }
    };
    let mut part = Part::new(store, request);
    let mut unreadable = Vec::new();
    let (mut page, mut bytes) = (Vec::new(), 0);
    for batch in batches {
        match batch {
            Ok(batch) if part.has(&batch) => {
                bytes += batch.encoded_len();
                page.push(batch);
            }
            Ok(_) => {}
            Err(error) if unreadable.len() < MAX_UNREADABLE => unreadable.push(error.to_string()),
            Err(_) => {}
        }
        if bytes >= PAGE_BYTES {
            let response = ExportResponse {
                batches: std::mem::take(&mut page),
                end: None,
            };
            bytes = 0;
            if answers.blocking_send(Ok(response)).is_err() {
                return;
            }
        }
    }
    let mut forks = Vec::new();
    for fork in store.forks() {
        match fork {
            Ok(fork) if part.is_of(&fork) => forks.push(fork),
            Ok(_) => {}
            Err(error) => unreadable.push(error),
        }
    }
    let end = ExportEnd {
        time: time.min(part.to_time),
        forks,
        unreadable,
    };
    // Who is gone does not need it.
    let _ = answers.blocking_send(Ok(ExportResponse {
        batches: page,
        end: Some(end),
    }));
}

fn now() -> i64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(now.as_micros()).unwrap_or(i64::MAX)
}

/// Which batches were asked for.
struct Part {
    from_time: i64,
    to_time: i64,
    /// `None` for every host.
    agents: Option<HashSet<String>>,
    /// Of each agent that was met: are its batches in, or past?
    state: HashMap<String, Stage>,
}

#[derive(Clone, Copy, PartialEq)]
enum Stage {
    In,
    Past,
}

impl Part {
    fn new(store: &Store, request: &ExportRequest) -> Self {
        let host = &request.host;
        let of_host = store.streams().into_iter();
        let of_host = of_host.filter(|s| s.host_id == *host || s.host_name == *host);
        Self {
            from_time: request.from_time.unwrap_or(i64::MIN),
            to_time: request.to_time.unwrap_or(i64::MAX),
            agents: (!host.is_empty()).then(|| of_host.map(|s| s.past.agent_id).collect()),
            state: HashMap::new(),
        }
    }

    fn is_of(&self, batch: &Batch) -> bool {
        let header = audit_ledger::header(batch);
        let agent_id = header.map(|header| header.fields.agent_id);
        match (&self.agents, agent_id) {
            (Some(agents), Ok(agent_id)) => agents.contains(&agent_id),
            _ => true,
        }
    }

    /// What cannot be read is in, so that it is told.
    fn has(&mut self, batch: &Batch) -> bool {
        let Ok(header) = audit_ledger::header(batch) else {
            return true;
        };
        let fields = header.fields;
        let agents = &self.agents;
        if agents
            .as_ref()
            .is_some_and(|agents| !agents.contains(&fields.agent_id))
        {
            return false;
        }
        let stage = self.state.get(&fields.agent_id).copied();
        let next = match stage {
            Some(Stage::Past) => Stage::Past,
            _ if fields.sealed_time >= self.to_time => Stage::Past,
            None if fields.sealed_time < self.from_time => return false,
            _ => Stage::In,
        };
        self.state.insert(fields.agent_id, next);
        next == Stage::In
    }
}
