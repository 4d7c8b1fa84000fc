//! An event as one JSON object on one line: the flat columns that are set, under their names. The one
//! definition for `hostaudit tail -o json` and the files of `sinks.events_files`.

use audit_proto::{
    columns::{self, COLUMNS, ColumnType, Value},
    v1::Event,
};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

/// What a line has beside the event's columns.
#[derive(Debug, Clone, Copy, Default)]
pub struct Beside<'a> {
    /// Resumes after the event. The last key of a line.
    pub cursor: &'a str,
    /// Columns were left out on request.
    pub masked: bool,
}

/// `time` carries the nanoseconds, so the remainder column is left out. Without a line feed.
pub fn event(event: &Event, beside: Beside<'_>) -> String {
    let mut out = String::with_capacity(1024);
    out.push('{');
    for (at, column) in COLUMNS.iter().enumerate() {
        if column.name == "time_remainder_ns" {
            continue;
        }
        let Some(value) = columns::get(event, at) else {
            continue;
        };
        let value = match (column.ty, value) {
            (ColumnType::Time, Value::Int(micros)) => {
                json!(rfc3339(micros, event.time_remainder_ns.into()))
            }
            (_, Value::Int(v)) => json!(v),
            (_, Value::Bool(v)) => json!(v),
            (_, Value::Text(v)) => json!(v),
            (_, Value::TextList(v)) => json!(v),
        };
        push(&mut out, column.name, &value);
    }
    if beside.masked {
        push(&mut out, "masked", &json!(true));
    }
    if !beside.cursor.is_empty() {
        push(&mut out, "cursor", &json!(beside.cursor));
    }
    out.push('}');
    out
}

/// Appends a member to an object that is not closed yet; `name` needs no escape.
pub fn push(out: &mut String, name: &str, value: &serde_json::Value) {
    if !out.ends_with('{') {
        out.push(',');
    }
    out.push_str(&format!("\"{name}\":{value}"));
}

/// RFC 3339 in UTC with nanoseconds.
pub fn rfc3339(micros: i64, remainder_ns: i64) -> String {
    Timestamp::from_microsecond(micros)
        .and_then(|t| t.checked_add(SignedDuration::from_nanos(remainder_ns)))
        .map_or_else(|_| micros.to_string(), |t| format!("{t:.9}"))
}

#[cfg(test)]
mod tests {
    use audit_proto::v1::Process;

    use super::*;

    #[test]
    fn columns_keep_their_names_and_types() {
        let e = Event {
            id: "r-process-0-1".to_owned(),
            time: 1_000_001,
            time_remainder_ns: 7,
            kind: 1,
            process: Some(Process {
                pid: Some(7),
                argv: vec!["a\n\"b".to_owned(), String::new()],
                exe_memfd: Some(true),
                ..Default::default()
            }),
            ..Default::default()
        };
        let beside = Beside {
            cursor: "42",
            masked: true,
        };
        let line = event(&e, beside);
        assert!(!line.contains('\n'), "{line}");
        assert!(line.ends_with(",\"cursor\":\"42\"}"), "{line}");
        let value: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(value["time"], "1970-01-01T00:00:01.000001007Z");
        assert_eq!(value["kind"], "exec");
        assert_eq!(value["process_pid"], 7);
        assert_eq!(value["process_argv"], json!(["a\n\"b", ""]));
        assert_eq!(value["process_exe_memfd"], true);
        assert_eq!(value["masked"], true);
        assert!(value.get("process_uid").is_none() && value.get("time_remainder_ns").is_none());
        let whole = event(&e, Beside::default());
        assert!(!whole.contains("masked") && !whole.contains("cursor"));
    }
}
