//! Builds the kernel object (`audit-ebpf`) for the agent to embed, so that plain `cargo build`
//! works after `cargo xtask setup`.
//!
//! Two toolchains can: Debian's rustc-web with libstd-rust-web-dev-bpf, or rustup's nightly with
//! rust-src. Both link with bpf-linker.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

const TARGET: &str = "bpfel-unknown-none";
/// Where `cargo xtask setup` puts the linker, below the user's cache directory.
const LINKER: &str = "hostaudit/bpf-linker-0.13.0-llvm22/bin";
/// Set to anything, the kernel programs log each record (see CONTRIBUTING.md). Not by profile: what
/// tests run is the object that is installed.
const LOG_VARIABLE: &str = "HOSTAUDIT_EBPF_LOG";

fn main() -> Result<()> {
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").context("set by cargo")?);
    let out = PathBuf::from(env::var_os("OUT_DIR").context("set by cargo")?);
    let source = here.with_file_name("audit-ebpf");
    for watched in [
        "audit-ebpf/src",
        "audit-ebpf/Cargo.toml",
        "audit-common/src",
    ] {
        println!(
            "cargo::rerun-if-changed={}",
            here.with_file_name(watched).display()
        );
    }

    println!("cargo::rerun-if-env-changed={LOG_VARIABLE}");
    let mut build = toolchain()?;
    let path = env::var_os("PATH").unwrap_or_default();
    let linker = cache_dir().map(|cache| cache.join(LINKER));
    let path = env::join_paths(linker.into_iter().chain(env::split_paths(&path)))?;
    // Not the host's, when the agent is built for another machine.
    let machine = env::var("CARGO_CFG_TARGET_ARCH").context("set by cargo")?;
    let target_dir = out.join("audit-ebpf");
    let status = build
        .args(["build", "--release", "--locked", "--target", TARGET])
        .args(env::var_os(LOG_VARIABLE).map(|_| "--features=log"))
        .arg("--target-dir")
        .arg(&target_dir)
        .current_dir(&source)
        .env("PATH", path)
        .env("AYA_BPF_TARGET_ARCH", machine)
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            "-Cdebuginfo=2\x1f-Clink-arg=--btf\x1f-Clinker=bpf-linker",
        )
        .status()
        .context("the kernel programs' compiler does not start; run `cargo xtask setup`")?;
    if !status.success() {
        bail!(
            "the kernel programs did not build; the compiler's words are above. \
             `cargo xtask setup` installs what they need"
        );
    }
    let object = target_dir.join(TARGET).join("release/audit-ebpf");
    println!("cargo::rustc-env=AUDIT_EBPF_OBJECT={}", object.display());
    Ok(())
}

fn toolchain() -> Result<Command> {
    let debian = Path::new("/usr/lib/rustlib").join(TARGET);
    let mut command = if debian.exists() {
        let mut command = Command::new("/usr/bin/cargo");
        command
            .env("RUSTC", "/usr/bin/rustc")
            .env("RUSTC_BOOTSTRAP", "1");
        command
    } else {
        let mut command = Command::new("rustup");
        command.args(["run", "nightly", "cargo", "-Zbuild-std=core"]);
        command.env_remove("RUSTC");
        command
    };
    // What the outer cargo set is for the outer target.
    for name in [
        "RUSTFLAGS",
        "CARGO",
        "RUSTUP_TOOLCHAIN",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
    ] {
        command.env_remove(name);
    }
    Ok(command)
}

fn cache_dir() -> Option<PathBuf> {
    env::var_os("XDG_CACHE_HOME")
        .filter(|dir| !dir.is_empty())
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")))
}
