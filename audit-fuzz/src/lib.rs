//! What may bytes from outside do to those who decode them? One function for each decoder in the path
//! of delivery; it takes any bytes and panics where its guarantee, in the module's doc, is broken.
//!
//! `cargo xtask fuzz` runs them under libFuzzer (the package in `fuzz/`, which is a workspace of its own
//! because it needs a nightly compiler). `tests/replay.rs` runs each over `corpus/TARGET`, what fuzzing
//! has kept, and `crashes/TARGET`, what once broke it; so a mended bug stays mended without a fuzzer.
//!
//! | target | decodes |
//! |---|---|
//! | [`batch`] | an encoded batch: header, events, place in a history |
//! | [`history`] | batches that a hostile agent has signed, of any headers |
//! | [`tampering`] | sealed batches that somebody without a key has changed |
//! | [`deliver`] | what an agent delivers, down to the columns of its events |
//! | [`wal_segments`] | segment files of any content |
//! | [`wal_damage`] | the files of a log that a disk has damaged |
//! | [`certificate`] | a peer's certificate, and an answer to a request |
//! | [`request`] | a request for a certificate, with or without a join token |
//! | [`credentials`] | the files of TLS: certificates, key, revocation list |
//! | [`text`] | join tokens, names of peers, escapes, filters, lines of totals |

#![forbid(unsafe_code)]

pub mod batch;
pub mod certificate;
pub mod credentials;
pub mod deliver;
pub mod history;
mod input;
pub mod request;
mod sealing;
pub mod tampering;
pub mod text;
mod wal;
pub mod wal_damage;
pub mod wal_segments;

use std::path::{Path, PathBuf};

/// A name, and what takes the bytes.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: [Target; 10] = [
    ("batch", batch::run),
    ("history", history::run),
    ("tampering", tampering::run),
    ("deliver", deliver::run),
    ("wal_segments", wal_segments::run),
    ("wal_damage", wal_damage::run),
    ("certificate", certificate::run),
    ("request", request::run),
    ("credentials", credentials::run),
    ("text", text::run),
];

/// Where the inputs of a target are, of one kind: "corpus" or "crashes".
pub fn folder(kind: &str, target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(kind)
        .join(target)
}
