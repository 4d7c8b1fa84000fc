//! Where does an event keep what a Sigma field names?
//!
//! Sigma's names follow Sysmon; besides them each column of `audit_proto::columns` is a field by
//! its own name. Unknown is absent: a field without a value matches nothing but `null` and
//! `exists: false`.

use std::sync::LazyLock;

use audit_proto::{
    columns::{self, COLUMNS, ColumnType, Value},
    v1::{Event, Kind},
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

    /// Adds what `event` has to `values`.
    pub fn read(self, event: &Event, values: &mut Values) {
        match self {
            Field::Column(at) => column(event, at, values),
            Field::Image => image(event, values),
            Field::CommandLine => {
                if let Some(process) = &event.process {
                    values.push_joined(&process.argv);
                }
            }
            Field::ParentCommandLine => {
                if let Some(parent) = &event.parent {
                    values.push_joined(&parent.argv);
                }
            }
            Field::User => user(event, values),
            Field::TargetFilename => {
                let renamed = event.kind == Kind::Rename as i32;
                let file = if renamed {
                    &event.target_file
                } else {
                    &event.file
                };
                if let Some(file) = file {
                    values.push(&file.path);
                }
            }
            Field::Initiated => match Kind::try_from(event.kind) {
                Ok(Kind::Connect) => values.push("true"),
                Ok(Kind::Accept) => values.push("false"),
                _ => {}
            },
            Field::DestinationIp => endpoint(event, true, false, values),
            Field::DestinationPort => endpoint(event, true, true, values),
            Field::SourceIp => endpoint(event, false, false, values),
            Field::SourcePort => endpoint(event, false, true, values),
            Field::AnyText => {
                for &at in TEXT_COLUMNS.iter() {
                    column(event, at, values);
                }
                Field::CommandLine.read(event, values);
                Field::ParentCommandLine.read(event, values);
            }
        }
    }
}

fn column(event: &Event, at: usize, values: &mut Values) {
    match columns::get(event, at) {
        Some(Value::Text(text)) => values.push(&text),
        Some(Value::TextList(list)) => list.iter().for_each(|text| values.push(text)),
        Some(Value::Int(number)) => values.push_number(number),
        Some(Value::Bool(flag)) => values.push(if flag { "true" } else { "false" }),
        None => {}
    }
}

fn image(event: &Event, values: &mut Values) {
    let Some(process) = &event.process else {
        return;
    };
    values.push(&process.exe);
    if process.exe_invoked.starts_with('/') && process.exe_invoked != process.exe {
        values.push(&process.exe_invoked);
    }
}

fn user(event: &Event, values: &mut Values) {
    let Some(process) = &event.process else {
        return;
    };
    if !process.effective_user.is_empty() {
        values.push(&process.effective_user);
    } else if let Some(euid) = process.euid {
        values.push_number(euid);
    }
}

fn endpoint(event: &Event, destination: bool, port: bool, values: &mut Values) {
    let Some(socket) = &event.socket else {
        return;
    };
    // Of an accept, the peer is the side that began.
    let inbound = event.kind == Kind::Accept as i32;
    let side = if destination == inbound {
        &socket.local
    } else {
        &socket.peer
    };
    let Some(side) = side else {
        return;
    };
    if !port {
        values.push(&side.address);
    } else if let Some(port) = side.port {
        values.push_number(port);
    }
}
