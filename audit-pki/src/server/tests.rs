//! Both ends, over sockets of this host.

use std::{
    io,
    path::Path,
    time::{Duration, SystemTime},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::{
    Authority, ClientFiles, Credentials, Fingerprint, Peer, Role,
    authority::{Grant, REVOKED, Which, tests::authority},
    client::ConnectError,
    request::Request,
};

const DAY: Duration = Duration::from_secs(86_400);

fn issue(authority: &Authority, role: Role, directory: &Path, now: SystemTime) -> String {
    let request = Request::new().expect("request");
    let grant = Grant {
        peer: Peer::new(role, "x").expect("peer"),
        hosts: vec!["localhost".to_owned()],
        lifetime: DAY,
    };
    let chain = authority.issue(&request.csr, &grant, now).expect("issued");
    let kept = request.keep(&chain, None, directory).expect("kept");
    kept.serial
}

fn server(dir: &Path, joining: bool) -> ServerFiles {
    ServerFiles {
        certificate: dir.join("server/cert.pem"),
        key: dir.join("server/key.pem"),
        clients_ca: dir.join("ca/ca.pem"),
        revoked: Some(dir.join("ca").join(REVOKED)),
        joining,
    }
}

/// One connection; what the server says of it, and what the client does.
async fn meet(
    server: &ServerFiles,
    client: &Credentials,
) -> (io::Result<bool>, Result<(), ConnectError>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let port = listener.local_addr().expect("address").port();
    let acceptor = TlsAcceptor::from(server.load().expect("loads").config);
    let serve = async {
        let (stream, _) = listener.accept().await?;
        let mut stream = acceptor.accept(stream).await?;
        stream.write_all(b"x").await?;
        stream.shutdown().await?;
        Ok(stream.get_ref().1.peer_certificates().is_some())
    };
    let dial = async {
        let mut stream = client.connect("localhost", port).await?;
        stream
            .read_exact(&mut [0])
            .await
            .expect("what was sent first");
        Ok(())
    };
    tokio::join!(serve, dial)
}

#[tokio::test]
async fn both_ends_prove_themselves() {
    let (dir, authority) = authority();
    let now = SystemTime::now();
    issue(&authority, Role::Collector, &dir.path().join("server"), now);
    issue(&authority, Role::Agent, &dir.path().join("agent"), now);
    let agent = Credentials::Files(ClientFiles::within(dir.path().join("agent")));
    let (served, dialled) = meet(&server(dir.path(), false), &agent).await;
    assert!(served.expect("accepted"), "the server knows who it is");
    dialled.expect("connected");
}

#[tokio::test]
async fn without_a_certificate_one_gets_in_only_to_join_and_only_by_the_right_fingerprint() {
    let (dir, authority) = authority();
    issue(
        &authority,
        Role::Collector,
        &dir.path().join("server"),
        SystemTime::now(),
    );
    let known = Credentials::Joining(authority.fingerprint());
    let (served, dialled) = meet(&server(dir.path(), true), &known).await;
    assert!(!served.expect("accepted"));
    dialled.expect("connected");
    let (served, dialled) = meet(&server(dir.path(), false), &known).await;
    assert!(served.is_err());
    let error = dialled.expect_err("refused").to_string();
    assert!(error.contains("wants a certificate"), "{error}");
    let other = Credentials::Joining(Fingerprint::of(b"another"));
    let (served, dialled) = meet(&server(dir.path(), true), &other).await;
    let error = dialled.expect_err("refused").to_string();
    assert!(served.is_err() && error.contains("in between"), "{error}");
}

#[tokio::test]
async fn an_agents_certificate_does_not_answer_for_a_collector() {
    let (dir, authority) = authority();
    let now = SystemTime::now();
    issue(&authority, Role::Agent, &dir.path().join("server"), now);
    issue(&authority, Role::Agent, &dir.path().join("agent"), now);
    for client in [
        Credentials::Files(ClientFiles::within(dir.path().join("agent"))),
        Credentials::Joining(authority.fingerprint()),
    ] {
        let (_, dialled) = meet(&server(dir.path(), true), &client).await;
        dialled.expect_err("refused");
    }
}

#[tokio::test]
async fn revoked_expired_and_foreign_certificates_are_refused_by_name() {
    let (dir, authority) = authority();
    let (_other_dir, other) = self::authority();
    let now = SystemTime::now();
    issue(&authority, Role::Collector, &dir.path().join("server"), now);
    let agent = dir.path().join("agent");
    let files = ClientFiles::within(&agent);
    let client = Credentials::Files(files.clone());

    issue(&authority, Role::Agent, &agent, now - DAY * 2);
    assert!(files.validity().expect("reads").is_ending(now));
    let (served, dialled) = meet(&server(dir.path(), false), &client).await;
    assert!(served.is_err());
    let error = dialled.expect_err("refused").to_string();
    assert!(error.contains("expired"), "{error}");

    let serial = issue(&authority, Role::Agent, &agent, now);
    let server = server(dir.path(), false);
    let before = server.stamp();
    authority
        .revoke(&Which::Serial(serial.clone()), now)
        .expect("revoked");
    assert_ne!(server.stamp(), before, "which is seen");
    assert!(server.load().expect("loads").revoked.contains(&serial));
    let (served, dialled) = meet(&server, &client).await;
    assert!(served.is_err());
    let error = dialled.expect_err("refused").to_string();
    assert!(error.contains("revoked"), "{error}");

    issue(&other, Role::Agent, &agent, now);
    std::fs::copy(dir.path().join("ca/ca.pem"), agent.join("ca.pem")).expect("copied");
    let (served, dialled) = meet(&server, &client).await;
    assert!(served.is_err());
    let error = dialled.expect_err("refused").to_string();
    assert!(error.contains("no authority that issued"), "{error}");
}

#[test]
fn files_that_do_not_belong_together_are_named() {
    let (dir, authority) = authority();
    let now = SystemTime::now();
    issue(&authority, Role::Collector, &dir.path().join("server"), now);
    issue(&authority, Role::Agent, &dir.path().join("agent"), now);
    let mut files = server(dir.path(), false);
    files.key = dir.path().join("agent/key.pem");
    let error = files.load().err().expect("another's key").to_string();
    assert!(
        error.contains("agent/key.pem") && error.contains("a pair"),
        "{error}"
    );
    files.key = dir.path().join("agent/cert.pem");
    let error = files.load().err().expect("no key").to_string();
    assert!(error.contains("no private key"), "{error}");
    files.key = dir.path().join("none.pem");
    let error = files.load().err().expect("no file").to_string();
    assert!(error.contains("none.pem"), "{error}");
}

#[tokio::test]
async fn a_client_that_comes_back_is_checked_anew() {
    let (dir, authority) = authority();
    let now = SystemTime::now();
    issue(&authority, Role::Collector, &dir.path().join("server"), now);
    issue(&authority, Role::Agent, &dir.path().join("agent"), now);
    let client = Credentials::Files(ClientFiles::within(dir.path().join("agent")));
    let mut config = (*client.load().expect("loads")).clone();
    config.resumption = rustls::client::Resumption::in_memory_sessions(8);
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let acceptor = TlsAcceptor::from(server(dir.path(), false).load().expect("loads").config);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("address");
    for _ in 0..3 {
        let serve = async {
            let (stream, _) = listener.accept().await.expect("accepted");
            let mut stream = acceptor.accept(stream).await.expect("handshake");
            stream.write_all(b"x").await.expect("sent");
            stream.get_ref().1.handshake_kind()
        };
        let dial = async {
            let stream = tokio::net::TcpStream::connect(address)
                .await
                .expect("connects");
            let name = "localhost".try_into().expect("a name");
            let mut stream = connector.connect(name, stream).await.expect("handshake");
            stream.read_exact(&mut [0]).await.expect("received");
        };
        let (kind, ()) = tokio::join!(serve, dial);
        assert_eq!(kind, Some(rustls::HandshakeKind::Full));
    }
}
