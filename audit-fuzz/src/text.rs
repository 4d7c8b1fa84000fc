//! Is a text what it claims to be: join token, peer, escape, filter, line of totals?
//!
//! Guarantee: any text is one or an error. What is taken reads back as it was written; a peer's name is
//! plain; escaping is undone by unescaping, for all bytes.

use audit_pki::{Peer, Role, Token, token::Secret};
use audit_proto::{
    filter,
    text::{escape, unescape},
};

use crate::deliver::totals;

pub fn run(bytes: &[u8]) {
    assert_eq!(unescape(&escape(bytes)).as_deref(), Some(bytes));
    let secret = Secret::from_bytes(bytes);
    assert_eq!(secret.is_some(), bytes.len() == 16);
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(token) = text.parse::<Token>() {
        let written = token.to_string();
        assert!(text.trim().eq_ignore_ascii_case(&written));
        assert_eq!(written.parse(), Ok(token));
    }
    if let Ok(peer) = text.parse::<Peer>() {
        assert_eq!(peer.to_string(), text);
        assert!((1..=128).contains(&peer.name().len()) && !peer.name().contains(['/', ' ', '\n']));
    }
    if let Ok(role) = text.parse::<Role>() {
        assert_eq!(role.as_str(), text);
    }
    if let Some(raw) = unescape(text) {
        assert_eq!(unescape(&escape(&raw)), Some(raw));
    }
    if let Ok(filter) = filter::parse(text) {
        assert!(!filter.conditions.is_empty());
        let named = |name: &str| !name.is_empty() && !name.contains([' ', ',', '=']);
        assert!(
            filter
                .conditions
                .iter()
                .all(|condition| named(&condition.column))
        );
    }
    totals(text);
}
