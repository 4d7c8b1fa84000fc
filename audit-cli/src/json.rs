//! An event as one JSON object on one line: the flat columns that are set, under their names.

use audit_proto::{
    columns::{self, COLUMNS, ColumnType, Value},
    v1::{Alert, Ancestor, Event, Rule},
};
use serde_json::json;

use crate::when;

/// `time` carries the nanoseconds, so the remainder column is left out. `cursor` resumes after it.
pub fn event(event: &Event, cursor: &str) -> String {
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
                json!(when::rfc3339(micros, event.time_remainder_ns.into()))
            }
            (_, Value::Int(v)) => json!(v),
            (_, Value::Bool(v)) => json!(v),
            (_, Value::Text(v)) => json!(v),
            (_, Value::TextList(v)) => json!(v),
        };
        push(&mut out, column.name, &value);
    }
    if !cursor.is_empty() {
        push(&mut out, "cursor", &json!(cursor));
    }
    out.push('}');
    out
}

/// An alert: its own fields, the rule's, and the whole event under `event`.
pub fn alert(alert: &Alert) -> String {
    let rule = alert.rule.as_ref();
    let mut out = String::from("{");
    push(&mut out, "number", &json!(alert.number));
    push(&mut out, "time", &json!(when::rfc3339(alert.time, 0)));
    push(&mut out, "rule", &rule.map_or(json!(null), rule_object));
    let ancestry: Vec<_> = alert.ancestry.iter().map(ancestor).collect();
    push(&mut out, "ancestry", &json!(ancestry));
    if let Some(e) = &alert.event {
        out.push_str(",\"event\":");
        out.push_str(&event(e, &alert.cursor));
    }
    out.push('}');
    out
}

fn rule_object(rule: &Rule) -> serde_json::Value {
    json!({
        "id": rule.id, "title": rule.title, "author": rule.author, "level": rule.level,
        "tags": rule.tags, "link": rule.link, "description": rule.description,
    })
}

fn ancestor(process: &Ancestor) -> serde_json::Value {
    json!({
        "exec_id": process.exec_id, "pid": process.pid, "exe": process.exe, "argv": process.argv,
    })
}

fn push(out: &mut String, name: &str, value: &serde_json::Value) {
    if !out.ends_with('{') {
        out.push(',');
    }
    // Names are ours; only values need escaping.
    out.push_str(&format!("\"{name}\":{value}"));
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
        let line = event(&e, "42");
        assert!(!line.contains('\n'), "{line}");
        let value: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(value["time"], "1970-01-01T00:00:01.000001007Z");
        assert_eq!(value["kind"], "exec");
        assert_eq!(value["process_pid"], 7);
        assert_eq!(value["process_argv"], json!(["a\n\"b", ""]));
        assert_eq!(value["process_exe_memfd"], true);
        assert_eq!(value["cursor"], "42");
        assert!(value.get("process_uid").is_none() && value.get("time_remainder_ns").is_none());
    }

    #[test]
    fn an_alert_holds_rule_event_and_ancestry() {
        let a = Alert {
            number: 3,
            time: 5,
            rule: Some(Rule {
                title: "T".to_owned(),
                ..Default::default()
            }),
            event: Some(Event {
                kind: 40,
                ..Default::default()
            }),
            ancestry: vec![Ancestor {
                pid: 1,
                ..Default::default()
            }],
            cursor: "9".to_owned(),
        };
        let value: serde_json::Value = serde_json::from_str(&alert(&a)).expect("JSON");
        assert_eq!(value["rule"]["title"], "T");
        assert_eq!(value["event"]["kind"], "open");
        assert_eq!(value["event"]["cursor"], "9");
        assert_eq!(value["ancestry"][0]["pid"], 1);
    }
}
