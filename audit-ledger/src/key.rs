//! Which key signs a batch, and why can a stolen one not sign the past?
//!
//! Each key is made of the seed of the one before it by a hash, which nobody can turn round, and the
//! headers of an epoch name the public key of the next. So who has the key of today can follow the
//! history, but a batch of an earlier epoch needs a key that is gone: whoever keeps keys writes the
//! evolved one in place of its predecessor.

use std::fmt;

use audit_proto::v1::Dropped;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

/// In front of what is hashed or signed, so that nothing made for one purpose serves another.
const SEED: &[u8] = b"hostaudit seed 1\0";
const AGENT: &[u8] = b"hostaudit agent 1\0";
const BATCH: &[u8] = b"hostaudit batch 1\0";
const DROPPED: &[u8] = b"hostaudit dropped 1\0";

/// The key of one epoch, and what the next one is made of.
pub struct Key {
    epoch: i64,
    seed: Zeroizing<[u8; 32]>,
    signing: SigningKey,
    next_public: [u8; 32],
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

impl Key {
    /// Of a random seed for epoch 1, or of one that [`Key::seed`] gave.
    pub fn new(epoch: i64, seed: [u8; 32]) -> Self {
        let signing = SigningKey::from_bytes(&seed);
        let next_public = SigningKey::from_bytes(&next(&seed)).verifying_key();
        Self {
            epoch,
            seed: Zeroizing::new(seed),
            signing,
            next_public: next_public.to_bytes(),
        }
    }

    /// To the next epoch. This key is gone then, if the caller keeps no copy of its seed.
    pub fn evolve(&mut self) {
        *self = Self::new(self.epoch + 1, *next(&self.seed));
    }

    pub fn epoch(&self) -> i64 {
        self.epoch
    }

    /// Secret.
    pub fn seed(&self) -> Zeroizing<[u8; 32]> {
        self.seed.clone()
    }

    pub fn public(&self) -> [u8; 32] {
        self.signing.verifying_key().to_bytes()
    }

    pub fn next_public(&self) -> [u8; 32] {
        self.next_public
    }

    pub(crate) fn sign_batch(&self, header_hash: &[u8; 32]) -> [u8; 64] {
        self.sign(BATCH, header_hash)
    }

    pub(crate) fn sign_dropped(&self, header_hash: &[u8; 32], reason: &str) -> [u8; 64] {
        self.sign(DROPPED, &[header_hash, reason.as_bytes()].concat())
    }

    fn sign(&self, purpose: &[u8], what: &[u8]) -> [u8; 64] {
        self.signing.sign(&[purpose, what].concat()).to_bytes()
    }
}

fn next(seed: &[u8; 32]) -> Zeroizing<[u8; 32]> {
    let hash = Sha256::new().chain_update(SEED).chain_update(seed);
    Zeroizing::new(hash.finalize().into())
}

/// The name of the history that begins with this key.
pub fn agent_id(first_public_key: &[u8]) -> String {
    let hash = Sha256::new()
        .chain_update(AGENT)
        .chain_update(first_public_key)
        .finalize();
    hash.iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

pub(crate) fn signed_batch(public_key: &[u8], header_hash: &[u8; 32], signature: &[u8]) -> bool {
    verify(BATCH, public_key, header_hash, signature)
}

pub(crate) fn signed_dropped(dropped: &Dropped, header_hash: &[u8; 32]) -> bool {
    let what = [header_hash, dropped.reason.as_bytes()].concat();
    verify(DROPPED, &dropped.public_key, &what, &dropped.signature)
}

fn verify(purpose: &[u8], public_key: &[u8], what: &[u8], signature: &[u8]) -> bool {
    let (Ok(key), Ok(signature)) = (
        VerifyingKey::try_from(public_key),
        Signature::from_slice(signature),
    ) else {
        return false;
    };
    key.verify_strict(&[purpose, what].concat(), &signature)
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_names_the_next_one_and_no_two_are_alike() {
        let mut key = Key::new(1, [7; 32]);
        let mut seen = vec![key.public()];
        for epoch in 2..20 {
            let promised = key.next_public();
            key.evolve();
            assert_eq!((key.epoch(), key.public()), (epoch, promised));
            assert!(!seen.contains(&key.public()));
            seen.push(key.public());
        }
        let again = Key::new(key.epoch(), *key.seed());
        assert_eq!(again.public(), key.public());
    }

    #[test]
    fn a_signature_serves_its_purpose_its_header_and_its_key_only() {
        let (key, other) = (Key::new(1, [7; 32]), Key::new(1, [8; 32]));
        let hash = [3; 32];
        let signature = key.sign_batch(&hash);
        assert!(signed_batch(&key.public(), &hash, &signature));
        let dropped = |signature: &[u8], reason: &str| Dropped {
            public_key: key.public().to_vec(),
            signature: signature.to_vec(),
            reason: reason.to_owned(),
            ..Dropped::default()
        };
        assert!(!signed_dropped(&dropped(&signature, ""), &hash));
        let statement = key.sign_dropped(&hash, "full");
        assert!(signed_dropped(&dropped(&statement, "full"), &hash));
        assert!(!signed_dropped(&dropped(&statement, "old"), &hash));
        assert!(!signed_batch(&other.public(), &hash, &signature));
        assert!(!signed_batch(&key.public(), &[4; 32], &signature));
        assert!(!signed_batch(&key.public(), &hash, &signature[..63]));
        assert!(!signed_batch(b"short", &hash, &signature));
        assert_ne!(agent_id(&key.public()), agent_id(&other.public()));
    }
}
