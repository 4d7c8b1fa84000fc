//! Who signs? A directory with the authority's key, what it has issued and revoked, and the tokens
//! with which hosts may join.
//!
//! | file | what | readable for |
//! |---|---|---|
//! | `ca.pem` | the authority's certificate: what everybody trusts | everybody |
//! | `ca.key` | its key | the owner |
//! | `revoked.crl` | the revocation list, signed | everybody |
//! | `issued.jsonl` | each certificate that may still be in use: serial, name, end, revocation | the owner |
//! | `tokens/HASH` | what a token grants, by the hash of its secret; `HASH.used` once it did | the owner |
//!
//! Invariants: changes happen one after the other, under `lock`, by whichever process; a certificate
//! is in `issued.jsonl` before it is given away, so that it can be revoked; a token is used up before
//! its certificate is signed, so that two hosts never get one each.

mod tokens;

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams,
    CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod,
    KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, pem::PemObject as _};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::{
    certificate::{Certificate, CertificateError, Validity, unix_s},
    files::{self, FileError, For},
    request::pem,
    role::{Peer, PeerError, Role},
    token::{Fingerprint, Secret, Token},
};
pub use tokens::TokenGrant;

const CA: &str = crate::CA_FILE;
const CA_KEY: &str = "ca.key";
pub const REVOKED: &str = "revoked.crl";
const ISSUED: &str = "issued.jsonl";
const LOCK: &str = "lock";

const DAY: Duration = Duration::from_secs(86_400);
const CA_LIFETIME: Duration = DAY.saturating_mul(3650);
/// Clocks of hosts differ.
const BACKDATED: Duration = Duration::from_secs(300);
/// A request with an elliptic key has some 250 bytes, with the largest RSA key some 2 KiB.
const MAX_CSR_BYTES: usize = 8192;
/// An expired certificate is listed so long; and revocation lists must end at some time.
const KEPT: Duration = DAY.saturating_mul(30);

#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("{}: there is an authority already; it is kept as it is", .0.display())]
    Exists(PathBuf),
    #[error("{}: no authority; make one with `hostaudit pki init {}`", .0.display(), .0.display())]
    Missing(PathBuf),
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{}: {reason}", path.display())]
    Damaged { path: PathBuf, reason: String },
    #[error("the signing request cannot be used: {0}")]
    Request(String),
    #[error(
        "this join token is unknown here: was it made by another authority, or has it been removed?"
    )]
    TokenUnknown,
    #[error(
        "this join token has been used as often as it may be: make another with `hostaudit pki token`"
    )]
    TokenUsed,
    #[error("this join token has expired; make another with `hostaudit pki token`")]
    TokenExpired,
    #[error(
        "{0} has a valid certificate already; revoke that one, or name the host in the token \
         (`hostaudit pki token --name`), if it is to be joined again"
    )]
    NameTaken(Peer),
    #[error("no certificate that is still valid matches")]
    NothingToRevoke,
    #[error("this certificate has been revoked")]
    Revoked,
    #[error(
        "{0} was revoked; only a token that names it (`hostaudit pki token --name`), or one of a single \
         use, brings it back"
    )]
    NameRevoked(Peer),
    #[error("this certificate has expired; enrol again with a new join token")]
    Expired,
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error("`{0}` is neither a DNS name nor an IP address")]
    Host(String),
    #[error("signing: {0}")]
    Sign(#[from] rcgen::Error),
    #[error("its own certificate: {0}")]
    Certificate(#[from] CertificateError),
    #[error("no randomness: {0}")]
    Random(#[from] getrandom::Error),
}

/// What a certificate is to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    pub peer: Peer,
    /// DNS names and addresses under which it answers.
    pub hosts: Vec<String>,
    /// At most until the authority's own end.
    pub lifetime: Duration,
}

/// A line of `issued.jsonl`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issued {
    pub serial: String,
    /// As its URI.
    pub peer: String,
    pub not_after_s: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_s: Option<i64>,
}

impl Issued {
    pub fn is_valid(&self, now: SystemTime) -> bool {
        self.revoked_s.is_none() && self.not_after_s >= unix_s(now)
    }
}

/// Which certificates are to be revoked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    Serial(String),
    /// All of a name, in whatever role.
    Name(String),
}

impl Which {
    fn matches(&self, issued: &Issued) -> bool {
        match self {
            Self::Serial(serial) => issued.serial.eq_ignore_ascii_case(serial),
            Self::Name(name) => {
                let peer = issued.peer.parse::<Peer>();
                peer.is_ok_and(|peer| peer.name() == name)
            }
        }
    }
}

/// From a certificate to the authority's own.
pub type Chain = Vec<CertificateDer<'static>>;

pub struct Authority {
    directory: PathBuf,
    certificate: CertificateDer<'static>,
    validity: Validity,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes an authority in a directory that has none.
    pub fn create(directory: &Path, now: SystemTime) -> Result<Self, AuthorityError> {
        files::directory(directory)?;
        let _held = files::lock(&directory.join(LOCK))?;
        if directory.join(CA).exists() || directory.join(CA_KEY).exists() {
            return Err(AuthorityError::Exists(directory.to_owned()));
        }
        let key = KeyPair::generate()?;
        let serial = serial()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        // Each has a name of its own, so that another's certificates are told apart by it.
        let name = format!("hostaudit authority {}", crate::hex(&serial[..4]));
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = date(now - BACKDATED);
        params.not_after = date(now + CA_LIFETIME);
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?;
        let secret = key.serialize_pem();
        files::write(&directory.join(CA_KEY), secret.as_bytes(), For::Owner)?;
        files::directory(&directory.join(tokens::DIRECTORY))?;
        let text = pem(certificate.der());
        files::write(&directory.join(CA), text.as_bytes(), For::Everybody)?;
        let authority = Self::open(directory)?;
        authority.keep(&[], now)?;
        authority.publish(&[], now)?;
        Ok(authority)
    }

    pub fn open(directory: &Path) -> Result<Self, AuthorityError> {
        let path = directory.join(CA);
        if !path.exists() {
            return Err(AuthorityError::Missing(directory.to_owned()));
        }
        let damaged = |path: &Path, reason: String| AuthorityError::Damaged {
            path: path.to_owned(),
            reason,
        };
        let certificate = CertificateDer::from_pem_slice(&files::read(&path)?)
            .map_err(|error| damaged(&path, format!("not a certificate in PEM: {error}")))?;
        let path = directory.join(CA_KEY);
        let key = String::from_utf8_lossy(&files::read(&path)?).into_owned();
        let key = KeyPair::from_pem(&key)
            .map_err(|error| damaged(&path, format!("not a private key in PEM: {error}")))?;
        if !crate::certificate::has_key(&certificate, key.public_key_raw()) {
            return Err(damaged(&path, format!("not the key of {CA}")));
        }
        Ok(Self {
            directory: directory.to_owned(),
            validity: Validity::of_der(&certificate)?,
            issuer: Issuer::from_ca_cert_der(&certificate, key)?,
            certificate,
        })
    }

    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }

    /// Signs a request, whatever names are in it, for what is granted.
    pub fn issue(
        &self,
        csr: &[u8],
        grant: &Grant,
        now: SystemTime,
    ) -> Result<Chain, AuthorityError> {
        let request = read_request(csr)?;
        let _held = self.lock()?;
        self.sign(request, grant, now)
    }

    /// Makes a token; at most `lifetime` old it gets as many certificates as it has uses.
    pub fn token(
        &self,
        grant: &TokenGrant,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Token, AuthorityError> {
        let _held = self.lock()?;
        let secret = Secret::new()?;
        tokens::keep(&self.directory, &secret, grant, now + lifetime, now)?;
        Ok(Token {
            secret,
            authority: self.fingerprint(),
        })
    }

    /// A certificate for whoever knows a token's secret, for one of its uses. `name` is who asks; what
    /// the token says wins.
    pub fn enroll(
        &self,
        secret: &Secret,
        name: &str,
        csr: &[u8],
        now: SystemTime,
    ) -> Result<Chain, AuthorityError> {
        let request = read_request(csr)?;
        let _held = self.lock()?;
        let token = tokens::find(&self.directory, secret, now)?;
        let grant = token.grant(name)?;
        if token.name.is_none() {
            let uri = grant.peer.to_string();
            let mut of_name = self.issued()?;
            of_name.retain(|one| one.peer == uri);
            if of_name.iter().any(|one| one.is_valid(now)) {
                return Err(AuthorityError::NameTaken(grant.peer));
            }
            // Else whoever has a revoked host's key and the token of its fleet would be back at once.
            if token.uses > 1 && of_name.iter().any(|one| one.revoked_s.is_some()) {
                return Err(AuthorityError::NameRevoked(grant.peer));
            }
        }
        tokens::use_up(&self.directory, secret)?;
        self.sign(request, &grant, now)
    }

    /// A certificate for a new key that says what the presented one says, for as long again. That
    /// the caller has the presented one's key is what its connection has proved.
    pub fn rotate(
        &self,
        presented: &Certificate,
        csr: &[u8],
        now: SystemTime,
    ) -> Result<Chain, AuthorityError> {
        let request = read_request(csr)?;
        let _held = self.lock()?;
        if presented.validity.expires_in(now).is_zero() {
            return Err(AuthorityError::Expired);
        }
        let issued = self.issued()?;
        let revoked = issued.iter().filter(|one| one.revoked_s.is_some());
        if revoked
            .map(|one| &one.serial)
            .any(|serial| *serial == presented.serial)
        {
            return Err(AuthorityError::Revoked);
        }
        let grant = Grant {
            peer: presented.peer.clone(),
            hosts: presented.hosts.clone(),
            lifetime: presented.validity.lifetime().saturating_sub(BACKDATED),
        };
        self.sign(request, &grant, now)
    }

    /// Revokes and publishes the list; what was revoked.
    pub fn revoke(&self, which: &Which, now: SystemTime) -> Result<Vec<Issued>, AuthorityError> {
        let _held = self.lock()?;
        let mut issued = self.issued()?;
        let mut revoked = Vec::new();
        for one in &mut issued {
            if which.matches(one) && one.is_valid(now) {
                one.revoked_s = Some(unix_s(now));
                revoked.push(one.clone());
            }
        }
        self.keep(&issued, now)?;
        // Also where nothing is new: a former revocation may have been cut short in between.
        self.publish(&issued, now)?;
        if revoked.is_empty() {
            return Err(AuthorityError::NothingToRevoke);
        }
        Ok(revoked)
    }

    /// What was issued and has not been over for long.
    pub fn issued(&self) -> Result<Vec<Issued>, AuthorityError> {
        let path = self.directory.join(ISSUED);
        let text = files::read(&path)?;
        let lines = text
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty());
        let parsed = lines.map(|line| {
            serde_json::from_slice(line).map_err(|error| AuthorityError::Damaged {
                path: path.clone(),
                reason: error.to_string(),
            })
        });
        parsed.collect()
    }

    fn lock(&self) -> Result<fs::File, FileError> {
        files::lock(&self.directory.join(LOCK))
    }

    /// The caller holds the lock.
    fn sign(
        &self,
        mut request: CertificateSigningRequestParams,
        grant: &Grant,
        now: SystemTime,
    ) -> Result<Chain, AuthorityError> {
        let end = unix_s(now + grant.lifetime).min(self.validity.not_after_s);
        request.params = params(grant, now, end)?;
        let certificate = request.signed_by(&self.issuer)?.der().clone();
        let mut issued = self.issued()?;
        issued.push(Issued {
            serial: Certificate::of_der(&certificate)?.serial,
            peer: grant.peer.to_string(),
            not_after_s: end,
            revoked_s: None,
        });
        self.keep(&issued, now)?;
        Ok(vec![certificate, self.certificate.clone()])
    }

    fn keep(&self, issued: &[Issued], now: SystemTime) -> Result<(), AuthorityError> {
        let path = self.directory.join(ISSUED);
        let mut text = Vec::new();
        let oldest = unix_s(now - KEPT);
        for one in issued.iter().filter(|one| one.not_after_s >= oldest) {
            let line = serde_json::to_vec(one).map_err(|error| AuthorityError::Damaged {
                path: path.clone(),
                reason: error.to_string(),
            })?;
            text.extend(line);
            text.push(b'\n');
        }
        Ok(files::write(&path, &text, For::Owner)?)
    }

    fn publish(&self, issued: &[Issued], now: SystemTime) -> Result<(), AuthorityError> {
        let revoked = issued.iter().filter_map(|one| {
            Some(RevokedCertParams {
                serial_number: SerialNumber::from_slice(&crate::unhex::<16>(&one.serial)?),
                revocation_time: OffsetDateTime::from_unix_timestamp(one.revoked_s?).ok()?,
                reason_code: None,
                invalidity_date: None,
            })
        });
        let number = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let number = u64::try_from(number.as_nanos()).unwrap_or(u64::MAX);
        let list = CertificateRevocationListParams {
            this_update: date(now),
            // Who revokes nothing for a year must not lock everybody out.
            next_update: date(now + CA_LIFETIME),
            crl_number: number.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let text = list.signed_by(&self.issuer)?.pem()?;
        Ok(files::write(
            &self.directory.join(REVOKED),
            text.as_bytes(),
            For::Everybody,
        )?)
    }
}

/// The signature proves that who asks has the key.
fn read_request(csr: &[u8]) -> Result<CertificateSigningRequestParams, AuthorityError> {
    if csr.len() > MAX_CSR_BYTES {
        let reason = format!("{} bytes long, more than {MAX_CSR_BYTES}", csr.len());
        return Err(AuthorityError::Request(reason));
    }
    let der = CertificateSigningRequestDer::from(csr);
    let read = CertificateSigningRequestParams::from_der(&der);
    read.map_err(|error| AuthorityError::Request(error.to_string()))
}

fn params(grant: &Grant, now: SystemTime, end: i64) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, grant.peer.name());
    params.not_before = date(now - BACKDATED);
    params.not_after = OffsetDateTime::from_unix_timestamp(end).unwrap_or(params.not_before);
    params.serial_number = Some(SerialNumber::from_slice(&serial()?));
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if grant.peer.role() == Role::Collector {
        params
            .extended_key_usages
            .push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    params.use_authority_key_identifier_extension = true;
    params.subject_alt_names = vec![SanType::URI(grant.peer.to_string().try_into()?)];
    for host in &grant.hosts {
        params.subject_alt_names.push(san(host)?);
    }
    Ok(params)
}

fn san(host: &str) -> Result<SanType, AuthorityError> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let malformed = || AuthorityError::Host(host.to_owned());
    let name = host.strip_prefix("*.").unwrap_or(host);
    rustls::pki_types::DnsName::try_from(name).map_err(|_| malformed())?;
    Ok(SanType::DnsName(host.try_into().map_err(|_| malformed())?))
}

/// Positive and of one length: the hexadecimal text is the same wherever it is read.
fn serial() -> Result<[u8; 16], getrandom::Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)?;
    bytes[0] = bytes[0] & 0x3f | 0x40;
    Ok(bytes)
}

fn date(time: SystemTime) -> OffsetDateTime {
    // Certificates count whole seconds.
    OffsetDateTime::from_unix_timestamp(unix_s(time)).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

#[cfg(test)]
pub(crate) mod tests;
