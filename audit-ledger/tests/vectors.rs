//! The published test vectors are what this crate makes of them. To write them anew:
//! `HOSTAUDIT_WRITE_VECTORS=1 cargo test -p audit-ledger --test vectors`.

use std::path::Path;

use audit_ledger::{
    Former, Frames, Key, Origin, Sealer, Summary, Tampering, Verdict, Verifier, agent_id, header,
    root,
};
use audit_proto::{
    Message as _,
    v1::{Batch, BatchRange, ClassCount, Lost},
};
use serde_json::{Value, json};

const SECOND: i64 = 1_000_000;
/// 2026-05-01T08:00:00Z
const BEGAN: i64 = 1_777_622_400 * SECOND;
const COUNT: i64 = 12;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn roots() -> Vec<Value> {
    let of = |count: usize| {
        let events: Vec<Vec<u8>> = (0..count).map(|n| vec![n as u8; n * 7 % 70]).collect();
        let encoded: Vec<String> = events.iter().map(|event| hex(event)).collect();
        json!({ "events": encoded, "root": hex(&root(&events)) })
    };
    [0, 1, 2, 3, 4, 5, 8, 17].map(of).to_vec()
}

fn keys() -> Vec<Value> {
    let of = |seed: [u8; 32]| {
        let mut key = Key::new(1, seed);
        let name = agent_id(&key.public());
        let mut epochs = Vec::new();
        for _ in 0..4 {
            epochs.push(json!({
                "epoch": key.epoch(), "public_key": hex(&key.public()),
                "next_public_key": hex(&key.next_public()),
            }));
            key.evolve();
        }
        json!({ "seed": hex(&seed), "agent_id": name, "epochs": epochs })
    };
    vec![of([0; 32]), of([7; 32])]
}

fn summary(at: i64) -> Summary {
    Summary {
        sealed_time: BEGAN + at * SECOND,
        first_time: BEGAN + at * SECOND - 9,
        last_time: BEGAN + at * SECOND - 1,
        classes: vec![ClassCount {
            class: 3,
            events: 2,
        }],
        next_within_ms: 10_000,
        ..Summary::default()
    }
}

fn events(at: i64) -> Frames {
    Frames::from_iter([format!("{at} a"), format!("{at} b")])
}

/// A history with a new key after every fourth batch.
fn history() -> (Vec<Batch>, Sealer) {
    let origin = Origin {
        host_id: "0123456789abcdef0123456789abcdef".to_owned(),
        boot_id: "5f2ac01b-9d3e-4c55-8a11-000000000000".to_owned(),
        run: "0badcafe0001".to_owned(),
    };
    let mut sealer = Sealer::begin(Key::new(1, [7; 32]), origin, None);
    let mut batches = Vec::new();
    for at in 1..=COUNT {
        batches.push(sealer.seal(&events(at), summary(at)));
        if at % 4 == 0 {
            sealer.evolve();
        }
    }
    (batches, sealer)
}

fn changed(change: impl FnOnce(&mut Vec<Batch>, &mut Sealer)) -> Vec<Batch> {
    let (mut batches, mut sealer) = history();
    change(&mut batches, &mut sealer);
    batches
}

/// The last byte of a text in the header, which leaves the header readable.
fn other_host(batch: &mut Batch) {
    let mut header = batch.header.to_vec();
    let at = header.windows(6).position(|window| window == b"abcdef");
    header[at.expect("the host's id")] = b'b';
    batch.header = header.into();
}

#[expect(clippy::too_many_lines, reason = "a list")]
fn cases() -> Vec<(&'static str, Vec<Batch>)> {
    let other = || Sealer::begin(Key::new(1, [9; 32]), Origin::default(), None);
    vec![
        ("whole", history().0),
        (
            "changed events",
            changed(|b, _| b[6].events = b[7].events.clone()),
        ),
        ("changed header", changed(|b, _| other_host(&mut b[4]))),
        (
            "signature of another batch",
            changed(|b, _| b[4].signature = b[5].signature.clone()),
        ),
        ("deleted in the middle", changed(|b, _| drop(b.drain(3..9)))),
        (
            "deleted at the beginning",
            changed(|b, _| drop(b.drain(..2))),
        ),
        ("reordered", changed(|b, _| b.swap(5, 6))),
        ("replayed", changed(|b, _| b.insert(9, b[4].clone()))),
        (
            "lost events",
            changed(|b, sealer| {
                let lost = Lost {
                    class: 3,
                    cpu: Some(1),
                    first_sequence: Some(5),
                    last_sequence: Some(9),
                    count: Some(5),
                    place: "ring".to_owned(),
                    ..Lost::default()
                };
                let losses = vec![lost];
                b.push(sealer.seal(
                    &events(13),
                    Summary {
                        losses,
                        ..summary(13)
                    },
                ));
            }),
        ),
        (
            "dropped by the agent",
            changed(|b, sealer| {
                b[5] = sealer.drop_events(&b[5], "the spool was full");
            }),
        ),
        (
            "dropped by somebody else",
            changed(|b, _| {
                b[7] = other().drop_events(&b[7], "the spool was full");
            }),
        ),
        (
            "lost by the collector, as the agent says",
            changed(|b, sealer| {
                drop(b.drain(3..7));
                let range = BatchRange {
                    first_batch: 4,
                    last_batch: 7,
                };
                let gaps = vec![range];
                b.push(sealer.seal(
                    &events(13),
                    Summary {
                        gaps,
                        ..summary(13)
                    },
                ));
            }),
        ),
        (
            "lost by the collector, and the proof of the next key with it",
            changed(|b, sealer| {
                drop(b.drain(3..10));
                let range = BatchRange {
                    first_batch: 4,
                    last_batch: 10,
                };
                let gaps = vec![range];
                b.push(sealer.seal(
                    &events(13),
                    Summary {
                        gaps,
                        ..summary(13)
                    },
                ));
            }),
        ),
        (
            "ended in order",
            changed(|b, sealer| {
                b.push(sealer.seal(
                    &Frames::default(),
                    Summary {
                        next_within_ms: 0,
                        ..summary(13)
                    },
                ));
            }),
        ),
        ("took the place of another", {
            let (batches, sealer) = history();
            let former = Former {
                agent_id: sealer.agent_id().to_owned(),
                batch: COUNT + 2,
            };
            let mut next = Sealer::begin(Key::new(1, [8; 32]), Origin::default(), Some(former));
            let first = next.seal(&events(1), summary(COUNT));
            batches.into_iter().chain([first]).collect()
        }),
    ]
}

fn case((name, batches): (&str, Vec<Batch>), time: i64) -> Value {
    let mut verifier = Verifier::new();
    batches.iter().for_each(|batch| verifier.batch(batch));
    let report = verifier.finish(time);
    let findings = report.histories.iter().flat_map(|h| &h.findings);
    let findings: Vec<Value> = findings
        .map(|found| json!({ "tampering": found.tampering.name(), "batch": found.batch }))
        .collect();
    let verdict = match report.verdict() {
        Verdict::Complete => "complete",
        Verdict::Incomplete => "incomplete",
        Verdict::Tampered => "tampered",
    };
    json!({
        "name": name, "time": time, "verdict": verdict, "events": report.events(),
        "findings": findings,
        "batches": batches.iter().map(|b| hex(&b.encode_to_vec())).collect::<Vec<_>>(),
    })
}

#[test]
fn the_published_vectors_are_what_this_crate_makes() {
    let soon = BEGAN + (COUNT + 1) * SECOND;
    let late = BEGAN + (COUNT + 60) * SECOND;
    let mut histories: Vec<Value> = cases().into_iter().map(|c| case(c, soon)).collect();
    histories.push(case(("cut off at the end, or down", history().0), late));
    let made = json!({ "roots": roots(), "keys": keys(), "histories": histories });
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/ledger-vectors.json");
    let text = format!("{made:#}\n");
    if std::env::var_os("HOSTAUDIT_WRITE_VECTORS").is_some() {
        std::fs::write(&path, &text).expect("written");
    }
    let published = std::fs::read_to_string(&path).expect("docs/ledger-vectors.json");
    assert!(
        published == text,
        "docs/ledger-vectors.json is of another format; see this test's head"
    );
}

#[test]
fn the_vectors_have_every_kind_of_tampering_that_a_list_of_batches_can_show() {
    let mut found = Vec::new();
    for (name, batches) in cases() {
        let mut verifier = Verifier::new();
        batches.iter().for_each(|batch| verifier.batch(batch));
        let report = verifier.finish(BEGAN);
        assert!(header(&batches[0]).is_ok(), "{name}");
        found.extend(report.histories.iter().flat_map(|h| h.findings.clone()));
    }
    for kind in [
        Tampering::EventsChanged,
        Tampering::HeaderChanged,
        Tampering::Deleted,
        Tampering::Reordered,
        Tampering::Replayed,
        Tampering::ForgedDrop,
    ] {
        assert!(
            found.iter().any(|finding| finding.tampering == kind),
            "{kind:?}"
        );
    }
}
