//! Which events does a Sigma log source mean here?
//!
//! Invariant: a bucket is a set of events; an event may be in several, and a rule is in one.

use audit_proto::{
    columns::{Content, Row, at},
    v1::Kind,
};
use rsigma_parser::LogSource;

use crate::field::kind;

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

    /// Whether an event belongs here. Failed file operations changed nothing and belong to no file
    /// bucket. The outcome record of a non-blocking connect repeats its first record, so only that
    /// one counts, lest each such connection alert twice.
    pub fn contains(self, gist: &Gist) -> bool {
        let Gist {
            kind,
            is_done,
            is_outcome,
            access,
        } = *gist;
        match self {
            Bucket::Everything => true,
            Bucket::ProcessCreation => kind == Kind::Exec,
            Bucket::NetworkConnection => match kind {
                Kind::Accept => true,
                Kind::Connect => !is_outcome,
                _ => false,
            },
            Bucket::DnsQuery => kind == Kind::Dns,
            Bucket::FileDelete => kind == Kind::Unlink && is_done,
            Bucket::FileRename => kind == Kind::Rename && is_done,
            Bucket::FileAccess => kind == Kind::Open && is_done,
            Bucket::FileChange => {
                kind == Kind::Open && matches!(access, Access::Write | Access::Truncate) && is_done
            }
            Bucket::FileEvent => match kind {
                Kind::Rename => is_done,
                Kind::Open => matches!(access, Access::Create | Access::Truncate) && is_done,
                _ => false,
            },
        }
    }
}

/// What of an event says into which buckets it belongs.
pub struct Gist {
    pub kind: Kind,
    is_done: bool,
    is_outcome: bool,
    access: Access,
}

#[derive(Debug, Clone, Copy)]
enum Access {
    Create,
    Truncate,
    Write,
    Other,
}

impl Gist {
    pub fn of(row: &impl Row) -> Self {
        let mut access = Access::Other;
        row.each(at::FILE_ACCESS, |content| {
            access = match content {
                Content::Text("create") => Access::Create,
                Content::Text("truncate") => Access::Truncate,
                Content::Text("write") => Access::Write,
                _ => Access::Other,
            };
        });
        let mut is_outcome = false;
        row.each(at::SOCKET_OUTCOME, |content| {
            is_outcome = content == Content::Bool(true);
        });
        Self {
            kind: kind(row),
            is_done: !row.has(at::RESULT_ERROR),
            is_outcome,
            access,
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
