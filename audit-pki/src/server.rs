//! With what does a collector answer, and whom does it believe? Files, read again when they change.
//!
//! Invariants: a client that gives a certificate gives one of `clients_ca` that is valid now and not
//! on the list; one without a certificate gets in only where joining is served, and it is for the
//! caller to let it do nothing else. Sessions are not resumed: a resumed one would not be checked.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, pem, pem::PemObject},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};
use x509_parser::prelude::{CertificateRevocationList, FromDer as _};

use crate::{
    ALPN,
    certificate::{CertificateError, Validity},
    files::{self, FileError, Stamp},
    hex, provider,
};

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{}: no {what} in PEM in it: {source}", path.display())]
    Pem {
        path: PathBuf,
        what: &'static str,
        source: pem::Error,
    },
    #[error("{}: {source}", path.display())]
    Certificate {
        path: PathBuf,
        source: CertificateError,
    },
    #[error("{}: {reason}", path.display())]
    Unusable { path: PathBuf, reason: String },
    #[error("{} and {}: {source}; are they a pair?", certificate.display(), key.display())]
    Pair {
        certificate: PathBuf,
        key: PathBuf,
        source: rustls::Error,
    },
    #[error("TLS: {0}")]
    Rustls(#[from] rustls::Error),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFiles {
    /// Its certificate, then those up to the authority's, which joining hosts look for.
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub clients_ca: PathBuf,
    /// None where nothing is ever revoked.
    pub revoked: Option<PathBuf>,
    /// Whether hosts without a certificate may connect, to get one.
    pub joining: bool,
}

/// One reading of the files.
pub struct ServerTls {
    pub config: Arc<ServerConfig>,
    /// Of its own certificate.
    pub validity: Validity,
    /// Serial numbers, hexadecimal.
    pub revoked: BTreeSet<String>,
}

impl ServerFiles {
    pub fn load(&self) -> Result<ServerTls, TlsError> {
        let chain = read_certificates(&self.certificate)?;
        let validity = validity(&self.certificate, &chain)?;
        let key = read_key(&self.key)?;
        let roots = read_roots(&self.clients_ca)?;
        let mut verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
        let mut serials = BTreeSet::new();
        if let Some(path) = &self.revoked {
            let list = read_list(path)?;
            serials = revoked(path, &list)?;
            verifier = verifier
                .with_crls([list])
                .only_check_end_entity_revocation();
        }
        if self.joining {
            verifier = verifier.allow_unauthenticated();
        }
        let verifier = verifier.build().map_err(|error| TlsError::Unusable {
            path: self.clients_ca.clone(),
            reason: format!("clients cannot be checked with it: {error}"),
        })?;
        let builder = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?;
        let builder = builder.with_client_cert_verifier(verifier);
        let mut config = builder
            .with_single_cert(chain, key)
            .map_err(|source| TlsError::Pair {
                certificate: self.certificate.clone(),
                key: self.key.clone(),
                source,
            })?;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(ServerTls {
            config: Arc::new(config),
            validity,
            revoked: serials,
        })
    }

    /// Another one means that they are to be loaded again.
    pub fn stamp(&self) -> [Stamp; 4] {
        let revoked = self.revoked.as_ref().unwrap_or(&self.clients_ca);
        [&self.certificate, &self.key, &self.clients_ca, revoked].map(|path| Stamp::of(path))
    }
}

pub(crate) fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let content = files::read(path)?;
    let failed = |source| TlsError::Pem {
        path: path.to_owned(),
        what: "certificate",
        source,
    };
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&content).collect();
    let all = all.map_err(failed)?;
    if all.is_empty() {
        return Err(failed(pem::Error::NoItemsFound));
    }
    Ok(all)
}

pub(crate) fn validity(path: &Path, chain: &[CertificateDer<'_>]) -> Result<Validity, TlsError> {
    let first = chain.first().map_or(&[][..], |first| first);
    Validity::of_der(first).map_err(|source| TlsError::Certificate {
        path: path.to_owned(),
        source,
    })
}

pub(crate) fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let content = files::read(path)?;
    PrivateKeyDer::from_pem_slice(&content).map_err(|source| TlsError::Pem {
        path: path.to_owned(),
        what: "private key",
        source,
    })
}

pub(crate) fn read_roots(path: &Path) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(path)? {
        roots.add(certificate).map_err(|error| TlsError::Unusable {
            path: path.to_owned(),
            reason: format!("not the certificate of an authority: {error}"),
        })?;
    }
    Ok(Arc::new(roots))
}

fn read_list(path: &Path) -> Result<CertificateRevocationListDer<'static>, TlsError> {
    let content = files::read(path)?;
    CertificateRevocationListDer::from_pem_slice(&content).map_err(|source| TlsError::Pem {
        path: path.to_owned(),
        what: "revocation list",
        source,
    })
}

fn revoked(path: &Path, list: &[u8]) -> Result<BTreeSet<String>, TlsError> {
    let parsed = CertificateRevocationList::from_der(list);
    let (_, parsed) = parsed.map_err(|_| TlsError::Unusable {
        path: path.to_owned(),
        reason: "not a revocation list".to_owned(),
    })?;
    let all = parsed.iter_revoked_certificates();
    Ok(all.map(|one| hex(one.raw_serial())).collect())
}

#[cfg(test)]
mod tests;
