//! Which events does a Sigma log source mean here?
//!
//! Invariant: a bucket is a set of events; an event may be in several, and a rule is in one.

use audit_proto::v1::{Event, Kind};
use rsigma_parser::LogSource;

/// The service name under which a rule sees every kind of event, by our own column names.
const OWN_SERVICE: &str = "hostaudit";

/// A set of events that rules are written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Bucket {
    /// exec
    ProcessCreation,
    /// A file got a new name or new content: open with access create or truncate, rename.
    FileEvent,
    /// Any successful open that is reported, reads of watched paths included.
    FileAccess,
    /// open with access write or truncate
    FileChange,
    /// unlink
    FileDelete,
    /// rename
    FileRename,
    /// connect, accept
    NetworkConnection,
    /// dns: queries and answers, because a process may only ask, or ask in a way that is not seen.
    DnsQuery,
    /// Every event; `service: hostaudit` without a category.
    Everything,
}

impl Bucket {
    pub const ALL: [Bucket; 9] = [
        Bucket::ProcessCreation,
        Bucket::FileEvent,
        Bucket::FileAccess,
        Bucket::FileChange,
        Bucket::FileDelete,
        Bucket::FileRename,
        Bucket::NetworkConnection,
        Bucket::DnsQuery,
        Bucket::Everything,
    ];

    /// The bucket a log source names, or a description of the log source if there is none.
    pub fn of(source: &LogSource) -> Result<Bucket, String> {
        let unknown = || Err(describe(source));
        if !matches!(source.product.as_deref(), None | Some("linux")) || !source.custom.is_empty() {
            return unknown();
        }
        Ok(
            match (source.category.as_deref(), source.service.as_deref()) {
                (None, Some(OWN_SERVICE)) => Bucket::Everything,
                (Some(category), None | Some(OWN_SERVICE)) => match category {
                    "process_creation" => Bucket::ProcessCreation,
                    "file_event" => Bucket::FileEvent,
                    "file_access" => Bucket::FileAccess,
                    "file_change" => Bucket::FileChange,
                    "file_delete" => Bucket::FileDelete,
                    "file_rename" => Bucket::FileRename,
                    "network_connection" => Bucket::NetworkConnection,
                    "dns_query" | "dns" => Bucket::DnsQuery,
                    _ => return unknown(),
                },
                _ => return unknown(),
            },
        )
    }

    /// As in a rule's `logsource`.
    pub fn name(self) -> &'static str {
        match self {
            Bucket::ProcessCreation => "process_creation",
            Bucket::FileEvent => "file_event",
            Bucket::FileAccess => "file_access",
            Bucket::FileChange => "file_change",
            Bucket::FileDelete => "file_delete",
            Bucket::FileRename => "file_rename",
            Bucket::NetworkConnection => "network_connection",
            Bucket::DnsQuery => "dns_query",
            Bucket::Everything => OWN_SERVICE,
        }
    }

    /// Whether `event` belongs here. Failed file operations changed nothing and belong to no file
    /// bucket. The outcome record of a non-blocking connect repeats its first record, so only that
    /// one counts, lest each such connection alert twice.
    pub fn contains(self, event: &Event) -> bool {
        let kind = Kind::try_from(event.kind).unwrap_or(Kind::Unspecified);
        let done = || event.result.as_ref().is_none_or(|r| r.error.is_empty());
        let access = || event.file.as_ref().map_or("", |f| f.access.as_str());
        match self {
            Bucket::Everything => true,
            Bucket::ProcessCreation => kind == Kind::Exec,
            Bucket::NetworkConnection => match kind {
                Kind::Accept => true,
                Kind::Connect => event
                    .socket
                    .as_ref()
                    .is_none_or(|s| s.outcome != Some(true)),
                _ => false,
            },
            Bucket::DnsQuery => kind == Kind::Dns,
            Bucket::FileDelete => kind == Kind::Unlink && done(),
            Bucket::FileRename => kind == Kind::Rename && done(),
            Bucket::FileAccess => kind == Kind::Open && done(),
            Bucket::FileChange => {
                kind == Kind::Open && matches!(access(), "write" | "truncate") && done()
            }
            Bucket::FileEvent => match kind {
                Kind::Rename => done(),
                Kind::Open => matches!(access(), "create" | "truncate") && done(),
                _ => false,
            },
        }
    }
}

fn describe(source: &LogSource) -> String {
    let parts = [
        ("product", &source.product),
        ("category", &source.category),
        ("service", &source.service),
    ];
    let mut text = String::new();
    let known = parts
        .iter()
        .filter_map(|(name, value)| Some((*name, value.as_deref()?)));
    let custom = source
        .custom
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()));
    for (name, value) in known.chain(custom) {
        if !text.is_empty() {
            text.push('/');
        }
        text.push_str(name);
        text.push('=');
        text.push_str(value);
    }
    if text.is_empty() {
        "(none given)".to_owned()
    } else {
        text
    }
}
