//! What is measured: one kind of system call, again and again, from one thread, nothing else.
//!
//! A storm runs in a process of its own (`bench storm NAME`), so that its CPU time is its alone and
//! its tasks are new to whatever records them. It prints one JSON object.

mod connect;
mod exec;

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use serde_json::json;

use super::measure;

#[derive(Debug, clap::Args)]
pub struct Args {
    storm: Storm,
    /// Operations; for `compile`, source files
    #[arg(long)]
    count: u64,
    /// Where the storm's files are
    #[arg(long, value_name = "DIR")]
    directory: PathBuf,
    /// Stay on this CPU
    #[arg(long)]
    cpu: Option<usize>,
    #[command(flatten)]
    pace: Pace,
}

/// How fast, and how long; only of the open storm.
#[derive(Debug, Default, Clone, Copy, clap::Args)]
pub struct Pace {
    /// At most so many operations a second
    #[arg(long, value_name = "PER_SECOND")]
    pub rate: Option<u64>,
    /// End after so many seconds, with fewer operations
    #[arg(long, value_name = "SECONDS")]
    pub seconds: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Storm {
    Exec,
    Open,
    Connect,
    Null,
    Compile,
    Steady,
}

impl fmt::Display for Storm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Storm::Exec => "exec",
            Storm::Open => "open",
            Storm::Connect => "connect",
            Storm::Null => "null",
            Storm::Compile => "compile",
            Storm::Steady => "steady",
        })
    }
}

impl Storm {
    pub const ALL: [Storm; 6] = [
        Storm::Exec,
        Storm::Open,
        Storm::Connect,
        Storm::Null,
        Storm::Compile,
        Storm::Steady,
    ];

    pub fn what(self) -> &'static str {
        match self {
            Storm::Exec => "spawn and wait for a program that ends at once",
            Storm::Open => "open a file for writing, close it",
            Storm::Connect => "TCP connect to a listener of this process, accept, close both",
            Storm::Null => "getppid: a system call that nobody audits",
            Storm::Compile => {
                "cc -O1 -c of a small C file: driver, compiler, assembler, and their files"
            }
            Storm::Steady => "the exec storm's program, a thousand times a second",
        }
    }
}

/// What a storm tells about itself.
#[derive(Debug, Clone, Copy)]
pub struct Told {
    pub ops: u64,
    pub wall_ns: u64,
    pub cpu_ns: u64,
}

/// The file that an open storm opens.
pub fn opened_file(directory: &Path) -> PathBuf {
    directory.join("opened")
}

/// The program that an exec storm starts.
pub fn program(directory: &Path) -> PathBuf {
    directory.join("tiny")
}

/// Makes what the storms need in `directory`.
pub fn prepare(directory: &Path) -> Result<()> {
    fs::write(opened_file(directory), "")?;
    exec::write_program(&program(directory))
}

/// Runs a storm in a child process.
pub fn start(storm: Storm, count: u64, directory: &Path, cpu: Option<usize>) -> Result<Told> {
    start_at(storm, count, directory, cpu, Pace::default())
}

/// As [`start`], at a pace.
pub fn start_at(
    storm: Storm,
    count: u64,
    directory: &Path,
    cpu: Option<usize>,
    pace: Pace,
) -> Result<Told> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["storm", &storm.to_string(), "--count", &count.to_string()]);
    command.arg("--directory").arg(directory);
    if let Some(cpu) = cpu {
        command.args(["--cpu", &cpu.to_string()]);
    }
    if let Some(rate) = pace.rate {
        command.args(["--rate", &rate.to_string()]);
    }
    if let Some(seconds) = pace.seconds {
        command.args(["--seconds", &seconds.to_string()]);
    }
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(output.status.success(), "{storm} storm: {}", output.status);
    let told: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let number = |name: &str| {
        told[name]
            .as_u64()
            .with_context(|| format!("no {name} in {told}"))
    };
    Ok(Told {
        ops: number("ops")?,
        wall_ns: number("wall_ns")?,
        cpu_ns: number("cpu_ns")?,
    })
}

pub fn run(args: &Args) -> Result<ExitCode> {
    if let Some(cpu) = args.cpu {
        measure::pin_to(cpu)?;
    }
    ensure!(
        (args.pace.rate.is_none() && args.pace.seconds.is_none()) || args.storm == Storm::Open,
        "--rate, --seconds: only the open storm has a pace"
    );
    let directory = &args.directory;
    let began_cpu = measure::own_cpu_ns()?;
    let began = Instant::now();
    let mut ops = args.count;
    let mut of_median = None;
    match args.storm {
        Storm::Exec => exec::storm(&program(directory), args.count)?,
        Storm::Steady => steady(&program(directory), args.count)?,
        Storm::Open => ops = open_and_close(&opened_file(directory), args.count, args.pace)?,
        Storm::Connect => connect::storm(args.count)?,
        Storm::Null => null(args.count),
        Storm::Compile => of_median = Some(compile(directory, args.count)?),
    }
    let (wall_ns, cpu_ns) = match of_median {
        Some(times) => times,
        None => (
            u64::try_from(began.elapsed().as_nanos())?,
            measure::own_cpu_ns()? - began_cpu,
        ),
    };
    println!(
        "{}",
        json!({ "ops": ops, "wall_ns": wall_ns, "cpu_ns": cpu_ns })
    );
    Ok(ExitCode::SUCCESS)
}

/// Operations between two looks at the clock: it takes time itself.
const LOOK_EVERY: u64 = 64;

/// With libc, because std's `open` adds a flag and sometimes a retry. Between two operations of a
/// pace it spins: a core that sleeps would need time to come back to its speed. Returns how many it
/// made.
fn open_and_close(path: &Path, count: u64, pace: Pace) -> Result<u64> {
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())?;
    let limit = pace.seconds.map(Duration::try_from_secs_f64).transpose()?;
    let began = Instant::now();
    for done in 0..count {
        if limit.is_some_and(|limit| done.is_multiple_of(LOOK_EVERY) && began.elapsed() > limit) {
            return Ok(done);
        }
        if let Some(rate) = pace.rate {
            let due = Duration::from_nanos(done * 1_000_000_000 / rate.max(1));
            while began.elapsed() < due {
                std::hint::spin_loop();
            }
        }
        #[expect(unsafe_code, reason = "the bare system calls are what is measured")]
        // SAFETY: the path is a NUL-terminated string; the descriptor is ours.
        let fd = unsafe {
            let fd = libc::open(path.as_ptr(), libc::O_RDWR | libc::O_CREAT, 0o600);
            libc::close(fd);
            fd
        };
        ensure!(fd >= 0, "open {path:?}: failed");
    }
    Ok(count)
}

/// A busy host's rate, not the highest one: between two programs it sleeps.
const STEADY_PER_SECOND: u64 = 1_000;

fn steady(program: &Path, count: u64) -> Result<()> {
    let began = Instant::now();
    for done in 0..count {
        let due = Duration::from_nanos(done * 1_000_000_000 / STEADY_PER_SECOND);
        std::thread::sleep(due.saturating_sub(began.elapsed()));
        exec::storm(program, 1)?;
    }
    Ok(())
}

fn null(count: u64) {
    for _ in 0..count {
        #[expect(
            unsafe_code,
            reason = "libc may cache getppid; the call itself is measured"
        )]
        // SAFETY: getppid takes nothing and cannot fail.
        unsafe {
            libc::syscall(libc::SYS_getppid);
        }
    }
}

/// Functions in each generated file: few, as in the many small files of a real project, so that the
/// starting of programs is not lost in the compiler's own work.
const FUNCTIONS: usize = 4;

/// Returns the wall and CPU time of the median file, times the number of files: what else a shared
/// machine does makes some files slow, but not most, and it is more than any recorder adds.
fn compile(directory: &Path, files: u64) -> Result<(u64, u64)> {
    let source = directory.join("source.c");
    let mut text = String::from("#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n");
    for i in 0..FUNCTIONS {
        text += &format!(
            "int f{i}(int n, const char *s) {{ int t = {i}; for (int k = 0; k < n; k++) {{ \
             t += k * (int)strlen(s) ^ {i}; if (t % 7 == 3) printf(\"%d %s\\n\", t, s); }} \
             return t; }}\n"
        );
    }
    fs::write(&source, text)?;
    let (mut walls, mut cpus) = (Vec::new(), Vec::new());
    for number in 0..files {
        let began_cpu = measure::own_cpu_ns()?;
        let began = Instant::now();
        let object = directory.join(format!("object-{number}.o"));
        let mut command = Command::new("cc");
        command.args(["-O1", "-c", "-o"]).arg(object).arg(&source);
        let status = command.status().context("cc (apt-get install gcc)")?;
        ensure!(status.success(), "cc: {status}");
        walls.push(u64::try_from(began.elapsed().as_nanos())?);
        cpus.push(measure::own_cpu_ns()? - began_cpu);
    }
    let of_median = |mut times: Vec<u64>| {
        times.sort_unstable();
        times.get(times.len() / 2).map_or(0, |time| time * files)
    };
    Ok((of_median(walls), of_median(cpus)))
}
