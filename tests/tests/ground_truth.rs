//! Does the collector's record say exactly what was done? Known actions on the live kernel, then
//! questions to the collector: each is there once, with exact values.

use std::{
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt as _,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Result, ensure};
use audit_tests::{Options, Stack, stack};

fn stack() -> Result<Option<Stack>> {
    if let Some(reason) = stack::missing_for_live_tests() {
        eprintln!("SKIPPED: {reason}");
        return Ok(None);
    }
    Stack::start(Options::default()).map(Some)
}

fn once(stack: &mut Stack, condition: &str) -> Result<()> {
    let found = stack.number(&format!("select count(*) from events where {condition}"))?;
    ensure!(found == 1, "{found} events, not 1, where {condition}");
    Ok(())
}

#[test]
fn each_action_is_recorded_once_with_exact_values() -> Result<()> {
    let Some(mut stack) = stack()? else {
        return Ok(());
    };
    let place = tempfile::tempdir()?;
    let place = place.path().canonicalize()?;
    let deep = place.join("a/b");
    fs::create_dir_all(&deep)?;
    std::os::unix::fs::symlink(&deep, place.join("link"))?;
    let long = "x".repeat(100 << 10);

    let run = |arguments: &[&OsStr]| {
        Command::new("/bin/true")
            .args(arguments)
            .stdin(Stdio::null())
            .status()
    };
    run(&[OsStr::new("empty"), OsStr::new(""), OsStr::new("")])?;
    run(&[OsStr::new("bytes"), OsStr::from_bytes(b"\xff\n\\")])?;
    run(&[OsStr::new("long"), OsStr::new(&long)])?;
    ensure!(Command::new(place.join("absent")).status().is_err());
    fs::write(place.join("link/../b/made"), b"text")?;
    fs::rename(place.join("link/made"), place.join("moved"))?;
    fs::remove_file(place.join("link/../../moved"))?;
    std::thread::sleep(Duration::from_millis(50));
    stack.barrier()?;

    let place = place.display();
    once(
        &mut stack,
        "kind = 'exec' and process_argv = ['/bin/true', 'empty', '', '']",
    )?;
    once(
        &mut stack,
        "kind = 'exec' and process_argv[2] = 'bytes' and process_argv[3] = '\\xff\n\\\\'",
    )?;
    once(
        &mut stack,
        &format!(
            "kind = 'exec' and process_argv[2] = 'long' and length(process_argv[3]) = {}",
            long.len()
        ),
    )?;
    once(
        &mut stack,
        &format!(
            "kind = 'exec_failed' and file_path = '{place}/absent' and result_error = 'ENOENT'"
        ),
    )?;
    once(
        &mut stack,
        &format!("kind = 'open' and file_access = 'create' and file_path = '{place}/a/b/made'"),
    )?;
    once(
        &mut stack,
        &format!(
            "kind = 'rename' and file_path = '{place}/a/b/made' and target_file_path = '{place}/moved'"
        ),
    )?;
    once(
        &mut stack,
        &format!("kind = 'unlink' and file_path = '{place}/moved'"),
    )
}
