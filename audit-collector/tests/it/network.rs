//! What else may come in over a socket, and what stands in the way of listening.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::support::{Agent, Collector, config, deliver, number};

#[tokio::test]
async fn garbage_on_the_port_hurts_nobody() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut settings = config(dir.path());
    settings.listen.tcp = "127.0.0.1:0".to_owned();
    let collector = Collector::start(settings).await;
    let address = collector.running().addresses.tcp.expect("tcp");
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &vec![0xff; 100_000],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\xff\xff\xff\xff\xff",
        b"",
    ] {
        let mut stream = tokio::net::TcpStream::connect(address)
            .await
            .expect("connects");
        let _ = stream.write_all(garbage).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        let _ = tokio::time::timeout(std::time::Duration::from_secs(5), read).await;
    }
    let mut agent = Agent::new("run1");
    let batches = agent.batches(1, 4);
    deliver(&collector.channel, &agent, &batches).await;
    assert_eq!(
        number(&collector.channel, "select count(*) from events").await,
        4
    );
    assert_eq!(
        services(address).await,
        ["audit.v1.Collector", "audit.v1.Ingest", "audit.v1.Ledger"]
    );
    let mut health = HealthClient::new(collector.channel.clone());
    let request = HealthCheckRequest {
        service: "audit.v1.Ingest".to_owned(),
    };
    assert_eq!(
        health
            .check(request)
            .await
            .expect("health")
            .into_inner()
            .status,
        1
    );
    collector.stop().await;
}

/// What gRPC reflection says over TCP, as grpcurl would ask.
async fn services(address: std::net::SocketAddr) -> Vec<String> {
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}"));
    let channel = endpoint
        .expect("address")
        .connect()
        .await
        .expect("connects");
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = ServerReflectionClient::new(channel)
        .server_reflection_info(tokio_stream::iter([request]))
        .await
        .expect("reflection")
        .into_inner();
    let answer = answers.message().await.expect("answer").expect("one");
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("{answer:?}");
    };
    let names = list.service.into_iter().map(|service| service.name);
    let mut ours: Vec<String> = names.filter(|name| name.starts_with("audit.")).collect();
    ours.sort();
    ours
}

async fn refusal(settings: audit_collector::Config) -> String {
    let (_stop, stopped) = tokio::sync::watch::channel(false);
    audit_collector::start(settings, stopped)
        .await
        .err()
        .expect("refused")
        .to_string()
}

#[tokio::test]
async fn a_taken_port_or_socket_is_named_and_a_stale_socket_replaced() {
    let dir = tempfile::tempdir().expect("tempdir");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = taken.local_addr().expect("address");
    let mut settings = config(dir.path());
    settings.listen.tcp = address.to_string();
    let message = refusal(settings).await;
    assert!(
        message.contains(&address.to_string()) && message.contains("listen.tcp"),
        "{message}"
    );

    let settings = config(dir.path());
    drop(std::os::unix::net::UnixListener::bind(&settings.listen.unix).expect("bind"));
    assert!(settings.listen.unix.exists(), "a stale socket");
    let collector = Collector::start(settings.clone()).await;
    let message = refusal(settings.clone()).await;
    assert!(message.contains("another collector answers"), "{message}");
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(&settings.listen.unix)
        .expect("socket")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o660);
    collector.stop().await;

    std::fs::write(&settings.listen.unix, "precious").expect("write");
    let message = refusal(settings.clone()).await;
    assert!(message.contains("not a socket"), "{message}");
    assert_eq!(
        std::fs::read_to_string(&settings.listen.unix).expect("kept"),
        "precious"
    );
}
