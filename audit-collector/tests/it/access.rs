//! Who may do what: real certificates, real TLS, a real collector.

use std::time::{Duration, SystemTime};

use audit_pki::{Credentials, Role};
use audit_proto::{
    FILE_DESCRIPTOR_SET, Message as _,
    v1::{
        DeliverRequest, RotateRequest, StatusRequest, deliver_request,
        identity_client::IdentityClient, ingest_client::IngestClient,
    },
};
use prost_types::FileDescriptorSet;
use tonic::{Code, Status, client::Grpc, transport::Channel};
use tonic_prost::ProstCodec;

use crate::{
    pki::{DAY, Pki, address, connect, enroll},
    support::{Agent, Collector, Session, client, deliver, number},
};

/// Who may call what, written a second time on purpose: the collector's own table must agree.
const ALLOWED: [(&str, &str); 11] = [
    ("/audit.v1.Ingest/Deliver", "agent socket"),
    ("/audit.v1.Collector/Tail", "reader analyst admin socket"),
    ("/audit.v1.Collector/Alerts", "reader analyst admin socket"),
    ("/audit.v1.Collector/Status", "reader analyst admin socket"),
    ("/audit.v1.Collector/Query", "analyst admin socket"),
    ("/audit.v1.Ledger/Export", "analyst admin socket"),
    (
        "/audit.v1.Identity/Enroll",
        "agent reader analyst admin collector nobody socket",
    ),
    (
        "/audit.v1.Identity/Rotate",
        "agent reader analyst admin collector",
    ),
    (
        "/grpc.health.v1.Health/Check",
        "reader analyst admin socket",
    ),
    (
        "/grpc.health.v1.Health/Watch",
        "reader analyst admin socket",
    ),
    (
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "reader analyst admin socket",
    ),
];

fn calls() -> Vec<String> {
    let sets = [
        FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
    ];
    let mut calls = Vec::new();
    for set in sets {
        for file in FileDescriptorSet::decode(set).expect("descriptors").file {
            for service in &file.service {
                for method in &service.method {
                    let (service, method) = (service.name(), method.name());
                    calls.push(format!("/{}.{service}/{method}", file.package()));
                }
            }
        }
    }
    calls
}

/// Sends an empty message; an error is the collector's answer before anything was streamed.
async fn call(channel: &Channel, path: &str) -> Result<(), Status> {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.expect("ready");
    let path = path.parse().expect("a path");
    let request = tonic::Request::new(());
    let codec = ProstCodec::<(), ()>::default();
    let answer = grpc.server_streaming(request, path, codec).await;
    answer.map(|_| ())
}

fn is_refused(outcome: &Result<(), Status>) -> bool {
    let codes = [Code::PermissionDenied, Code::Unauthenticated];
    outcome
        .as_ref()
        .is_err_and(|status| codes.contains(&status.code()))
}

#[tokio::test]
async fn each_role_may_call_what_it_needs_and_nothing_else() {
    let dir = tempfile::tempdir().expect("tempdir");
    let pki = Pki::new();
    let collector = pki.collector(dir.path()).await;
    let mut callers = vec![
        ("socket", collector.channel.clone()),
        ("nobody", connect(&collector, &pki.joining()).await),
    ];
    for role in Role::ALL {
        let credentials = match role {
            Role::Collector => pki.issue(role, "collector-2"),
            _ => pki.issue(role, role.as_str()),
        };
        callers.push((role.as_str(), connect(&collector, &credentials).await));
    }
    let calls = calls();
    assert_eq!(calls.len(), ALLOWED.len(), "{calls:?}");
    for path in &calls {
        let row = ALLOWED.iter().find(|(row, _)| row == path);
        let (_, allowed) = row.unwrap_or_else(|| panic!("who may call {path}?"));
        for (caller, channel) in &callers {
            let outcome = call(channel, path).await;
            let expected = !allowed.split(' ').any(|one| one == *caller);
            assert_eq!(
                is_refused(&outcome),
                expected,
                "{caller} {path}: {outcome:?}"
            );
        }
    }
    for (caller, channel) in &callers {
        let outcome = call(channel, "/audit.v1.Collector/Nothing").await;
        let code = outcome.expect_err("no such call").code();
        assert_eq!(code, Code::Unimplemented, "{caller}");
    }
    collector.stop().await;
}

/// What the first answer to this hello is.
async fn hello(channel: &Channel, agent: &Agent) -> Result<(), Status> {
    let message = Some(deliver_request::Message::Hello(agent.hello.clone()));
    let requests = tokio_stream::iter([DeliverRequest { message }]);
    let answers = IngestClient::new(channel.clone()).deliver(requests).await?;
    answers.into_inner().message().await?.expect("an answer");
    Ok(())
}

#[tokio::test]
async fn an_agent_delivers_as_itself_and_as_nobody_else() {
    let dir = tempfile::tempdir().expect("tempdir");
    let pki = Pki::new();
    let collector = pki.collector(dir.path()).await;
    let mut agent = Agent::new("run1");
    let batches = agent.batches(2, 4);
    let own = connect(&collector, &pki.issue(Role::Agent, &agent.hello.host_id)).await;
    deliver(&own, &agent, &batches).await;
    let events = "select count(*) from events";
    assert_eq!(number(&collector.channel, events).await, 8);

    let other = connect(&collector, &pki.issue(Role::Agent, "host-2")).await;
    let status = hello(&other, &agent).await.expect_err("another host's");
    assert_eq!(status.code(), Code::PermissionDenied);
    let message = status.message();
    assert!(
        message.contains("host-1") && message.contains("host-2"),
        "{message}"
    );
    // Nor by a batch of another host in a stream of its own.
    let mut hosted = Agent::new("run1");
    hosted.hello.host_id = "host-2".to_owned();
    let mut session = Session::open(&other, &hosted.hello).await;
    session.send(&batches[0]).await;
    let status = session.ack().await.expect_err("another host's batch");
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert_eq!(number(&collector.channel, events).await, 8);
    collector.stop().await;
}

/// What becomes of a connection with these credentials.
async fn verdict(collector: &Collector, credentials: &Credentials) -> String {
    let port = address(collector).port();
    match credentials.connect("localhost", port).await {
        Ok(_) => "welcome".to_owned(),
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn expired_revoked_and_foreign_certificates_get_nowhere_and_are_told_why() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (pki, other) = (Pki::new(), Pki::new());
    let collector = pki.collector(dir.path()).await;
    let good = pki.issue(Role::Reader, "good");
    assert_eq!(verdict(&collector, &good).await, "welcome");

    let past = SystemTime::now() - DAY * 2;
    let expired = pki.issue_at(Role::Reader, "expired", past, DAY);
    let said = verdict(&collector, &expired).await;
    assert!(said.contains("has expired"), "{said}");

    let revoked = pki.issue(Role::Reader, "revoked");
    pki.revoke("revoked");
    // The list is read within a second.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let said = verdict(&collector, &revoked).await;
    assert!(said.contains("has been revoked"), "{said}");
    assert_eq!(verdict(&collector, &good).await, "welcome");

    let foreign = other.issue(Role::Admin, "foreign");
    let said = verdict(&collector, &foreign).await;
    assert!(
        said.contains("somebody in between"),
        "our end trusts another authority: {said}"
    );
    // And where our end would trust the collector.
    let ca = |pki: &Pki, name: &str| pki.path(name).join("ca.pem");
    std::fs::copy(ca(&pki, "authority"), ca(&other, "foreign")).expect("copied");
    let said = verdict(&collector, &foreign).await;
    assert!(said.contains("no authority that issued"), "{said}");
    collector.stop().await;
}

#[tokio::test]
async fn a_connection_ends_with_its_certificate() {
    let dir = tempfile::tempdir().expect("tempdir");
    let pki = Pki::new();
    let collector = pki.collector(dir.path()).await;
    let soon = Duration::from_secs(4);
    let (revoked, ending) = (Agent::new("r1"), Agent::new("r2"));
    let of = |agent: &Agent, name: &str| {
        let mut agent = Agent::new(&agent.hello.run);
        agent.hello.host_id = name.to_owned();
        agent
    };
    let (revoked, ending) = (of(&revoked, "h1"), of(&ending, "h2"));
    let first = connect(&collector, &pki.issue(Role::Agent, "h1")).await;
    let short = pki.issue_at(Role::Agent, "h2", SystemTime::now(), soon);
    let second = connect(&collector, &short).await;
    let mut open = Session::open(&first, &revoked.hello).await;
    let mut also = Session::open(&second, &ending.hello).await;
    let patience = Duration::from_secs(20);
    let ended = tokio::time::timeout(patience, also.ack()).await;
    ended.expect("ends by itself").expect_err("expired");
    pki.revoke("h1");
    let ended = tokio::time::timeout(patience, open.ack()).await;
    ended.expect("ends by itself").expect_err("revoked");
    // The channel dials again by itself, and gets in no more.
    for channel in [first, second] {
        assert!(client(&channel).status(StatusRequest {}).await.is_err());
    }
    collector.stop().await;
}

#[tokio::test]
async fn another_certificate_is_used_without_a_restart_and_a_broken_one_is_not() {
    let dir = tempfile::tempdir().expect("tempdir");
    let pki = Pki::new();
    let collector = pki.collector(dir.path()).await;
    let reader = pki.issue(Role::Reader, "reader");
    let before = connect(&collector, &reader).await;
    let serial = served(&collector, &reader).await;
    let problems = async || {
        let status = collector.client().status(StatusRequest {}).await;
        status.expect("status").into_inner().problems.join("\n")
    };

    std::fs::write(pki.path("collector/cert.pem"), "broken").expect("written");
    wait(async || problems().await.contains("listen.tls: not reloaded")).await;
    assert_eq!(served(&collector, &reader).await, serial, "stays in force");

    let another = pki.issue_collector(SystemTime::now(), DAY);
    wait(async || served(&collector, &reader).await == another.serial).await;
    wait(async || problems().await.is_empty()).await;
    let still = client(&before).status(StatusRequest {}).await;
    still.expect("who was connected stays connected");

    // One that has used nine tenths of its life is told of, and so is a client's.
    let past = SystemTime::now() - DAY * 9;
    pki.issue_collector(past, DAY * 10);
    wait(async || problems().await.contains("the collector's own certificate")).await;
    let old = pki.issue_at(Role::Reader, "old", past, DAY * 10);
    let connected = connect(&collector, &old).await;
    client(&connected)
        .status(StatusRequest {})
        .await
        .expect("still good");
    wait(async || {
        problems()
            .await
            .contains("hostaudit://reader/old expires in 23 hours")
    })
    .await;
    drop(connected);
    wait(async || !problems().await.contains("reader/old")).await;
    collector.stop().await;
}

/// Serial number of the certificate that the collector presents.
async fn served(collector: &Collector, credentials: &Credentials) -> String {
    let port = address(collector).port();
    let stream = credentials
        .connect("localhost", port)
        .await
        .expect("connects");
    let chain = stream.get_ref().1.peer_certificates().expect("a chain");
    let certificate = audit_pki::Certificate::of_der(&chain[0]);
    certificate.expect("ours").serial
}

async fn wait(mut condition: impl AsyncFnMut() -> bool) {
    for _ in 0..200 {
        if condition().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("not within 20 s");
}

#[tokio::test]
async fn a_host_joins_by_a_token_once_delivers_and_gets_a_new_certificate_by_the_old_one() {
    let dir = tempfile::tempdir().expect("tempdir");
    let pki = Pki::new();
    let collector = pki.collector(dir.path()).await;
    let at = address(&collector);
    let now = SystemTime::now();
    let mut agent = Agent::new("run1");
    let host = agent.hello.host_id.clone();
    let hour = Duration::from_secs(3600);

    let token = pki.token(hour, now);
    let joined = enroll(at, &token, &host, &pki.path(&host)).await;
    let joined = joined.expect("enrolled");
    assert_eq!(joined.peer.to_string(), "hostaudit://agent/host-1");
    let files = audit_pki::ClientFiles::within(pki.path(&host));
    let credentials = Credentials::Files(files);
    let channel = connect(&collector, &credentials).await;
    let batches = agent.batches(1, 3);
    deliver(&channel, &agent, &batches).await;

    let again = enroll(at, &token, "host-9", &pki.path("x")).await;
    refused(again, Code::PermissionDenied, "has been used");
    let old = pki.token(hour, now - hour * 2);
    let again = enroll(at, &old, "host-9", &pki.path("x")).await;
    refused(again, Code::PermissionDenied, "has expired");
    let mut forged = pki.token(hour, now);
    forged.secret = audit_pki::token::Secret::new().expect("random");
    let again = enroll(at, &forged, "host-9", &pki.path("x")).await;
    refused(again, Code::PermissionDenied, "unknown here");
    let taken = enroll(at, &pki.token(hour, now), &host, &pki.path("x")).await;
    refused(taken, Code::AlreadyExists, "valid certificate already");
    assert!(!pki.path("x").exists(), "who is refused keeps nothing");

    let request = audit_pki::request::Request::new().expect("request");
    let signing_request = request.csr.clone();
    let asked = RotateRequest { signing_request };
    let answer = IdentityClient::new(channel)
        .rotate(asked)
        .await
        .expect("rotated");
    let certificates = answer.into_inner().certificates.into_iter();
    let chain: Vec<_> = certificates.map(audit_pki::CertificateDer::from).collect();
    let kept = request.keep(&chain, Some(token.authority), &pki.path(&host));
    let rotated = kept.expect("kept");
    assert_eq!(rotated.peer, joined.peer);
    assert_ne!(rotated.serial, joined.serial);
    let channel = connect(&collector, &credentials).await;
    hello(&channel, &agent).await.expect("welcome");
    collector.stop().await;
}

fn refused(outcome: Result<audit_pki::Certificate, Status>, code: Code, why: &str) {
    let status = outcome.expect_err(why);
    assert_eq!(status.code(), code, "{status:?}");
    assert!(status.message().contains(why), "{status:?}");
}

#[tokio::test]
async fn somebody_in_between_learns_no_token() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (pki, mallory) = (Pki::new(), Pki::new());
    let between = mallory.collector(dir.path()).await;
    let token = pki.token(DAY, SystemTime::now());
    let outcome = enroll(address(&between), &token, "host-1", &pki.path("x")).await;
    let status = outcome.expect_err("another authority");
    assert!(
        status.message().contains("somebody in between"),
        "{status:?}"
    );
    assert!(!pki.path("x").exists());
    between.stop().await;

    // With the authority's certificate, which everybody may have, but without its key.
    let stolen = std::fs::read_to_string(pki.path("authority/ca.pem")).expect("ca");
    let own = std::fs::read_to_string(mallory.path("collector/cert.pem")).expect("chain");
    std::fs::write(mallory.path("collector/cert.pem"), own + &stolen).expect("written");
    let dir = tempfile::tempdir().expect("tempdir");
    let between = mallory.collector(dir.path()).await;
    let outcome = enroll(address(&between), &token, "host-1", &pki.path("x")).await;
    outcome.expect_err("not signed by it");
    between.stop().await;

    let dir = tempfile::tempdir().expect("tempdir");
    let collector = pki.collector(dir.path()).await;
    let outcome = enroll(address(&collector), &token, "host-1", &pki.path("x")).await;
    outcome.expect("the token was never sent to anybody else");
    collector.stop().await;
}

#[tokio::test]
async fn without_an_authority_nobody_joins_and_a_certificate_is_needed_to_connect() {
    let dir = tempfile::tempdir().expect("tempdir");
    let pki = Pki::new();
    let mut config = pki.config(dir.path());
    config.listen.tls.clients_ca = pki.path("authority/ca.pem");
    config.listen.tls.authority = std::path::PathBuf::new();
    let collector = Collector::start(config).await;
    let said = verdict(&collector, &pki.joining()).await;
    assert!(said.contains("wants a certificate"), "{said}");
    let admin = connect(&collector, &pki.issue(Role::Admin, "admin")).await;
    let rotated = call(&admin, "/audit.v1.Identity/Rotate").await;
    assert_eq!(rotated.expect_err("not served").code(), Code::Unimplemented);
    collector.stop().await;
}

#[tokio::test]
async fn whoever_speaks_no_tls_to_a_port_with_tls_gets_no_answer() {
    let dir = tempfile::tempdir().expect("tempdir");
    let pki = Pki::new();
    let collector = pki.collector(dir.path()).await;
    let uri = format!("http://{}", address(&collector));
    let endpoint = tonic::transport::Endpoint::from_shared(uri).expect("address");
    let answered = match endpoint.connect().await {
        Ok(channel) => client(&channel).status(StatusRequest {}).await.is_ok(),
        Err(_) => false,
    };
    assert!(!answered);
    let reader = connect(&collector, &pki.issue(Role::Reader, "reader")).await;
    client(&reader)
        .status(StatusRequest {})
        .await
        .expect("others do");
    collector.stop().await;
}
