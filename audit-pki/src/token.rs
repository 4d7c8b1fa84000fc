//! With which word may a host join? `hostaudit-join.SECRET.CA`: a secret that works once, or as
//! often as its maker said, and the SHA-256 of the authority's certificate, so that the host knows the
//! collector before it trusts anything else.
//!
//! Invariant: the authority keeps the secret's hash; neither file nor log has the secret.

use std::{fmt, str::FromStr};

use sha2::{Digest as _, Sha256};

use crate::{hex, unhex};

const PREFIX: &str = "hostaudit-join";

/// SHA-256 of a certificate in DER.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    pub fn of(der: &[u8]) -> Self {
        Self(Sha256::digest(der).into())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// 128 bits that cannot be guessed. Not printed by `{:?}`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; 16]);

impl Secret {
    pub fn new() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// As it travels to the collector, which is authenticated by then.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self(bytes.try_into().ok()?))
    }

    /// Under which the authority keeps it.
    pub(crate) fn hash(&self) -> String {
        hex(&Sha256::digest(self.0))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub secret: Secret,
    pub authority: Fingerprint,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a join token: {PREFIX}.SECRET.CA, as `hostaudit pki token` prints it, whole")]
pub struct TokenError;

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}.{}.{}", hex(&self.secret.0), self.authority)
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let mut parts = text.trim().split('.');
        let (prefix, secret, authority) = (parts.next(), parts.next(), parts.next());
        if prefix != Some(PREFIX) || parts.next().is_some() {
            return Err(TokenError);
        }
        Ok(Self {
            secret: Secret(secret.and_then(unhex).ok_or(TokenError)?),
            authority: Fingerprint(authority.and_then(unhex).ok_or(TokenError)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        Token {
            secret: Secret::new().expect("random"),
            authority: Fingerprint::of(b"ca"),
        }
    }

    #[test]
    fn a_token_is_its_text_and_back_and_never_the_same_twice() {
        let token = token();
        assert_eq!(format!(" {token}\n").parse(), Ok(token.clone()));
        assert_ne!(token.secret, self::token().secret);
        assert!(!format!("{token:?}").contains(&hex(token.secret.bytes())));
    }

    #[test]
    fn a_token_that_was_cut_or_changed_in_form_is_refused() {
        let text = token().to_string();
        for at in 0..text.len() {
            assert_eq!(text[..at].parse::<Token>(), Err(TokenError), "{at}");
        }
        for bad in [
            format!("{text}0"),
            format!("{text}."),
            format!("x{text}"),
            text.replace('.', ":"),
        ] {
            assert_eq!(bad.parse::<Token>(), Err(TokenError), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_token_or_an_error(text in ".*", hex in "[0-9a-fg]{30,34}") {
            let _ = text.parse::<Token>();
            let _ = format!("{PREFIX}.{hex}.{hex}{hex}").parse::<Token>();
        }
    }
}
