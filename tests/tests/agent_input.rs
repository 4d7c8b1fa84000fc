//! What the agent says when something is wrong with its host, its configuration or its collector:
//! each time the thing by name and what to do, and a failure where it cannot go on.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::{
        fs::PermissionsExt as _,
        net::{UnixListener, UnixStream},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use audit_tests::stack::{Daemon, binary};

/// What the agent writes to standard error when it refuses to start.
fn refusal(mut command: Command) -> Result<String> {
    let output = command.output()?;
    let errors = String::from_utf8(output.stderr)?;
    ensure!(
        output.status.code() == Some(1),
        "{command:?}: {}\n{errors}",
        output.status
    );
    let last = errors.lines().last().unwrap_or_default();
    ensure!(last.starts_with("audit-agent: "), "{errors}");
    Ok(last.to_owned())
}

fn dry_run(arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(binary("audit-agent")?);
    command.arg("--dry-run").args(arguments);
    Ok(command)
}

/// `prepare` in a mount namespace of its own, then the agent.
fn in_namespace(prepare: &str) -> Result<Command> {
    let mut command = Command::new("unshare");
    let script = format!("set -e; {prepare}; exec \"$0\" --dry-run");
    command.args(["--mount", "sh", "-c", &script]);
    command.arg(binary("audit-agent")?);
    Ok(command)
}

fn assert_says(text: &str, parts: &[&str]) -> Result<()> {
    for part in parts {
        ensure!(text.contains(part), "{part:?} is not in {text:?}");
    }
    Ok(())
}

#[test]
fn a_configuration_is_refused_by_key_file_and_nearest_name() -> Result<()> {
    let told = refusal(dry_run(&["-o", "rings.proces_bytes=4096"])?)?;
    assert_says(&told, &["`rings.proces_bytes`", "`rings.process_bytes`"])?;
    let told = refusal(dry_run(&["-o", "rings.file_bytes=5000"])?)?;
    assert_says(&told, &["rings.file_bytes: 5000", "nearest: 8192"])?;

    let directory = tempfile::tempdir()?;
    let file = directory.path().join("agent.yaml");
    let name = file.to_str().context("UTF-8")?;
    for (text, parts) in [
        ("batch: {max_events: many}\n", ["batch.max_events", "many"]),
        ("queue: [1\n", ["not readable as YAML", "line 2"]),
        ("capture: {watch_read: []}\n", ["watch_read", "watch_reads"]),
    ] {
        fs::write(&file, text)?;
        let told = refusal(dry_run(&["--config", name])?)?;
        assert_says(&told, &parts)?;
        assert_says(&told, &[name])?;
    }
    fs::remove_file(&file)?;
    let told = refusal(dry_run(&["--config", name])?)?;
    assert_says(&told, &[name, "create it"])?;
    let causes = told.matches("No such file").count();
    ensure!(causes == 1, "told once: {told}");
    Ok(())
}

#[test]
fn without_root_the_missing_capabilities_are_named() -> Result<()> {
    let directory = tempfile::tempdir()?;
    // Where the other user may run it.
    let program = directory.path().join("audit-agent");
    fs::copy(binary("audit-agent")?, &program)?;
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
    let mut command = Command::new(program);
    command.arg("--dry-run").uid(65534).gid(65534);
    let told = refusal(command)?;
    assert_says(&told, &["needs root", "lacks CAP_PERFMON and CAP_BPF"])
}

#[test]
fn a_kernel_without_types_is_named() -> Result<()> {
    let btf = "/sys/kernel/btf/vmlinux";
    let told = refusal(in_namespace(&format!("mount --bind /dev/null {btf}"))?)?;
    assert_says(&told, &[btf, "BTF", "mounted over it"])?;
    let told = refusal(in_namespace("mount -t tmpfs none /sys/kernel/btf")?)?;
    assert_says(&told, &[btf, "CONFIG_DEBUG_INFO_BTF=y"])
}

/// Typed tracepoints are found in the kernel's types, so nothing is mounted for the agent.
#[test]
fn every_hook_attaches_without_tracefs() -> Result<()> {
    let hidden = "for m in /sys/kernel/tracing /sys/kernel/debug; do \
                  test ! -d $m || mount -t tmpfs none $m; done";
    let output = in_namespace(hidden)?.output()?;
    let told = String::from_utf8(output.stdout)?;
    ensure!(output.status.success(), "{}", output.status);
    let hooks = told.split_once("hooks\n").context("no hooks")?.1;
    ensure!(hooks.lines().count() > 20, "{told}");
    ensure!(!hooks.contains("not available"), "{told}");
    Ok(())
}

/// An agent without the kernel, whose records are `records`.
fn agent(directory: &Path, socket: &Path, records: &[u8]) -> Result<Daemon> {
    let file = directory.join("records");
    fs::write(&file, records)?;
    let mut command = Command::new(binary("audit-agent")?);
    command
        .arg("--replay")
        .arg(file)
        .args(["-o", &format!("server=unix://{}", socket.display())])
        .args(["-o", &format!("state_dir={}", directory.display())])
        .env("RUST_LOG", "info");
    Daemon::spawn("agent", command, directory)
}

fn place() -> Result<(tempfile::TempDir, PathBuf)> {
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("collector.sock");
    Ok((directory, socket))
}

const NO_SESSION: &str = "no session with the collector";
/// Long enough for several attempts: they begin 0.1 s apart.
const ATTEMPTS: Duration = Duration::from_secs(3);

#[test]
fn an_absent_collector_is_told_once() -> Result<()> {
    let (directory, socket) = place()?;
    let agent = agent(directory.path(), &socket, b"")?;
    std::thread::sleep(ATTEMPTS);
    let log = agent.log();
    ensure!(log.matches(NO_SESSION).count() == 1, "{log}");
    let name = socket.to_str().context("UTF-8")?;
    assert_says(&log, &[name, "No such file", "is the collector running?"])?;
    agent.stop(Duration::from_secs(20))
}

#[test]
fn a_server_that_talks_rubbish_is_named_and_tried_again() -> Result<()> {
    let (directory, socket) = place()?;
    let listener = UnixListener::bind(&socket)?;
    listener.set_nonblocking(true)?;
    let agent = agent(directory.path(), &socket, b"")?;
    let begun = Instant::now();
    let mut sessions = 0;
    while begun.elapsed() < ATTEMPTS {
        match listener.accept() {
            Ok((stream, _)) => {
                sessions += 1;
                rubbish(stream);
            }
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
    let log = agent.log();
    ensure!(sessions > 2, "{sessions} attempts\n{log}");
    ensure!(log.matches(NO_SESSION).count() == 1, "{log}");
    assert_says(&log, &[socket.to_str().context("UTF-8")?])?;
    agent.stop(Duration::from_secs(20))
}

/// An end of either side is what is meant.
fn rubbish(mut stream: UnixStream) {
    let _ = stream.write_all(b"220 mail.example ESMTP\r\n\xff\xfe\0\0");
    let _ = stream.set_read_timeout(Some(Duration::from_millis(50)));
    let _ = stream.read(&mut [0; 4096]);
}

#[test]
fn a_cut_record_file_is_named_and_ends_the_agent() -> Result<()> {
    let (directory, socket) = place()?;
    let mut agent = agent(directory.path(), &socket, b"\x10\0\0\0short")?;
    let deadline = Instant::now() + Duration::from_secs(20);
    while agent.check().is_ok() {
        ensure!(Instant::now() < deadline, "it goes on\n{}", agent.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    let log = agent.log();
    assert_says(&log, &["audit-agent: ", "records", "record of 16 bytes"])?;
    Ok(())
}
