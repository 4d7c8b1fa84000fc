//! What a monitoring system reads.

use std::net::SocketAddr;

use audit_pki::Role;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    pki::{Pki, connect},
    support::{Agent, deliver},
};

async fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("connects");
    let request = format!("GET {path} HTTP/1.1\r\nHost: here\r\n\r\n");
    let sent = stream.write_all(request.as_bytes()).await;
    sent.expect("sent");
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer).await;
    read.expect("an answer");
    answer
}

/// The value of a metric without labels.
fn value(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let line = line.unwrap_or_else(|| panic!("no {name} in {text}"));
    line.trim().parse().expect("a number")
}

#[tokio::test]
async fn metrics_tell_what_is_stored_and_when_certificates_end() {
    let dir = tempfile::tempdir().expect("tempdir");
    let pki = Pki::new();
    let mut settings = pki.config(dir.path());
    settings.listen.metrics = "127.0.0.1:0".to_owned();
    let collector = crate::support::Collector::start(settings).await;
    let address = collector.running().addresses.metrics.expect("metrics");
    let reader = connect(&collector, &pki.issue(Role::Reader, "alice")).await;

    let mut agent = Agent::new("run1");
    let batches = agent.batches(2, 4);
    deliver(&collector.channel, &agent, &batches).await;
    let text = get(address, "/metrics").await;
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    assert_eq!(
        value(&text, "hostaudit_collector_stored_batches_total "),
        2.0
    );
    assert_eq!(value(&text, "hostaudit_collector_problems "), 0.0);
    for peer in ["this collector", "hostaudit://reader/alice"] {
        let name = format!("certificate_expiry_time_seconds{{peer=\"{peer}\"}} ");
        let end = value(&text, &format!("hostaudit_collector_{name}"));
        assert!(end > 1.7e9, "{name} {end}");
    }
    // Those who connect and say nothing keep nobody out for long.
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(TcpStream::connect(address).await.expect("connects"));
    }
    assert!(get(address, "/healthz").await.contains("200"));
    drop(silent);
    assert!(get(address, "/readyz").await.contains("200"));
    assert!(get(address, "/").await.starts_with("HTTP/1.1 404"));
    drop(reader);
    collector.stop().await;
}
