//! What can somebody do to a record who has none of its keys?
//!
//! Guarantee: whatever is changed, left out, swapped or added, the record is found tampered with,
//! unless what is left is the beginning of the history that was sealed, byte for byte; but for events that
//! are told as missing, dropped by a key that the history does not reach (docs/ledger.md).
//!
//! Input: which history, then changes of it.

use std::sync::LazyLock;

use audit_ledger::{Frames, Key, Origin, Sealer, Summary, Verdict, Verifier, header, unpack};
use audit_proto::{
    Message as _,
    v1::{Batch, BatchHeader, Dropped, Lost},
};

use crate::input::Input;

const BATCHES: i64 = 6;
const MAX_CHANGES: usize = 8;
const SECOND: i64 = 1_000_000;

/// Nothing missing; with a loss; with a batch whose events were dropped.
static HISTORIES: LazyLock<[Vec<Batch>; 3]> = LazyLock::new(|| {
    let mut dropped = history(false);
    dropped.0[2] = dropped.1.drop_events(&dropped.0[2], "the spool was full");
    [history(false).0, history(true).0, dropped.0]
});

fn history(with_loss: bool) -> (Vec<Batch>, Sealer) {
    let mut sealer = Sealer::begin(Key::new(1, [7; 32]), Origin::default(), None);
    let mut batches = Vec::new();
    for at in 1..=BATCHES {
        let events = Frames::from_iter((0..at % 4).map(|n| format!("{at}:{n}")));
        let loss = Lost {
            place: "ring".to_owned(),
            count: Some(3),
            ..Lost::default()
        };
        let losses = match with_loss && at == 3 {
            true => vec![loss],
            false => Vec::new(),
        };
        let summary = Summary {
            sealed_time: at * SECOND,
            losses,
            next_within_ms: 10_000,
            ..Summary::default()
        };
        batches.push(sealer.seal(&events, summary));
        if at % 2 == 0 {
            sealer.evolve();
        }
    }
    (batches, sealer)
}

pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let sealed = &HISTORIES[input.below(HISTORIES.len())];
    let mut stored: Vec<Vec<u8>> = sealed.iter().map(Batch::encode_to_vec).collect();
    for _ in 0..MAX_CHANGES {
        if input.is_empty() || stored.is_empty() {
            break;
        }
        change(&mut stored, sealed, &mut input);
    }
    let mut verifier = Verifier::new();
    let mut found = Vec::new();
    for encoded in &stored {
        match Batch::decode(&encoded[..]) {
            Ok(batch) => {
                verifier.batch(&batch);
                found.push(batch);
            }
            Err(error) => verifier.unreadable(error.to_string()),
        }
    }
    let report = verifier.finish((BATCHES + 1) * SECOND);
    if report.verdict() == Verdict::Tampered {
        return;
    }
    assert!(found.len() == stored.len() && found.len() <= sealed.len());
    let headers: Vec<BatchHeader> = found.iter().map(fields).collect();
    let named = headers.iter().map(|header| header.epoch + 1).max();
    // Where nothing is here, everything may be missing.
    let mut untold = !found.is_empty();
    for ((found, sealed), header) in found.iter().zip(sealed).zip(&headers) {
        assert_eq!(found.header, sealed.header);
        let is_proven = |said: &Dropped| named.is_some_and(|epoch| said.epoch <= epoch);
        // Anybody may say that events were dropped by a key that nobody has named yet.
        if found.dropped.as_ref().is_none_or(is_proven) {
            assert_eq!(found.dropped, sealed.dropped);
            assert_eq!(events(found), events(sealed));
        }
        let nothing_dropped = |said: &Dropped| is_proven(said) && header.event_count == 0;
        untold &= found.dropped.as_ref().is_none_or(nothing_dropped);
        untold &= header.losses.is_empty();
    }
    let verdict = if untold {
        Verdict::Complete
    } else {
        Verdict::Incomplete
    };
    assert_eq!(report.verdict(), verdict);
}

fn fields(batch: &Batch) -> BatchHeader {
    header(batch).expect("looked at already").fields
}

fn events(batch: &Batch) -> Vec<Vec<u8>> {
    let frames = unpack(batch, &fields(batch)).expect("looked at already");
    frames.events().map(<[u8]>::to_vec).collect()
}

fn change(stored: &mut Vec<Vec<u8>>, sealed: &[Batch], input: &mut Input<'_>) {
    let (at, other) = (input.below(stored.len()), input.below(stored.len()));
    match input.byte() % 8 {
        0 => drop(stored.remove(at)),
        1 => stored.swap(at, other),
        2 => stored.insert(at, stored[other].clone()),
        3 => stored.truncate(at),
        4..6 => input.edit(&mut stored[at]),
        choice => {
            let Ok(mut batch) = Batch::decode(&stored[at][..]) else {
                return;
            };
            part(
                &mut batch,
                &sealed[input.below(sealed.len())],
                choice == 6,
                input,
            );
            stored[at] = batch.encode_to_vec();
        }
    }
}

/// Changes one field: it becomes another batch's, or is edited.
fn part(batch: &mut Batch, other: &Batch, edited: bool, input: &mut Input<'_>) {
    let which = input.byte() % 5;
    if which == 4 {
        let said = Dropped {
            epoch: input.number(1),
            public_key: header(other).map_or_else(|_| Vec::new(), |h| h.fields.public_key),
            signature: other.signature.to_vec(),
            reason: String::new(),
        };
        batch.dropped = edited.then_some(said);
        return;
    }
    let field = match which {
        0 => &mut batch.header,
        1 => &mut batch.signature,
        _ => &mut batch.events,
    };
    let from = match which {
        0 => &other.header,
        1 => &other.signature,
        _ => &other.events,
    };
    let mut bytes = match edited {
        true => field.to_vec(),
        false => from.to_vec(),
    };
    if edited {
        input.edit(&mut bytes);
    }
    *field = bytes.into();
}
