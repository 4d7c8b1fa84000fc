//! The live peer: the kernel's audit and Debian's auditd, on rules that record what hostaudit does.
//!
//! Audit is one per host, so [`Quiet`] takes it over for the whole bench and puts it back when
//! dropped; it refuses when somebody uses it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::tally::Tally;
use crate::stack::Daemon;

/// Flags of opens that are recorded: O_WRONLY, O_RDWR, O_CREAT, O_TRUNC.
const OPEN_FLAGS: u32 = 0o1103;
/// As Debian's own /etc/audit/rules.d/audit.rules sets them.
const BACKLOG: &str = "8192";
const BACKLOG_WAIT: &str = "60000";
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// What hostaudit records, as audit rules. Filters on the open flags are in auditd's favour: most
/// published rule sets record every open.
fn rules() -> Vec<String> {
    let mut rules: Vec<String> = Vec::new();
    #[cfg(target_arch = "x86_64")]
    rules.extend([
        format!("-S open -F a1&{OPEN_FLAGS}"),
        "-S creat -S unlink -S rmdir -S rename -S fork -S vfork".to_owned(),
    ]);
    rules.extend([
        format!("-S openat -F a2&{OPEN_FLAGS}"),
        "-S openat2 -S unlinkat -S renameat -S renameat2".to_owned(),
        "-S execve -S execveat -S clone -S clone3 -S exit_group".to_owned(),
        "-S connect -S accept -S accept4 -S bind".to_owned(),
    ]);
    rules
}

/// The state of the kernel's audit before the bench, put back when dropped. In between, tasks are
/// outside audit (`never,task`), so that an audit once enabled does not tax the other modes.
pub struct Quiet {
    before: Vec<(&'static str, String)>,
    /// The host itself keeps tasks outside audit.
    never_task: bool,
}

impl Quiet {
    /// `Ok(None)` when there is no auditctl: then nobody has enabled audit either.
    pub fn take() -> Result<Option<Self>> {
        if Command::new("auditctl").arg("-v").output().is_err() {
            return Ok(None);
        }
        let status = auditctl(&["-s"])?;
        let value = |name: &str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
                .map(str::to_owned)
        };
        ensure!(
            // The kernel remembers the number of one that was killed.
            value("pid").is_none_or(|pid| !Path::new("/proc").join(pid).exists()),
            "an audit daemon runs on this host; stop it for the bench: service auditd stop"
        );
        let listed = auditctl(&["-l"])?;
        let never_task = listed.trim() == "-a never,task";
        ensure!(
            listed.trim() == "No rules" || never_task,
            "audit rules are in force on this host; remove them for the bench: auditctl -D"
        );
        let mut before = Vec::new();
        for (option, name) in [
            ("-e", "enabled"),
            ("-b", "backlog_limit"),
            ("--backlog_wait_time", "backlog_wait_time"),
        ] {
            before.push((
                option,
                value(name).with_context(|| format!("auditctl -s tells no {name}"))?,
            ));
        }
        // From here on dropping it restores.
        let quiet = Self { before, never_task };
        silence()?;
        Ok(Some(quiet))
    }
}

/// No rules, and tasks outside audit.
fn silence() -> Result<()> {
    for command in [&["-D"][..], &["-e", "0"], &["-a", "never,task"]] {
        auditctl(command)?;
    }
    Ok(())
}

impl Drop for Quiet {
    fn drop(&mut self) {
        let mut commands = vec![vec!["-D"]];
        commands.extend(
            self.before
                .iter()
                .map(|(option, value)| vec![*option, value.as_str()]),
        );
        if self.never_task {
            commands.push(vec!["-a", "never,task"]);
        }
        for command in commands {
            if let Err(error) = auditctl(&command) {
                eprintln!(
                    "bench: restoring audit: {error:#}; do it by hand: auditctl {}",
                    command.join(" ")
                );
            }
        }
    }
}

pub struct Auditd {
    /// None only while it is dropped.
    daemon: Option<Daemon>,
    lost_before: i64,
    log: PathBuf,
    opens: Option<Tally>,
}

impl Auditd {
    pub fn start(directory: &Path) -> Result<Self> {
        let configuration = directory.join("auditd");
        fs::create_dir_all(&configuration)?;
        let log = configuration.join("audit.log");
        // A log of its own; otherwise as Debian ships it, but with room for a whole bench.
        let text = format!(
            "log_file = {}\nlog_format = ENRICHED\nwrite_logs = yes\nflush = INCREMENTAL_ASYNC\n\
             freq = 50\nmax_log_file = 4096\nmax_log_file_action = IGNORE\nname_format = NONE\n\
             local_events = yes\nspace_left = 75\nspace_left_action = IGNORE\n\
             admin_space_left = 50\nadmin_space_left_action = IGNORE\ndisk_full_action = IGNORE\n\
             disk_error_action = IGNORE\nq_depth = 2000\noverflow_action = IGNORE\n",
            log.display()
        );
        fs::write(configuration.join("auditd.conf"), text)?;
        fs::write(&log, "")?;
        let mut command = Command::new("auditd");
        command
            .arg("-n")
            .arg("-c")
            .arg(&configuration)
            .stdin(Stdio::null());
        let daemon =
            Daemon::spawn("auditd", command, directory).context("apt-get install auditd")?;
        let mut auditd = Self {
            daemon: Some(daemon),
            lost_before: 0,
            log,
            opens: None,
        };
        auditd.enable()?;
        auditd.lost_before = lost()?;
        Ok(auditd)
    }

    fn enable(&mut self) -> Result<()> {
        // It registers with the kernel within moments, or ends with a reason.
        std::thread::sleep(Duration::from_secs(1));
        self.daemon.as_mut().map_or(Ok(()), Daemon::check)?;
        auditctl(&["-D"])?;
        auditctl(&["-b", BACKLOG])?;
        auditctl(&["--backlog_wait_time", BACKLOG_WAIT])?;
        for rule in rules() {
            let mut arguments = vec!["-a", "always,exit", "-F", "arch=b64"];
            arguments.extend(rule.split(' '));
            auditctl(&arguments)?;
        }
        auditctl(&["-e", "1"])?;
        Ok(())
    }

    pub fn pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Daemon::pid)
    }

    pub fn lost(&self) -> Result<i64> {
        Ok(lost()? - self.lost_before)
    }

    /// Of an open there is one record of the file, and one of its directory.
    pub fn opens_of(&mut self, file: &Path) -> Result<i64> {
        let line = |text: &str| text.starts_with("type=PATH ");
        let name = format!("name=\"{}\"", file.display());
        let opens = self
            .opens
            .get_or_insert_with(|| Tally::new(&self.log, name, line));
        opens.count()
    }
}

impl Drop for Auditd {
    fn drop(&mut self) {
        // First stop the flow, then the daemon, by SIGTERM: it signs off from the kernel.
        if let Err(error) = silence() {
            eprintln!("bench: stopping audit: {error:#}");
        }
        if let Some(Err(error)) = self.daemon.take().map(|daemon| daemon.stop(STOP_TIMEOUT)) {
            eprintln!("bench: stopping auditd: {error:#}");
        }
    }
}

fn lost() -> Result<i64> {
    let status = auditctl(&["-s"])?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("lost "))
        .context("no `lost`")?;
    Ok(line.trim().parse()?)
}

fn auditctl(arguments: &[&str]) -> Result<String> {
    let output = Command::new("auditctl")
        .args(arguments)
        .output()
        .context("auditctl")?;
    if !output.status.success() {
        bail!(
            "auditctl {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
