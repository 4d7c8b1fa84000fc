//! What is a record of the spool's log? A kind, and then a batch as it is sent, a mark of the source, or
//! the end of a history whose last batch left the log.
//!
//! Batches and the mark that covers them are written at once, and count together: a crash may leave some of
//! such a group, whose events the next run takes from the source again. So those batches are parts, which
//! count when their mark is there; that they are void is said before anything is written behind them.

use audit_ledger::{Header, Past};
use audit_proto::{Message as _, v1::Batch};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::State;

const BATCH: u8 = 1;
const MARK: u8 = 2;
const END: u8 = 3;
const PART: u8 = 4;
const VOID: u8 = 5;

#[derive(Debug)]
pub enum Record {
    Batch(Batch),
    /// Counts with the mark behind it.
    Part(Batch),
    Mark(State),
    End(End),
    /// Parts before it whose mark is not there do not count.
    Void,
}

/// Of a last batch: what the history goes on from.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct End {
    pub past: Past,
    pub host_id: String,
    /// It said that another one would follow.
    pub promised: bool,
}

impl End {
    pub fn of(header: &Header) -> Self {
        Self {
            past: Past::of(header),
            host_id: header.fields.host_id.clone(),
            promised: header.fields.next_within_ms > 0,
        }
    }
}

pub fn batch(batch: &Batch) -> Vec<u8> {
    encoded(BATCH, batch)
}

pub fn part(batch: &Batch) -> Vec<u8> {
    encoded(PART, batch)
}

pub fn void() -> Vec<u8> {
    vec![VOID]
}

fn encoded(kind: u8, batch: &Batch) -> Vec<u8> {
    let mut record = Vec::with_capacity(1 + batch.encoded_len());
    record.push(kind);
    // A Vec grows as needed, so encoding cannot run out of room.
    batch.encode_raw(&mut record);
    record
}

pub fn mark(state: &State) -> Vec<u8> {
    json(MARK, state)
}

pub fn end(end: &End) -> Vec<u8> {
    json(END, end)
}

fn json(kind: u8, value: &impl serde::Serialize) -> Vec<u8> {
    let mut record = vec![kind];
    // Numbers and texts: nothing that JSON refuses.
    let _ = serde_json::to_writer(&mut record, value);
    record
}

pub fn is_mark(record: &[u8]) -> bool {
    record.first() == Some(&MARK)
}

/// `None` for what this version does not know.
pub fn read(record: Vec<u8>) -> Option<Record> {
    let mut body = Bytes::from(record);
    let kind = body.first().copied()?;
    let body = body.split_off(1);
    match kind {
        BATCH => Batch::decode(body).ok().map(Record::Batch),
        PART => Batch::decode(body).ok().map(Record::Part),
        VOID => Some(Record::Void),
        MARK => serde_json::from_slice(&body).ok().map(Record::Mark),
        END => serde_json::from_slice(&body).ok().map(Record::End),
        _ => None,
    }
}
