//! How many of the same batches does gRPC carry, to a server that only answers each? On loopback without
//! TLS, sender and server in one process on both processors.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use audit_proto::{
    MAX_MESSAGE_BYTES,
    v1::{
        Ack, Batch, DeliverRequest, DeliverResponse, deliver_request, deliver_response,
        ingest_client::IngestClient,
        ingest_server::{Ingest, IngestServer},
    },
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::{
    StreamExt as _,
    wrappers::{ReceiverStream, TcpListenerStream},
};
use tonic::{Request, Response, Status, Streaming, transport::Server};

use super::{EVENTS_PER_BATCH, IN_FLIGHT};

const SESSIONS: usize = 4;

struct Echo;

#[tonic::async_trait]
impl Ingest for Echo {
    type DeliverStream = ReceiverStream<Result<DeliverResponse, Status>>;

    async fn deliver(
        &self,
        request: Request<Streaming<DeliverRequest>>,
    ) -> Result<Response<Self::DeliverStream>, Status> {
        let mut requests = request.into_inner();
        let (sender, answers) = mpsc::channel(IN_FLIGHT);
        tokio::spawn(async move {
            while let Some(Ok(_)) = requests.next().await {
                let ack = deliver_response::Message::Ack(Ack { batch: 0 });
                let answer = DeliverResponse { message: Some(ack) };
                if sender.send(Ok(answer)).await.is_err() {
                    break;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }
}

/// Events a second.
pub fn rate(batches: &[Batch], time: Duration) -> Result<f64> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let (echoed, took) = runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let service = IngestServer::new(Echo).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let server = Server::builder()
            .initial_stream_window_size(Some(MAX_MESSAGE_BYTES as u32))
            .add_service(service)
            .serve_with_incoming(TcpListenerStream::new(listener));
        // Ends with the runtime.
        tokio::spawn(server);
        let began = Instant::now();
        let sessions: Vec<_> = (0..SESSIONS)
            .map(|_| tokio::spawn(session(address, batches.to_vec(), began + time)))
            .collect();
        let mut echoed = 0;
        for session in sessions {
            echoed += session.await??;
        }
        anyhow::Ok((echoed, began.elapsed()))
    })?;
    Ok((echoed * EVENTS_PER_BATCH) as f64 / took.as_secs_f64())
}

/// Batches that were answered.
async fn session(address: SocketAddr, batches: Vec<Batch>, until: Instant) -> Result<u64> {
    let client = IngestClient::connect(format!("http://{address}")).await?;
    let (sender, receiver) = mpsc::channel(1);
    let requests = ReceiverStream::new(receiver);
    let mut client = client.max_encoding_message_size(MAX_MESSAGE_BYTES);
    let mut answers = client.deliver(requests).await?.into_inner();
    let (mut sent, mut answered) = (0, 0);
    let mut batches = batches.iter().cycle();
    while Instant::now() < until {
        while sent - answered < IN_FLIGHT as u64 {
            let batch = batches.next().context("a batch")?.clone();
            let message = Some(deliver_request::Message::Batch(batch));
            sender.send(DeliverRequest { message }).await?;
            sent += 1;
        }
        answers.message().await?.context("the server left")?;
        answered += 1;
    }
    Ok(answered)
}
