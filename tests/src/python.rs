//! Python with the packages that a program of ours in Python needs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
};

use anyhow::Result;

/// The interpreter of a virtual environment in the target directory, kept between runs; None where pip
/// cannot get what is required.
pub fn venv(name: &str, requirements: &Path) -> Result<Option<PathBuf>> {
    // Several tests need it; one makes it.
    static MAKING: Mutex<()> = Mutex::new(());
    let _making = MAKING.lock();
    let target = match std::env::var_os("CARGO_TARGET_DIR") {
        Some(target) => PathBuf::from(target),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"),
    };
    let venv = target.join(name);
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
    let quiet = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "-r",
    ];
    let installed = Command::new(&python)
        .args(quiet)
        .arg(requirements)
        .status()?;
    if !installed.success() {
        return Ok(None);
    }
    fs::write(complete, "")?;
    Ok(Some(python))
}
