//! What does a log shipper make of the same work, on this machine and in this run? One rsyslogd reads
//! as many lines, each as long as one of our events, from files and sends them to another, over TLS
//! with certificates of both ends; that one writes them to a file.
//!
//! Measured as ours is: from the moment that the lines are there until all, or as many as the time
//! allows, are in the receiver's file and synced. What an answer promises the sender differs with
//! rsyslog's settings, and its speed with that, so there are several rows ([`SETTINGS`]). Only the first
//! promises what our acknowledgement does; the last is as fast as it gets, and promises nothing.
//!
//! What it does not do for a line, and hostaudit does for an event: hash, sign, compress, verify, keep
//! columns, run rules. It is the distribution's release build; the collector is of the dev profile. What
//! it does and hostaudit does not: a header and, with RELP, an answer for every line, where 4,096 events
//! share one of each; and the senders' queues on disk, where the row says so, while our senders have
//! their events in memory (the agent's own spool is not part of this bench).
//!
//! In its favour, where that costs no promise: batches and RELP's window are larger than by default
//! (with the default window it waits for delayed TCP acknowledgements nine tenths of the time), a queue
//! on disk notes its own state once for a batch, and the lines are written and synced before.

mod config;

use std::{
    fs::{self, File},
    io::{BufWriter, Read as _, Write as _},
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use audit_pki::ClientFiles;
use serde_json::{Value, json};

use self::config::{Queue, Setting};
use super::{
    super::{
        interrupt, measure,
        report::{grouped, micros},
    },
    Encoded,
};
use crate::{site::Site, stack::Daemon};

/// The name in the sender's certificate.
const SHIPPER: &str = "shipper";
const PACKAGES: &str = "apt-get install rsyslog rsyslog-relp rsyslog-gnutls";
/// Connections, each with a queue and a thread of its own. Of one, two and eight, two were fastest on two
/// processors where the queues are in memory; where they are on disk it made no clear difference.
const SENDERS: usize = 2;
/// A row that is slow for each line's sync would otherwise take minutes; its rate shows in seconds.
const TIME: Duration = Duration::from_secs(10);
const QUICK_TIME: Duration = Duration::from_secs(2);
/// Until the first line is through: processes start, and a sender that was too early tries again.
const START_TIMEOUT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(5);
/// Its way through shows that both ends are ready.
const GREETING: &str = "hello\n";

/// From the strongest promise to none.
const SETTINGS: [Setting; 4] = [
    Setting {
        what: "each line synced at both ends, then answered",
        answered: true,
        sender: Queue::SyncedDisk,
        receiver: Queue::Direct,
        sync: true,
    },
    Setting {
        what: "sender's queue on disk, answered on receipt, then synced in batches",
        answered: true,
        sender: Queue::Disk,
        receiver: Queue::Memory,
        sync: true,
    },
    Setting {
        what: "queues in memory, answered on receipt, never synced",
        answered: true,
        sender: Queue::Memory,
        receiver: Queue::Memory,
        sync: false,
    },
    Setting {
        what: "queues in memory, never answered, never synced",
        answered: false,
        sender: Queue::Memory,
        receiver: Queue::Memory,
        sync: false,
    },
];

pub struct Shipping {
    version: String,
    line_bytes: f64,
    rows: Vec<Row>,
}

struct Row {
    what: &'static str,
    stored: u64,
    of: u64,
    took: Duration,
    sender_cpu: Duration,
    receiver_cpu: Duration,
}

impl Row {
    fn per_second(&self) -> f64 {
        self.stored as f64 / self.took.as_secs_f64()
    }

    fn ns_a_line(&self, cpu: Duration) -> f64 {
        cpu.as_nanos() as f64 / self.stored as f64
    }
}

/// The events of each agent, one agent after the other, so that they need not all be in memory.
pub fn measure(
    site: &Site,
    agents: impl Iterator<Item = Result<Vec<Encoded>>>,
    quick: bool,
) -> Result<Shipping> {
    let version = version()?;
    let directory = tempfile::Builder::new()
        .prefix("hostaudit-peer-")
        .tempdir()?;
    let lines = Lines::write(directory.path(), agents)?;
    let ends = Ends {
        sender: site.agent(SHIPPER)?,
        receiver: site.collector(),
    };
    let limit = if quick { QUICK_TIME } else { TIME };
    let mut rows = Vec::new();
    for (number, setting) in SETTINGS.iter().enumerate() {
        eprintln!("peer: {}", setting.what);
        let own = directory.path().join(number.to_string());
        fs::create_dir(&own)?;
        let running = Running::start(setting, &own, &ends).context(setting.what)?;
        let row = running.ship(setting.what, &lines, limit);
        rows.push(row.context(setting.what)?);
    }
    Ok(Shipping {
        version,
        line_bytes: lines.bytes as f64 / lines.count as f64,
        rows,
    })
}

impl Shipping {
    /// `ours` is in events a second.
    pub fn print(&self, ours: f64) {
        println!(
            "a log shipper in the same run, {} to another over TLS, {:.0} bytes a line:",
            self.version, self.line_bytes
        );
        for row in &self.rows {
            let rest = if row.stored < row.of {
                " (ended before all were through)"
            } else {
                ""
            };
            println!(
                "  {:>12} lines/s  {}; hostaudit {:.1} times that{rest}; CPU a line, sender and receiver: {} and {} us",
                grouped(row.per_second() as i64),
                row.what,
                ours / row.per_second(),
                micros(row.ns_a_line(row.sender_cpu)),
                micros(row.ns_a_line(row.receiver_cpu)),
            );
        }
    }

    pub fn as_json(&self, ours: f64) -> Value {
        let rows = self.rows.iter().map(|row| {
            json!({
                "what": row.what, "events": row.of, "stored": row.stored,
                "seconds": row.took.as_secs_f64(), "events_per_second": row.per_second(),
                "sender_cpu_seconds": row.sender_cpu.as_secs_f64(),
                "receiver_cpu_seconds": row.receiver_cpu.as_secs_f64(),
                "hostaudit_to_peer": ours / row.per_second(),
            })
        });
        json!({
            "version": self.version, "line_bytes": self.line_bytes,
            "rows": rows.collect::<Vec<_>>(),
        })
    }
}

/// Credentials of both ends.
struct Ends {
    sender: ClientFiles,
    receiver: ClientFiles,
}

/// What is shipped: a file for each sender.
struct Lines {
    files: Vec<PathBuf>,
    count: u64,
    bytes: u64,
}

impl Lines {
    fn write(directory: &Path, agents: impl Iterator<Item = Result<Vec<Encoded>>>) -> Result<Self> {
        let files: Vec<PathBuf> = (0..SENDERS)
            .map(|sender| directory.join(format!("lines-{sender}")))
            .collect();
        let mut open = Vec::new();
        for file in &files {
            open.push(BufWriter::new(File::create(file)?));
        }
        let (mut count, mut bytes) = (0, 0);
        for batches in agents {
            for (at, (events, ..)) in batches?.iter().enumerate() {
                for event in events.events() {
                    let line = line(event);
                    open[at % SENDERS].write_all(&line)?;
                    count += 1;
                    bytes += u64::try_from(line.len())?;
                }
            }
        }
        for file in open {
            // What the system still has to write would slow the peer's own syncs.
            file.into_inner()?.sync_all()?;
        }
        Ok(Self {
            files,
            count,
            bytes,
        })
    }
}

/// As long as the event, and nothing that rsyslog would trim or escape.
fn line(event: &[u8]) -> Vec<u8> {
    let plain = event
        .iter()
        .map(|byte| if byte.is_ascii_graphic() { *byte } else { b'.' });
    plain.chain([b'\n']).collect()
}

/// Both ends, connected. They are killed when dropped, and leave nothing outside their directory.
struct Running {
    sender: Daemon,
    receiver: Daemon,
    input: PathBuf,
    stored: PathBuf,
}

impl Running {
    fn start(setting: &Setting, directory: &Path, ends: &Ends) -> Result<Self> {
        let input = directory.join("input");
        let stored = directory.join("stored");
        fs::create_dir(&input)?;
        for sender in 0..SENDERS {
            fs::write(input.join(format!("{sender}-greeting")), GREETING)?;
        }
        // Free a moment ago.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let receiving = config::receiver(setting, directory, &stored, port, &ends.receiver);
        let sending = config::sender(setting, directory, &input, port, &ends.sender);
        let mut running = Self {
            receiver: rsyslogd("receiver", &receiving, directory)?,
            sender: rsyslogd("sender", &sending, directory)?,
            input,
            stored,
        };
        running.wait_for_greetings()?;
        Ok(running)
    }

    fn wait_for_greetings(&mut self) -> Result<()> {
        let began = Instant::now();
        while self.stored_bytes() < greeting_bytes() {
            self.check()?;
            ensure!(
                began.elapsed() < START_TIMEOUT,
                "nothing arrives within {START_TIMEOUT:?}\nsender: {}\nreceiver: {}",
                self.sender.log(),
                self.receiver.log()
            );
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    fn ship(mut self, what: &'static str, lines: &Lines, limit: Duration) -> Result<Row> {
        let (sender, receiver) = (self.sender.pid(), self.receiver.pid());
        let cpu = |pid| measure::process_cpu_ns(pid);
        let before = (cpu(sender)?, cpu(receiver)?);
        let expected = greeting_bytes() + lines.bytes;
        let began = Instant::now();
        for (sender, file) in lines.files.iter().enumerate() {
            // There at once, with all its lines.
            fs::hard_link(file, self.input.join(format!("{sender}-lines")))?;
        }
        let mut bytes = self.stored_bytes();
        // On a slow disk the first lines may come late.
        while bytes < expected
            && (began.elapsed() < limit
                || bytes == greeting_bytes() && began.elapsed() < START_TIMEOUT)
        {
            self.check()?;
            std::thread::sleep(POLL);
            bytes = self.stored_bytes();
        }
        File::open(&self.stored)?.sync_all()?;
        let took = began.elapsed();
        let after = (cpu(sender)?, cpu(receiver)?);
        let stored = lines_within(&self.stored, bytes)?;
        let stored = stored.saturating_sub(u64::try_from(SENDERS)?);
        ensure!(
            stored > 0,
            "no line within {START_TIMEOUT:?}\n{}",
            self.sender.log()
        );
        ensure!(
            bytes < expected || (bytes, stored) == (expected, lines.count),
            "{} lines sent, {stored} stored",
            lines.count
        );
        Ok(Row {
            what,
            stored,
            of: lines.count,
            took,
            sender_cpu: Duration::from_nanos(after.0 - before.0),
            receiver_cpu: Duration::from_nanos(after.1 - before.1),
        })
    }

    fn check(&mut self) -> Result<()> {
        interrupt::check()?;
        self.sender.check()?;
        self.receiver.check()
    }

    /// None before the first line.
    fn stored_bytes(&self) -> u64 {
        fs::metadata(&self.stored).map_or(0, |file| file.len())
    }
}

fn greeting_bytes() -> u64 {
    (SENDERS * GREETING.len()) as u64
}

fn lines_within(file: &Path, bytes: u64) -> Result<u64> {
    let mut file = File::open(file)?.take(bytes);
    let mut buffer = vec![0; 1 << 20];
    let mut lines = 0;
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(lines);
        }
        let ends = buffer[..read].iter().filter(|byte| **byte == b'\n');
        lines += u64::try_from(ends.count())?;
    }
}

/// In the foreground, on a configuration of its own and nothing of the host's.
fn rsyslogd(name: &'static str, text: &str, directory: &Path) -> Result<Daemon> {
    let configuration = directory.join(format!("{name}.conf"));
    fs::write(&configuration, text)?;
    fs::create_dir(directory.join(name))?;
    let mut check = Command::new("rsyslogd");
    // It would run without a module that is missing.
    let checked = check.arg("-N1").arg("-f").arg(&configuration).output()?;
    if !checked.status.success() {
        let why = String::from_utf8_lossy(&checked.stderr);
        bail!("rsyslogd refuses its configuration ({PACKAGES}): {why}");
    }
    let mut command = Command::new("rsyslogd");
    command.arg("-n").arg("-f").arg(&configuration);
    command.arg("-i").arg(directory.join(format!("{name}.pid")));
    Daemon::spawn(name, command, directory)
}

/// Such as `rsyslogd 8.2302.0`.
fn version() -> Result<String> {
    let output = Command::new("rsyslogd")
        .arg("-v")
        .output()
        .context(PACKAGES)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let words: Vec<&str> = text.split_ascii_whitespace().take(2).collect();
    Ok(words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_line_and_as_long_as_its_event() {
        assert_eq!(line(b"\x0a\x05a b\xff7"), b"..a.b.7\n");
    }
}
