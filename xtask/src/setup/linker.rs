//! bpf-linker against Debian's LLVM 22, kept outside the source tree so that every clone shares it.

use std::{
    env,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use super::timed;

const VERSION: &str = "0.13.0";
/// In the user's cache directory; audit-agent/build.rs looks there too.
const LINKER_DIRECTORY: &str = "hostaudit/bpf-linker-0.13.0-llvm22";
const LLVM: &str = "/usr/lib/llvm-22";

fn directory() -> Result<PathBuf> {
    let cache = match env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty()) {
        Some(cache) => PathBuf::from(cache),
        None => PathBuf::from(env::var_os("HOME").context("HOME is not set")?).join(".cache"),
    };
    Ok(cache.join(LINKER_DIRECTORY))
}

/// It also runs: its LLVM may have been removed.
pub fn present() -> bool {
    let Ok(directory) = directory() else {
        return false;
    };
    Command::new(directory.join("bin/bpf-linker"))
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

pub fn install() -> Result<()> {
    if present() {
        return Ok(());
    }
    let directory = directory()?;
    let what = format!(
        "cargo install bpf-linker {VERSION} (a minute or two) into {}",
        directory.display()
    );
    timed(&what, || {
        let output = crate::cargo::cargo()
            .args([
                "install",
                "bpf-linker",
                "--version",
                VERSION,
                "--locked",
                "--force",
                "--quiet",
            ])
            .args(["--no-default-features", "--features", "llvm-22", "--root"])
            .arg(&directory)
            .env("LLVM_SYS_221_PREFIX", LLVM)
            .env("LLVM_PREFIX", LLVM)
            // Else its build would land in ours and stay there.
            .env_remove("CARGO_TARGET_DIR")
            .output()
            .context("cannot start cargo")?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "cargo install bpf-linker: {}\n{}",
            output.status,
            text.trim()
        );
        Ok(())
    })
}
