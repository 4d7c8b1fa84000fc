//! How does a host get a certificate for a key that never leaves it?
//!
//! Invariant: the key is written before the certificate, each file whole; a pair that does not match
//! is seen by whoever loads it, and is loaded again when it does.

use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls::pki_types::CertificateDer;

use crate::{
    CA_FILE, CERTIFICATE_FILE, Fingerprint, KEY_FILE,
    certificate::{Certificate, CertificateError},
    files::{self, FileError, For},
};

#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error("no key could be made: {0}")]
    Key(#[from] rcgen::Error),
    #[error("the certificate that came back cannot be used: {0}")]
    Certificate(#[from] CertificateError),
    #[error("the certificate that came back is for another key")]
    OtherKey,
    #[error("the certificate that came back is of another authority, {0}")]
    OtherAuthority(Fingerprint),
    #[error("no certificate came back")]
    Empty,
    #[error(transparent)]
    File(#[from] FileError),
}

/// A new key, and what asks for a certificate for it.
pub struct Request {
    key: KeyPair,
    /// PKCS #10, in DER. Names are the authority's to give, so there are none in it.
    pub csr: Vec<u8>,
}

impl Request {
    pub fn new() -> Result<Self, RequestError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let csr = params.serialize_request(&key)?.der().to_vec();
        Ok(Self { key, csr })
    }

    /// Checks the answer, a chain from the certificate to the authority's, and keeps it with the key.
    /// What is trusted already stays, unless another `authority` is to be from now on.
    pub fn keep(
        &self,
        chain: &[CertificateDer<'_>],
        authority: Option<Fingerprint>,
        directory: &Path,
    ) -> Result<Certificate, RequestError> {
        let (Some(first), Some(last)) = (chain.first(), chain.last()) else {
            return Err(RequestError::Empty);
        };
        let certificate = Certificate::of_der(first)?;
        if !crate::certificate::has_key(first, self.key.public_key_raw()) {
            return Err(RequestError::OtherKey);
        }
        let found = Fingerprint::of(last);
        if authority.is_some_and(|expected| expected != found) {
            return Err(RequestError::OtherAuthority(found));
        }
        files::directory(directory)?;
        let key = self.key.serialize_pem();
        files::write(&directory.join(KEY_FILE), key.as_bytes(), For::Owner)?;
        let text: String = chain.iter().map(pem).collect();
        let path = directory.join(CERTIFICATE_FILE);
        files::write(&path, text.as_bytes(), For::Everybody)?;
        let trusted = directory.join(CA_FILE);
        if authority.is_some() || !trusted.exists() {
            files::write(&trusted, pem(last).as_bytes(), For::Everybody)?;
        }
        Ok(certificate)
    }
}

/// The key of a directory of credentials, where there is one that must not be overwritten.
pub fn existing_key(directory: &Path) -> Option<PathBuf> {
    let path = directory.join(KEY_FILE);
    path.exists().then_some(path)
}

pub(crate) fn pem(certificate: &CertificateDer<'_>) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    let block = pem::Pem::new("CERTIFICATE", certificate.to_vec());
    pem::encode_config(&block, config)
}
