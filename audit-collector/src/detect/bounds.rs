//! How much of what an agent says is kept beside its events? A program's arguments alone may have megabytes,
//! and an alert has those of the whole chain of its processes.

use audit_proto::{
    Message as _,
    columns::{self, COLUMNS, OwnedValue, Value},
    v1::Alert,
};

/// An alert up to this has its event whole.
const WHOLE_ALERT_BYTES: usize = 1 << 20;
/// Of one text, or of one list of them: as much as an agent keeps of a program's arguments.
pub const KEPT_BYTES: usize = 4096;

/// The beginning of a long text.
pub fn kept(text: &str) -> &str {
    &text[..text.floor_char_boundary(KEPT_BYTES)]
}

/// Takes an item into a list whose bound is `KEPT_BYTES`.
pub fn keep(list: &mut Vec<String>, item: &str) {
    let taken: usize = list.iter().map(String::len).sum();
    if let Some(room) = KEPT_BYTES.checked_sub(taken).filter(|room| *room > 0) {
        list.push(item[..item.floor_char_boundary(room)].to_owned());
    }
}

/// The same alert; of an event that is too large for one, the beginning of each text and list.
pub fn bounded(mut alert: Alert) -> Alert {
    if alert.encoded_len() <= WHOLE_ALERT_BYTES {
        return alert;
    }
    let Some(event) = &mut alert.event else {
        return alert;
    };
    for column in 0..COLUMNS.len() {
        let short = match columns::get(event, column) {
            Some(Value::Text(text)) if text.len() > KEPT_BYTES => {
                OwnedValue::Text(kept(&text).to_owned())
            }
            Some(Value::TextList(items)) => {
                let mut short = Vec::new();
                items.iter().for_each(|item| keep(&mut short, item));
                OwnedValue::TextList(short)
            }
            _ => continue,
        };
        // Of the column's type, since it is of its value.
        let _ = columns::set(event, column, short);
    }
    alert.event_is_cut = true;
    alert
}

#[cfg(test)]
mod tests {
    use audit_proto::v1::{Ancestor, Event, Process};

    use super::*;

    #[test]
    fn an_alert_of_any_event_fits_and_says_that_its_event_is_cut() {
        let mut event = Event::default();
        for (column, about) in COLUMNS.iter().enumerate() {
            let value = match about.ty {
                columns::ColumnType::Text => OwnedValue::Text("ä".repeat(100_000)),
                columns::ColumnType::TextList => OwnedValue::TextList(vec!["ä".repeat(3000); 40]),
                _ => OwnedValue::Int(7),
            };
            let _ = columns::set(&mut event, column, value);
        }
        let ancestor = Ancestor {
            exec_id: "x".repeat(KEPT_BYTES),
            exe: "x".repeat(KEPT_BYTES),
            argv: vec!["x".repeat(KEPT_BYTES)],
            pid: 1,
        };
        let alert = bounded(Alert {
            event: Some(event),
            ancestry: vec![ancestor; 32],
            ..Alert::default()
        });
        assert!(alert.event_is_cut);
        assert!(
            alert.encoded_len() < 2 * WHOLE_ALERT_BYTES,
            "{}",
            alert.encoded_len()
        );
        assert!(
            alert.encoded_len() > KEPT_BYTES * 100,
            "texts begin as they did"
        );
    }

    #[test]
    fn an_alert_of_an_event_as_they_are_has_it_whole() {
        let alert = Alert {
            event: Some(Event {
                process: Some(Process {
                    argv: vec!["x".repeat(100_000)],
                    ..Process::default()
                }),
                ..Event::default()
            }),
            ..Alert::default()
        };
        assert_eq!(bounded(alert.clone()), alert);
    }
}
