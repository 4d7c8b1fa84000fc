//! How does a test fill a collector with events that it knows in full? It plays an agent: seals
//! batches and delivers them over the real protocol until they are acknowledged.

use std::path::Path;

use anyhow::{Result, bail};
use audit_ledger::{Key, Origin, Sealer, Summary};
use audit_proto::{
    Message,
    v1::{
        Batch, DeliverRequest, Event, Hello, Host, Kind, Parent, Process, deliver_request,
        deliver_response, ingest_client::IngestClient,
    },
};
use tokio::sync::mpsc;
use tonic::transport::Endpoint;

const HOST: &str = "0123456789abcdef0123456789abcdef";
const BOOT: &str = "5f2ac01b-9d3e-4c55-8a11-000000000000";
const RUN: &str = "0badcafe0001";
/// 2026-05-01T08:00:00Z
pub const BEGAN: i64 = 1_777_622_400_000_000;

/// An agent of one history. Its calls block.
pub struct Synthetic {
    sealer: Sealer,
    runtime: tokio::runtime::Runtime,
}

impl Synthetic {
    pub fn new() -> Result<Self> {
        let origin = Origin {
            host_id: HOST.to_owned(),
            boot_id: BOOT.to_owned(),
            run: RUN.to_owned(),
        };
        Ok(Self {
            sealer: Sealer::begin(Key::new(1, [1; 32]), origin, None),
            runtime: tokio::runtime::Runtime::new()?,
        })
    }

    /// Delivers each group as a batch, all in one session; returns when the last is acknowledged.
    pub fn deliver(&mut self, socket: &Path, groups: &[Vec<Event>]) -> Result<()> {
        let mut requests = vec![deliver_request::Message::Hello(Hello {
            agent_id: self.sealer.agent_id().to_owned(),
            host_id: HOST.to_owned(),
            host_name: "web".to_owned(),
            boot_id: BOOT.to_owned(),
            run: RUN.to_owned(),
            version: "test".to_owned(),
            pid: 0,
            first_batch: 1,
        })];
        let mut last = 0;
        for events in groups {
            let batch = self.seal(events);
            last = audit_ledger::header(&batch)?.fields.batch;
            requests.push(deliver_request::Message::Batch(batch));
        }
        self.runtime.block_on(send(socket, requests, last))
    }

    fn seal(&mut self, events: &[Event]) -> Batch {
        let times = || events.iter().map(|e| e.time);
        let summary = Summary {
            sealed_time: times().max().unwrap_or(BEGAN),
            first_time: times().min().unwrap_or(0),
            last_time: times().max().unwrap_or(0),
            ..Summary::default()
        };
        let encoded = events.iter().map(Message::encode_to_vec);
        self.sealer.seal(&encoded.collect(), summary)
    }
}

async fn send(socket: &Path, requests: Vec<deliver_request::Message>, last: i64) -> Result<()> {
    let channel = Endpoint::from_shared(format!("unix://{}", socket.display()))?
        .connect()
        .await?;
    let (sender, receiver) = mpsc::channel(requests.len());
    for message in requests {
        let request = DeliverRequest {
            message: Some(message),
        };
        sender.send(request).await?;
    }
    // The sender lives until the acknowledgement: its end would end the session.
    let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut answers = IngestClient::new(channel)
        .deliver(stream)
        .await?
        .into_inner();
    while let Some(answer) = answers.message().await? {
        if let Some(deliver_response::Message::Ack(ack)) = answer.message
            && ack.batch == last
        {
            return Ok(());
        }
    }
    drop(sender);
    bail!("the session ended before batch {last} was acknowledged")
}

/// The exec id of a process of this boot.
pub fn exec_id(pid: i64) -> String {
    format!("5f2ac01b9d3e-{pid}-1")
}

/// Event `number` of the stream, by process `pid`, child of `parent`.
pub fn event(number: i64, kind: Kind, pid: i64, parent: i64) -> Event {
    Event {
        id: format!("{RUN}-process-0-{number}"),
        time: BEGAN + number,
        kind: kind.into(),
        class: 1,
        cpu: Some(0),
        sequence: Some(number),
        host: Some(Host {
            id: HOST.to_owned(),
            name: "web".to_owned(),
            boot_id: BOOT.to_owned(),
            run: RUN.to_owned(),
        }),
        process: Some(Process {
            exec_id: exec_id(pid),
            pid: Some(pid),
            name: format!("p{pid}"),
            user: "root".to_owned(),
            ..Default::default()
        }),
        parent: Some(Parent {
            exec_id: exec_id(parent),
            pid: Some(parent),
            name: format!("p{parent}"),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// An exec with arguments.
pub fn exec(number: i64, pid: i64, parent: i64, argv: &[&str]) -> Event {
    let mut event = event(number, Kind::Exec, pid, parent);
    if let Some(process) = &mut event.process {
        process.argv = argv.iter().map(|&a| a.to_owned()).collect();
    }
    event
}
