//! A record to be tampered with, and what it takes: keys, and headers that say anything.

use audit_ledger::{Frames, Key, Origin, Sealer, Summary, header};
use audit_proto::{
    Message as _,
    v1::{Batch, BatchHeader, BatchRange, ClassCount},
};
use ed25519_dalek::{Signer as _, SigningKey};
use sha2::{Digest as _, Sha256};

pub const SECOND: i64 = 1_000_000;
/// 2026-05-01T08:00:00Z
pub const BEGAN: i64 = 1_777_622_400 * SECOND;
pub const COUNT: i64 = 12;
/// Of the key that agents other than this one have.
pub const FOREIGN: [u8; 32] = [9; 32];
const SEED: [u8; 32] = [7; 32];

pub fn summary(at: i64) -> Summary {
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

pub fn events(at: i64) -> Frames {
    Frames::from_iter([format!("{at} a"), format!("{at} b")])
}

pub fn range(first_batch: i64, last_batch: i64) -> BatchRange {
    BatchRange {
        first_batch,
        last_batch,
    }
}

pub fn telling(at: i64, gaps: Vec<BatchRange>) -> Summary {
    Summary {
        gaps,
        ..summary(at)
    }
}

fn origin() -> Origin {
    Origin {
        host_id: "0123456789abcdef0123456789abcdef".to_owned(),
        boot_id: "5f2ac01b-9d3e-4c55-8a11-000000000000".to_owned(),
        run: "0badcafe0001".to_owned(),
    }
}

/// A history of `count` batches, with a new key after each `every`.
pub fn history_of(count: i64, every: i64) -> (Vec<Batch>, Sealer) {
    let mut sealer = Sealer::begin(Key::new(1, SEED), origin(), None);
    let mut batches = Vec::new();
    for at in 1..=count {
        batches.push(sealer.seal(&events(at), summary(at)));
        if at % every == 0 {
            sealer.evolve();
        }
    }
    (batches, sealer)
}

pub fn history() -> (Vec<Batch>, Sealer) {
    history_of(COUNT, 4)
}

pub fn changed(change: impl FnOnce(&mut Vec<Batch>, &mut Sealer)) -> Vec<Batch> {
    let (mut batches, mut sealer) = history();
    change(&mut batches, &mut sealer);
    batches
}

/// Sealed by somebody who has the agent's key and its past up to a batch: a copy of its disk.
pub fn copy_of(batches: &[Batch], seed: [u8; 32]) -> Sealer {
    let header = header(batches.last().expect("a batch")).expect("header");
    let key = Key::new(header.fields.epoch, seed);
    Sealer::resume(key, origin(), audit_ledger::Past::of(&header))
}

/// The agent's key of an epoch.
pub fn seed_of(epoch: i64) -> [u8; 32] {
    let mut key = Key::new(1, SEED);
    while key.epoch() < epoch {
        key.evolve();
    }
    *key.seed()
}

pub fn public(seed: [u8; 32]) -> Vec<u8> {
    SigningKey::from_bytes(&seed)
        .verifying_key()
        .to_bytes()
        .to_vec()
}

pub fn hash(bytes: &[u8]) -> Vec<u8> {
    Sha256::digest(bytes).to_vec()
}

/// The batch with other bytes as its header, signed with a key.
pub fn signed(batch: &Batch, header: Vec<u8>, seed: [u8; 32]) -> Batch {
    let what = [&b"hostaudit batch 1\0"[..], &hash(&header)].concat();
    let signature = SigningKey::from_bytes(&seed).sign(&what);
    Batch {
        header: header.into(),
        signature: signature.to_bytes().to_vec().into(),
        ..batch.clone()
    }
}

/// The batch with a header that says something else, signed with a key.
pub fn resigned(batch: &Batch, seed: [u8; 32], change: impl FnOnce(&mut BatchHeader)) -> Batch {
    let mut fields = header(batch).expect("header").fields;
    change(&mut fields);
    signed(batch, fields.encode_to_vec(), seed)
}

/// The batch with a header that says something else, and the signature that it had.
pub fn rewritten(batch: &Batch, change: impl FnOnce(&mut BatchHeader)) -> Batch {
    let signature = batch.signature.clone();
    Batch {
        signature,
        ..resigned(batch, FOREIGN, change)
    }
}
