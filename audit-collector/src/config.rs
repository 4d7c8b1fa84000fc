//! What an operator may decide, and which decisions are refused.
//!
//! Every field has a default that works; `deploy/` holds the annotated example. Sizes and times
//! carry their unit in the name.

use std::{net::SocketAddr, path::PathBuf};

use audit_pki::{CA_FILE, ServerFiles, authority::REVOKED};
use audit_proto::{filter, v1::EventFilter};
use serde::{Deserialize, Serialize};

use crate::filter::{expression, mask};

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
    /// Address of `/metrics`, `/healthz` and `/readyz`, by plain HTTP; empty for none.
    pub metrics: String,
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
    /// Programs remembered for the ancestry of alerts, about 300 bytes each, 12 KiB at most.
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
    /// Files of events, one JSON object a line.
    pub events_files: Vec<EventsFile>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EventsFile {
    /// Names the cursor file and the messages; letters, digits, `-` and `_`.
    pub name: String,
    pub path: PathBuf,
    /// Events that match any of these filters, or all where there is none; as in `hostaudit tail`.
    pub allow: Vec<String>,
    /// But none that matches one of these.
    pub deny: Vec<String>,
    /// Columns and objects of each event; empty for all.
    pub fields: Vec<String>,
    /// A line that would make the file larger goes to a new one.
    pub max_bytes: u64,
    /// A file whose first line is older is ended; 0 for never.
    pub max_age_s: u64,
    /// Ended files kept; 0 for all.
    pub max_files: usize,
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
            metrics: String::new(),
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

impl Default for EventsFile {
    fn default() -> Self {
        Self {
            name: String::new(),
            path: PathBuf::new(),
            allow: Vec::new(),
            deny: Vec::new(),
            fields: Vec::new(),
            max_bytes: 256 << 20,
            max_age_s: 0,
            max_files: 8,
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
        self.metrics_address()?;
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
        for (at, file) in self.sinks.events_files.iter().enumerate() {
            file.validate(at, &self.sinks)?;
        }
        Ok(())
    }

    /// Where metrics are served, `None` where they are not.
    pub fn metrics_address(&self) -> Result<Option<SocketAddr>, InvalidConfig> {
        if self.listen.metrics.is_empty() {
            return Ok(None);
        }
        let address = self.listen.metrics.parse();
        address.map(Some).map_err(|_| {
            let reason = format!(
                "{:?} is not ADDRESS:PORT, for example 127.0.0.1:4621",
                self.listen.metrics
            );
            invalid("listen.metrics", reason)
        })
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

/// Of what has a cursor file of its own.
fn check_name<'a>(
    key: String,
    name: &str,
    mut earlier: impl Iterator<Item = &'a str>,
) -> Result<(), InvalidConfig> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || !name.chars().all(plain) {
        let reason = "give it a name of letters, digits, `-` and `_`";
        return Err(invalid(key, reason));
    }
    if earlier.any(|other| other == name) {
        let reason = format!("{name:?} is taken by an earlier one");
        return Err(invalid(key, reason));
    }
    Ok(())
}

impl EventsFile {
    /// Smaller ones would be renamed with every page of events.
    const LEAST_BYTES: u64 = 64 << 10;

    fn validate(&self, at: usize, sinks: &Sinks) -> Result<(), InvalidConfig> {
        let key = |field: &str| format!("sinks.events_files[{at}].{field}");
        let earlier = &sinks.events_files[..at];
        check_name(
            key("name"),
            &self.name,
            earlier.iter().map(|other| &*other.name),
        )?;
        if !self.path.is_absolute() || self.path.file_name().is_none() {
            let reason = format!("{:?} is not an absolute path of a file", self.path);
            return Err(invalid(key("path"), reason));
        }
        if sinks.file == self.path || earlier.iter().any(|other| other.path == self.path) {
            let reason = format!("{} is another sink's already", self.path.display());
            return Err(invalid(key("path"), reason));
        }
        if self.max_bytes < Self::LEAST_BYTES {
            let reason = format!(
                "{} is too small; at least {}",
                self.max_bytes,
                Self::LEAST_BYTES
            );
            return Err(invalid(key("max_bytes"), reason));
        }
        let allow = parsed(&self.allow).map_err(|error| invalid(key("allow"), error))?;
        let deny = parsed(&self.deny).map_err(|error| invalid(key("deny"), error))?;
        let filters = expression(&allow, &deny).map(|_| ());
        filters
            .and_then(|()| mask(&self.fields).map(|_| ()))
            .map_err(|error| invalid(format!("sinks.events_files[{at}]"), error.to_string()))
    }

    /// `allow` and `deny`, read.
    pub fn filters(&self) -> Result<(Vec<EventFilter>, Vec<EventFilter>), String> {
        Ok((parsed(&self.allow)?, parsed(&self.deny)?))
    }
}

fn parsed(filters: &[String]) -> Result<Vec<EventFilter>, String> {
    let parsed = filters.iter().map(|text| filter::parse(text));
    parsed.collect::<Result<_, _>>().map_err(|e| e.to_string())
}

impl Webhook {
    fn validate(&self, at: usize, earlier: &[Webhook]) -> Result<(), InvalidConfig> {
        let key = |field: &str| format!("sinks.webhooks[{at}].{field}");
        let earlier = earlier.iter().map(|other| &*other.name);
        check_name(key("name"), &self.name, earlier)?;
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
        // Lists are empty there, so their keys stand in a comment.
        for sink in [
            serde_json::to_value(Webhook::default()),
            serde_json::to_value(EventsFile::default()),
        ] {
            for key in sink.expect("json").as_object().expect("keys").keys() {
                assert!(text.contains(&format!("{key}:")), "{key} is explained");
            }
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

    #[test]
    fn a_file_of_events_needs_a_name_a_path_and_filters_that_are_some() {
        let file = EventsFile {
            name: "siem".into(),
            path: "/var/log/events.jsonl".into(),
            allow: vec!["kind=exec,process_uid=0".into()],
            fields: vec!["process".into()],
            ..EventsFile::default()
        };
        let refusal = |change: &dyn Fn(&mut EventsFile)| {
            let mut config = Config::default();
            let mut changed = file.clone();
            change(&mut changed);
            config.sinks.events_files = vec![file.clone(), changed];
            config.validate().expect_err("refused").to_string()
        };
        let other = |f: &mut EventsFile| {
            f.name = "other".into();
            f.path = "/var/log/other.jsonl".into();
        };
        for (words, change) in [
            (
                "[1].name",
                &(|_: &mut EventsFile| {}) as &dyn Fn(&mut EventsFile),
            ),
            ("another sink's", &|f| f.name = "other".into()),
            ("absolute path", &|f| {
                other(f);
                f.path = "events.jsonl".into();
            }),
            ("kind=exec", &|f| {
                other(f);
                f.deny = vec!["kind!=exec".into()];
            }),
            ("did you mean `exec`?", &|f| {
                other(f);
                f.allow = vec!["kind=exce".into()];
            }),
            ("did you mean `process`?", &|f| {
                other(f);
                f.fields = vec!["proces".into()];
            }),
            ("too small", &|f| {
                other(f);
                f.max_bytes = 1;
            }),
        ] {
            let error = refusal(change);
            assert!(error.contains(words), "{words}: {error}");
        }
        let mut config = Config::default();
        config.sinks.events_files = vec![file];
        config.validate().expect("valid");
    }
}
