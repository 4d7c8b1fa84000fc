//! The gRPC service `Collector`: requests in, streams out; the work is done elsewhere.

use std::sync::Arc;

use audit_proto::v1::{
    AlertsRequest, AlertsResponse, QueryRequest, QueryResponse, StatusRequest, StatusResponse,
    TailRequest, TailResponse, collector_server::Collector,
};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Request, Response, Status};

use crate::{
    alerts::AlertLog, ingest::raised, query::Engine, status::StatusSource, store::Store, tail,
};

/// Alerts waiting for a slow reader.
const ALERTS: usize = 16;

#[derive(Clone)]
pub struct CollectorService {
    pub engine: Arc<Engine>,
    pub store: Arc<Store>,
    pub alerts: Arc<AlertLog>,
    pub status: Arc<StatusSource>,
    pub readers: Arc<Semaphore>,
    pub stop: watch::Receiver<bool>,
}

type Answers<T> = std::pin::Pin<Box<dyn futures::Stream<Item = Result<T, Status>> + Send>>;

impl CollectorService {
    fn reader(&self) -> Result<tokio::sync::OwnedSemaphorePermit, Status> {
        self.readers.clone().try_acquire_owned().map_err(|_| {
            Status::resource_exhausted("as many readers as `query.max_tails` allows are connected")
        })
    }
}

#[tonic::async_trait]
impl Collector for CollectorService {
    type TailStream = Answers<TailResponse>;
    type QueryStream = ReceiverStream<Result<QueryResponse, Status>>;
    type AlertsStream = Answers<AlertsResponse>;

    async fn tail(
        &self,
        request: Request<TailRequest>,
    ) -> Result<Response<Self::TailStream>, Status> {
        let permit = self.reader()?;
        let (engine, store) = (self.engine.clone(), self.store.clone());
        let responses = tail::start(request.into_inner(), engine, store, self.stop.clone()).await?;
        let stream = ReceiverStream::new(responses).map(move |response| {
            let _held = &permit;
            response
        });
        Ok(Response::new(Box::pin(stream)))
    }

    async fn query(
        &self,
        request: Request<QueryRequest>,
    ) -> Result<Response<Self::QueryStream>, Status> {
        let QueryRequest { sql, limit } = request.into_inner();
        if sql.trim().is_empty() {
            return Err(Status::invalid_argument(
                "empty statement; for example: select kind, count(*) from events group by kind",
            ));
        }
        let responses = self.engine.run(sql, limit)?;
        Ok(Response::new(ReceiverStream::new(responses)))
    }

    async fn alerts(
        &self,
        request: Request<AlertsRequest>,
    ) -> Result<Response<Self::AlertsStream>, Status> {
        let permit = self.reader()?;
        let request = request.into_inner();
        let after = u64::try_from(request.after).map_err(|_| {
            Status::invalid_argument(format!("after = {} is negative", request.after))
        })?;
        let (sender, receiver) = mpsc::channel(ALERTS);
        let (alerts, mut stop) = (self.alerts.clone(), self.stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = send_alerts(alerts, after, request, &sender) => {}
                () = raised(&mut stop) => {}
            }
        });
        let stream = ReceiverStream::new(receiver).map(move |response| {
            let _held = &permit;
            response
        });
        Ok(Response::new(Box::pin(stream)))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Ok(Response::new(self.status.read()))
    }
}

async fn send_alerts(
    alerts: Arc<AlertLog>,
    mut after: u64,
    request: AlertsRequest,
    sender: &mpsc::Sender<Result<AlertsResponse, Status>>,
) {
    let mut last = alerts.last();
    loop {
        last.borrow_and_update();
        let (log, out) = (alerts.clone(), sender.clone());
        let since = request.since_time.unwrap_or(i64::MIN);
        let page = tokio::task::spawn_blocking(move || {
            let mut reached = after;
            for alert in log
                .after(after)
                .map_err(|e| Status::internal(e.to_string()))?
            {
                let alert = alert.map_err(|e| Status::data_loss(e.to_string()))?;
                reached = alert.number as u64;
                if alert.time < since {
                    continue;
                }
                if out
                    .blocking_send(Ok(AlertsResponse { alert: Some(alert) }))
                    .is_err()
                {
                    return Err(Status::cancelled("the reader went away"));
                }
            }
            Ok(reached)
        });
        match page.await {
            Ok(Ok(reached)) => after = reached,
            Ok(Err(status)) => {
                let _ = sender.send(Err(status)).await;
                return;
            }
            Err(_) => return,
        }
        if !request.follow {
            return;
        }
        tokio::select! {
            changed = last.changed() => if changed.is_err() { return },
            () = sender.closed() => return,
        }
    }
}
