//! The general tool: a bpftrace script that prints the facts that hostaudit records.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::tally::Tally;
use crate::stack::Daemon;

const SCRIPT: &str = include_str!("record.bt");
const READY: &str = "recording";
/// It compiles and attaches some twenty programs.
const START_TIMEOUT: Duration = Duration::from_secs(60);

pub struct Bpftrace {
    daemon: Daemon,
    output: PathBuf,
    opens: Option<Tally>,
}

impl Bpftrace {
    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// It writes when its buffer is full: programs that are started fill it behind the opens.
    pub fn opens_of(&mut self, file: &Path) -> Result<i64> {
        for _ in 0..FILLING {
            Command::new("true").status()?;
        }
        std::thread::sleep(FILLED);
        let line = |text: &str| text.contains(" open ");
        let opens = self
            .opens
            .get_or_insert_with(|| Tally::new(&self.output, file.display().to_string(), line));
        opens.count()
    }
}

/// Each makes some lines of 50 bytes, and the buffer is of 4 KiB.
const FILLING: usize = 50;
/// It looks for events every 100 ms.
const FILLED: Duration = Duration::from_millis(500);

pub fn start(directory: &Path) -> Result<Bpftrace> {
    let script = directory.join("record.bt");
    let output = directory.join("bpftrace.out");
    fs::write(&script, SCRIPT)?;
    // Of an earlier round.
    let _ = fs::remove_file(&output);
    let mut command = Command::new("bpftrace");
    command.arg("-o").arg(&output).arg(&script);
    // Room for a burst, as hostaudit's rings have it: 4,096 pages for each CPU.
    command
        .env("BPFTRACE_PERF_RB_PAGES", "4096")
        .env("BPFTRACE_STRLEN", "128");
    let mut daemon =
        Daemon::spawn("bpftrace", command, directory).context("apt-get install bpftrace")?;
    let deadline = Instant::now() + START_TIMEOUT;
    while !fs::read(&output)
        .is_ok_and(|text| text.windows(READY.len()).any(|w| w == READY.as_bytes()))
    {
        daemon.check()?;
        ensure!(
            Instant::now() < deadline,
            "bpftrace is not ready within {START_TIMEOUT:?}"
        );
        // It writes when its buffer is full; on a quiet host that takes something to record.
        for _ in 0..5 {
            Command::new("true").status()?;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(Bpftrace {
        daemon,
        output,
        opens: None,
    })
}
