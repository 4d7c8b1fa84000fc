//! Events and alerts as one JSON object on one line. Events are as [`audit_collector::json`] has
//! them, so that what is tailed and what is exported are one form.

use audit_collector::json::{self, Beside, push, rfc3339};
use audit_proto::v1::{Alert, Ancestor, Event, Rule};
use serde_json::json;

pub fn event(event: &Event, cursor: &str, masked: bool) -> String {
    json::event(event, Beside { cursor, masked })
}

/// An alert: its own fields, the rule's, and the whole event under `event`.
pub fn alert(alert: &Alert) -> String {
    let rule = alert.rule.as_ref();
    let mut out = String::from("{");
    push(&mut out, "number", &json!(alert.number));
    push(&mut out, "time", &json!(rfc3339(alert.time, 0)));
    push(&mut out, "rule", &rule.map_or(json!(null), rule_object));
    let ancestry: Vec<_> = alert.ancestry.iter().map(ancestor).collect();
    push(&mut out, "ancestry", &json!(ancestry));
    push(&mut out, "event_is_cut", &json!(alert.event_is_cut));
    if let Some(e) = &alert.event {
        out.push_str(",\"event\":");
        out.push_str(&event(e, &alert.cursor, false));
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

#[cfg(test)]
mod tests {
    use super::*;

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
            event_is_cut: true,
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
        assert_eq!(value["event_is_cut"], true);
    }
}
