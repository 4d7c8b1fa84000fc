//! `hostaudit pki` by hand: an authority, a collector with TLS, a host that joins, delivers, rotates and
//! is revoked; and what another user of this host may do.

use std::{
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use audit_proto::v1::{
    DeliverRequest, Hello, StatusRequest, collector_client::CollectorClient, deliver_request,
    ingest_client::IngestClient,
};
use audit_tests::{
    Options, Stack,
    stack::{binary, missing_for_live_tests},
};
use tonic::{Code, transport::Endpoint};

fn hostaudit(arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(binary("hostaudit")?);
    command.args(arguments).env_remove("HOSTAUDIT_TLS_DIR");
    Ok(command)
}

fn said(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    String::from_utf8_lossy(out).into_owned() + &String::from_utf8_lossy(err)
}

fn answer(arguments: &[&str]) -> Result<String> {
    let output = hostaudit(arguments)?.output()?;
    ensure!(output.status.success(), "{arguments:?}: {}", said(&output));
    Ok(String::from_utf8(output.stdout)?)
}

fn refusal(arguments: &[&str]) -> Result<String> {
    let output = hostaudit(arguments)?.output()?;
    ensure!(!output.status.success(), "{arguments:?}: {}", said(&output));
    Ok(said(&output))
}

/// A port that was free a moment ago.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// An authority, and a collector that serves TLS with it.
struct Site {
    directory: tempfile::TempDir,
    server: String,
    stack: Stack,
}

impl Site {
    fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let path = |name: &str| directory.path().join(name).display().to_string();
        let (ca, tls) = (path("authority"), path("collector"));
        answer(&["pki", "init", &ca])?;
        let subject = ["--role", "collector", "--name", "c", "--host", "localhost"];
        let place = ["--authority", &ca, "--out", &tls];
        answer(&[&["pki", "issue"], &subject[..], &place].concat())?;
        let port = free_port()?;
        let stack = Stack::start(Options {
            without_agent: true,
            collector: vec![
                format!("listen.tcp=127.0.0.1:{port}"),
                format!("listen.tls.certificate={tls}/cert.pem"),
                format!("listen.tls.key={tls}/key.pem"),
                format!("listen.tls.authority={ca}"),
            ],
            ..Options::default()
        })?;
        Ok(Self {
            directory,
            server: format!("https://localhost:{port}"),
            stack,
        })
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    fn token(&self, more: &[&str]) -> Result<String> {
        let authority = self.path("authority");
        let token = answer(&[&["pki", "token", "--authority", &authority], more].concat())?;
        Ok(token.trim().to_owned())
    }

    fn enroll<'a>(&'a self, token: &'a str, dir: &'a str) -> [&'a str; 8] {
        let server = &self.server;
        [
            "pki", "enroll", "--server", server, "--token", token, "--dir", dir,
        ]
    }

    /// As the person whose credentials are there.
    fn status(&self, dir: &str) -> Result<Output> {
        let mut command = hostaudit(&["--server", &self.server, "status"])?;
        Ok(command.env("HOSTAUDIT_TLS_DIR", dir).output()?)
    }
}

#[test]
fn a_person_joins_asks_rotates_and_is_revoked() -> Result<()> {
    let mut site = Site::new()?;
    let alice = site.path("alice");
    let none = said(&site.status(&alice)?);
    ensure!(none.contains("alice/"), "{none}");

    let token = site.token(&["--role", "reader", "--name", "alice"])?;
    let joined = answer(&site.enroll(&token, &alice))?;
    ensure!(joined.contains("hostaudit://reader/alice"), "{joined}");
    let again = refusal(&site.enroll(&token, &alice))?;
    ensure!(again.contains("is there already"), "{again}");
    let again = refusal(&site.enroll(&token, &site.path("bob")))?;
    ensure!(again.contains("has been used"), "{again}");
    let status = site.status(&alice)?;
    ensure!(status.status.success(), "{}", said(&status));
    let mut query = hostaudit(&["--server", &site.server, "query", "select 1"])?;
    let query = query.env("HOSTAUDIT_TLS_DIR", &alice).output()?;
    let told = said(&query);
    ensure!(
        !query.status.success() && told.contains("role analyst"),
        "{told}"
    );

    let key = std::fs::read(Path::new(&alice).join("key.pem"))?;
    let rotate = ["pki", "rotate", "--server", &site.server, "--dir", &alice];
    answer(&[&rotate[..], &["--if-ending"]].concat())?;
    ensure!(std::fs::read(Path::new(&alice).join("key.pem"))? == key);
    answer(&rotate)?;
    ensure!(std::fs::read(Path::new(&alice).join("key.pem"))? != key);
    ensure!(site.status(&alice)?.status.success());

    let authority = site.path("authority");
    let revoked = answer(&[
        "pki",
        "revoke",
        "--authority",
        &authority,
        "--name",
        "alice",
    ])?;
    ensure!(
        revoked.lines().count() == 2,
        "the old one and the new one: {revoked}"
    );
    let list = answer(&["pki", "list", "--authority", &authority])?;
    ensure!(list.matches("revoked").count() == 2, "{list}");
    let mut told = String::new();
    let refused = site.stack_until(|site| {
        told = said(&site.status(&alice)?);
        Ok(told.contains("has been revoked"))
    });
    refused.with_context(|| told)
}

impl Site {
    fn stack_until(&mut self, mut met: impl FnMut(&Self) -> Result<bool>) -> Result<()> {
        for _ in 0..100 {
            if met(self)? {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        anyhow::bail!("not within 10 s\n{}", self.stack.collector_log())
    }
}

/// What is answered over the socket to a user of this id, who is in root's group or in none of ours.
fn as_user(socket: &Path, uid: libc::uid_t, gid: libc::gid_t) -> Result<[Code; 2]> {
    let uri = format!("unix://{}", socket.display());
    let asking = std::thread::spawn(move || {
        let keep = libc::id_t::MAX;
        #[expect(unsafe_code, reason = "no safe call for one thread's ids")]
        // SAFETY: none of them gets a pointer, an empty list has none; by these the ids of this thread alone change, which ends soon.
        let changed = unsafe {
            libc::syscall(libc::SYS_setgroups, 0, 0) == 0
                && libc::syscall(libc::SYS_setresgid, keep, gid, keep) == 0
                && libc::syscall(libc::SYS_setresuid, keep, uid, keep) == 0
        };
        ensure!(changed, "this thread cannot become another user");
        // Of this thread alone, so that it is this user who connects.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let channel = Endpoint::from_shared(uri)?.connect().await?;
            let hello = Hello {
                host_id: "h".to_owned(),
                boot_id: "b".to_owned(),
                run: "r".to_owned(),
                ..Hello::default()
            };
            let message = Some(deliver_request::Message::Hello(hello));
            let requests = tokio_stream::iter([DeliverRequest { message }]);
            let delivered = IngestClient::new(channel.clone()).deliver(requests).await;
            let status = CollectorClient::new(channel).status(StatusRequest {}).await;
            let code = |status: tonic::Status| status.code();
            let delivered = delivered.map_or_else(code, |_| Code::Ok);
            Ok([delivered, status.map_or_else(code, |_| Code::Ok)])
        })
    });
    asking.join().expect("no panic")
}

#[test]
fn over_the_socket_root_delivers_the_group_asks_and_others_do_not_connect() -> Result<()> {
    const NOBODY: u32 = 65534;
    if missing_for_live_tests() == Some("not root") {
        eprintln!("SKIPPED: only root can become another user");
        return Ok(());
    }
    let stack = Stack::start(Options {
        without_agent: true,
        ..Options::default()
    })?;
    let socket = stack.socket();
    let directory = socket.parent().context("a directory")?;
    std::fs::set_permissions(directory, PermissionsExt::from_mode(0o755))?;
    ensure!(as_user(&socket, 0, 0)? == [Code::Ok, Code::Ok]);
    ensure!(as_user(&socket, NOBODY, 0)? == [Code::PermissionDenied, Code::Ok]);
    let other = as_user(&socket, NOBODY, NOBODY);
    ensure!(other.is_err(), "mode 0660: {other:?}");
    Ok(())
}

#[test]
fn an_agent_joins_and_delivers_over_tls() -> Result<()> {
    if let Some(reason) = missing_for_live_tests() {
        eprintln!("SKIPPED: {reason}");
        return Ok(());
    }
    let mut site = Site::new()?;
    let token = site.token(&[])?;
    let host = site.path("host");
    let joined = answer(&site.enroll(&token, &host))?;
    ensure!(joined.contains("hostaudit://agent/"), "{joined}");
    site.stack.agent_options(vec![
        format!("server={}", site.server),
        format!("tls.ca={host}/ca.pem"),
        format!("tls.certificate={host}/cert.pem"),
        format!("tls.key={host}/key.pem"),
    ]);
    // Waits for a program that is started here to be in the store.
    site.stack.start_agent()?;
    site.stack.stop_agent()?;
    let lost = "select count(*) from events where kind = 'lost'";
    ensure!(site.stack.number(lost)? == 0);
    Ok(())
}
