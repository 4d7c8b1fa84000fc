//! The Python example against a live collector: it receives exactly what was stored, in order, and
//! goes on behind its cursor after a restart.

use std::{
    fs,
    ops::Range,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use audit_proto::v1::Event;
use audit_tests::{
    Options, Stack,
    python::venv,
    site::Site,
    synthetic::{Synthetic, exec},
};

/// Awkward on purpose: a newline, an empty string, and a byte that is not UTF-8 in its escaped form.
fn event(number: i64) -> Event {
    exec(number, 1000 + number, 1, &["echo", "a\nb", "", "\\xff"])
}

fn events(range: Range<i64>) -> Vec<Event> {
    range.map(event).collect()
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn python() -> Result<Option<PathBuf>> {
    venv(
        "python-consumer",
        &repository().join("examples/python/requirements.txt"),
    )
}

fn unix(socket: &Path) -> String {
    format!("unix://{}", socket.display())
}

/// Runs the example to the present and returns the events that it printed.
fn consume(python: &Path, socket: &Path, cursor: &Path) -> Result<Vec<serde_json::Value>> {
    consume_with(python, &unix(socket), cursor, &[])
}

fn consume_with(
    python: &Path,
    server: &str,
    cursor: &Path,
    arguments: &[&str],
) -> Result<Vec<serde_json::Value>> {
    let mut command = Command::new("timeout");
    command
        .arg("60")
        .arg(python)
        .arg(repository().join("examples/python/tail.py"))
        .args(["--server", server])
        .args(["--from-start", "--until-now", "--cursor-file"])
        .arg(cursor)
        .args(arguments);
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

fn expected(range: Range<i64>) -> Vec<String> {
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
    let mut agent = Synthetic::new()?;

    agent.deliver(&socket, &[events(1..3), events(3..4)])?;
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

    agent.deliver(&socket, &[events(4..9)])?;
    let second = consume(&python, &socket, &cursor)?;
    assert_eq!(ids(&second), expected(4..9), "goes on behind the cursor");
    assert!(
        consume(&python, &socket, &cursor)?.is_empty(),
        "nothing twice"
    );

    let allow = r#"{"kinds": ["KIND_EXEC"], "conditions": [{"column": "process_pid", "at_least": "1003"}]}"#;
    let deny = r#"{"conditions": [{"column": "process_pid", "equals": ["1004", "1006"]}]}"#;
    let wanted = [
        "--allow",
        allow,
        "--deny",
        deny,
        "--field",
        "process_pid",
        "--field",
        "host_name",
    ];
    let other = directory.path().join("other");
    let third = consume_with(&python, &unix(&socket), &other, &wanted)?;
    assert_eq!(ids(&third), [3, 5, 7, 8].map(|n| event(n).id));
    assert_eq!(
        (&third[0]["process"], &third[0]["masked"]),
        (
            &serde_json::json!({"pid": "1003"}),
            &serde_json::json!(true)
        )
    );
    assert_eq!(third[0]["host"], serde_json::json!({"name": "web"}));
    let nothing = [
        "--allow",
        r#"{"conditions": [{"column": "file_path", "present": true}]}"#,
    ];
    let passed = directory.path().join("passed");
    assert!(consume_with(&python, &unix(&socket), &passed, &nothing)?.is_empty());
    agent.deliver(&socket, &[events(9..10)])?;
    // It was told how far it was looked through, so that this is all that is new.
    assert_eq!(ids(&consume(&python, &socket, &passed)?), expected(9..10));
    Ok(())
}

#[test]
fn the_python_consumer_reads_over_mutual_tls() -> Result<()> {
    let Some(python) = python()? else {
        eprintln!("SKIPPED: python3 with grpcio, grpcio-tools and protobuf cannot be had here");
        return Ok(());
    };
    let site = Site::new()?;
    let stack = Stack::start(Options {
        without_agent: true,
        collector: site.options()?,
        ..Options::default()
    })?;
    Synthetic::new()?.deliver(&stack.socket(), &[events(1..4)])?;
    let directory = tempfile::tempdir()?;
    let cursor = directory.path().join("cursor");
    let tls = site.reader("siem")?.display().to_string();
    let read = consume_with(&python, &site.url(), &cursor, &["--tls-dir", &tls])?;
    assert_eq!(ids(&read), expected(1..4));
    let nobody = directory.path().display().to_string();
    let refused = consume_with(&python, &site.url(), &cursor, &["--tls-dir", &nobody]);
    let refused = refused.expect_err("no certificate").to_string();
    ensure!(refused.contains("pki enroll"), "{refused}");
    Ok(())
}

/// Lines that the example says on standard error while it follows.
fn said(child: &mut std::process::Child) -> Result<std::sync::mpsc::Receiver<String>> {
    use std::io::BufRead as _;
    let errors = child.stderr.take().context("a pipe")?;
    let (sender, lines) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in std::io::BufReader::new(errors)
            .lines()
            .map_while(Result::ok)
        {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    Ok(lines)
}

#[test]
fn a_python_consumer_that_is_behind_is_told_and_catches_up() -> Result<()> {
    let Some(python) = python()? else {
        eprintln!("SKIPPED: python3 with grpcio, grpcio-tools and protobuf cannot be had here");
        return Ok(());
    };
    let stack = Stack::start(Options {
        without_agent: true,
        ..Options::default()
    })?;
    let socket = stack.socket();
    let directory = tempfile::tempdir()?;
    let mut agent = Synthetic::new()?;
    // More than one page, of which it allows itself less.
    agent.deliver(&socket, &[events(1..4001)])?;
    let mut child = Command::new("timeout")
        .arg("60")
        .arg(&python)
        .arg(repository().join("examples/python/tail.py"))
        .args(["--server", &format!("unix://{}", socket.display())])
        .args(["--from-start", "--lagged-events", "100", "--cursor-file"])
        .arg(directory.path().join("cursor"))
        .stdout(fs::File::create(directory.path().join("out"))?)
        .stderr(std::process::Stdio::piped())
        .spawn()?;
    let lines = said(&mut child)?;
    let patience = std::time::Duration::from_secs(60);
    let first = lines.recv_timeout(patience)?;
    let second = lines.recv_timeout(patience)?;
    child.kill()?;
    child.wait()?;
    ensure!(first.contains("events behind, since"), "{first}");
    ensure!(second.contains("caught up"), "{second}");
    let out = fs::read_to_string(directory.path().join("out"))?;
    assert_eq!(out.lines().count(), 4000);
    Ok(())
}
