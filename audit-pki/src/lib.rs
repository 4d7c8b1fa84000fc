//! Who is at the other end? Certificates, the roles in them, and the TLS that proves them.
//!
//! * [`role`]: [`Peer`], a role and a name, as the URI in a certificate.
//! * [`certificate`]: what a certificate says, without trust; whether it expires soon.
//! * [`token`]: the one-time word with which a host joins.
//! * [`authority`]: a directory that signs, counts out tokens and revokes.
//! * [`request`]: a key that never leaves its host, and what is kept of an answer.
//! * [`server`], [`client`]: both ends of a connection, from files that may change at any time.
//!
//! Invariants: private keys are written by the host that made them, for their owner alone; TLS 1.3
//! with certificates at both ends, nothing is resumed, so that each connection is checked anew.

#![forbid(unsafe_code)]

pub mod authority;
pub mod certificate;
pub mod client;
mod files;
pub mod request;
pub mod role;
pub mod server;
pub mod token;

use std::sync::Arc;

pub use authority::{Authority, AuthorityError};
pub use certificate::{Certificate, CertificateError, Validity};
pub use client::{ClientFiles, Credentials};
pub use role::{Peer, Role};
pub use rustls::pki_types::CertificateDer;
pub use server::{ServerFiles, ServerTls};
pub use token::{Fingerprint, Token};

/// The names of the files in a directory of credentials.
pub const CA_FILE: &str = "ca.pem";
pub const CERTIFICATE_FILE: &str = "cert.pem";
pub const KEY_FILE: &str = "key.pem";

/// What gRPC speaks.
const ALPN: &[u8] = b"h2";

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |c: u8| char::from(c).to_digit(16);
        *byte = u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).ok()?;
    }
    Some(bytes)
}
