//! Makes DNS messages for tests.

use std::net::IpAddr;

use super::message::RecordType;

pub type Labels = Vec<Vec<u8>>;

/// Of a name without escapes; "" is the root.
pub fn labels(name: &str) -> Labels {
    name.split('.')
        .filter(|label| !label.is_empty())
        .map(|label| label.as_bytes().to_vec())
        .collect()
}

/// Data of a record to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    Address(IpAddr),
    Target(RecordType, Labels),
    Text(Vec<Vec<u8>>),
    Https(Labels, Vec<IpAddr>),
    Raw(RecordType, Vec<u8>),
}

impl Content {
    pub fn record_type(&self) -> RecordType {
        match self {
            Self::Address(IpAddr::V4(_)) => RecordType::A,
            Self::Address(IpAddr::V6(_)) => RecordType::AAAA,
            Self::Target(record_type, _) | Self::Raw(record_type, _) => *record_type,
            Self::Text(_) => RecordType::TXT,
            Self::Https(..) => RecordType::HTTPS,
        }
    }
}

/// Writes a message piece by piece; names are compressed as servers do.
pub struct Encoder {
    pub bytes: Vec<u8>,
    compress: bool,
    known: Vec<(Labels, u16)>,
}

pub const RESPONSE: u16 = 0x8180;
pub const QUERY: u16 = 0x0100;

impl Encoder {
    pub fn new(id: u16, flags: u16, compress: bool) -> Self {
        let mut bytes = vec![0; 12];
        bytes[..2].copy_from_slice(&id.to_be_bytes());
        bytes[2..4].copy_from_slice(&flags.to_be_bytes());
        Self {
            bytes,
            compress,
            known: Vec::new(),
        }
    }

    pub fn question(&mut self, name: &Labels, record_type: RecordType) -> &mut Self {
        self.count(4);
        self.name(name, true);
        self.bytes.extend_from_slice(&record_type.0.to_be_bytes());
        self.bytes.extend_from_slice(&[0, 1]);
        self
    }

    pub fn answer(&mut self, name: &Labels, ttl: u32, content: &Content) -> &mut Self {
        self.count(6);
        self.name(name, true);
        self.fixed(content.record_type(), 1, ttl);
        let at = self.bytes.len();
        self.content(content);
        let length = (self.bytes.len() - at) as u16;
        self.bytes[at - 2..at].copy_from_slice(&length.to_be_bytes());
        self
    }

    /// An OPT record with the upper bits of the result code.
    pub fn opt(&mut self, extended: u8) -> &mut Self {
        self.count(10);
        self.name(&Vec::new(), false);
        self.fixed(RecordType::OPT, 1232, u32::from(extended) << 24);
        self
    }

    fn fixed(&mut self, record_type: RecordType, class: u16, ttl: u32) {
        self.bytes.extend_from_slice(&record_type.0.to_be_bytes());
        self.bytes.extend_from_slice(&class.to_be_bytes());
        self.bytes.extend_from_slice(&ttl.to_be_bytes());
        self.bytes.extend_from_slice(&[0, 0]);
    }

    fn content(&mut self, content: &Content) {
        match content {
            Content::Address(IpAddr::V4(address)) => self.bytes.extend(address.octets()),
            Content::Address(IpAddr::V6(address)) => self.bytes.extend(address.octets()),
            Content::Target(record_type, name) => {
                let before = match *record_type {
                    RecordType::MX => 2,
                    RecordType::SRV => 6,
                    _ => 0,
                };
                self.bytes.extend(std::iter::repeat_n(7, before));
                self.name(name, true);
            }
            Content::Text(strings) => {
                for string in strings {
                    self.bytes.push(string.len() as u8);
                    self.bytes.extend_from_slice(string);
                }
            }
            Content::Https(target, hints) => {
                self.bytes.extend_from_slice(&[0, 1]);
                self.name(target, false);
                // alpn, which is of no interest, then one parameter for each hint
                self.bytes.extend_from_slice(b"\0\x01\0\x03\x02h2");
                for hint in hints {
                    let (key, octets) = match hint {
                        IpAddr::V4(address) => (4, address.octets().to_vec()),
                        IpAddr::V6(address) => (6, address.octets().to_vec()),
                    };
                    self.bytes.extend([0, key, 0, octets.len() as u8]);
                    self.bytes.extend(octets);
                }
            }
            Content::Raw(_, bytes) => self.bytes.extend_from_slice(bytes),
        }
    }

    fn name(&mut self, name: &Labels, may_compress: bool) {
        for at in 0..name.len() {
            let rest = &name[at..];
            let known = self.known.iter().find(|(known, _)| known == rest);
            if let Some((_, place)) = known
                && self.compress
                && may_compress
            {
                self.bytes
                    .extend_from_slice(&(0xc000 | place).to_be_bytes());
                return;
            }
            if self.bytes.len() < 0x4000 {
                self.known.push((rest.to_vec(), self.bytes.len() as u16));
            }
            self.bytes.push(name[at].len() as u8);
            self.bytes.extend_from_slice(&name[at]);
        }
        self.bytes.push(0);
    }

    fn count(&mut self, at: usize) {
        let count = u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]]) + 1;
        self.bytes[at..at + 2].copy_from_slice(&count.to_be_bytes());
    }
}

/// A response as a resolver gives it: the name, its CNAMEs, and the addresses of the last.
pub fn addresses(chain: &[&str], ttl: u32, addresses: &[IpAddr]) -> Vec<u8> {
    let mut encoder = Encoder::new(7, RESPONSE, true);
    encoder.question(&labels(chain[0]), RecordType::A);
    for pair in chain.windows(2) {
        let target = Content::Target(RecordType::CNAME, labels(pair[1]));
        encoder.answer(&labels(pair[0]), ttl, &target);
    }
    for address in addresses {
        let last = labels(chain[chain.len() - 1]);
        encoder.answer(&last, ttl, &Content::Address(*address));
    }
    encoder.opt(0);
    encoder.bytes
}
