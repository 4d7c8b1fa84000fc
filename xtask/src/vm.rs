//! `cargo xtask vm`: other kernels, in QEMU. Without a command it runs the capture tests on each
//! and writes docs/kernels.md; with one it runs that.
//!
//! Everything it needs beyond a Debian host's apt, mke2fs and tar is downloaded and kept below
//! target/vm; the host's packages, sources and mounts are left alone.

mod apt;
mod archive;
mod capture;
mod guest;
mod image;
mod kernel;
mod modules;
mod sources;
mod table;
mod tools;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser as _;

use crate::cargo;
use apt::Apt;
use capture::Tested;
use guest::{Host, Order};
use kernel::{Kernel, Kernels};
use sources::Mirror;
use tools::Tools;

/// Run programs on other kernels, in QEMU
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  cargo xtask vm                                the capture tests on all kernels marked by --list
  cargo xtask vm 5.10 7                         the capture tests on these
  cargo xtask vm 6.18-nolsm                     on one that asks no BPF programs as a security module
  cargo xtask vm --list                         which kernels there are
  cargo xtask vm 6.12 -- audit-agent --dry-run  a program of target/debug, on Linux 6.12
  cargo xtask vm 5.10 7 -- sh -c 'uname -r; cat /proc/cmdline'
  cargo xtask vm 6.1 -- target/debug/deps/ground_truth-0123456789abcdef --nocapture

Without a command, everything is built first and docs/kernels.md is written when all marked kernels
were tested. With one, nothing is built: run `cargo build --workspace --bins` yourself.

A guest has a small root file system: a few programs of this host (more are busybox), the
programs in target/debug and what --copy names, at the paths that they have here. tracefs, bpf, cgroup2 (/sys/fs/cgroup),
securityfs and debugfs are mounted, lo is up, BPF LSM is on. What the command leaves in /results is
kept in target/vm/logs/KERNEL.results, its output in KERNEL.output, the kernel's console in
KERNEL.console. Without KVM a guest is about 28 times slower than this host.")]
pub struct Args {
    /// Kernels such as 5.10, 6.12, 7 (the newest 7.x) or a whole `uname -r`; with -nolsm behind it,
    /// without BPF LSM
    #[arg(value_name = "KERNEL")]
    kernels: Vec<String>,
    /// List the newest kernel of each series (*: tested by default) and end
    #[arg(long)]
    list: bool,
    /// One old and one new kernel: what continuous integration has time for
    #[arg(long, conflicts_with_all = ["kernels", "list"])]
    quick: bool,
    /// Another configuration of the kernels: `amd64` is the full one, which has the x32 ABI
    #[arg(long, value_name = "NAME", default_value = kernel::FLAVOUR)]
    flavour: String,
    /// A file or directory of this host that the guest needs too, at the same path
    #[arg(long, value_name = "PATH")]
    copy: Vec<PathBuf>,
    /// NAME=VALUE for the command
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// When a guest is stopped, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    timeout: u64,
    /// The guest's memory
    #[arg(long, value_name = "MIB", default_value_t = 3072)]
    memory: u32,
    /// Use /dev/kvm: fast, where it boots these kernels
    #[arg(long)]
    kvm: bool,
    /// Debian's archive, instead of the one in this system's apt sources
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
    /// What to run in each guest; all words after `--` are its own
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// What the tests start, and what a person wants to try.
const PROGRAMS: [&str; 4] = ["audit-agent", "audit-collector", "hostaudit", "workload"];
/// Tests wait this much longer in a guest without KVM (HOSTAUDIT_TEST_SLOWNESS).
const SLOWNESS: u32 = 4;

pub fn run(args: &Args) -> Result<ExitCode> {
    let (lock, directory) = directory()?;
    let mirror = || mirror(args.mirror.as_deref());
    let kernels = kernels(&directory, &mirror()?, &args.flavour)?;
    if args.list {
        list(&kernels);
        return Ok(ExitCode::SUCCESS);
    }
    let chosen: Vec<Kernel> = asked(args)
        .into_iter()
        .map(|asked| kernels.get(asked))
        .collect::<Result<_>>()?;
    let tools = Tools::get(&directory, || Tools::apt(&directory, &mirror()?))?;
    let busybox = tools.busybox().context("no static busybox")?;
    let test = if args.command.is_empty() {
        Some(capture::build()?)
    } else {
        None
    };
    let (words, mut files) = command(args)?;
    files.extend(test.clone());
    let image = image::make(&directory, &busybox, &files)?;
    // Guests only read what was made so far.
    drop(lock);
    let host = Host {
        directory: &directory,
        tools: &tools,
        image: &image,
        kvm: args.kvm,
        memory_mib: args.memory,
    };
    match test {
        Some(test) => run_tests(&host, &chosen, &test, args),
        None => run_command(&host, &chosen, words, args),
    }
}

/// What a command writes on each of these kernels (none: those tested by default), by its name.
pub fn outputs(kernels: &[String], command: &[&str]) -> Result<Vec<(String, String)>> {
    let words = kernels.iter().map(String::as_str).chain(["--"]);
    let words = words.chain(command.iter().copied());
    let args = Line::try_parse_from(["vm"].into_iter().chain(words))?.args;
    let (lock, directory) = directory()?;
    let known = self::kernels(&directory, &mirror(None)?, &args.flavour)?;
    let asked = asked(&args).into_iter();
    let chosen: Vec<Kernel> = asked.map(|asked| known.get(asked)).collect::<Result<_>>()?;
    drop(lock);
    ensure!(
        run(&args)? == ExitCode::SUCCESS,
        "not on every kernel; what went wrong is above"
    );
    let read = |kernel: &Kernel| {
        let name = kernel.name();
        let text = fs::read(directory.join("logs").join(format!("{name}.output")))?;
        Ok((name, String::from_utf8_lossy(&text).replace('\r', "")))
    };
    chosen.iter().map(read).collect()
}

/// The arguments as a program of their own.
#[derive(Debug, clap::Parser)]
struct Line {
    #[command(flatten)]
    args: Args,
}

/// Why the quick form cannot run here, after an attempt to get all that it needs.
pub fn missing() -> Option<String> {
    let get = || -> Result<()> {
        let (_lock, directory) = directory()?;
        let kernels = kernels(&directory, &mirror(None)?, kernel::FLAVOUR)?;
        for asked in kernel::QUICK {
            kernels.get(asked)?;
        }
        Tools::get(&directory, || Tools::apt(&directory, &mirror(None)?))?;
        Ok(())
    };
    get()
        .err()
        .map(|error| format!("no QEMU or no kernels: {error:#}"))
}

/// Where everything is kept, for one user at a time: two would download into each other.
fn directory() -> Result<(File, PathBuf)> {
    let directory = cargo::target().join("vm");
    fs::create_dir_all(&directory)?;
    let lock = File::create(directory.join("lock"))?;
    if lock.try_lock().is_err() {
        eprintln!("vm: waiting for another `cargo xtask vm` of this tree ...");
        lock.lock()?;
    }
    Ok((lock, directory))
}

fn mirror(given: Option<&str>) -> Result<Mirror> {
    given.map_or_else(Mirror::of_this_system, |url| Ok(Mirror::given(url)))
}

fn asked(args: &Args) -> Vec<&str> {
    if args.quick {
        kernel::QUICK.to_vec()
    } else if args.kernels.is_empty() {
        kernel::DEFAULT.to_vec()
    } else {
        args.kernels.iter().map(String::as_str).collect()
    }
}

fn run_tests(host: &Host<'_>, kernels: &[Kernel], test: &Path, args: &Args) -> Result<ExitCode> {
    let timeout = Duration::from_secs(args.timeout);
    let mut tested: Vec<Tested> = Vec::new();
    for kernel in kernels {
        eprintln!("vm: Linux {} ...", kernel.release.name);
        let of_this = capture::run(host, kernel, test, environment(args)?, timeout)?;
        if let Some(reason) = &of_this.failure {
            eprintln!("vm: Linux {}: {reason}", kernel.release.name);
        }
        tested.push(of_this);
    }
    println!("{}", table::summary(&tested).trim_end());
    if args.kernels.is_empty() && !args.quick && args.flavour == kernel::FLAVOUR {
        let page = cargo::root().join("docs/kernels.md");
        fs::write(&page, table::page(&tested, &today()?))?;
        eprintln!("vm: written: {}", page.display());
    }
    Ok(if tested.iter().all(|kernel| kernel.failure.is_none()) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn today() -> Result<String> {
    let output = Command::new("date").args(["-u", "+%F"]).output()?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// The package lists of all suites that have kernels.
fn kernels(directory: &Path, mirror: &Mirror, flavour: &str) -> Result<Kernels> {
    let apt = Apt::new(
        "kernels",
        &directory.join("apt-kernels"),
        mirror,
        &kernel::SUITES,
    )?;
    if let Err(error) = refresh(&apt, directory, mirror) {
        // Without a network, what was downloaded before still boots.
        if apt.names("linux-image-")?.is_empty() {
            return Err(error);
        }
        eprintln!("vm: warning: {error:#}\nvm: going on with older lists");
    }
    let kept = directory.join("kernels");
    fs::create_dir_all(&kept)?;
    Kernels::new(apt, &kept, flavour)
}

fn refresh(apt: &Apt, directory: &Path, mirror: &Mirror) -> Result<()> {
    let Err(error) = apt.update() else {
        return Ok(());
    };
    // The usual reason: a suite that is newer than this system's keys.
    eprintln!("vm: {error:#}\nvm: trying the keys of the newest debian-archive-keyring");
    let codename = sources::codename().context("this system is not Debian: no keys")?;
    let keys = Apt::new("keys", &directory.join("apt-keys"), mirror, &[&codename])?;
    apt.take_newer_keys(&keys)?;
    apt.update()
}

/// The newest of each series; marked is what is tested when nothing is asked for.
fn list(kernels: &Kernels) {
    let tested: Vec<&str> = kernel::DEFAULT
        .iter()
        .filter_map(|asked| kernels.find(asked.trim_end_matches(kernel::NO_LSM)))
        .map(|release| release.name.as_str())
        .collect();
    for release in kernels.newest() {
        let mark = if tested.contains(&release.name.as_str()) {
            "*"
        } else {
            " "
        };
        let here = if kernels.is_here(release) {
            "downloaded"
        } else {
            ""
        };
        let line = format!("{mark} {:<6} {:<32} {here}", release.series(), release.name);
        println!("{}", line.trim_end());
    }
}

/// The words for the guest, and the files that it needs for them.
fn command(args: &Args) -> Result<(Vec<String>, Vec<PathBuf>)> {
    let mut files: Vec<PathBuf> = PROGRAMS
        .iter()
        .map(|name| cargo::built("debug", name))
        .filter(|path| path.exists())
        .collect();
    let mut words = args.command.clone();
    if let Some(first) = words.first_mut() {
        let built = cargo::built("debug", first);
        let path = if first.contains('/') {
            std::path::absolute(&*first)?
        } else {
            built
        };
        // Any other name is looked up in the guest.
        if path.exists() {
            *first = path.display().to_string();
            files.push(path);
        } else {
            ensure!(
                !first.contains('/') && !PROGRAMS.contains(&first.as_str()),
                "no program {}: build it first",
                path.display()
            );
        }
    }
    for path in &args.copy {
        files.push(std::path::absolute(path)?);
    }
    Ok((words, files))
}

fn environment(args: &Args) -> Result<Vec<(String, String)>> {
    let mut variables = vec![("RUST_BACKTRACE".to_owned(), "0".to_owned())];
    if !args.kvm {
        variables.push(("HOSTAUDIT_TEST_SLOWNESS".to_owned(), SLOWNESS.to_string()));
    }
    for setting in &args.env {
        let (name, value) = setting
            .split_once('=')
            .with_context(|| format!("--env {setting}: not NAME=VALUE"))?;
        variables.push((name.to_owned(), value.to_owned()));
    }
    Ok(variables)
}

/// Every kernel is tried; the exit status is the first that is not success.
fn run_command(
    host: &Host<'_>,
    kernels: &[Kernel],
    words: Vec<String>,
    args: &Args,
) -> Result<ExitCode> {
    let mut order = Order {
        words,
        environment: environment(args)?,
        timeout: Duration::from_secs(args.timeout),
        prefix: String::new(),
    };
    let mut status = 0;
    for kernel in kernels {
        if kernels.len() > 1 {
            order.prefix = format!("{:<4} | ", kernel.name());
        }
        eprintln!("vm: Linux {} ...", kernel.release.name);
        let began = Instant::now();
        let this = match host.run(kernel, &order) {
            Ok(answer) => {
                eprintln!(
                    "vm: Linux {}: exit status {} after {:.1} s",
                    kernel.release.name,
                    answer.status,
                    answer.took.as_secs_f64()
                );
                answer.status
            }
            Err(error) => {
                eprintln!(
                    "vm: Linux {}: failed after {:.1} s: {error:#}",
                    kernel.release.name,
                    began.elapsed().as_secs_f64()
                );
                1
            }
        };
        if status == 0 {
            status = this;
        }
    }
    Ok(ExitCode::from(u8::try_from(status).unwrap_or(1)))
}
