//! What does a certificate say? Nothing here decides whether it is to be believed.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::{
    hex,
    role::{Peer, PeerError},
};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    #[error("not an X.509 certificate")]
    Form,
    #[error("it carries no hostaudit://ROLE/NAME; issue it with hostaudit pki")]
    Anonymous,
    #[error("it carries more than one hostaudit://ROLE/NAME")]
    Ambiguous,
    #[error(transparent)]
    Peer(#[from] PeerError),
}

/// A certificate of ours, as it says itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    pub peer: Peer,
    /// Hexadecimal.
    pub serial: String,
    pub validity: Validity,
    /// DNS names and addresses under which it may answer.
    pub hosts: Vec<String>,
}

/// Seconds since the Unix epoch, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    pub not_before_s: i64,
    pub not_after_s: i64,
}

impl Certificate {
    pub fn of_der(der: &[u8]) -> Result<Self, CertificateError> {
        let parsed = parse(der)?;
        let mut uris = Vec::new();
        let mut hosts = Vec::new();
        let names = parsed.subject_alternative_name();
        let names = names.map_err(|_| CertificateError::Form)?;
        for name in names.iter().flat_map(|names| &names.value.general_names) {
            match name {
                GeneralName::URI(uri) if Peer::is_ours(uri) => uris.push(*uri),
                GeneralName::DNSName(name) => hosts.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => hosts.extend(address(bytes)),
                _ => {}
            }
        }
        let peer = match uris.as_slice() {
            [] => return Err(CertificateError::Anonymous),
            [uri] => uri.parse()?,
            _ => return Err(CertificateError::Ambiguous),
        };
        Ok(Self {
            peer,
            serial: hex(parsed.raw_serial()),
            validity: Validity::of(&parsed),
            hosts,
        })
    }
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, CertificateError> {
    match X509Certificate::from_der(der) {
        Ok(([], parsed)) => Ok(parsed),
        _ => Err(CertificateError::Form),
    }
}

/// Whether the certificate is for this public key.
pub(crate) fn has_key(der: &[u8], key: &[u8]) -> bool {
    parse(der).is_ok_and(|parsed| *parsed.public_key().subject_public_key.data == *key)
}

fn address(bytes: &[u8]) -> Option<String> {
    let address = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        _ => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
    };
    Some(address.to_string())
}

impl Validity {
    /// Of any certificate, ours or not.
    pub fn of_der(der: &[u8]) -> Result<Self, CertificateError> {
        Ok(Self::of(&parse(der)?))
    }

    fn of(parsed: &X509Certificate<'_>) -> Self {
        let validity = parsed.validity();
        Self {
            not_before_s: validity.not_before.timestamp(),
            not_after_s: validity.not_after.timestamp(),
        }
    }

    pub fn lifetime(&self) -> Duration {
        seconds(self.not_after_s.saturating_sub(self.not_before_s))
    }

    /// Zero once it has expired.
    pub fn expires_in(&self, now: SystemTime) -> Duration {
        seconds(self.not_after_s.saturating_sub(unix_s(now)))
    }

    /// Whether somebody must act: less than a fifth of its life is left.
    pub fn is_ending(&self, now: SystemTime) -> bool {
        self.expires_in(now) < self.lifetime() / 5
    }
}

/// As a person reads it: "expires in 5 days".
pub fn expiry(left: Duration) -> String {
    let (s, unit) = match left.as_secs() {
        0 => return "has expired".to_owned(),
        s @ 1..120 => (s, "s"),
        s @ 120..7_200 => (s / 60, "minutes"),
        s @ 7_200..172_800 => (s / 3600, "hours"),
        s => (s / 86_400, "days"),
    };
    format!("expires in {s} {unit}")
}

fn seconds(number: i64) -> Duration {
    Duration::from_secs(u64::try_from(number).unwrap_or_default())
}

pub(crate) fn unix_s(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{authority::tests::authority, request::Request, role::Role};

    fn sample() -> Vec<u8> {
        let (_dir, authority) = authority();
        let request = Request::new().expect("request");
        let grant = crate::authority::Grant {
            peer: Peer::new(Role::Collector, "c").expect("peer"),
            hosts: vec![
                "c.example".to_owned(),
                "127.0.0.1".to_owned(),
                "::1".to_owned(),
            ],
            lifetime: Duration::from_secs(1000),
        };
        let chain = authority.issue(&request.csr, &grant, SystemTime::now());
        chain.expect("issued")[0].to_vec()
    }

    #[test]
    fn a_certificate_says_what_it_was_issued_for() {
        let certificate = Certificate::of_der(&sample()).expect("parses");
        assert_eq!(certificate.peer.to_string(), "hostaudit://collector/c");
        assert_eq!(certificate.hosts, ["c.example", "127.0.0.1", "::1"]);
        assert_eq!(certificate.serial.len(), 32);
        let now = SystemTime::now();
        let left = certificate.validity.expires_in(now).as_secs();
        assert!((990..=1000).contains(&left), "{left}");
    }

    #[test]
    fn a_fifth_of_its_life_before_the_end_it_is_ending() {
        let validity = Validity {
            not_before_s: 1000,
            not_after_s: 2000,
        };
        let at = |s| UNIX_EPOCH + Duration::from_secs(s);
        assert!(!validity.is_ending(at(1800)));
        assert!(validity.is_ending(at(1801)));
        assert_eq!(validity.expires_in(at(3000)), Duration::ZERO);
        assert_eq!(expiry(Duration::from_secs(86_400 * 3)), "expires in 3 days");
        assert_eq!(expiry(Duration::ZERO), "has expired");
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_certificate_or_an_error(
            bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..600),
        ) {
            let _ = Certificate::of_der(&bytes);
            let _ = Validity::of_der(&bytes);
        }
    }

    #[test]
    fn a_certificate_with_any_byte_changed_is_a_certificate_or_an_error() {
        let whole = sample();
        for at in 0..whole.len() {
            let _ = Certificate::of_der(&whole[..at]);
            for flip in [0x01, 0x80, 0xff] {
                let mut changed = whole.clone();
                changed[at] ^= flip;
                let _ = Certificate::of_der(&changed);
            }
        }
    }
}
