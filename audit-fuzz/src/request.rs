//! What may somebody ask an authority to sign?
//!
//! Guarantee: any bytes are a request or an error. Whatever a request asks for, the certificate says
//! what was granted and nothing else, and is for no longer; a join token works once, and gives the name
//! that was asked for or an error.
//!
//! Input: an encoded `EnrollRequest`, or a request in DER.

use std::time::{Duration, SystemTime};

use audit_pki::{
    Authority, AuthorityError, Certificate, Peer, Role,
    authority::{Chain, Grant, TokenGrant},
    token::Secret,
};
use audit_proto::{Message as _, v1::EnrollRequest};
use tempfile::TempDir;

const LIFETIME: Duration = Duration::from_secs(3600);
/// What has been issued, which would grow from input to input.
const ISSUED: &str = "issued.jsonl";

thread_local! {
    static AUTHORITY: (TempDir, Authority) = {
        let dir = tempfile::tempdir().expect("a directory");
        let authority = Authority::create(dir.path(), SystemTime::now()).expect("an authority");
        (dir, authority)
    };
}

pub fn run(bytes: &[u8]) {
    let asked = EnrollRequest::decode(bytes).unwrap_or_default();
    AUTHORITY.with(|(dir, authority)| {
        let mut signed = sign(authority, bytes);
        if !signed && !asked.signing_request.is_empty() {
            signed = sign(authority, &asked.signing_request);
            enroll(authority, &asked, signed);
        }
        if signed {
            std::fs::write(dir.path().join(ISSUED), "").expect("emptied");
        }
    });
}

/// For a person who has asked in another way; whether it was a request.
fn sign(authority: &Authority, csr: &[u8]) -> bool {
    let grant = Grant {
        peer: Peer::new(Role::Analyst, "granted").expect("a name"),
        hosts: vec!["a.example".to_owned(), "::1".to_owned()],
        lifetime: LIFETIME,
    };
    let chain = match authority.issue(csr, &grant, SystemTime::now()) {
        Ok(chain) => chain,
        Err(error) => {
            assert!(matches!(error, AuthorityError::Request(_)), "{error}");
            return false;
        }
    };
    says(&chain, &grant);
    let presented = Certificate::of_der(&chain[0]).expect("ours");
    let rotated = authority.rotate(&presented, csr, SystemTime::now());
    says(&rotated.expect("as the one before"), &grant);
    true
}

fn says(chain: &Chain, grant: &Grant) {
    assert_eq!(chain.len(), 2);
    let certificate = Certificate::of_der(&chain[0]).expect("ours");
    assert_eq!(
        (&certificate.peer, &certificate.hosts),
        (&grant.peer, &grant.hosts)
    );
    // Its beginning is put back a little, for clocks that differ.
    assert!(certificate.validity.lifetime() <= grant.lifetime + Duration::from_secs(301));
}

fn enroll(authority: &Authority, asked: &EnrollRequest, is_request: bool) {
    let (csr, now) = (&asked.signing_request[..], SystemTime::now());
    if let Some(secret) = Secret::from_bytes(&asked.secret) {
        let refused = authority.enroll(&secret, &asked.name, csr, now).err();
        let expected = match is_request {
            true => matches!(refused, Some(AuthorityError::TokenUnknown)),
            false => matches!(refused, Some(AuthorityError::Request(_))),
        };
        assert!(expected, "{refused:?}");
    }
    if !is_request {
        return;
    }
    let grant = TokenGrant {
        role: Role::Agent,
        name: None,
        hosts: Vec::new(),
        lifetime: LIFETIME,
        uses: 1,
    };
    let token = authority.token(&grant, LIFETIME, now).expect("a token");
    let chain = authority.enroll(&token.secret, &asked.name, csr, now);
    match Peer::new(Role::Agent, &asked.name) {
        Ok(peer) => {
            let hosts = Vec::new();
            let lifetime = LIFETIME;
            says(
                &chain.expect("joined"),
                &Grant {
                    peer,
                    hosts,
                    lifetime,
                },
            );
            let again = authority.enroll(&token.secret, &asked.name, csr, now).err();
            assert!(
                matches!(again, Some(AuthorityError::TokenUsed)),
                "{again:?}"
            );
        }
        Err(_) => assert!(matches!(chain, Err(AuthorityError::Peer(_)))),
    }
}
