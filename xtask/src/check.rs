//! What `cargo xtask test` runs: one row a step.

use std::process::Command;

use crate::{bench::Name, setup, vm};

pub struct Step {
    pub name: &'static str,
    pub what: &'static str,
    /// Run one after the other until one fails.
    pub commands: Vec<Vec<String>>,
    pub limit_s: u32,
    /// Why it cannot run here.
    pub missing: fn() -> Option<String>,
}

/// A first build on two cores takes some ten minutes; a lint of everything about as long.
const BUILD_LIMIT_S: u32 = 45 * 60;
const TEST_LIMIT_S: u32 = 30 * 60;
const BENCH_LIMIT_S: u32 = 10 * 60;

pub fn steps() -> Vec<Step> {
    let mut steps = static_checks();
    steps.extend(tests());
    steps.extend(
        [
            Name::Detect,
            Name::Ingest,
            Name::Loss,
            Name::Outage,
            Name::Overhead,
        ]
        .map(quick_bench),
    );
    steps
}

fn static_checks() -> Vec<Step> {
    vec![
        step(
            "format",
            "rustfmt, kernel programs and fuzz targets included",
            BUILD_LIMIT_S,
            &[
                "cargo fmt --all --check",
                "cargo fmt --manifest-path audit-ebpf/Cargo.toml --check",
                "cargo fmt --manifest-path audit-fuzz/fuzz/Cargo.toml --check",
            ],
        ),
        Step {
            missing: no_cargo_deny,
            ..step(
                "licences",
                "cargo deny: licences, forbidden crates, sources",
                TEST_LIMIT_S,
                &["cargo deny --all-features check bans licenses sources"],
            )
        },
        Step {
            missing: no_advisories,
            ..step(
                "advisories",
                "cargo deny: known vulnerabilities",
                TEST_LIMIT_S,
                &["cargo deny --all-features check advisories"],
            )
        },
        step(
            "build",
            "every package, its tests and benches",
            BUILD_LIMIT_S,
            &["cargo build --workspace --all-targets"],
        ),
        step(
            "lints",
            "clippy without a warning",
            BUILD_LIMIT_S,
            &["cargo clippy --workspace --all-targets -- -D warnings"],
        ),
        step(
            "documentation",
            "rustdoc without a warning",
            BUILD_LIMIT_S,
            &["cargo doc --workspace --no-deps --document-private-items"],
        ),
    ]
}

fn tests() -> Vec<Step> {
    vec![
        step(
            "tests",
            "unit and integration tests",
            TEST_LIMIT_S,
            &["cargo test --workspace --exclude audit-tests"],
        ),
        // One after the other: each of these has the host's kernel to itself.
        Step {
            missing: no_live_kernel,
            ..step(
                "live",
                "ground truth and end to end, on this kernel",
                TEST_LIMIT_S,
                &["cargo test --package audit-tests --no-fail-fast -- --test-threads=1"],
            )
        },
        // What the step above covers when it runs.
        Step {
            missing: covered_by_live,
            ..step(
                "deployment",
                "systemd units and Kubernetes manifest",
                TEST_LIMIT_S,
                &["cargo test --package audit-tests --lib --test deploy"],
            )
        },
        Step {
            missing: vm::missing,
            ..step(
                "kernels",
                "ground truth on an old and a new kernel, in QEMU",
                TEST_LIMIT_S,
                &["cargo xtask vm --quick"],
            )
        },
        step(
            "rules",
            "each rule against its samples",
            TEST_LIMIT_S,
            &[
                "cargo run --quiet --package audit-cli -- rules check rules",
                "cargo run --quiet --package audit-cli -- rules test rules",
            ],
        ),
    ]
}

fn quick_bench(name: Name) -> Step {
    let (step_name, what) = match name {
        Name::Detect => ("bench-detect", "quick form: rules a second"),
        Name::Ingest => ("bench-ingest", "quick form: collector"),
        Name::Loss => ("bench-loss", "quick form: does the record add up"),
        Name::Outage => (
            "bench-outage",
            "quick form: is nothing missing after an outage",
        ),
        Name::Overhead => ("bench-overhead", "quick form: every mode runs"),
    };
    let line = format!("cargo xtask bench {} --quick", name.as_str());
    let missing = match name {
        Name::Detect | Name::Ingest => nothing,
        Name::Loss | Name::Outage | Name::Overhead => no_live_kernel as fn() -> Option<String>,
    };
    Step {
        missing,
        ..step(step_name, what, BENCH_LIMIT_S, &[&line])
    }
}

fn step(name: &'static str, what: &'static str, limit_s: u32, lines: &[&str]) -> Step {
    let commands = lines
        .iter()
        .map(|line| line.split(' ').map(str::to_owned).collect())
        .collect();
    Step {
        name,
        what,
        commands,
        limit_s,
        missing: nothing,
    }
}

fn nothing() -> Option<String> {
    None
}

fn no_cargo_deny() -> Option<String> {
    let found = Command::new("cargo").args(["deny", "--version"]).output();
    let found = found.is_ok_and(|output| output.status.success());
    (!found).then(|| "no cargo-deny: cargo install cargo-deny".to_owned())
}

/// The database is fetched from the network, which not every build machine reaches.
fn no_advisories() -> Option<String> {
    let fetched = || {
        let output = Command::new("cargo").args(["deny", "fetch", "db"]).output();
        output.is_ok_and(|output| output.status.success())
    };
    no_cargo_deny().or_else(|| (!fetched()).then(|| "no way to the advisory database".to_owned()))
}

fn no_live_kernel() -> Option<String> {
    if !setup::is_root() {
        return Some("not root; run it as root to test on this kernel".to_owned());
    }
    let btf = std::path::Path::new("/sys/kernel/btf/vmlinux");
    (!btf.exists()).then(|| format!("this kernel has no BTF ({})", btf.display()))
}

fn covered_by_live() -> Option<String> {
    no_live_kernel()
        .is_none()
        .then(|| "part of `live`".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_have_distinct_names_and_something_to_run() {
        let steps = steps();
        for (at, step) in steps.iter().enumerate() {
            assert!(!step.commands.is_empty(), "{}", step.name);
            assert!(
                steps[..at].iter().all(|other| other.name != step.name),
                "{} twice",
                step.name
            );
        }
        assert!(crate::cargo::root().join("xtask").is_dir());
    }
}
