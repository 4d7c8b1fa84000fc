//! `hostaudit verify` and `export` as a person uses them, and the verifier in Python, which knows nothing of
//! our code: both must say the same of the vectors, of a real record, and of one that was tampered with.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::{Context as _, Result, ensure};
use audit_tests::{
    Options, Stack,
    python::venv,
    stack::binary,
    synthetic::{Synthetic, exec},
};

fn verifier() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("verifier")
}

fn python() -> Result<Option<PathBuf>> {
    let python = venv("python-verifier", &verifier().join("requirements.txt"))?;
    if python.is_none() {
        eprintln!("SKIPPED: pip cannot get what tests/verifier/requirements.txt names");
    }
    Ok(python)
}

fn hostaudit(arguments: &[&str]) -> Result<Output> {
    Ok(Command::new(binary("hostaudit")?)
        .args(arguments)
        .env("NO_COLOR", "1")
        .output()?)
}

fn said(output: &Output) -> String {
    let (out, error) = (&output.stdout, &output.stderr);
    String::from_utf8_lossy(out).into_owned() + &String::from_utf8_lossy(error)
}

/// Both say `verdict`, with the exit status of that.
fn both(python: Option<&PathBuf>, folder: &Path, status: i32, verdict: &str) -> Result<String> {
    let name = folder.display().to_string();
    let ours = hostaudit(&["verify", "--export", &name])?;
    let text = said(&ours);
    ensure!(
        ours.status.code() == Some(status) && text.starts_with(verdict),
        "{:?} {text}",
        ours.status
    );
    if let Some(python) = python {
        let theirs = Command::new(python)
            .arg(verifier().join("verify.py"))
            .args(["export", &name])
            .output()?;
        let text = said(&theirs);
        ensure!(
            theirs.status.code() == Some(status) && text.starts_with(verdict),
            "{:?} {text}",
            theirs.status
        );
    }
    Ok(text)
}

#[test]
fn the_verifier_in_python_reproduces_the_vectors() -> Result<()> {
    let Some(python) = python()? else {
        return Ok(());
    };
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/ledger-vectors.json");
    let output = Command::new(python)
        .arg(verifier().join("verify.py"))
        .arg("vectors")
        .arg(vectors)
        .output()?;
    ensure!(output.status.success(), "{}", said(&output));
    Ok(())
}

#[test]
fn a_record_is_complete_until_somebody_changes_it() -> Result<()> {
    let python = python()?;
    let stack = Stack::start(Options {
        without_agent: true,
        ..Options::default()
    })?;
    let groups: Vec<Vec<_>> = (0..20_i64)
        .map(|batch| {
            let event = |n: i64| exec(batch * 50 + n, 1000 + n, 1, &["echo", "a\nb", ""]);
            (0..50).map(event).collect()
        })
        .collect();
    Synthetic::new()?.deliver(&stack.socket(), &groups)?;
    let server = format!("unix://{}", stack.socket().display());
    let online = hostaudit(&["--server", &server, "verify"])?;
    ensure!(online.status.code() == Some(0), "{}", said(&online));
    ensure!(
        said(&online).starts_with("complete, 1,000 events\n"),
        "{}",
        said(&online)
    );
    let nobody = hostaudit(&["--server", &server, "verify", "--host", "nobody"])?;
    ensure!(nobody.status.code() == Some(3), "{}", said(&nobody));

    let directory = tempfile::tempdir()?;
    let folder = directory.path().join("evidence");
    let name = folder.display().to_string();
    let exported = hostaudit(&["--server", &server, "export", &name])?;
    ensure!(exported.status.success(), "{}", said(&exported));
    let again = hostaudit(&["--server", &server, "export", &name])?;
    ensure!(!again.status.success(), "no export over another");
    both(python.as_ref(), &folder, 0, "complete, ")?;

    let file = folder.join("batches-00000001");
    let whole = fs::read(&file)?;
    // A byte of some batch's events.
    let mut changed = whole.clone();
    let middle = changed.len() / 2;
    changed[middle] ^= 0x10;
    fs::write(&file, &changed)?;
    both(python.as_ref(), &folder, 2, "TAMPERED")?;
    // The third batch is gone.
    let mut at = 0;
    let mut ends = Vec::new();
    while at < whole.len() {
        let length = whole[at..].first_chunk::<4>().context("a length")?;
        at += 4 + u32::from_le_bytes(*length) as usize;
        ends.push(at);
    }
    fs::write(&file, [&whole[..ends[1]], &whole[ends[2]..]].concat())?;
    let text = both(python.as_ref(), &folder, 2, "TAMPERED")?;
    ensure!(text.contains("batches 3 to 3"), "{text}");
    fs::write(&file, &whole)?;
    // Its name and what it says are whatever somebody wrote.
    fs::write(folder.join("batches-\u{1b}[2Jcomplete"), b"?")?;
    both(python.as_ref(), &folder, 0, "complete, ")?;
    // An export always has it.
    fs::remove_file(folder.join("forks"))?;
    both(python.as_ref(), &folder, 2, "TAMPERED")?;
    fs::write(folder.join("forks"), b"")?;
    both(python.as_ref(), &folder, 0, "complete, ")?;
    fs::remove_file(&file)?;
    both(python.as_ref(), &folder, 3, "")?;
    Ok(())
}
