//! `cargo xtask setup`: does this machine have what building and testing needs, and how does it get
//! it? Looks first, so that it costs nothing when all is there; changes only what is missing, and
//! says so.
//!
//! The kernel programs need a compiler with a `core` for BPF, and bpf-linker. On Debian and Ubuntu
//! both come from packages (rustc-web; LLVM 22, which bpf-linker is built against); elsewhere from
//! rustup's nightly with rust-src.

mod apt;
mod linker;
mod nightly;
mod python;

use std::{
    fs,
    path::Path,
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::Result;

use crate::cargo;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Also what only tests and benches need: auditd, bpftrace, rsyslog, strace, kubernetes-validate
    #[arg(long)]
    test: bool,
}

/// A compiler for the kernel programs, its LLVM for bpf-linker, and a C compiler for zstd.
const BUILD_PACKAGES: [&str; 7] = [
    "rustc-web",
    "cargo-web",
    "libstd-rust-web-dev-bpf",
    "llvm-22-dev",
    "gcc",
    "g++",
    "libc6-dev",
];
const TEST_PACKAGES: [&str; 11] = [
    "auditd",
    "bpftrace",
    "rsyslog",
    "rsyslog-relp",
    "rsyslog-gnutls",
    "strace",
    "python3-venv",
    "systemd",
    "runc",
    "busybox-static",
    "iproute2",
];

pub fn run(args: &Args) -> Result<ExitCode> {
    let began = Instant::now();
    building()?;
    if args.test {
        testing()?;
    }
    eprintln!("setup: all there ({:.1} s)", began.elapsed().as_secs_f64());
    Ok(ExitCode::SUCCESS)
}

/// What `cargo build` needs.
pub fn building() -> Result<()> {
    if debian_compiler() && linker::present() {
        return Ok(());
    }
    if nightly::complete() {
        return Ok(());
    }
    if apt::usable() && apt::known(&BUILD_PACKAGES)? {
        apt::install(&BUILD_PACKAGES)?;
        return linker::install();
    }
    nightly::install()
}

/// What tests and benches need on top; each of them skips loudly what is missing, so this only
/// warns.
pub fn testing() -> Result<()> {
    kernel_file_systems();
    if apt::usable() {
        let wanted: Vec<&str> = TEST_PACKAGES
            .into_iter()
            .filter(|p| !present_otherwise(p))
            .collect();
        without_enabling_audit(|| apt::install(&wanted))?;
    } else {
        for package in TEST_PACKAGES
            .into_iter()
            .filter(|package| !present_otherwise(package))
        {
            eprintln!("setup: warning: {package} is missing; what needs it is skipped");
        }
    }
    if let Err(error) = python::install() {
        eprintln!("setup: warning: {error:#}; the Kubernetes manifest is not validated");
    }
    Ok(())
}

/// Whether the program of a package is there, from wherever.
fn present_otherwise(package: &str) -> bool {
    match package {
        "auditd" => cargo::on_path("auditd") && cargo::on_path("auditctl"),
        "systemd" => cargo::on_path("systemd-analyze"),
        "busybox-static" => cargo::on_path("busybox"),
        "rsyslog" => cargo::on_path("rsyslogd"),
        "rsyslog-relp" => rsyslog_has("omrelp.so"),
        "rsyslog-gnutls" => rsyslog_has("lmnsd_gtls.so"),
        "python3-venv" => python::can_make_venv(),
        program => cargo::on_path(program),
    }
}

/// Where distributions keep its modules: Debian for each architecture, others for the word size.
fn rsyslog_has(module: &str) -> bool {
    let architecture = std::env::consts::ARCH;
    [
        format!("/usr/lib/{architecture}-linux-gnu/rsyslog"),
        "/usr/lib64/rsyslog".to_owned(),
        "/usr/lib/rsyslog".to_owned(),
    ]
    .iter()
    .any(|directory| Path::new(directory).join(module).exists())
}

/// Debian's packages start their daemons, and auditd turns auditing on. A test tool must not.
fn without_enabling_audit(install: impl FnOnce() -> Result<()>) -> Result<()> {
    let policy = Path::new("/usr/sbin/policy-rc.d");
    // A machine's own policy stays in force.
    let ours = !policy.exists() && fs::write(policy, "#!/bin/sh\nexit 101\n").is_ok();
    if ours {
        make_executable(policy)?;
    }
    let enabled = audit_enabled();
    let result = install();
    if ours {
        fs::remove_file(policy)?;
    }
    if enabled != Some(true) && audit_enabled() == Some(true) {
        eprintln!("setup: installing auditd enabled auditing; disabling it again");
        Command::new("auditctl").args(["-e", "0"]).output()?;
    }
    result
}

fn make_executable(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    Ok(fs::set_permissions(
        path,
        fs::Permissions::from_mode(0o755),
    )?)
}

/// None where there is no auditctl or no audit.
fn audit_enabled() -> Option<bool> {
    let output = Command::new("auditctl").arg("-s").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix("enabled "))
        .map(|value| value.trim() != "0")
}

fn debian_compiler() -> bool {
    [
        "/usr/bin/rustc",
        "/usr/bin/cargo",
        "/usr/lib/rustlib/bpfel-unknown-none/lib",
    ]
    .iter()
    .all(|path| Path::new(path).exists())
}

/// What a host that booted has, and a container or a small image may not. The peers in the benches find
/// tracepoints in tracefs; capture that outlives the agent is pinned in the bpf file system.
pub fn kernel_file_systems() {
    for (kind, at) in [("tracefs", "/sys/kernel/tracing"), ("bpf", "/sys/fs/bpf")] {
        if is_mounted(kind, at) || !is_root() {
            continue;
        }
        match Command::new("mount").args(["-t", kind, kind, at]).status() {
            Ok(status) if status.success() => eprintln!("setup: mounted {kind} on {at}"),
            _ => eprintln!("setup: warning: cannot mount {kind} on {at}; what needs it is skipped"),
        }
    }
}

fn is_mounted(kind: &str, at: &str) -> bool {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    mounts.lines().any(|line| {
        let mut words = line.split(' ').skip(1);
        words.next() == Some(at) && words.next() == Some(kind)
    })
}

pub fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// Says what is run, runs it, and says how long it took.
fn timed(what: &str, run: impl FnOnce() -> Result<()>) -> Result<()> {
    eprintln!("setup: {what} ...");
    let began = Instant::now();
    run()?;
    eprintln!(
        "setup: {what}: done in {:.0} s",
        began.elapsed().as_secs_f64()
    );
    Ok(())
}
