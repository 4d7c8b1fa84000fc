//! Sealed batches: what an agent closes, chains, signs and sends, and how anyone checks that nothing
//! is missing and nothing was changed.
//!
//! A batch holds encoded events, each after its length as a varint, compressed with zstd. Its header
//! has the RFC 6962 Merkle tree hash over the events' bytes and the hash of the header before it, and
//! is signed by a key that the header before it let follow. `docs/ledger.md` has it byte by byte.
//! Sans-IO: no sockets, files, clock or randomness.
//!
//! Invariants: `open(seal(events))` gives the same bytes; a batch of which a byte was changed is
//! refused; a history of batches 1 to N that [`Verifier`] finds whole is the one that its agent sealed,
//! as long as nobody else had its keys of that time.

mod batch;
mod chain;
mod digest;
mod folder;
mod frames;
mod key;
mod merkle;
mod seal;
mod verify;

use sha2::{Digest as _, Sha256};

pub use batch::{BatchError, Header, MAX_EVENT_BYTES, header, open, unpack};
pub use chain::{ChainError, Gap, Past};
pub use folder::{Batches, FolderError, batch_file, batch_files};
pub use frames::Frames;
pub use key::{Key, agent_id};
pub use merkle::{leaves, root, root_of};
pub use seal::{Former, MAX_LOSSES, Origin, Sealer, Summary};
pub use verify::{Finding, History, Loss, Report, Tampering, Verdict, Verifier};

fn hash(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}
