//! What does a certificate say, whoever made it?
//!
//! Guarantee: any bytes are a certificate of ours or an error. One that is taken names exactly one peer,
//! in the form in which it is written, and its times can be reckoned with at any time; what comes back
//! for a request is kept only if it is for the request's key.

use std::{
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use audit_pki::{
    Certificate, CertificateDer, Fingerprint, Peer, Validity,
    certificate::expiry,
    request::{Request, RequestError},
};

thread_local! {
    /// A key that no input knows.
    static REQUEST: Request = Request::new().expect("a key");
}

pub fn run(bytes: &[u8]) {
    let validity = Validity::of_der(bytes);
    if let Ok(validity) = &validity {
        reckon(*validity);
    }
    if let Ok(certificate) = Certificate::of_der(bytes) {
        assert_eq!(Ok(certificate.validity), validity);
        assert_eq!(
            certificate.peer.to_string().parse::<Peer>(),
            Ok(certificate.peer.clone())
        );
        let is_hex = |c: u8| matches!(c, b'0'..=b'9' | b'a'..=b'f');
        assert!(certificate.serial.bytes().all(is_hex) && certificate.serial.len() % 2 == 0);
    }
    let chain = [CertificateDer::from(bytes)];
    let nowhere = Path::new("/proc/none");
    let kept = REQUEST.with(|request| request.keep(&chain, Some(Fingerprint::of(bytes)), nowhere));
    // Had it got as far as writing, it would be another error.
    let refused = matches!(
        kept,
        Err(RequestError::Certificate(_) | RequestError::OtherKey)
    );
    assert!(refused, "another's certificate was kept");
}

fn reckon(validity: Validity) {
    let far = Duration::from_secs(1 << 40);
    for now in [
        UNIX_EPOCH,
        SystemTime::now(),
        UNIX_EPOCH + far,
        UNIX_EPOCH - far,
    ] {
        let left = validity.expires_in(now);
        assert!(!expiry(left).is_empty());
        let _ = (validity.lifetime(), validity.is_ending(now));
    }
}
