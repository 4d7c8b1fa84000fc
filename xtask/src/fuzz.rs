//! `cargo xtask fuzz`: runs the fuzz targets of `audit-fuzz` under libFuzzer, one after the other, and
//! keeps what it learns: the smallest inputs that reach everything reached, and what breaks a target.
//!
//! What is kept is in the source tree, where an ordinary test replays it; everything else, the whole
//! corpus too, is below `target/fuzz`.

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    cargo,
    steps::{Outcome, Progress, Summary},
};

const CARGO_FUZZ: &str = "0.13.2";
/// Longer inputs find little that shorter ones do not, and slowly.
const MAX_INPUT_BYTES: u32 = 4096;
/// The format allows 64 MiB of events, and a vector doubles as it grows.
const MAX_ALLOCATION_MIB: u32 = 160;
const MAX_MEMORY_MIB: u32 = 1536;
/// Of one input, on a machine that has other things to do.
const MAX_SECONDS: u32 = 30;
/// Of a corpus in the source tree; `audit-fuzz/tests/replay.rs` allows somewhat more.
const MAX_KEPT_BYTES: u64 = 96 << 10;
const MAX_KEPT_FILES: usize = 96;
/// As the seeds test names what it writes.
const SEED: &str = "seed-";

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only this target; all of them otherwise
    target: Option<String>,
    /// For how long each
    #[arg(long, default_value_t = 600)]
    seconds: u64,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let mut targets = targets()?;
    if let Some(wanted) = &args.target {
        let all = targets.join(", ");
        targets.retain(|target| target == wanted);
        ensure!(
            !targets.is_empty(),
            "{wanted}: no such fuzz target; there are {all}"
        );
    }
    ready()?;
    let scratch = scratch()?;
    let mut progress = Progress::new(targets.len());
    let mut summary = Summary::default();
    for target in &targets {
        let job = Job::new(target, &scratch)?;
        progress.step(format!(
            "{target}, {} s; see {}",
            args.seconds,
            job.log.display()
        ));
        let began = Instant::now();
        let outcome = job.run(args.seconds)?;
        if let Outcome::Failed(reason) = &outcome {
            eprintln!("{target}: {reason}");
        }
        summary.add(target, outcome, began.elapsed());
    }
    let _ = fs::remove_dir_all(&scratch);
    println!("\n{summary}");
    Ok(match summary.failed() {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}

fn package() -> PathBuf {
    cargo::root().join("audit-fuzz")
}

fn targets() -> Result<Vec<String>> {
    let folder = package().join("fuzz/fuzz_targets");
    let mut found = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        found.extend(
            path.file_stem()
                .map(|name| name.to_string_lossy().into_owned()),
        );
    }
    found.sort();
    Ok(found)
}

/// The compiler that instruments, and what drives it.
fn ready() -> Result<()> {
    let is_there =
        |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
    if !is_there(nightly().arg("--version")) {
        bail!("fuzzing needs rustup and its nightly compiler: rustup toolchain install nightly");
    }
    if !is_there(nightly().args(["fuzz", "--version"])) {
        eprintln!("fuzz: installing cargo-fuzz {CARGO_FUZZ}");
        cargo::run(&["install", "cargo-fuzz", "--version", CARGO_FUZZ, "--locked"])?;
    }
    Ok(())
}

fn nightly() -> Command {
    let mut command = Command::new("rustup");
    command
        .args(["run", "nightly", "cargo"])
        .current_dir(cargo::root());
    command
}

/// For the files that targets write: in memory where there is room for files.
fn scratch() -> Result<PathBuf> {
    let shared = Path::new("/dev/shm");
    let above = match shared.is_dir() {
        true => shared.to_owned(),
        false => env::temp_dir(),
    };
    let scratch = above.join(format!("hostaudit-fuzz-{}", std::process::id()));
    fs::create_dir_all(&scratch).with_context(|| scratch.display().to_string())?;
    Ok(scratch)
}

/// One target and its places.
struct Job<'a> {
    target: &'a str,
    scratch: &'a Path,
    log: PathBuf,
    /// Everything that fuzzing has kept here, for the next time.
    working: PathBuf,
    corpus: PathBuf,
    crashes: PathBuf,
}

impl<'a> Job<'a> {
    fn new(target: &'a str, scratch: &'a Path) -> Result<Self> {
        let output = cargo::target().join("fuzz");
        let job = Self {
            target,
            scratch,
            log: output.join(format!("{target}.log")),
            working: output.join("corpus").join(target),
            corpus: package().join("corpus").join(target),
            crashes: package().join("crashes").join(target),
        };
        for folder in [&job.working, &job.corpus, &job.crashes] {
            fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        Ok(job)
    }

    fn run(&self, seconds: u64) -> Result<Outcome> {
        let known = files(&self.crashes)?;
        let limits = [
            format!("-max_total_time={seconds}"),
            format!("-max_len={MAX_INPUT_BYTES}"),
            format!("-timeout={MAX_SECONDS}"),
            format!("-malloc_limit_mb={MAX_ALLOCATION_MIB}"),
            format!("-rss_limit_mb={MAX_MEMORY_MIB}"),
            format!("-artifact_prefix={}/", self.crashes.display()),
            "-print_final_stats=1".to_owned(),
        ];
        let folders = [&self.working, &self.corpus, &self.crashes];
        let passed = self.libfuzzer(&folders, &limits, &self.log)?;
        let log = fs::read(&self.log)?;
        let log = String::from_utf8_lossy(&log);
        eprintln!("  {}", speed(&log));
        let mut found = files(&self.crashes)?;
        found.retain(|path| !known.contains(path));
        if !found.is_empty() {
            let paths: Vec<String> = found
                .iter()
                .map(|path| path.display().to_string())
                .collect();
            return Ok(Outcome::Failed(format!("broken by {}", paths.join(", "))));
        }
        if !passed {
            return Ok(Outcome::Failed(format!(
                "ended early; see {}",
                self.log.display()
            )));
        }
        self.minimise()?;
        Ok(Outcome::Passed)
    }

    /// Whether it ended well.
    fn libfuzzer(&self, folders: &[&PathBuf], options: &[String], log: &Path) -> Result<bool> {
        let output = File::create(log).with_context(|| log.display().to_string())?;
        let status = nightly()
            .args(["fuzz", "run", "--fuzz-dir"])
            .arg(package().join("fuzz"))
            .arg("--target-dir")
            .arg(cargo::target().join("fuzz/build"))
            .arg(self.target)
            .args(folders)
            .arg("--")
            .args(options)
            .env("TMPDIR", self.scratch)
            .stdout(output.try_clone()?)
            .stderr(output)
            .status()
            .context("cannot start rustup")?;
        Ok(status.success())
    }

    /// Keeps in the source tree, beside the seeds, what reaches the most with the fewest bytes.
    fn minimise(&self) -> Result<()> {
        let fewest = self.scratch.join(self.target);
        fs::create_dir_all(&fewest)?;
        let options = [
            "-set_cover_merge=1".to_owned(),
            format!("-max_len={MAX_INPUT_BYTES}"),
        ];
        let log = self.log.with_extension("merge.log");
        let merged = self.libfuzzer(&[&fewest, &self.working, &self.corpus], &options, &log)?;
        ensure!(
            merged,
            "{}: minimising failed; see {}",
            self.target,
            log.display()
        );
        let mut seeds = Vec::new();
        for path in files(&self.corpus)? {
            match name(&path).starts_with(SEED) {
                true => seeds.push(fs::read(&path)?),
                false => fs::remove_file(&path)?,
            }
        }
        let mut room = MAX_KEPT_BYTES;
        let mut kept = Vec::new();
        for path in files(&fewest)? {
            kept.push(fs::read(&path)?);
        }
        kept.retain(|input| !seeds.contains(input));
        kept.sort_by(|a, b| (a.len(), a).cmp(&(b.len(), b)));
        let all = kept.len();
        // Short ones and long ones: they differ in what they reach.
        let every = all.div_ceil(MAX_KEPT_FILES).max(1);
        kept = kept.into_iter().step_by(every).collect();
        kept.retain(|input| {
            let fits = input.len() as u64 <= room;
            room = room.saturating_sub(input.len() as u64);
            fits
        });
        for (at, input) in kept.iter().enumerate() {
            fs::write(self.corpus.join(format!("{at:04}")), input)?;
        }
        eprintln!(
            "  {} of {all} inputs kept, and {} seeds",
            kept.len(),
            seeds.len()
        );
        Ok(())
    }
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        found.push(entry?.path());
    }
    found.sort();
    Ok(found)
}

fn name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// What libFuzzer's final statistics say.
fn speed(log: &str) -> String {
    let stat = |name: &str| {
        let mut lines = log.lines().rev();
        let value = lines.find_map(|line| line.strip_prefix("stat::")?.strip_prefix(name));
        value.map_or("?", |value| value.trim_start_matches(':').trim())
    };
    format!(
        "{} executions, {} a second, {} MiB at most",
        stat("number_of_executed_units"),
        stat("average_exec_per_sec"),
        stat("peak_rss_mb")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_statistics_of_a_log_are_told() {
        let log = "#2 INITED\nstat::number_of_executed_units: 1234\nstat::average_exec_per_sec:     56\n\
                   stat::peak_rss_mb:              78\n";
        assert_eq!(speed(log), "1234 executions, 56 a second, 78 MiB at most");
        assert_eq!(speed(""), "? executions, ? a second, ? MiB at most");
    }

    #[test]
    fn every_program_of_the_package_is_a_target() {
        assert!(targets().expect("a folder").contains(&"batch".to_owned()));
    }
}
