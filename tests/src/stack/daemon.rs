//! One program under test: its process, its log, its end.

use std::{
    fs::File,
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::patience;

/// Of a log, what an error message shows.
const LOG_TAIL_LINES: usize = 40;

/// Killed when dropped.
pub struct Daemon {
    name: &'static str,
    child: Child,
    directory: PathBuf,
}

impl Daemon {
    pub fn spawn(name: &'static str, mut command: Command, directory: &Path) -> Result<Self> {
        // A new log for each: a test may wait for a line of it.
        let log = File::create(log_path(directory, name))?;
        let child = command
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // So that Ctrl-C in a terminal reaches the test alone, which then ends this.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        Ok(Self {
            name,
            child,
            directory: directory.to_owned(),
        })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The end of what it has logged.
    pub fn log(&self) -> String {
        log(&self.directory, self.name)
    }

    /// An error when it has ended.
    pub fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!(
                "the {} ended: {status}\n{}",
                self.name,
                log(&self.directory, self.name)
            );
        }
        Ok(())
    }

    /// SIGTERM, and the wait for a successful end.
    pub fn stop(mut self, timeout: Duration) -> Result<()> {
        let timeout = patience::stretched(timeout)?;
        signal(self.pid(), libc::SIGTERM)?;
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.child.try_wait()? {
                let log = log(&self.directory, self.name);
                ensure!(status.success(), "the {} ended: {status}\n{log}", self.name);
                return Ok(());
            }
            if Instant::now() > deadline {
                let log = log(&self.directory, self.name);
                bail!(
                    "the {} does not end within {timeout:?} of SIGTERM\n{log}",
                    self.name
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is gone afterwards.
        let _ = self.child.kill();
        let ended = self.child.wait();
        if std::thread::panicking() {
            let signal = ended.ok().and_then(|status| status.signal());
            eprintln!(
                "--- {} (signal {signal:?}):\n{}",
                self.name,
                log(&self.directory, self.name)
            );
        }
    }
}

fn log_path(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.log"))
}

/// The end of a program's log.
pub fn log(directory: &Path, name: &str) -> String {
    let text = std::fs::read(log_path(directory, name)).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
}

pub fn signal(pid: u32, signal: i32) -> Result<()> {
    let pid = i32::try_from(pid)?;
    #[expect(unsafe_code, reason = "no safe call for kill in std")]
    // SAFETY: kill has no memory arguments.
    let result = unsafe { libc::kill(pid, signal) };
    ensure!(
        result == 0,
        "kill {pid}: {}",
        std::io::Error::last_os_error()
    );
    Ok(())
}

/// A built program of this workspace, beside the running test or bench.
pub fn binary(name: &str) -> Result<PathBuf> {
    let current = std::env::current_exe()?;
    // target/PROFILE/bench, or target/PROFILE/deps/test-HASH.
    let found = current
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join(name))
        .find(|p| p.is_file());
    let package = if name == "hostaudit" {
        "audit-cli"
    } else {
        name
    };
    found.with_context(|| {
        let near = current.parent().unwrap_or(Path::new(".")).display();
        format!("no program {name} near {near}; build it first: cargo build -p {package}")
    })
}
