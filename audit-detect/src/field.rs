//! Where does an event keep what a Sigma field names?
//!
//! Sigma's names follow Sysmon; besides them each column of `audit_proto::columns` is a field by
//! its own name. Unknown is absent: a field without a value matches nothing but `null` and
//! `exists: false`.

use std::sync::LazyLock;

use audit_proto::{
    columns::{self, COLUMNS, ColumnType, Content, Row, at},
    v1::Kind,
};

use crate::values::Values;

/// What to read for one Sigma field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Field {
    /// A column, by its position in `COLUMNS`; of a list, each member.
    Column(usize),
    /// The resolved program, and the path as invoked where that is absolute: rules name links
    /// and multi-call programs as often as what they resolve to.
    Image,
    /// argv joined by one space.
    CommandLine,
    ParentCommandLine,
    /// Name of the effective user, or the number where it has no name.
    User,
    /// What a rename made, else the file acted on.
    TargetFilename,
    /// "true" for connect, "false" for accept.
    Initiated,
    /// Of the side that was connected to.
    DestinationIp,
    DestinationPort,
    /// Of the side that began.
    SourceIp,
    SourcePort,
    /// Every text of the event, for keywords.
    AnyText,
}

/// Of which of an event's parts (`columns::PARTS`) alone does it have a field?
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Home {
    Part(usize),
    /// The file acted on, but of a rename what it made.
    Target,
    /// Of several, of none, or of the kind too.
    Elsewhere,
}

impl Home {
    pub fn part(self, row: &impl Row) -> Option<usize> {
        match self {
            Home::Part(part) => Some(part),
            Home::Target if kind(row) == Kind::Rename => None,
            Home::Target => COLUMNS[at::FILE_PATH].part,
            Home::Elsewhere => None,
        }
    }
}

/// Sigma names that are one column here.
const RENAMED: &[(&str, &str)] = &[
    ("ProcessId", "process_pid"),
    ("ParentProcessId", "parent_pid"),
    ("ParentImage", "parent_exe"),
    ("ParentUser", "parent_user"),
    ("LogonId", "process_uid"),
    ("CurrentDirectory", "process_cwd"),
    ("SourceFilename", "file_path"),
    ("Protocol", "socket_protocol"),
    // Only what was connected to has a name.
    ("DestinationHostname", "socket_peer_name"),
    ("QueryName", "dns_query_name"),
    ("QueryResults", "dns_answers"),
    // Those of Sigma's category dns, after Zeek's.
    ("query", "dns_query_name"),
    ("answer", "dns_answers"),
    ("record_type", "dns_query_type"),
    ("Computer", "host_name"),
];

/// The columns that hold text, for keyword search.
static TEXT_COLUMNS: LazyLock<Vec<usize>> = LazyLock::new(|| {
    let text = |ty| matches!(ty, ColumnType::Text | ColumnType::TextList);
    (0..COLUMNS.len())
        .filter(|&at| text(COLUMNS[at].ty))
        .collect()
});

impl Field {
    pub fn home(self) -> Home {
        let of = |column: usize| COLUMNS[column].part.map_or(Home::Elsewhere, Home::Part);
        match self {
            Field::Column(at) => of(at),
            Field::Image | Field::CommandLine | Field::User => of(at::PROCESS_EXE),
            Field::ParentCommandLine => of(at::PARENT_ARGV),
            Field::TargetFilename => Home::Target,
            Field::Initiated
            | Field::DestinationIp
            | Field::DestinationPort
            | Field::SourceIp
            | Field::SourcePort
            | Field::AnyText => Home::Elsewhere,
        }
    }

    /// The field called `name`, if events here can have it.
    pub fn named(name: &str) -> Option<Field> {
        Some(match name {
            "Image" => Field::Image,
            "CommandLine" => Field::CommandLine,
            "ParentCommandLine" => Field::ParentCommandLine,
            "User" => Field::User,
            "TargetFilename" => Field::TargetFilename,
            "Initiated" => Field::Initiated,
            "DestinationIp" => Field::DestinationIp,
            "DestinationPort" => Field::DestinationPort,
            "SourceIp" => Field::SourceIp,
            "SourcePort" => Field::SourcePort,
            _ => {
                let renamed = RENAMED.iter().find(|(sigma, _)| *sigma == name);
                Field::Column(columns::index(renamed.map_or(name, |(_, column)| column))?)
            }
        })
    }

    /// Adds what `row` has to `values`.
    pub fn read(self, row: &impl Row, values: &mut Values) {
        match self {
            Field::Column(at) => column(row, at, values),
            Field::Image => {
                column(row, at::PROCESS_EXE, values);
                row.each(at::PROCESS_EXE_INVOKED, |content| match content {
                    Content::Text(text) if text.starts_with('/') => values.push_other(text),
                    _ => {}
                });
            }
            Field::CommandLine => joined(row, at::PROCESS_ARGV, values),
            Field::ParentCommandLine => joined(row, at::PARENT_ARGV, values),
            Field::User => match row.has(at::PROCESS_EFFECTIVE_USER) {
                true => column(row, at::PROCESS_EFFECTIVE_USER, values),
                false => column(row, at::PROCESS_EUID, values),
            },
            Field::TargetFilename => match kind(row) {
                Kind::Rename => column(row, at::TARGET_FILE_PATH, values),
                _ => column(row, at::FILE_PATH, values),
            },
            Field::Initiated => match kind(row) {
                Kind::Connect => values.push("true"),
                Kind::Accept => values.push("false"),
                _ => {}
            },
            Field::DestinationIp => {
                let at = side(row, at::SOCKET_PEER_ADDRESS, at::SOCKET_LOCAL_ADDRESS);
                column(row, at, values);
            }
            Field::DestinationPort => {
                let at = side(row, at::SOCKET_PEER_PORT, at::SOCKET_LOCAL_PORT);
                column(row, at, values);
            }
            Field::SourceIp => {
                let at = side(row, at::SOCKET_LOCAL_ADDRESS, at::SOCKET_PEER_ADDRESS);
                column(row, at, values);
            }
            Field::SourcePort => {
                let at = side(row, at::SOCKET_LOCAL_PORT, at::SOCKET_PEER_PORT);
                column(row, at, values);
            }
            Field::AnyText => {
                for &at in TEXT_COLUMNS.iter() {
                    column(row, at, values);
                }
                Field::CommandLine.read(row, values);
                Field::ParentCommandLine.read(row, values);
            }
        }
    }
}

/// Unspecified where this version does not know it.
pub fn kind(row: &impl Row) -> Kind {
    let mut kind = None;
    row.each(at::KIND, |content| {
        if let Content::Text(name) = content {
            kind = columns::kind_number(name).and_then(|number| Kind::try_from(number).ok());
        }
    });
    kind.unwrap_or(Kind::Unspecified)
}

/// Of an accept, the peer is the side that began.
fn side(row: &impl Row, usually: usize, accepted: usize) -> usize {
    match kind(row) {
        Kind::Accept => accepted,
        _ => usually,
    }
}

fn column(row: &impl Row, at: usize, values: &mut Values) {
    row.each(at, |content| match content {
        Content::Text(text) | Content::Item(text) => values.push(text),
        Content::Int(number) => values.push_number(number),
        Content::Bool(flag) => values.push(if flag { "true" } else { "false" }),
    });
}

fn joined(row: &impl Row, at: usize, values: &mut Values) {
    values.push_joined(|part| {
        row.each(at, |content| {
            if let Content::Item(text) = content {
                part(text);
            }
        });
    });
}
