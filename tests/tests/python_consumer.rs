//! The Python example against a live collector: it receives exactly what was stored, in order, and
//! goes on behind its cursor after a restart.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use audit_ledger::Sealer;
use audit_proto::{
    Message as _,
    v1::{
        DeliverRequest, Event, Hello, Host, Kind, Process, deliver_request, deliver_response,
        ingest_client::IngestClient,
    },
};
use audit_tests::{Options, Stack};
use tokio::sync::mpsc;
use tonic::transport::Endpoint;

const HOST: &str = "0123456789abcdef0123456789abcdef";
const BOOT: &str = "5f2ac01b-9d3e-4c55-8a11-000000000000";
const RUN: &str = "0badcafe0001";
/// 2026-05-01T08:00:00Z
const BEGAN: i64 = 1_777_622_400_000_000;

/// Awkward on purpose: a newline, an empty string, and a byte that is not UTF-8 in its escaped form.
fn event(number: i64) -> Event {
    Event {
        id: format!("{RUN}-process-0-{number}"),
        time: BEGAN + number,
        kind: Kind::Exec.into(),
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
            pid: Some(1000 + number),
            argv: vec![
                "echo".to_owned(),
                "a\nb".to_owned(),
                String::new(),
                "\\xff".to_owned(),
            ],
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// Sends each range of events as a batch of one session and returns when all are acknowledged.
async fn deliver(
    socket: &Path,
    sealer: &mut Sealer,
    batches: &[std::ops::Range<i64>],
) -> Result<()> {
    let channel = Endpoint::from_shared(format!("unix://{}", socket.display()))?
        .connect()
        .await?;
    let (sender, receiver) = mpsc::channel(batches.len() + 1);
    let send = async |message| {
        sender
            .send(DeliverRequest {
                message: Some(message),
            })
            .await
    };
    send(deliver_request::Message::Hello(Hello {
        host_id: HOST.to_owned(),
        host_name: "web".to_owned(),
        boot_id: BOOT.to_owned(),
        run: RUN.to_owned(),
        version: "test".to_owned(),
        pid: 0,
    }))
    .await?;
    let mut last = 0;
    for range in batches {
        let encoded: Vec<Vec<u8>> = range.clone().map(|n| event(n).encode_to_vec()).collect();
        let batch = sealer.seal(&encoded, BEGAN + range.start, BEGAN + range.end - 1)?;
        last = batch
            .header
            .as_ref()
            .context("a sealed batch has a header")?
            .batch;
        send(deliver_request::Message::Batch(batch)).await?;
    }
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
    bail!("the session ended before batch {last} was acknowledged")
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A virtual environment with gRPC, kept between runs; None where pip cannot get it.
fn python() -> Result<Option<PathBuf>> {
    let venv = match std::env::var_os("CARGO_TARGET_DIR") {
        Some(target) => PathBuf::from(target),
        None => repository().join("target"),
    }
    .join("python-consumer");
    let python = venv.join("bin/python");
    let complete = venv.join("complete");
    if complete.exists() {
        return Ok(Some(python));
    }
    let made = Command::new("python3")
        .args(["-m", "venv"])
        .arg(&venv)
        .status();
    if !made.is_ok_and(|status| status.success()) {
        return Ok(None);
    }
    let requirements = repository().join("examples/python/requirements.txt");
    let installed = Command::new(&python)
        .args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "-r",
        ])
        .arg(requirements)
        .status()?;
    if !installed.success() {
        return Ok(None);
    }
    fs::write(complete, "")?;
    Ok(Some(python))
}

/// Runs the example to the present and returns the events that it printed.
fn consume(python: &Path, socket: &Path, cursor: &Path) -> Result<Vec<serde_json::Value>> {
    let mut command = Command::new("timeout");
    command
        .arg("60")
        .arg(python)
        .arg(repository().join("examples/python/tail.py"))
        .args(["--server", &format!("unix://{}", socket.display())])
        .args(["--from-start", "--until-now", "--cursor-file"])
        .arg(cursor);
    let output = command.output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "tail.py failed: {errors}");
    let lines = String::from_utf8(output.stdout)?;
    lines
        .lines()
        .map(|line| Ok(serde_json::from_str(line)?))
        .collect()
}

fn ids(events: &[serde_json::Value]) -> Vec<&str> {
    events.iter().filter_map(|e| e["id"].as_str()).collect()
}

fn expected(range: std::ops::Range<i64>) -> Vec<String> {
    range.map(|n| event(n).id).collect()
}

#[test]
fn the_python_consumer_receives_everything_once_across_a_restart() -> Result<()> {
    let Some(python) = python()? else {
        eprintln!("SKIPPED: python3 with grpcio, grpcio-tools and protobuf cannot be had here");
        return Ok(());
    };
    // Without an agent the store holds only what is delivered here.
    let stack = Stack::start(Options {
        without_agent: true,
        ..Options::default()
    })?;
    let socket = stack.socket();
    let directory = tempfile::tempdir()?;
    let cursor = directory.path().join("cursor");
    let runtime = tokio::runtime::Runtime::new()?;
    let mut sealer = Sealer::new(HOST.to_owned(), BOOT.to_owned(), RUN.to_owned());

    runtime.block_on(deliver(&socket, &mut sealer, &[1..3, 3..4]))?;
    let first = consume(&python, &socket, &cursor)?;
    assert_eq!(ids(&first), expected(1..4));
    assert_eq!(
        first[0]["process"]["argv"],
        serde_json::json!(["echo", "a\nb", "", "\\xff"])
    );
    assert_eq!(
        first[0]["process"]["pid"], "1001",
        "JSON has 64-bit numbers as text"
    );
    assert_eq!(first[0]["kind"], "KIND_EXEC");

    runtime.block_on(deliver(&socket, &mut sealer, &[4..9]))?;
    let second = consume(&python, &socket, &cursor)?;
    assert_eq!(ids(&second), expected(4..9), "goes on behind the cursor");
    assert!(
        consume(&python, &socket, &cursor)?.is_empty(),
        "nothing twice"
    );
    Ok(())
}
