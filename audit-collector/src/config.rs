//! What an operator may decide, and which decisions are refused.
//!
//! Every field has a default that works; `deploy/` holds the annotated example. Sizes and times
//! carry their unit in the name.

use std::{net::SocketAddr, path::PathBuf};

use audit_pki::{CA_FILE, ServerFiles, authority::REVOKED};
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
    /// Users of this host that may do everything over the unix socket, beside root and its own.
    pub unix_admin_uids: Vec<u32>,
    pub tls: Tls,
}

/// Of the TCP listener; all empty for none. Files are read again when they change.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// Its certificate, then those up to the authority's.
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Of whom certificates of clients must be; empty: the authority's.
    pub clients_ca: PathBuf,
    /// The revocation list; empty: the authority's, none where there is no authority.
    pub revoked: PathBuf,
    /// Directory of an authority with which hosts can join; empty for none.
    pub authority: PathBuf,
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
            unix_admin_uids: Vec::new(),
            tls: Tls::default(),
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
        self.listen.tls.files()?;
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
        let open = !self.listen.allow_insecure && self.listen.tls.files()?.is_none();
        if !address.ip().is_loopback() && open {
            return Err(invalid(
                "listen.tcp",
                format!(
                    "{address} can be reached from other hosts, and the traffic is neither \
                     encrypted nor authenticated; set `listen.tls` (docs/identity.md says how), listen \
                     on a loopback address, or set `listen.allow_insecure: true` where the network \
                     itself is trusted"
                ),
            ));
        }
        Ok(Some(address))
    }
}

impl Tls {
    /// What to serve TCP with, `None` where it is to be without TLS.
    pub fn files(&self) -> Result<Option<ServerFiles>, InvalidConfig> {
        if *self == Self::default() {
            return Ok(None);
        }
        let given = |path: &PathBuf| !path.as_os_str().is_empty();
        for (key, path) in [("certificate", &self.certificate), ("key", &self.key)] {
            if !given(path) {
                return Err(invalid(
                    format!("listen.tls.{key}"),
                    "empty; `hostaudit pki issue --role collector` makes certificate and key",
                ));
            }
        }
        let joining = given(&self.authority);
        let of_authority = |path: &PathBuf, name| match given(path) {
            true => Some(path.clone()),
            false => joining.then(|| self.authority.join(name)),
        };
        let clients_ca = of_authority(&self.clients_ca, CA_FILE).ok_or_else(|| {
            invalid(
                "listen.tls.clients_ca",
                "empty, as is `authority`; name the ca.pem of which clients' certificates are",
            )
        })?;
        Ok(Some(ServerFiles {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            clients_ca,
            revoked: of_authority(&self.revoked, REVOKED),
            joining,
        }))
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
        for key in names(&keys) {
            assert!(text.contains(&format!("{key}:")), "{key} is explained");
        }
    }

    /// All keys, those below others too.
    fn names(value: &serde_json::Value) -> Vec<String> {
        let keys = value.as_object().into_iter().flatten();
        keys.flat_map(|(key, below)| [vec![key.clone()], names(below)].concat())
            .collect()
    }

    #[test]
    fn tls_is_whole_or_the_missing_key_is_named() {
        let tls = |text: &[&str]| {
            let text: Vec<String> = text.iter().map(|t| format!("listen.tls.{t}")).collect();
            let config: Config = audit_config::load(None, None, &text).expect("loads");
            config.listen.tls.files()
        };
        assert_eq!(tls(&[]).expect("none"), None);
        for (text, key) in [
            (&["key=/k"][..], "listen.tls.certificate"),
            (&["certificate=/c"], "listen.tls.key"),
            (&["authority=/a"], "listen.tls.certificate"),
            (&["certificate=/c", "key=/k"], "listen.tls.clients_ca"),
        ] {
            assert_eq!(tls(text).expect_err("partial").key, key);
        }
        let files = tls(&["certificate=/c", "key=/k", "authority=/a"]);
        let files = files.expect("whole").expect("there");
        assert_eq!(files.clients_ca, Path::new("/a/ca.pem"));
        assert_eq!(files.revoked.as_deref(), Some(Path::new("/a/revoked.crl")));
        assert!(files.joining);
        let files = tls(&["certificate=/c", "key=/k", "clients_ca=/x"]);
        let files = files.expect("whole").expect("there");
        assert!(files.revoked.is_none() && !files.joining);
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
        let mut secure = with_tcp("0.0.0.0:4620", false);
        secure.listen.tls.certificate = "/c".into();
        secure.listen.tls.key = "/k".into();
        secure.listen.tls.clients_ca = "/a".into();
        secure.validate().expect("TLS needs no consent");
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
