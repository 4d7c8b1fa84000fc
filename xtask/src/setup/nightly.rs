//! Systems without Debian's packages: rustup's nightly with rust-src builds `core` for BPF itself,
//! and bpf-linker comes with an LLVM of its own.

use std::process::Command;

use anyhow::{Result, bail};

use super::timed;
use crate::cargo::on_path;

pub fn complete() -> bool {
    has_nightly() && on_path("bpf-linker")
}

fn has_nightly() -> bool {
    Command::new("rustup")
        .args(["component", "list", "--toolchain", "nightly", "--installed"])
        .output()
        .is_ok_and(|output| {
            output.status.success() && String::from_utf8_lossy(&output.stdout).contains("rust-src")
        })
}

pub fn install() -> Result<()> {
    let mut missing = Vec::new();
    if !has_nightly()
        && !try_run("rustup toolchain install nightly --profile minimal --component rust-src")
    {
        missing.push("a nightly compiler with its source: rustup toolchain install nightly --component rust-src");
    }
    if !on_path("bpf-linker") && !try_run("cargo install bpf-linker --version 0.13.0 --locked") {
        missing.push("bpf-linker on the PATH: cargo install bpf-linker --version 0.13.0");
    }
    if missing.is_empty() {
        return Ok(());
    }
    bail!(
        "the kernel programs cannot be built here. Missing:\n  {}\nOr, on Debian 12 and later as root, \
         from packages: apt-get install --no-install-recommends {}",
        missing.join("\n  "),
        super::BUILD_PACKAGES.join(" ")
    )
}

fn try_run(line: &str) -> bool {
    let mut words = line.split(' ');
    let program = words.next().unwrap_or_default();
    timed(line, || {
        let status = Command::new(program).args(words).status()?;
        if !status.success() {
            bail!("{line}: {status}");
        }
        Ok(())
    })
    .map_err(|error| eprintln!("setup: {error:#}"))
    .is_ok()
}
