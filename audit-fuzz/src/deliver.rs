//! What may an agent deliver, and what becomes of its events?
//!
//! Guarantee: a message of any bytes is read or refused, as the collector does it: message, header,
//! place in the history, events, columns. Events that were sealed are those that arrive. What a column
//! gives can be set again and is the same then, what an event says encodes to the same event, and its
//! cells read without decoding are those of the decoded one.
//!
//! Input: a first byte that is even, then an encoded `DeliverRequest`; or an odd one, then events, each
//! after its length.

use audit_ledger::{Frames, Gap, Key, Origin, Past, Sealer, Summary};
use audit_proto::{
    Message as _,
    columns::{self, Content, Row, Value},
    totals::{ClassTotals, FilterTotal},
    v1::{Batch, DeliverRequest, Event, deliver_request::Message},
};

use crate::{batch, input::Input};

const MAX_EVENTS: usize = 64;

pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    if input.flag() {
        return sealed(&mut input);
    }
    let Ok(request) = DeliverRequest::decode(input.rest()) else {
        return;
    };
    let again = DeliverRequest::decode(&request.encode_to_vec()[..]);
    assert_eq!(again.as_ref(), Ok(&request));
    if let Some(Message::Batch(batch)) = request.message {
        take(&batch, None);
    }
}

/// By an agent's own code, in two batches.
fn sealed(input: &mut Input<'_>) {
    let mut events = Vec::new();
    while !input.is_empty() && events.len() < MAX_EVENTS {
        events.push(input.piece());
    }
    let mut sealer = Sealer::begin(Key::new(1, [3; 32]), Origin::default(), None);
    let mut past = None;
    for half in events.chunks(events.len().div_ceil(2).max(1)) {
        let batch = sealer.seal(&half.iter().collect(), Summary::default());
        let message = Some(Message::Batch(batch));
        let wire = DeliverRequest { message }.encode_to_vec();
        let Ok(Some(Message::Batch(batch))) = DeliverRequest::decode(&wire[..]).map(|r| r.message)
        else {
            panic!("what was sent is no batch");
        };
        let (next, frames) = take(&batch, past).expect("what was sealed is accepted");
        assert!(frames.events().eq(half.iter().copied()));
        past = Some(next);
    }
}

/// As the collector takes a batch; its events if they may be stored.
fn take(batch: &Batch, past: Option<Past>) -> Option<(Past, Frames)> {
    let (header, frames) = batch::read(batch)?;
    let placed = match &past {
        None => Past::begin(batch, &header),
        Some(past) => past.follow(batch, &header, Gap::Refused),
    };
    for bytes in frames.events() {
        let decoded = Event::decode(bytes).ok();
        if let Some(found) = &decoded {
            event(found);
        }
        cells(bytes, decoded.as_ref());
    }
    Some((placed.ok()?, frames))
}

fn event(event: &Event) {
    let again = Event::decode(&event.encode_to_vec()[..]);
    assert_eq!(again.as_ref(), Ok(event));
    let mut row = Event::default();
    for column in 0..columns::COLUMNS.len() {
        if let Some(value) = columns::get(event, column) {
            columns::set(&mut row, column, value.into_owned()).expect("of the column's type");
        }
    }
    for (column, about) in columns::COLUMNS.iter().enumerate() {
        let value = columns::get(event, column);
        assert_eq!(columns::get(&row, column), value, "{}", about.name);
        if let Some(Value::TextList(lines)) = value {
            lines.iter().for_each(|line| totals(line));
        }
    }
    // A sub-message that is there and empty is not in the row; otherwise nothing is lost.
    let bytes = row.encode_to_vec();
    assert!(bytes.len() <= event.encode_to_vec().len());
    assert_eq!(Event::decode(&bytes[..]), Ok(row));
}

/// Reading them without decoding gives the same as decoding, or nothing.
fn cells(encoded: &[u8], decoded: Option<&Event>) {
    let Some(found) = told(encoded) else {
        return;
    };
    let event = decoded.expect("an event with cells can be decoded");
    for ((column, about), found) in columns::COLUMNS.iter().enumerate().zip(found) {
        let mut expected = Vec::new();
        event.each(column, |content| expected.push(format!("{content:?}")));
        assert_eq!(found, expected, "{}", about.name);
    }
}

/// What reading says of each column, if it says something.
fn told(encoded: &[u8]) -> Option<Vec<Vec<String>>> {
    let mut told = vec![Vec::new(); columns::COLUMNS.len()];
    let mut tell = |column: usize, content: Content<'_>| {
        told[column].push(format!("{content:?}"));
    };
    let (mut parts, mut cells) = (Vec::new(), Vec::new());
    columns::split(encoded, &mut parts, &mut cells)?;
    cells
        .iter()
        .for_each(|cell| tell(cell.column, cell.content));
    for (part, bytes) in parts {
        columns::part(part, bytes, &mut cells)?;
        cells
            .iter()
            .for_each(|cell| tell(cell.column, cell.content));
    }
    Some(told)
}

pub fn totals(line: &str) {
    if let Ok(found) = line.parse::<ClassTotals>() {
        assert_eq!(found.to_string().parse(), Ok(found));
    }
    if let Ok(found) = line.parse::<FilterTotal>() {
        assert_eq!(found.to_string().parse(), Ok(found));
    }
}
