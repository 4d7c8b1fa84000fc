//! What may somebody do, and under which name? In a certificate: `hostaudit://ROLE/NAME`.

use std::{fmt, str::FromStr};

/// A name is a host id, a person or a service; more is not a name.
const MAX_NAME_BYTES: usize = 128;
const SCHEME: &str = "hostaudit://";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Delivers the record of one host; its name is the host's id.
    Agent,
    Reader,
    Analyst,
    Admin,
    /// Answers; the only role whose certificate a client accepts from a server.
    Collector,
}

impl Role {
    pub const ALL: [Self; 5] = [
        Self::Agent,
        Self::Reader,
        Self::Analyst,
        Self::Admin,
        Self::Collector,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Reader => "reader",
            Self::Analyst => "analyst",
            Self::Admin => "admin",
            Self::Collector => "collector",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    #[error("`{0}` is no role; use agent, reader, analyst, admin or collector")]
    Role(String),
    #[error(
        "`{0}` is no name: 1 to {MAX_NAME_BYTES} letters, digits, `.`, `-`, `_`, `@`, the first a \
         letter or digit"
    )]
    Name(String),
    #[error("`{0}` is not of the form {SCHEME}ROLE/NAME")]
    Uri(String),
}

impl FromStr for Role {
    type Err = PeerError;

    fn from_str(text: &str) -> Result<Self, PeerError> {
        let mut all = Self::ALL.into_iter();
        let role = all.find(|role| role.as_str() == text);
        role.ok_or_else(|| PeerError::Role(text.to_owned()))
    }
}

/// Who a certificate stands for. Displayed as its URI.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Peer {
    role: Role,
    name: String,
}

impl Peer {
    pub fn new(role: Role, name: &str) -> Result<Self, PeerError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || ".-_@".contains(c);
        let first = name.chars().next();
        let begins = first.is_some_and(|c| c.is_ascii_alphanumeric());
        if !begins || name.len() > MAX_NAME_BYTES || !name.chars().all(plain) {
            return Err(PeerError::Name(name.to_owned()));
        }
        Ok(Self {
            role,
            name: name.to_owned(),
        })
    }

    pub fn role(&self) -> Role {
        self.role
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether a URI claims to be one of ours, well formed or not.
    pub fn is_ours(uri: &str) -> bool {
        uri.starts_with(SCHEME)
    }
}

impl FromStr for Peer {
    type Err = PeerError;

    fn from_str(uri: &str) -> Result<Self, PeerError> {
        let rest = uri.strip_prefix(SCHEME);
        let Some((role, name)) = rest.and_then(|rest| rest.split_once('/')) else {
            return Err(PeerError::Uri(uri.to_owned()));
        };
        Self::new(role.parse()?, name)
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.role, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_its_uri_and_back() {
        for role in Role::ALL {
            let peer = Peer::new(role, "a.b-c_d@e").expect("a name");
            assert_eq!(peer.to_string(), format!("hostaudit://{role}/a.b-c_d@e"));
            assert_eq!(peer.to_string().parse(), Ok(peer));
        }
    }

    #[test]
    fn what_is_no_name_or_no_role_is_refused() {
        for name in ["", ".", "-x", "a/b", "a b", "a%2f", "ä", &"a".repeat(129)] {
            assert!(Peer::new(Role::Agent, name).is_err(), "{name:?}");
        }
        for uri in [
            "",
            "hostaudit://",
            "hostaudit://agent",
            "hostaudit://agent/",
            "hostaudit://root/x",
            "hostaudit://Agent/x",
            "https://agent/x",
            "hostaudit://agent/x/y",
            " hostaudit://agent/x",
        ] {
            assert!(uri.parse::<Peer>().is_err(), "{uri:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_peer_or_an_error(text in ".*", tail in "[ -~]*") {
            let _ = text.parse::<Peer>();
            let uri = format!("hostaudit://agent/{tail}");
            if let Ok(peer) = uri.parse::<Peer>() {
                proptest::prop_assert_eq!(peer.to_string(), uri);
            }
        }
    }
}
