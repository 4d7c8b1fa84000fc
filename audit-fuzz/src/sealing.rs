//! How is a batch sealed? Written from docs/ledger.md, beside `audit-ledger`: so that what a hostile
//! agent may sign can be signed here, and what was accepted is checked by other code than its own.

use std::{cell::RefCell, sync::LazyLock};

use audit_ledger::{agent_id, root};
use audit_proto::{
    Message as _,
    v1::{Batch, BatchHeader, Dropped},
};
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use sha2::{Digest as _, Sha256};
use zstd::bulk::Compressor;

pub fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    parts.iter().for_each(|part| hash.update(part));
    hash.finalize().into()
}

/// The keys of one history, by epoch less one.
#[derive(Debug)]
pub struct Keys {
    pub agent_id: String,
    signing: Vec<SigningKey>,
}

/// Of different agents; making them takes longer than most that is done with them.
static ALL: LazyLock<[Keys; 4]> = LazyLock::new(|| [1, 2, 3, 4].map(Keys::new));

thread_local! {
    static ZSTD: RefCell<Compressor<'static>> = RefCell::new(Compressor::new(1).expect("a level"));
}

impl Keys {
    pub fn of_agent(number: u8) -> &'static Self {
        &ALL[usize::from(number) % ALL.len()]
    }

    fn new(seed: u8) -> Self {
        let mut seed = [seed; 32];
        let mut signing = Vec::new();
        for _ in 0..6 {
            signing.push(SigningKey::from_bytes(&seed));
            seed = hash(&[b"hostaudit seed 1\0", &seed]);
        }
        Self {
            agent_id: agent_id(&signing[0].verifying_key().to_bytes()),
            signing,
        }
    }

    /// Any epoch has a key; there are only so many.
    fn of(&self, epoch: i64) -> &SigningKey {
        let at = epoch.wrapping_sub(1).rem_euclid(self.signing.len() as i64);
        &self.signing[at as usize]
    }

    pub fn public(&self, epoch: i64) -> Vec<u8> {
        self.of(epoch).verifying_key().to_bytes().to_vec()
    }

    pub fn sign(&self, epoch: i64, header: &BatchHeader, packed: Vec<u8>) -> Batch {
        let header = header.encode_to_vec();
        let signed = [&b"hostaudit batch 1\0"[..], &hash(&[&header])].concat();
        Batch {
            signature: self.of(epoch).sign(&signed).to_vec().into(),
            header: header.into(),
            events: packed.into(),
            dropped: None,
        }
    }

    pub fn drop_events(&self, epoch: i64, batch: &mut Batch) {
        let reason = "full".to_owned();
        let hash = hash(&[&batch.header]);
        let signed = [&b"hostaudit dropped 1\0"[..], &hash, reason.as_bytes()].concat();
        batch.events = Vec::new().into();
        batch.dropped = Some(Dropped {
            epoch,
            public_key: self.public(epoch),
            signature: self.of(epoch).sign(&signed).to_vec(),
            reason,
        });
    }
}

/// Whether the header is signed by the key that it names.
pub fn is_signed(batch: &Batch, header: &BatchHeader) -> bool {
    let key = VerifyingKey::try_from(&header.public_key[..]);
    let (Ok(key), Ok(signature)) = (key, Signature::from_slice(&batch.signature)) else {
        return false;
    };
    let signed = [&b"hostaudit batch 1\0"[..], &hash(&[&batch.header])].concat();
    key.verify_strict(&signed, &signature).is_ok()
}

/// Events as a batch has them before they are compressed; their number, length and root go into the
/// header.
pub fn frame(events: &[Vec<u8>], header: &mut BatchHeader) -> Vec<u8> {
    let mut bytes = Vec::new();
    for event in events {
        let mut length = event.len();
        while length >= 0x80 {
            bytes.push(length as u8 | 0x80);
            length >>= 7;
        }
        bytes.push(length as u8);
        bytes.extend_from_slice(event);
    }
    header.event_count = events.len() as i32;
    header.event_bytes = bytes.len() as i64;
    header.root = root(events).to_vec();
    bytes
}

pub fn pack(bytes: &[u8]) -> Vec<u8> {
    ZSTD.with_borrow_mut(|zstd| zstd.compress(bytes).expect("zstd into memory"))
}
