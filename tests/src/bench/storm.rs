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
    time::Instant,
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
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Storm {
    Exec,
    Open,
    Connect,
    Null,
    Compile,
}

impl fmt::Display for Storm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Storm::Exec => "exec",
            Storm::Open => "open",
            Storm::Connect => "connect",
            Storm::Null => "null",
            Storm::Compile => "compile",
        })
    }
}

impl Storm {
    pub const ALL: [Storm; 5] = [
        Storm::Exec,
        Storm::Open,
        Storm::Connect,
        Storm::Null,
        Storm::Compile,
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
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["storm", &storm.to_string(), "--count", &count.to_string()]);
    command.arg("--directory").arg(directory);
    if let Some(cpu) = cpu {
        command.args(["--cpu", &cpu.to_string()]);
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
    let directory = &args.directory;
    let began_cpu = measure::own_cpu_ns()?;
    let began = Instant::now();
    match args.storm {
        Storm::Exec => exec::storm(&program(directory), args.count)?,
        Storm::Open => open_and_close(&opened_file(directory), args.count)?,
        Storm::Connect => connect::storm(args.count)?,
        Storm::Null => null(args.count),
        Storm::Compile => compile(directory, args.count)?,
    }
    let wall_ns = u64::try_from(began.elapsed().as_nanos())?;
    let cpu_ns = measure::own_cpu_ns()? - began_cpu;
    println!(
        "{}",
        json!({ "ops": args.count, "wall_ns": wall_ns, "cpu_ns": cpu_ns })
    );
    Ok(ExitCode::SUCCESS)
}

/// With libc, because std's `open` adds a flag and sometimes a retry.
fn open_and_close(path: &Path, count: u64) -> Result<()> {
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())?;
    for _ in 0..count {
        #[expect(unsafe_code, reason = "the bare system calls are what is measured")]
        // SAFETY: the path is a NUL-terminated string; the descriptor is ours.
        let fd = unsafe {
            let fd = libc::open(path.as_ptr(), libc::O_RDWR | libc::O_CREAT, 0o600);
            libc::close(fd);
            fd
        };
        ensure!(fd >= 0, "open {path:?}: failed");
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

fn compile(directory: &Path, files: u64) -> Result<()> {
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
    for number in 0..files {
        let object = directory.join(format!("object-{number}.o"));
        let mut command = Command::new("cc");
        command.args(["-O1", "-c", "-o"]).arg(object).arg(&source);
        let status = command.status().context("cc (apt-get install gcc)")?;
        ensure!(status.success(), "cc: {status}");
    }
    Ok(())
}
