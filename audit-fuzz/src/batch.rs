//! Does a batch decode to what its header says, or to an error?
//!
//! Guarantee: of any bytes, reading a batch ends without a panic and within the limits of the format;
//! what opens has as many events and bytes as its header says and their root, and nothing else, gives the
//! same events without the root's check and when packed again, and a history that begins with it has it as
//! its past.
//!
//! Input: a first byte that is even, then an encoded `Batch`; or an odd one, the count that the header
//! says, and the events as they are before compression.

use audit_ledger::{
    ChainError, Frames, Gap, Header, Past, Verdict, Verifier, header, open, root, unpack,
};
use audit_proto::{
    Message as _,
    v1::{Batch, BatchHeader},
};

use crate::{
    input::Input,
    sealing::{Keys, frame, hash, is_signed, pack},
};

/// Of docs/ledger.md.
const MAX_HEADER_BYTES: usize = 64 << 10;
const MAX_EVENT_BYTES: usize = 64 << 20;
const MAX_EVENTS: usize = 1 << 16;

pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    if input.flag() {
        return framed(&mut input);
    }
    if let Ok(batch) = Batch::decode(input.rest()) {
        check(&batch);
    }
}

/// Behind a header that says what is there, but for the count.
fn framed(input: &mut Input<'_>) {
    let count = input.number(1);
    let bytes = input.clone().rest();
    let mut fields = BatchHeader::default();
    frame(&[], &mut fields);
    fields.event_count = count as i32;
    fields.event_bytes = bytes.len() as i64;
    let batch = Keys::of_agent(0).sign(1, &fields, pack(bytes));
    let unpacked = unpack(&batch, &fields);
    let events = unpacked.map(|frames| frames.events().map(<[u8]>::to_vec).collect::<Vec<_>>());
    let again = events.map(|events| frame(&events, &mut fields));
    // Lengths may be written in more bytes than they need; then the same events are shorter.
    if let Ok(again) = again {
        assert!(again.len() <= bytes.len(), "events came in");
        assert_eq!(i64::from(fields.event_count), i64::from(count as i32));
    }
    check(&batch);
}

fn check(batch: &Batch) {
    let Ok(header) = header(batch) else { return };
    place(batch, &header);
    let Some((header, opened)) = read(batch) else {
        return;
    };
    if batch.dropped.is_some() {
        return;
    }
    alone(batch, &header.fields);
    let mut zstd = zstd::bulk::Compressor::new(3).expect("a level of zstd's");
    let again = Batch {
        events: opened.packed(&mut zstd).expect("packs again").into(),
        ..batch.clone()
    };
    let again = open(&again, &header.fields).expect("what was packed again is the same batch");
    assert!(opened.events().eq(again.events()));
}

/// Its header and events, if it is whole.
pub fn read(batch: &Batch) -> Option<(Header, Frames)> {
    let header = header(batch).ok()?;
    assert!((1..=MAX_HEADER_BYTES).contains(&batch.header.len()));
    assert_eq!(header.hash, hash(&[&batch.header]));
    let unpacked = unpack(batch, &header.fields);
    if let (Ok(frames), None) = (&unpacked, &batch.dropped) {
        assert_eq!(frames.len() as i64, i64::from(header.fields.event_count));
        assert_eq!(frames.bytes() as i64, header.fields.event_bytes);
        assert!(frames.bytes() <= MAX_EVENT_BYTES && frames.len() <= MAX_EVENTS);
    }
    let opened = open(batch, &header.fields).ok()?;
    let unpacked = unpacked.expect("what opens unpacks");
    assert!(opened.events().eq(unpacked.events()));
    if batch.dropped.is_some() {
        assert!(opened.is_empty());
    } else {
        let events: Vec<&[u8]> = opened.events().collect();
        assert_eq!(root(&events)[..], header.fields.root[..]);
    }
    Some((header, opened))
}

/// With something behind the events that is none of them, it is another batch.
fn alone(batch: &Batch, fields: &BatchHeader) {
    const SKIPPED: [u8; 9] = *b"\x50\x2a\x4d\x18\x01\0\0\0x";
    for more in [&SKIPPED[..], &pack(&[]), b"\0"] {
        let events = [&batch.events, more].concat().into();
        let batch = Batch {
            events,
            ..batch.clone()
        };
        assert!(open(&batch, fields).is_err(), "bytes behind the events");
    }
}

/// In a history, and in the sight of who verifies one.
fn place(batch: &Batch, header: &Header) {
    if let Ok(past) = Past::begin(batch, header) {
        assert!(is_signed(batch, &header.fields));
        assert_eq!(past, Past::of(header));
        for gap in [Gap::Refused, Gap::Allowed] {
            let again = past.follow(batch, header, gap);
            assert_eq!(again, Err(ChainError::Again(header.fields.batch)));
        }
    }
    let mut verifier = Verifier::new();
    verifier.batch(batch);
    verifier.fork(batch);
    let report = verifier.finish(header.fields.sealed_time);
    assert_eq!(report.batches(), 1);
    if report.verdict() == Verdict::Complete {
        assert!(is_signed(batch, &header.fields) && header.fields.batch == 1);
        assert!(
            open(batch, &header.fields).is_ok_and(|frames| report.events() == frames.len() as i64)
        );
    }
}
