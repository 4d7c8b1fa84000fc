//! What did strace see? Runs a program under it and reads what it wrote: one file for each thread,
//! every text in hexadecimal, every constant as its number, descriptors with what they stand for.
//!
//! Invariant: a line that is not understood is an error, never left out.

mod line;
mod trace;

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};

pub use line::{Line, Value};
pub use trace::{Call, End, FOLLOWED, Thread, Traced};

/// Why it cannot be used here.
pub fn missing() -> Option<&'static str> {
    let found = Command::new("strace").arg("--version").output();
    match found.is_ok_and(|output| output.status.success()) {
        true => None,
        false => Some("no strace: apt install strace"),
    }
}

/// Of a text, so much is written: more than the longest argument of the workload.
const TEXT_BYTES: &str = "262144";

/// Runs `command` in `directory` under strace, which notes `calls`.
pub fn run(command: &mut Command, calls: &[&str], directory: &Path) -> Result<Traced> {
    let output = tempfile::tempdir()?;
    // A name that this strace does not know yet is no mistake.
    let calls: Vec<String> = calls.iter().map(|call| format!("?{call}")).collect();
    let mut strace = Command::new("strace");
    strace
        .args([
            "--follow-forks",
            "--output-separately",
            "--timestamps=unix,us",
        ])
        .args([
            "--decode-fds=all",
            "--strings-in-hex=all",
            "--const-print-style=raw",
        ])
        .args(["--string-limit", TEXT_BYTES, "--output"])
        .arg(output.path().join("thread"))
        .arg(format!("--trace={}", calls.join(",")))
        .arg("--")
        .arg(command.get_program())
        .args(command.get_args())
        // Cargo's, by which every program would look for its libraries in a dozen places.
        .env_remove("LD_LIBRARY_PATH")
        .current_dir(directory);
    let mut child = strace
        .stdout(std::process::Stdio::null())
        .spawn()
        .context("cannot start strace")?;
    let pid = child.id();
    let status = child.wait()?;
    ensure!(status.success(), "{strace:?}: {status}");
    Traced::read(output.path(), pid, directory)
}
