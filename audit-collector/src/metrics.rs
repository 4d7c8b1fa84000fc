//! How does a monitoring system learn how the collector is doing? By HTTP: `/metrics` in Prometheus' text
//! form, `/healthz` (it answers) and `/readyz` (no problem keeps it from storing).
//!
//! Whoever reaches the address may read it, so it says how much there is and never what: numbers, and the
//! names of hosts and of certificates.

use std::{convert::Infallible, fmt::Write as _, sync::Arc, time::Duration};

use audit_proto::v1::StatusResponse;
use http_body_util::Full;
use hyper::{Request, Response, body::Bytes, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    time::{sleep, timeout},
};

use crate::{ingest::raised, status::StatusSource, transport::Tls};

/// From accepting a connection to the end of the answer: a client that neither asks nor reads holds one.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections at once; more wait in the listener's backlog.
const CONNECTIONS: usize = 16;
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// What is asked, and answered from.
pub struct Metrics {
    pub status: Arc<StatusSource>,
    pub tls: Option<Arc<Tls>>,
}

impl Metrics {
    /// Until `stop`.
    pub async fn serve(self, listener: TcpListener, mut stop: watch::Receiver<bool>) {
        let metrics = Arc::new(self);
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            // Never closed.
            let Ok(slot) = slots.clone().acquire_owned().await else {
                return;
            };
            let accepted = tokio::select! {
                () = raised(&mut stop) => return,
                accepted = listener.accept() => accepted,
            };
            let Ok((stream, _)) = accepted else {
                sleep(ACCEPT_AGAIN).await;
                continue;
            };
            let metrics = metrics.clone();
            tokio::spawn(async move {
                let _slot = slot;
                let service = service_fn(|request| {
                    let response = metrics.answer(&request);
                    async { Ok::<_, Infallible>(response) }
                });
                let served = http1::Builder::new()
                    .keep_alive(false)
                    .serve_connection(TokioIo::new(stream), service);
                match timeout(REQUEST_TIMEOUT, served).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => {
                        tracing::debug!(%error, "metrics: a request was not finished");
                    }
                    Err(_) => tracing::debug!("metrics: a request took too long"),
                }
            });
        }
    }

    fn answer<T>(&self, request: &Request<T>) -> Response<Full<Bytes>> {
        let (code, text) = match request.uri().path() {
            "/metrics" => (200, self.text()),
            "/healthz" => (200, "ok\n".to_owned()),
            "/readyz" => {
                let problems = self.status.problems.list();
                let stuck = |problem: &String| problem.starts_with("write-ahead log:");
                match problems.into_iter().find(stuck) {
                    None => (200, "ok\n".to_owned()),
                    Some(problem) => (503, problem + "\n"),
                }
            }
            _ => (404, "there are /metrics, /healthz and /readyz\n".to_owned()),
        };
        let mut response = Response::new(Full::from(text));
        *response.status_mut() = hyper::StatusCode::from_u16(code).unwrap_or_default();
        let form = "text/plain; version=0.0.4; charset=utf-8";
        let form = hyper::header::HeaderValue::from_static(form);
        let name = hyper::header::CONTENT_TYPE;
        response.headers_mut().insert(name, form);
        response
    }

    fn text(&self) -> String {
        let mut text = Text::default();
        let status = self.status.read();
        for (name, kind, help, value) in FAMILIES {
            text.family(name, kind, help);
            text.sample(name, &[], value(&status) as f64);
        }
        text.agents(&status.agents);
        if let Some(tls) = &self.tls {
            text.certificates(tls);
        }
        text.0
    }
}

/// Name, kind, help and value of what has no labels.
type Family = (
    &'static str,
    &'static str,
    &'static str,
    fn(&StatusResponse) -> i64,
);

const FAMILIES: [Family; 11] = [
    (
        "stored_events_total",
        "counter",
        "Events that are stored.",
        |status| status.stored_events,
    ),
    (
        "stored_batches_total",
        "counter",
        "Batches that are stored.",
        |status| status.stored_batches,
    ),
    (
        "duplicate_batches_total",
        "counter",
        "Batches that came again, and were not stored again.",
        |status| status.duplicate_batches,
    ),
    (
        "rejected_batches_total",
        "counter",
        "Batches that were refused.",
        |status| status.rejected_batches,
    ),
    (
        "alerts_total",
        "counter",
        "Alerts that are stored.",
        |status| status.alerts,
    ),
    (
        "missing_events",
        "gauge",
        "Events in table files that cannot be served.",
        |status| status.missing_events,
    ),
    (
        "uncompacted_events",
        "gauge",
        "Events that are in the write-ahead log and not yet in the table.",
        |status| status.uncompacted_events,
    ),
    (
        "wal_bytes",
        "gauge",
        "Size of the write-ahead log.",
        |status| status.wal_bytes,
    ),
    (
        "table_bytes",
        "gauge",
        "Size of the table's files.",
        |status| status.table_bytes,
    ),
    (
        "rules_loaded",
        "gauge",
        "Detection rules in force.",
        |status| status.rules_loaded,
    ),
    (
        "problems",
        "gauge",
        "Problems that `hostaudit status` lists.",
        |status| status.problems.len() as i64,
    ),
];

/// Prometheus' text form.
#[derive(Default)]
struct Text(String);

const PREFIX: &str = "hostaudit_collector_";

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Into a String, which cannot fail.
        let _ = writeln!(self.0, "# HELP {PREFIX}{name} {help}");
        let _ = writeln!(self.0, "# TYPE {PREFIX}{name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.0.push_str(PREFIX);
        self.0.push_str(name);
        for (at, (label, text)) in labels.iter().enumerate() {
            let open = if at == 0 { '{' } else { ',' };
            let text = text
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('\n', "\\n");
            let _ = write!(self.0, "{open}{label}=\"{text}\"");
        }
        let close = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{close} {value}");
    }

    fn agents(&mut self, agents: &[audit_proto::v1::AgentStatus]) {
        type Value = fn(&audit_proto::v1::AgentStatus) -> f64;
        let families: [(&str, &str, &str, Value); 4] = [
            (
                "agent_connected",
                "gauge",
                "Whether the agent has a session.",
                |agent| f64::from(u8::from(agent.connected)),
            ),
            (
                "agent_events_total",
                "counter",
                "Events of the agent that are stored.",
                |agent| agent.events as f64,
            ),
            (
                "agent_lost_events_total",
                "counter",
                "Events that the agent has told to be lost.",
                |agent| agent.lost as f64,
            ),
            (
                "agent_last_event_time_seconds",
                "gauge",
                "Time of the agent's latest event, since the Unix epoch.",
                |agent| agent.last_time as f64 / 1e6,
            ),
        ];
        for (name, kind, help, value) in families {
            self.family(name, kind, help);
            for agent in agents {
                let labels = [
                    ("agent_id", agent.agent_id.as_str()),
                    ("host_name", agent.host_name.as_str()),
                ];
                self.sample(name, &labels, value(agent));
            }
        }
    }

    fn certificates(&mut self, tls: &Tls) {
        let name = "certificate_expiry_time_seconds";
        let help = "End of a certificate, the collector's own and those of whoever is connected, since the \
                    Unix epoch.";
        self.family(name, "gauge", help);
        for (peer, not_after_s) in tls.certificates() {
            self.sample(name, &[("peer", &peer)], not_after_s as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_cannot_leave_its_quotes() {
        let mut text = Text::default();
        text.sample("x", &[("a", "1\"} 9\n"), ("b", "\\")], 2.5);
        assert_eq!(
            text.0,
            "hostaudit_collector_x{a=\"1\\\"} 9\\n\",b=\"\\\\\"} 2.5\n"
        );
    }
}
