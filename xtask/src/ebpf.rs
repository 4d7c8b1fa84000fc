//! `cargo xtask ebpf`: the kernel programs, built as `cargo build` builds them, and their sizes; with
//! --stats, what [`crate::verifier`] makes of them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::SystemTime,
};

use anyhow::{Context as _, Result};

use crate::{cargo, setup, steps::Progress, verifier};

/// What audit-agent/build.rs calls its product.
const OBJECT: &str = "audit-ebpf";

/// Build the kernel programs and show their sizes, or how much a kernel's verifier has to check
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  cargo xtask ebpf                  build, and list the programs by size
  cargo xtask ebpf --stats          what this kernel's verifier goes through for each; root
  cargo xtask ebpf --stats 5.10 7   the same of other kernels, in QEMU
  cargo xtask ebpf --stats all      of all that `cargo xtask vm` tests; writes docs/verifier.md

With --stats nothing is built: run `cargo build --workspace --bins` yourself. It fails where a program
takes more than half of what the verifier goes through at most.")]
pub struct Args {
    /// Ask the verifier
    #[arg(long)]
    stats: bool,
    /// Kernels as `cargo xtask vm` takes them, or `all`; none: this one
    #[arg(value_name = "KERNEL", requires = "stats")]
    kernels: Vec<String>,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    if args.stats {
        return verifier::run(&args.kernels);
    }
    let mut progress = Progress::new(2);
    progress.step("toolchain for the kernel programs");
    setup::building()?;
    progress.step("building them (audit-agent/build.rs)");
    cargo::run(&["build", "--package", "audit-agent"])?;
    let object = newest_object().context("audit-agent was built, but left no kernel object")?;
    println!(
        "{} ({} bytes)",
        object.display(),
        fs::metadata(&object)?.len()
    );
    print_sizes(&object)?;
    Ok(ExitCode::SUCCESS)
}

/// The build script's output directory has a hash in its name, and older ones remain.
fn newest_object() -> Option<PathBuf> {
    let builds = fs::read_dir(cargo::target().join("debug/build"))
        .ok()?
        .flatten();
    let ours = builds.filter(|entry| {
        entry
            .file_name()
            .to_string_lossy()
            .starts_with("audit-agent-")
    });
    let mut found: Vec<(SystemTime, PathBuf)> = Vec::new();
    for build in ours {
        collect(&build.path().join("out"), 0, &mut found);
    }
    found.sort();
    found.pop().map(|(_, path)| path)
}

/// OUT_DIR/audit-ebpf, or deeper when the inner cargo's own target directory is in OUT_DIR.
fn collect(directory: &Path, depth: usize, found: &mut Vec<(SystemTime, PathBuf)>) {
    const MAX_DEPTH: usize = 4;
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && depth < MAX_DEPTH {
            collect(&path, depth + 1, found);
        } else if path.file_stem().is_some_and(|stem| stem == OBJECT) && is_elf(&path) {
            let modified = entry
                .metadata()
                .and_then(|m| m.modified())
                .unwrap_or(SystemTime::UNIX_EPOCH);
            found.push((modified, path));
        }
    }
}

fn is_elf(path: &Path) -> bool {
    fs::read(path).is_ok_and(|bytes| bytes.starts_with(b"\x7fELF"))
}

/// One line a program; eight bytes an instruction.
fn print_sizes(object: &Path) -> Result<()> {
    let tool = [
        "llvm-readelf-22",
        "/usr/lib/llvm-22/bin/llvm-readelf",
        "llvm-readelf",
        "readelf",
    ]
    .into_iter()
    .find(|name| Command::new(name).arg("--version").output().is_ok());
    let Some(tool) = tool else {
        println!("for the sizes of the programs: apt-get install binutils");
        return Ok(());
    };
    let output = Command::new(tool)
        .args(["--syms", "--wide"])
        .arg(object)
        .output()?;
    let listing = String::from_utf8_lossy(&output.stdout);
    let mut programs: Vec<(u64, &str)> = listing.lines().filter_map(function).collect();
    programs.sort_unstable_by(|a, b| b.cmp(a));
    for (bytes, name) in &programs {
        println!("{:>7} instructions  {name}", bytes / 8);
    }
    println!("{:>7} functions", programs.len());
    Ok(())
}

/// `Num: Value Size Type Bind Vis Ndx Name`
fn function(line: &str) -> Option<(u64, &str)> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let [_, _, size, "FUNC", _, _, _, name] = fields[..] else {
        return None;
    };
    Some((size.parse().ok()?, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_read_from_a_symbol_table() {
        let line = "    12: 0000000000000000  1032 FUNC    GLOBAL DEFAULT    3 exec";
        assert_eq!(function(line), Some((1032, "exec")));
        assert_eq!(
            function("    13: 0000000000000000     0 SECTION LOCAL  DEFAULT    3 tp_btf"),
            None
        );
    }
}
