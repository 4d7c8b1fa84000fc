//! With what does an agent or a person connect, and which collector do they believe? Files, read for
//! each connection; or, before there are any, the authority's fingerprint from a join token.
//!
//! Invariant: whoever is connected to has proved to have a certificate of that authority, for the
//! name that was dialled and for answering, and has taken ours; nothing is sent before.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore,
    SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::WebPkiSupportedAlgorithms,
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::{io::AsyncBufReadExt as _, net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    ALPN, CA_FILE, CERTIFICATE_FILE, KEY_FILE,
    certificate::Validity,
    provider,
    server::{TlsError, read_certificates, read_key, read_roots, validity},
    token::Fingerprint,
};

/// Of TCP, and then of TLS until the first byte.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientFiles {
    pub ca: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl ClientFiles {
    /// The usual names in a directory.
    pub fn within(directory: impl Into<PathBuf>) -> Self {
        let directory = directory.into();
        Self {
            ca: directory.join(CA_FILE),
            certificate: directory.join(CERTIFICATE_FILE),
            key: directory.join(KEY_FILE),
        }
    }

    /// Of its own certificate.
    pub fn validity(&self) -> Result<Validity, TlsError> {
        validity(&self.certificate, &read_certificates(&self.certificate)?)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credentials {
    Files(ClientFiles),
    /// None yet; only the authority is known.
    Joining(Fingerprint),
}

impl Credentials {
    pub fn load(&self) -> Result<Arc<ClientConfig>, TlsError> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?;
        let mut config = match self {
            Self::Files(files) => {
                let chain = read_certificates(&files.certificate)?;
                builder
                    .with_root_certificates(read_roots(&files.ca)?)
                    .with_client_auth_cert(chain, read_key(&files.key)?)
                    .map_err(|source| TlsError::Pair {
                        certificate: files.certificate.clone(),
                        key: files.key.clone(),
                        source,
                    })?
            }
            Self::Joining(authority) => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Pinned {
                    authority: *authority,
                    algorithms: provider().signature_verification_algorithms,
                }))
                .with_no_client_auth(),
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }

    /// Connects, and returns when both ends have proved who they are.
    pub async fn connect(
        &self,
        host: &str,
        port: u16,
    ) -> Result<TlsStream<TcpStream>, ConnectError> {
        let config = self.load()?;
        // In a URI, an address of IPv6 stands in brackets.
        let host = host.trim_matches(['[', ']']);
        let name = ServerName::try_from(host.to_owned());
        let name = name.map_err(|_| ConnectError::Name(host.to_owned()))?;
        let late = || io::Error::from(io::ErrorKind::TimedOut);
        let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect((host, port))).await;
        let stream = stream.map_err(|_| late()).flatten();
        let stream = stream.map_err(ConnectError::Tcp)?;
        let handshake = async {
            stream.set_nodelay(true)?;
            let mut stream = TlsConnector::from(config).connect(name, stream).await?;
            // Whether our certificate is taken is told after ours is sent; who serves HTTP/2 speaks
            // first. Nothing is consumed.
            match stream.fill_buf().await? {
                [] => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                _ => Ok(stream),
            }
        };
        let stream = timeout(HANDSHAKE_TIMEOUT, handshake).await;
        stream.map_err(|_| late()).flatten().map_err(refused)
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error(transparent)]
    Files(#[from] TlsError),
    #[error("`{0}` is neither a DNS name nor an IP address")]
    Name(String),
    #[error("{0}")]
    Tcp(io::Error),
    /// Says what to do.
    #[error("{advice} ({error})")]
    Refused {
        advice: &'static str,
        error: io::Error,
    },
    #[error("TLS: {0}")]
    Tls(io::Error),
}

fn refused(error: io::Error) -> ConnectError {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    match inner.and_then(advice) {
        Some(advice) => ConnectError::Refused { advice, error },
        None => ConnectError::Tls(error),
    }
}

/// Believes a chain that has the authority of this fingerprint in it.
#[derive(Debug)]
struct Pinned {
    authority: Fingerprint,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let mut all = intermediates.iter();
        let authority = all.find(|one| Fingerprint::of(one) == self.authority);
        let authority = authority.ok_or(CertificateError::UnknownIssuer)?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build();
        let verifier = verifier.map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::Tls12NotOfferedOrEnabled.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// What to do about it, where it is known.
fn advice(error: &rustls::Error) -> Option<&'static str> {
    use rustls::Error::{AlertReceived, InvalidCertificate};
    let advice = match error {
        AlertReceived(AlertDescription::CertificateRevoked) => {
            "the collector says that this certificate has been revoked; enrol again with a new join \
             token (hostaudit pki enroll)"
        }
        AlertReceived(AlertDescription::CertificateExpired) => {
            "the collector says that this certificate has expired; enrol again with a new join token \
             (hostaudit pki enroll)"
        }
        AlertReceived(AlertDescription::UnknownCA | AlertDescription::DecryptError) => {
            "the collector knows no authority that issued this certificate; enrol with a join token \
             of its authority (hostaudit pki enroll)"
        }
        AlertReceived(AlertDescription::CertificateRequired) => {
            "the collector wants a certificate; enrol with a join token (hostaudit pki enroll)"
        }
        InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            "whoever answers has no certificate of the authority that is expected: another collector, \
             or somebody in between"
        }
        InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => {
            "the collector's certificate is not for this name; dial one that it is for, or issue it \
             with --host"
        }
        InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            "the collector's certificate has expired; issue another one (hostaudit pki issue)"
        }
        _ => return None,
    };
    Some(advice)
}
