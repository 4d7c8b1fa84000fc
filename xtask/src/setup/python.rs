//! kubernetes-validate, which checks the manifest against the API's schema without a cluster, in a
//! virtual environment under target/.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};

use super::timed;
use crate::cargo;

const PACKAGE: &str = "kubernetes-validate>=1.31";

fn venv() -> PathBuf {
    cargo::target().join("test-tools")
}

/// Where tests/tests/deploy.rs looks for it.
fn program() -> PathBuf {
    venv().join("bin/kubernetes-validate")
}

pub fn can_make_venv() -> bool {
    let output = Command::new("python3")
        .args(["-c", "import ensurepip, venv"])
        .output();
    output.is_ok_and(|output| output.status.success())
}

pub fn install() -> Result<()> {
    if program().is_file() {
        return Ok(());
    }
    let venv = venv();
    timed(
        &format!("pip install {PACKAGE} into {}", venv.display()),
        || {
            fs::create_dir_all(&venv)?;
            run(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
            run(Command::new(venv.join("bin/python")).args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                PACKAGE,
            ]))
        },
    )
}

fn run(command: &mut Command) -> Result<()> {
    let output = command
        .output()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{}: {}",
        command.get_program().display(),
        text.trim()
    );
    Ok(())
}
