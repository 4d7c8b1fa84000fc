//! What can be configured, and with which bounds? YAML at /etc/hostaudit/agent.yaml; the annotated
//! example `deploy/agent.yaml` is tested to equal these defaults.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use audit_config::ConfigError;
use audit_pki::{ClientFiles, Credentials};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    batch::Limits as BatchLimits,
    container::names::STATE_FILES,
    filter::{Filter, FilterError},
    policy::{Budgets, Policy, PolicyError, Rule},
    process::Limits as ProcessLimits,
    server::{Server, ServerError},
    spool::{Limits as SpoolLimits, WhenFull},
};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Collector: `unix:///path`, `https://host:port` or `http://host:port`.
    pub server: String,
    pub tls: Tls,
    /// Holds the spool, the key that signs, and the host id where /etc/machine-id has none.
    pub state_dir: PathBuf,
    pub rings: Rings,
    pub capture: Capture,
    pub batch: Batch,
    pub queue: Queue,
    pub spool: Spool,
    pub process_table: ProcessTable,
    pub containers: Containers,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            server: "unix:///run/hostaudit/collector.sock".to_owned(),
            tls: Tls::default(),
            state_dir: PathBuf::from("/var/lib/hostaudit"),
            rings: Rings::default(),
            capture: Capture::default(),
            batch: Batch::default(),
            queue: Queue::default(),
            spool: Spool::default(),
            process_table: ProcessTable::default(),
            containers: Containers::default(),
        }
    }
}

/// With what it connects to an `https` server. Files are read for each connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    pub ca: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Where `hostaudit pki enroll` keeps what it got.
const CREDENTIALS: &str = "/etc/hostaudit/tls";

impl Default for Tls {
    fn default() -> Self {
        let ClientFiles {
            ca,
            certificate,
            key,
        } = ClientFiles::within(CREDENTIALS);
        Self {
            ca,
            certificate,
            key,
        }
    }
}

impl Tls {
    fn credentials(&self) -> Credentials {
        let Self {
            ca,
            certificate,
            key,
        } = self.clone();
        Credentials::Files(ClientFiles {
            ca,
            certificate,
            key,
        })
    }
}

/// Sizes of the kernel's rings: a power of two, at least a page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rings {
    pub process_bytes: u32,
    pub network_bytes: u32,
    pub file_bytes: u32,
}

impl Default for Rings {
    fn default() -> Self {
        Self {
            process_bytes: 4 << 20,
            network_bytes: 4 << 20,
            file_bytes: 16 << 20,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Capture {
    /// Files whose reads are recorded; patterns with * and ?.
    pub watch_reads: Vec<String>,
    /// Kinds for which nothing is attached, so that they cost nothing.
    pub off_kinds: Vec<String>,
    /// What is hidden before it costs anything; changed by SIGHUP.
    pub filters: Vec<Rule>,
    /// How much one cgroup may have recorded; changed by SIGHUP.
    pub budgets: Budgets,
    pub pin: Pin,
}

/// Capture beyond the agent's life.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pin {
    /// On a bpf file system; empty for none. Not by default: an agent that is gone for good would
    /// leave programs that cost time and that nobody reads.
    pub directory: PathBuf,
    /// Capture goes on after an orderly stop, too.
    pub keep_at_stop: bool,
}

impl Capture {
    pub fn is_off(&self, kind: &str) -> bool {
        self.off_kinds.iter().any(|off| off == kind)
    }
}

impl Default for Capture {
    fn default() -> Self {
        // Secrets, and who may become whom. Not /etc/passwd: every process reads that.
        let watched = [
            "/etc/shadow",
            "/etc/shadow-",
            "/etc/gshadow",
            "/etc/gshadow-",
            "/etc/security/opasswd",
            "/etc/sudoers",
            "/etc/sudoers.d/*",
            "/etc/ssh/ssh_host_*_key",
            "/etc/ssl/private/*",
            "/etc/kubernetes/admin.conf",
            "/etc/krb5.keytab",
            "/root/.ssh/*",
            "/home/*/.ssh/*",
            "/root/.aws/credentials",
            "/home/*/.aws/credentials",
            "/root/.kube/*",
            "/home/*/.kube/*",
        ];
        Self {
            watch_reads: watched.map(str::to_owned).to_vec(),
            // Every program that compiles at run time does it.
            off_kinds: vec!["memory_exec".to_owned()],
            filters: Vec::new(),
            budgets: Budgets::default(),
            pin: Pin::default(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Batch {
    pub max_events: usize,
    /// Encoded events, before compression.
    pub max_bytes: usize,
    pub max_delay_ms: u64,
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            max_events: 4096,
            max_bytes: 2 << 20,
            max_delay_ms: 200,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Queue {
    /// Sealed batches in memory: the newest, and while the disk fails all that wait.
    pub max_bytes: usize,
}

/// Sealed batches on disk, until the collector has acknowledged them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Spool {
    pub max_bytes: u64,
    pub max_age_s: u64,
    pub when_full: WhenFull,
}

impl Spool {
    fn limits(&self, memory_bytes: usize) -> SpoolLimits {
        SpoolLimits {
            disk_bytes: self.max_bytes,
            max_age: Duration::from_secs(self.max_age_s),
            when_full: self.when_full,
            memory_bytes,
            segment_bytes: SpoolLimits::SEGMENT_BYTES,
            epoch_batches: SpoolLimits::EPOCH_BATCHES,
        }
    }
}

impl Default for Spool {
    fn default() -> Self {
        Self {
            max_bytes: 1 << 30,
            max_age_s: 7 * 24 * 3600,
            when_full: WhenFull::DropOldest,
        }
    }
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            max_bytes: 16 << 20,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProcessTable {
    pub max_entries: usize,
    pub max_bytes: usize,
}

impl Default for ProcessTable {
    fn default() -> Self {
        Self {
            max_entries: 65_536,
            max_bytes: 19 << 20,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Containers {
    /// Files in which runtimes keep what a container is called; `{id}` is the container's, `*` one
    /// directory.
    pub state_files: Vec<String>,
}

impl Default for Containers {
    fn default() -> Self {
        Self {
            state_files: STATE_FILES.map(str::to_owned).to_vec(),
        }
    }
}

/// A configuration that parses but cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidConfig {
    #[error(
        "rings.{key}: {bytes} is not a power of two of at least one page ({page} bytes) and at most {max}; nearest: {nearest}"
    )]
    Ring {
        key: &'static str,
        bytes: u32,
        page: u64,
        max: u32,
        nearest: u64,
    },
    #[error("{key}: {value} is outside {least}..={most}; {reason}")]
    Range {
        key: &'static str,
        value: u64,
        least: u64,
        most: u64,
        reason: &'static str,
    },
    #[error(transparent)]
    Filter(#[from] FilterError),
    #[error(transparent)]
    Policy(#[from] PolicyError),
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error(
        "containers.state_files: `{0}` is not an absolute path; for example /run/runc/{{id}}/state.json"
    )]
    StateFile(String),
    #[error(
        "containers.state_files: {0} patterns; at most {MAX_STATE_FILES}, since all are tried for each container"
    )]
    StateFiles(usize),
    #[error("state_dir: `{}` is not an absolute path", .0.display())]
    StateDir(PathBuf),
    #[error("capture.pin.directory: `{}` {wrong}", path.display())]
    Pin { path: PathBuf, wrong: &'static str },
}

/// Each container's start may look for all of them.
const MAX_STATE_FILES: usize = 32;
/// Largest ring: more only delays the moment at which a collector that is too slow is noticed.
const MAX_RING_BYTES: u32 = 1 << 30;

/// A checked configuration, in the parts that the stages take.
#[derive(Debug)]
pub struct Valid {
    pub server: Server,
    pub filter: Filter,
    pub policy: Arc<Policy>,
    pub batch: BatchLimits,
    pub process_table: ProcessLimits,
    pub spool: SpoolLimits,
}

/// Read when no other file is named, if it is there.
pub const DEFAULT_FILE: &str = "/etc/hostaudit/agent.yaml";

impl Config {
    /// From `file` (else [`DEFAULT_FILE`]), the directory beside it with `.d` instead of `.yaml`,
    /// and overrides of the form key.sub=value.
    pub fn load(file: Option<&Path>, overrides: &[String]) -> Result<Self, ConfigError> {
        let usual = Path::new(DEFAULT_FILE);
        let drop_ins = file.unwrap_or(usual).with_extension("d");
        let file = file.or_else(|| usual.exists().then_some(usual));
        audit_config::load(file, Some(&drop_ins), overrides)
    }

    /// Checks every value; the first that cannot work is the error.
    pub fn validate(&self) -> Result<Valid, InvalidConfig> {
        ring("process_bytes", self.rings.process_bytes)?;
        ring("network_bytes", self.rings.network_bytes)?;
        ring("file_bytes", self.rings.file_bytes)?;
        if !self.state_dir.is_absolute() {
            return Err(InvalidConfig::StateDir(self.state_dir.clone()));
        }
        let files = &self.containers.state_files;
        if let Some(relative) = files.iter().find(|file| !file.starts_with('/')) {
            return Err(InvalidConfig::StateFile(relative.clone()));
        }
        if files.len() > MAX_STATE_FILES {
            return Err(InvalidConfig::StateFiles(files.len()));
        }
        self.capture.pin.validate()?;
        range(
            "queue.max_bytes",
            self.queue.max_bytes as u64,
            1 << 20,
            16 << 30,
            "it must hold some batches",
        )?;
        range(
            "spool.max_bytes",
            self.spool.max_bytes,
            64 << 20,
            1 << 40,
            "it is made of files of 8 MiB, of which the oldest is dropped when it is full",
        )?;
        range(
            "spool.max_age_s",
            self.spool.max_age_s,
            60,
            10 * 365 * 24 * 3600,
            "an absent collector may need some time to come back",
        )?;
        let ProcessTable {
            max_entries,
            max_bytes: table_bytes,
        } = self.process_table;
        range(
            "process_table.max_entries",
            max_entries as u64,
            1024,
            4_194_304,
            "a host has hundreds of processes, and pids end at 4194304",
        )?;
        range(
            "process_table.max_bytes",
            table_bytes as u64,
            1 << 20,
            16 << 30,
            "an entry takes up to 8 KiB",
        )?;
        Ok(Valid {
            server: self.server()?,
            filter: Filter::new(&self.capture.watch_reads, &self.capture.off_kinds)?,
            policy: Arc::new(self.policy()?),
            batch: self.batch.limits()?,
            process_table: ProcessLimits {
                entries: max_entries,
                bytes: table_bytes,
            },
            spool: self.spool.limits(self.queue.max_bytes),
        })
    }

    pub fn server(&self) -> Result<Server, ServerError> {
        Server::parse(&self.server, self.tls.credentials())
    }

    /// Rules and budgets.
    pub fn policy(&self) -> Result<Policy, PolicyError> {
        Policy::new(&self.capture.filters, &self.capture.budgets)
    }

    /// Takes over from `new` what can change while the agent runs; names what else is different.
    pub fn reload(&mut self, new: Self) -> Vec<&'static str> {
        let Self {
            server,
            tls,
            state_dir,
            rings,
            capture,
            batch,
            queue,
            spool,
            process_table,
            containers,
        } = new;
        self.capture.filters = capture.filters;
        self.capture.budgets = capture.budgets;
        let different = [
            ("server", server != self.server),
            ("tls", tls != self.tls),
            ("state_dir", state_dir != self.state_dir),
            ("rings", rings != self.rings),
            (
                "capture.watch_reads",
                capture.watch_reads != self.capture.watch_reads,
            ),
            (
                "capture.off_kinds",
                capture.off_kinds != self.capture.off_kinds,
            ),
            ("batch", batch != self.batch),
            ("queue", queue != self.queue),
            ("spool", spool != self.spool),
            ("process_table", process_table != self.process_table),
            ("containers", containers != self.containers),
        ];
        let different = different.into_iter().filter(|(_, differs)| *differs);
        different.map(|(key, _)| key).collect()
    }

    /// SHA-256 of the configuration in force, hexadecimal; the same for every way to write it.
    pub fn hash(&self) -> String {
        let canonical = serde_json::to_vec(self).unwrap_or_default();
        Sha256::digest(canonical)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

impl Pin {
    fn validate(&self) -> Result<(), InvalidConfig> {
        let path = &self.directory;
        let wrong = |wrong| {
            Err(InvalidConfig::Pin {
                path: path.clone(),
                wrong,
            })
        };
        if path.as_os_str().is_empty() {
            return match self.keep_at_stop {
                true => wrong("must be set for capture.pin.keep_at_stop"),
                false => Ok(()),
            };
        }
        if !path.is_absolute() {
            return wrong("is not an absolute path");
        }
        // All below it is removed at the end.
        match path.file_name() {
            Some(name) if !name.as_encoded_bytes().contains(&b'.') => Ok(()),
            _ => wrong("must end in a name of its own without dots, as /sys/fs/bpf/hostaudit"),
        }
    }
}

impl Batch {
    fn limits(&self) -> Result<BatchLimits, InvalidConfig> {
        range(
            "batch.max_events",
            self.max_events as u64,
            1,
            8192,
            "a collector takes no larger batch",
        )?;
        range(
            "batch.max_bytes",
            self.max_bytes as u64,
            64 << 10,
            8 << 20,
            "a batch must fit a message of 16 MiB",
        )?;
        range(
            "batch.max_delay_ms",
            self.max_delay_ms,
            1,
            10_000,
            "events wait this long before they are sent",
        )?;
        Ok(BatchLimits {
            events: self.max_events,
            bytes: self.max_bytes,
            delay: Duration::from_millis(self.max_delay_ms),
        })
    }
}

fn ring(key: &'static str, bytes: u32) -> Result<(), InvalidConfig> {
    let page = rustix::param::page_size() as u64;
    let fits = u64::from(bytes) >= page && bytes <= MAX_RING_BYTES;
    if bytes.is_power_of_two() && fits {
        return Ok(());
    }
    let nearest = u64::from(bytes)
        .next_power_of_two()
        .clamp(page, MAX_RING_BYTES.into());
    Err(InvalidConfig::Ring {
        key,
        bytes,
        page,
        max: MAX_RING_BYTES,
        nearest,
    })
}

fn range(
    key: &'static str,
    value: u64,
    least: u64,
    most: u64,
    reason: &'static str,
) -> Result<(), InvalidConfig> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(InvalidConfig::Range {
        key,
        value,
        least,
        most,
        reason,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(overrides: &[&str]) -> Config {
        let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
        audit_config::load(None, None, &overrides).expect("loads")
    }

    #[test]
    fn the_example_file_is_the_defaults_and_they_are_valid() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/agent.yaml");
        let config: Config = audit_config::load(Some(&path), None, &[]).expect("loads");
        assert_eq!(config, Config::default());
        config.validate().expect("valid");
        let text = std::fs::read_to_string(path).expect("text");
        let parsed: Config = yaml_serde::from_str(&text).expect("yaml");
        assert_eq!(parsed, Config::default());
        for key in [
            "process_bytes",
            "watch_reads",
            "action: include",
            "events_per_second",
            "keep_at_stop",
            "max_delay_ms",
            "max_entries",
        ] {
            assert!(text.contains(key), "{key} is explained");
        }
    }

    #[test]
    fn drop_ins_lie_beside_the_file() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("agent.yaml");
        std::fs::write(&file, "batch: {max_events: 10}\n").expect("write");
        std::fs::create_dir(dir.path().join("agent.d")).expect("dir");
        let drop_in = dir.path().join("agent.d/10-site.yaml");
        std::fs::write(drop_in, "batch: {max_delay_ms: 50}\n").expect("write");
        let config = Config::load(Some(&file), &["queue.max_bytes=2000000".to_owned()]);
        let config = config.expect("loads");
        assert_eq!(
            (config.batch.max_events, config.batch.max_delay_ms),
            (10, 50)
        );
        assert_eq!(config.queue.max_bytes, 2_000_000);
        let error = Config::load(None, &["batch.max_event=1".to_owned()]).expect_err("unknown");
        assert!(error.to_string().contains("batch.max_events"), "{error}");
    }

    #[test]
    fn values_that_cannot_work_are_refused_by_name() {
        for (text, named) in [
            ("rings.file_bytes=5000", "nearest: 8192"),
            ("rings.file_bytes=64", "rings.file_bytes"),
            ("batch.max_events=0", "batch.max_events"),
            ("batch.max_events=9000", "8192"),
            ("queue.max_bytes=10", "queue.max_bytes"),
            ("state_dir=here", "state_dir"),
            ("server=tcp://x", "server"),
            ("capture.pin.keep_at_stop=true", "capture.pin.directory"),
            ("capture.pin.directory=/sys/fs/bpf/a.b", "without dots"),
            ("capture.pin.directory=pins", "absolute"),
            ("capture.watch_reads=['/home/*/*']", "/home/*/*"),
            ("capture.filters=[{}]", "capture.filters[0]"),
            (
                "capture.filters=[{name: x, kinds: [exec]}]",
                "capture.filters `x`",
            ),
            (
                "capture.budgets.file={events_per_second: 0}",
                "capture.budgets.file",
            ),
            ("process_table.max_entries=1", "process_table.max_entries"),
        ] {
            let error = load(&[text]).validate().expect_err(text).to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn a_reload_takes_rules_and_budgets_and_names_the_rest() {
        let mut config = load(&[]);
        let rules = "capture.filters=[{name: x, uids: [1, '5-9']}]";
        let budget = "capture.budgets.file={events_per_second: 10}";
        let new = load(&[
            rules,
            budget,
            "batch.max_events=1",
            "capture.watch_reads=[]",
        ]);
        assert_eq!(config.reload(new), ["capture.watch_reads", "batch"]);
        assert_eq!(config, load(&[rules, budget]));
        assert_eq!(config.reload(load(&[])), Vec::<&str>::new());
        assert_eq!(config, load(&[]));
    }

    #[test]
    fn the_hash_follows_the_values_in_force() {
        assert_eq!(load(&[]).hash(), load(&["batch.max_delay_ms=200"]).hash());
        assert_ne!(load(&[]).hash(), load(&["batch.max_delay_ms=201"]).hash());
        assert_eq!(load(&[]).hash().len(), 64);
    }
}
