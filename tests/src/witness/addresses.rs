//! The ends of connections, in one spelling.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result};

use crate::strace::Value;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// IPv4 inside IPv6 is written as IPv4, as in the record.
    Internet(String),
    /// An abstract name begins with "@".
    Unix(Vec<u8>),
    Other(i64),
}

impl Address {
    /// A `struct sockaddr` as strace writes it.
    pub fn of(value: &Value) -> Result<Self> {
        const UNIX: i64 = 1;
        const IPV4: i64 = 2;
        const IPV6: i64 = 10;
        let field = |name: &str| -> Result<Vec<u8>> {
            value
                .field(name)
                .with_context(|| format!("{value:?} has no {name}"))?
                .text()
        };
        let family = value.field("sa_family").context("no family")?.number()?;
        Ok(match family {
            IPV4 => {
                let bytes: [u8; 4] = field("sin_addr")?.try_into().ok().context("4 bytes")?;
                Self::internet(bytes.into(), &field("sin_port")?)?
            }
            IPV6 => {
                let bytes: [u8; 16] = field("sin6_addr")?.try_into().ok().context("16 bytes")?;
                Self::internet(bytes.into(), &field("sin6_port")?)?
            }
            UNIX => {
                let path = value.field("sun_path").context("no path")?;
                Self::Unix(match path.0.strip_prefix('@') {
                    Some(name) => [b"@".to_vec(), Value(name.to_owned()).text()?].concat(),
                    None => path.text()?,
                })
            }
            other => Self::Other(other),
        })
    }

    fn internet(address: IpAddr, port: &[u8]) -> Result<Self> {
        let port: [u8; 2] = port.try_into().context("2 bytes")?;
        Ok(Self::Internet(internet(address, u16::from_be_bytes(port))))
    }
}

pub fn internet(address: IpAddr, port: u16) -> String {
    SocketAddr::new(address.to_canonical(), port).to_string()
}

/// The local end in what strace writes behind a descriptor: `TCP:[127.0.0.1:80]`; `None` for what is
/// no internet socket with an address.
pub fn local(meaning: &str) -> Option<String> {
    end(meaning, 0)
}

/// The other end: `TCP:[127.0.0.1:80->127.0.0.1:4711]`.
pub fn peer(meaning: &str) -> Option<String> {
    end(meaning, 1)
}

fn end(meaning: &str, at: usize) -> Option<String> {
    let (_, ends) = meaning.split_once(":[")?;
    let end = ends.strip_suffix(']')?.split("->").nth(at)?;
    let address: SocketAddr = end.parse().ok()?;
    Some(internet(address.ip(), address.port()))
}

/// The inode of a socket without an address: `TCP:[4711]`.
pub fn inode(meaning: &str) -> Option<&str> {
    let (protocol, inode) = meaning.split_once(":[")?;
    let inode = inode.strip_suffix(']')?;
    let known = protocol.starts_with("TCP") || protocol.starts_with("UDP");
    (known && inode.bytes().all(|byte| byte.is_ascii_digit())).then_some(inode)
}
