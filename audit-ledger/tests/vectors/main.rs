//! The published test vectors are what this crate makes of them. To write them anew:
//! `HOSTAUDIT_WRITE_VECTORS=1 cargo test -p audit-ledger --test vectors`.

mod cases;
mod exports;
mod record;

use std::{collections::HashMap, path::Path};

use audit_ledger::{Finding, Key, Report, Tampering, Verdict, Verifier, agent_id, root};
use audit_proto::{Message as _, v1::Batch};
use serde_json::{Value, json};

use cases::Case;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Batches and files, each once: most cases differ in one of a dozen batches.
#[derive(Default)]
struct Contents {
    all: Vec<String>,
    places: HashMap<Vec<u8>, usize>,
}

impl Contents {
    fn place(&mut self, bytes: &[u8]) -> usize {
        *self.places.entry(bytes.to_vec()).or_insert_with(|| {
            self.all.push(hex(bytes));
            self.all.len() - 1
        })
    }
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

fn verify(case: &Case) -> Report {
    let mut verifier = match case.whole {
        true => Verifier::new(),
        false => Verifier::of_part(),
    };
    for encoded in &case.batches {
        match Batch::decode(&encoded[..]) {
            Ok(batch) => verifier.batch(&batch),
            Err(error) => verifier.unreadable(error.to_string()),
        }
    }
    for encoded in &case.forks {
        match Batch::decode(&encoded[..]) {
            Ok(batch) => verifier.fork(&batch),
            Err(error) => verifier.unreadable(error.to_string()),
        }
    }
    verifier.finish(case.time)
}

/// Those of the store, then those of each history.
fn findings(report: &Report) -> impl Iterator<Item = &Finding> {
    let histories = report.histories.iter().flat_map(|h| &h.findings);
    report.findings.iter().chain(histories)
}

fn told(report: &Report) -> Vec<Value> {
    findings(report)
        .map(|found| json!({ "tampering": found.tampering.name(), "batch": found.batch }))
        .collect()
}

fn losses(report: &Report) -> Vec<Value> {
    let losses = report.histories.iter().flat_map(|h| &h.losses);
    losses
        .map(|loss| json!({ "class": loss.class, "place": loss.place, "count": loss.count }))
        .collect()
}

fn vector(case: &Case, contents: &mut Contents) -> Value {
    let report = verify(case);
    let verdict = match report.verdict() {
        Verdict::Complete => "complete",
        Verdict::Incomplete => "incomplete",
        Verdict::Tampered => "tampered",
    };
    let mut places = |batches: &[Vec<u8>]| {
        batches
            .iter()
            .map(|b| contents.place(b))
            .collect::<Vec<_>>()
    };
    json!({
        "name": case.name, "time": case.time, "whole": case.whole, "verdict": verdict,
        "events": report.events(), "findings": told(&report), "losses": losses(&report),
        "batches": places(&case.batches), "forks": places(&case.forks),
    })
}

#[test]
fn the_published_vectors_are_what_this_crate_makes() {
    let mut contents = Contents::default();
    let (cases, folders) = (cases::all(), exports::all());
    let histories: Vec<Value> = cases.iter().map(|c| vector(c, &mut contents)).collect();
    let exports = folders.iter().map(|f| exports::vector(f, &mut contents));
    let exports: Vec<Value> = exports.collect();
    let made = json!({
        "roots": roots(), "keys": keys(), "contents": contents.all, "histories": histories,
        "exports": exports,
    });
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

/// What the vectors hold other programs to is what the document says, and not only what this crate does:
/// each case has the verdict that its name promises.
#[test]
fn every_case_has_the_verdict_and_the_findings_of_its_rule() {
    let mut wrong = Vec::new();
    for case in cases::all() {
        let report = verify(&case);
        let found: Vec<(&str, i64)> = findings(&report)
            .map(|finding| (finding.tampering.name(), finding.batch))
            .collect();
        if (report.verdict(), &found) != (case.verdict, &case.findings) {
            wrong.push(format!("{}: {report:?}", case.name));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_vectors_have_every_kind_of_tampering() {
    let cases = cases::all();
    let found: Vec<&str> = cases
        .iter()
        .flat_map(|case| case.findings.iter().map(|(name, _)| *name))
        .collect();
    for kind in [
        Tampering::EventsChanged,
        Tampering::HeaderChanged,
        Tampering::Deleted,
        Tampering::Reordered,
        Tampering::Replayed,
        Tampering::Forked,
        Tampering::Resigned,
        Tampering::ForgedDrop,
        Tampering::Unreadable,
    ] {
        assert!(found.contains(&kind.name()), "{kind:?}");
    }
}

#[test]
fn every_export_has_the_exit_status_of_its_rule() {
    for export in exports::all() {
        let (status, _) = exports::verify(&export);
        assert_eq!(status, export.status, "{}", export.name);
    }
}
