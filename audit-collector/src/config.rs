//! What an operator may decide, and which decisions are refused.
//!
//! Every field has a default that works; `deploy/` holds the annotated example. Sizes and times
//! carry their unit in the name.

use std::{net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

/// Where the collector looks when `--config` is not given.
pub const DEFAULT_PATH: &str = "/etc/hostaudit/collector.yaml";
pub const DEFAULT_DROP_INS: &str = "/etc/hostaudit/collector.d";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Everything the collector keeps.
    pub data_dir: PathBuf,
    /// How far it gives way to other work of its host, as in nice(1): 0 not at all, 19 wholly.
    pub nice: u8,
    pub listen: Listen,
    pub ingest: Ingest,
    pub table: Table,
    pub query: Query,
    pub detect: Detect,
    pub sinks: Sinks,
    pub log: Log,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Listen {
    /// Path of the unix socket; empty for none.
    pub unix: PathBuf,
    /// Address of the TCP listener; empty for none, port 0 for any free one.
    pub tcp: String,
    /// Serve a TCP address that other hosts can reach, without encryption.
    pub allow_insecure: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ingest {
    /// Agents connected at once. Each costs at most `in_flight_batches` batches of memory.
    pub max_sessions: usize,
    /// Batches of one agent between arrival and acknowledgement.
    pub in_flight_batches: usize,
    /// Uncompressed event bytes of all agents between arrival and acknowledgement.
    pub in_flight_bytes: usize,
    /// One WAL file.
    pub wal_segment_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Table {
    /// Rows in memory, not yet in Parquet. Ingest waits when they would need more.
    pub fresh_max_bytes: usize,
    /// Rows that start a compaction.
    pub compact_rows: usize,
    /// Age of the oldest fresh row that starts a compaction.
    pub compact_after_s: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Query {
    /// Memory of all running queries; what does not fit is spilled to `data_dir/tmp`.
    pub memory_bytes: usize,
    /// Spilled bytes of all running queries.
    pub spill_bytes: u64,
    /// Rows one query may return.
    pub max_rows: usize,
    pub timeout_s: u64,
    /// Queries running at once; later ones wait.
    pub concurrent: usize,
    /// Tail readers at once.
    pub max_tails: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Detect {
    pub enabled: bool,
    /// Use the rules that come with the program.
    pub builtin_rules: bool,
    /// Directories (or files) of further Sigma rules.
    pub rules_dirs: Vec<PathBuf>,
    /// Programs remembered for the ancestry of alerts, about 300 bytes each.
    pub ancestry_entries: usize,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sinks {
    /// One line for each alert on standard output.
    pub stdout: bool,
    /// One JSON object a line; empty for none.
    pub file: PathBuf,
    pub webhooks: Vec<Webhook>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Webhook {
    /// Names the cursor file and the messages; letters, digits, `-` and `_`.
    pub name: String,
    pub url: String,
    /// Sent with each request, for example an Authorization header.
    pub headers: std::collections::BTreeMap<String, String>,
    pub timeout_s: u64,
    /// Attempts for one alert before it is counted as failed; waits double from 1 s to 60 s.
    pub max_attempts: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// error, warn, info, debug, trace, or tracing directives.
    pub level: String,
    /// text or json
    pub format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: "/var/lib/hostaudit/collector".into(),
            nice: 10,
            listen: Listen::default(),
            ingest: Ingest::default(),
            table: Table::default(),
            query: Query::default(),
            detect: Detect::default(),
            sinks: Sinks::default(),
            log: Log::default(),
        }
    }
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            unix: "/run/hostaudit/collector.sock".into(),
            tcp: "127.0.0.1:4620".to_owned(),
            allow_insecure: false,
        }
    }
}

impl Default for Ingest {
    fn default() -> Self {
        Self {
            max_sessions: 4096,
            in_flight_batches: 16,
            in_flight_bytes: 128 << 20,
            wal_segment_bytes: 64 << 20,
        }
    }
}

impl Default for Table {
    fn default() -> Self {
        Self {
            fresh_max_bytes: 512 << 20,
            compact_rows: 1_000_000,
            compact_after_s: 600,
        }
    }
}

impl Default for Query {
    fn default() -> Self {
        Self {
            memory_bytes: 1 << 30,
            spill_bytes: 8 << 30,
            max_rows: 1_000_000,
            timeout_s: 60,
            concurrent: 4,
            max_tails: 256,
        }
    }
}

impl Default for Detect {
    fn default() -> Self {
        Self {
            enabled: true,
            builtin_rules: true,
            rules_dirs: Vec::new(),
            ancestry_entries: 65_536,
        }
    }
}

impl Default for Webhook {
    fn default() -> Self {
        Self {
            name: String::new(),
            url: String::new(),
            headers: std::collections::BTreeMap::new(),
            timeout_s: 10,
            max_attempts: 12,
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
            format: LogFormat::Text,
        }
    }
}

/// A value of the right type that cannot work. Names the key and says what would.
#[derive(Debug, thiserror::Error)]
#[error("configuration key `{key}`: {reason}")]
pub struct InvalidConfig {
    pub key: String,
    pub reason: String,
}

fn invalid(key: impl Into<String>, reason: impl Into<String>) -> InvalidConfig {
    InvalidConfig {
        key: key.into(),
        reason: reason.into(),
    }
}

impl Config {
    /// Checks what types cannot say.
    pub fn validate(&self) -> Result<(), InvalidConfig> {
        if self.data_dir.as_os_str().is_empty() {
            return Err(invalid("data_dir", "empty; give a directory"));
        }
        if self.nice > 19 {
            return Err(invalid("nice", format!("{} is not 0 to 19", self.nice)));
        }
        self.tcp_address()?;
        if self.listen.unix.as_os_str().is_empty() && self.listen.tcp.is_empty() {
            return Err(invalid(
                "listen",
                "both `unix` and `tcp` are empty, so nobody could connect; set one",
            ));
        }
        let least = [
            ("ingest.max_sessions", self.ingest.max_sessions as u64, 1),
            (
                "ingest.in_flight_batches",
                self.ingest.in_flight_batches as u64,
                1,
            ),
            (
                "ingest.in_flight_bytes",
                self.ingest.in_flight_bytes as u64,
                32 << 20,
            ),
            (
                "ingest.wal_segment_bytes",
                self.ingest.wal_segment_bytes,
                1 << 20,
            ),
            (
                "table.fresh_max_bytes",
                self.table.fresh_max_bytes as u64,
                16 << 20,
            ),
            ("table.compact_rows", self.table.compact_rows as u64, 1),
            ("table.compact_after_s", self.table.compact_after_s, 1),
            (
                "query.memory_bytes",
                self.query.memory_bytes as u64,
                16 << 20,
            ),
            ("query.max_rows", self.query.max_rows as u64, 1),
            ("query.timeout_s", self.query.timeout_s, 1),
            ("query.concurrent", self.query.concurrent as u64, 1),
            ("query.max_tails", self.query.max_tails as u64, 1),
        ];
        for (key, value, least) in least {
            if value < least {
                return Err(invalid(
                    key,
                    format!("{value} is too small; at least {least}"),
                ));
            }
        }
        for (at, hook) in self.sinks.webhooks.iter().enumerate() {
            hook.validate(at, &self.sinks.webhooks[..at])?;
        }
        Ok(())
    }

    /// The TCP address, `None` where there shall be no TCP listener.
    pub fn tcp_address(&self) -> Result<Option<SocketAddr>, InvalidConfig> {
        if self.listen.tcp.is_empty() {
            return Ok(None);
        }
        let address: SocketAddr = self.listen.tcp.parse().map_err(|_| {
            invalid(
                "listen.tcp",
                format!(
                    "{:?} is not ADDRESS:PORT, for example 127.0.0.1:4620",
                    self.listen.tcp
                ),
            )
        })?;
        if !address.ip().is_loopback() && !self.listen.allow_insecure {
            return Err(invalid(
                "listen.tcp",
                format!(
                    "{address} can be reached from other hosts, and the traffic is neither \
                     encrypted nor authenticated; listen on a loopback address, or set \
                     `listen.allow_insecure: true` where the network itself is trusted"
                ),
            ));
        }
        Ok(Some(address))
    }
}

impl Webhook {
    fn validate(&self, at: usize, earlier: &[Webhook]) -> Result<(), InvalidConfig> {
        let key = |field: &str| format!("sinks.webhooks[{at}].{field}");
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if self.name.is_empty() || !self.name.chars().all(plain) {
            let reason = "give it a name of letters, digits, `-` and `_`";
            return Err(invalid(key("name"), reason));
        }
        if earlier.iter().any(|other| other.name == self.name) {
            return Err(invalid(
                key("name"),
                format!("{:?} is taken by an earlier one", self.name),
            ));
        }
        if !self.url.starts_with("http://") && !self.url.starts_with("https://") {
            let reason = format!("{:?} does not begin with http:// or https://", self.url);
            return Err(invalid(key("url"), reason));
        }
        if self.timeout_s == 0 || self.max_attempts == 0 {
            return Err(invalid(
                key("timeout_s"),
                "timeout_s and max_attempts must be at least 1",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn with_tcp(tcp: &str, allow_insecure: bool) -> Config {
        let mut config = Config::default();
        config.listen.tcp = tcp.to_owned();
        config.listen.allow_insecure = allow_insecure;
        config
    }

    #[test]
    fn the_example_file_is_the_defaults_and_they_are_valid() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/collector.yaml");
        let config: Config = audit_config::load(Some(&path), None, &[]).expect("loads");
        assert_eq!(config, Config::default());
        config.validate().expect("valid");
        // Each key is there, so that each is explained.
        let text = std::fs::read_to_string(path).expect("text");
        let keys = serde_json::to_value(&config).expect("json");
        for (section, keys) in keys.as_object().expect("sections") {
            let keys = keys.as_object().into_iter().flatten().map(|(key, _)| key);
            for key in keys.chain([section]) {
                assert!(text.contains(&format!("{key}:")), "{key} is explained");
            }
        }
    }

    #[test]
    fn a_reachable_address_needs_consent() {
        let error = with_tcp("0.0.0.0:4620", false)
            .validate()
            .expect_err("refused");
        assert!(
            error.to_string().contains("listen.allow_insecure: true"),
            "{error}"
        );
        with_tcp("0.0.0.0:4620", true).validate().expect("allowed");
        with_tcp("[::1]:0", false).validate().expect("loopback");
        assert!(with_tcp("localhost", false).validate().is_err());
    }

    #[test]
    fn webhooks_need_distinct_names() {
        let hook = Webhook {
            name: "a".into(),
            url: "http://x".into(),
            ..Webhook::default()
        };
        let mut config = Config::default();
        config.sinks.webhooks = vec![hook.clone(), hook];
        let error = config.validate().expect_err("refused");
        assert!(error.key.contains("webhooks[1].name"), "{error}");
    }
}
