//! What does a DNS message say (RFC 1035)? Bytes in, borrowed parts out; no state, no clock.
//!
//! Invariants: no bytes make it panic, nothing is allocated, and what is handed out was read whole
//! once. At most [`ANSWERS`] answers are used; their names are bounded by [`super::name`]. Answers
//! before a bad one are told, because stub resolvers (musl's) use them, and `flaw` says why the
//! rest is not: so a message cut by the capture is read as far as it goes. Of the sections behind
//! the answers only the extended result code (RFC 6891) is read, because programs read no more.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::name::Name;

/// The fixed beginning of a message.
pub const HEADER_BYTES: usize = 12;
/// Answers used of one message; the largest rotations of addresses have some dozens.
pub const ANSWERS: u16 = 128;
/// Labels in the names of one message: 32 in the owner and in the target of each answer, as names
/// of IPv6 addresses have them. Compression lets an attacker say more in few bytes.
pub const LABELS: u32 = 8192;
/// Records behind the answers among which OPT is looked for.
const RECORDS_BEHIND: u32 = 128;
/// The class Internet; of others only the names are read.
const CLASS_IN: u16 = 1;

/// Why a message, or the rest of its answers, cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    #[error("it ends within a field")]
    Short,
    #[error("a name has more than 255 bytes")]
    LongName,
    #[error("a name's pointer does not lead backwards, or one too many")]
    Pointer,
    #[error("a label is of unknown type")]
    Label,
    #[error("it has more than one question")]
    Questions,
    #[error("an answer's data do not have the form of its type")]
    Data,
    #[error("it has more than 128 answers, or more than 8192 labels in their names")]
    Bound,
}

/// The type of a record or question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordType(pub u16);

impl RecordType {
    pub const A: Self = Self(1);
    pub const NS: Self = Self(2);
    pub const CNAME: Self = Self(5);
    pub const PTR: Self = Self(12);
    pub const MX: Self = Self(15);
    pub const TXT: Self = Self(16);
    pub const AAAA: Self = Self(28);
    pub const SRV: Self = Self(33);
    pub const DNAME: Self = Self(39);
    pub const OPT: Self = Self(41);
    pub const SVCB: Self = Self(64);
    pub const HTTPS: Self = Self(65);
}

impl fmt::Display for RecordType {
    /// The name in IANA's registry where it is a common one, else "TYPE" and the number (RFC 3597).
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self.0 {
            1 => "A",
            2 => "NS",
            5 => "CNAME",
            6 => "SOA",
            10 => "NULL",
            12 => "PTR",
            13 => "HINFO",
            15 => "MX",
            16 => "TXT",
            28 => "AAAA",
            33 => "SRV",
            35 => "NAPTR",
            39 => "DNAME",
            41 => "OPT",
            43 => "DS",
            44 => "SSHFP",
            46 => "RRSIG",
            47 => "NSEC",
            48 => "DNSKEY",
            50 => "NSEC3",
            52 => "TLSA",
            64 => "SVCB",
            65 => "HTTPS",
            99 => "SPF",
            251 => "IXFR",
            252 => "AXFR",
            255 => "ANY",
            257 => "CAA",
            other => return write!(out, "TYPE{other}"),
        })
    }
}

/// The result of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResponseCode(pub u16);

impl ResponseCode {
    pub const NO_ERROR: Self = Self(0);
}

impl fmt::Display for ResponseCode {
    /// The name in IANA's registry, else "RCODE" and the number.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self.0 {
            0 => "NOERROR",
            1 => "FORMERR",
            2 => "SERVFAIL",
            3 => "NXDOMAIN",
            4 => "NOTIMP",
            5 => "REFUSED",
            6 => "YXDOMAIN",
            7 => "YXRRSET",
            8 => "NXRRSET",
            9 => "NOTAUTH",
            10 => "NOTZONE",
            16 => "BADVERS",
            23 => "BADCOOKIE",
            other => return write!(out, "RCODE{other}"),
        })
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    pub name: Name<'a>,
    pub record_type: RecordType,
    pub class: u16,
}

#[derive(Debug, Clone, Copy)]
pub struct Answer<'a> {
    pub name: Name<'a>,
    pub record_type: RecordType,
    pub class: u16,
    /// Seconds; a value with the highest bit set means none (RFC 2181, 8).
    pub ttl: u32,
    pub data: Data<'a>,
}

/// What an answer gives, by form.
#[derive(Debug, Clone, Copy)]
pub enum Data<'a> {
    /// A, AAAA.
    Address(IpAddr),
    /// CNAME, PTR, NS, DNAME, MX, SRV: the name that they lead to.
    Target(Name<'a>),
    /// HTTPS, SVCB.
    Service(Service<'a>),
    /// TXT: strings, each behind its length.
    Text(Text<'a>),
    /// Other types and classes.
    Other,
}

/// Where a service is (RFC 9460).
#[derive(Debug, Clone, Copy)]
pub struct Service<'a> {
    /// "." for the owner itself.
    pub target: Name<'a>,
    parameters: &'a [u8],
}

/// The strings of a TXT record.
#[derive(Debug, Clone, Copy)]
pub struct Text<'a>(&'a [u8]);

/// A query or response.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    pub id: u16,
    pub response: bool,
    /// 0 is a query.
    pub opcode: u8,
    /// The server left answers out; the program asks again by TCP.
    pub truncated: bool,
    /// With its extension where the message has one; 0 in a query.
    pub response_code: ResponseCode,
    pub question: Option<Question<'a>>,
    /// Answers that the message says it has.
    pub answers_told: u16,
    /// Why fewer than that are readable.
    pub flaw: Option<Flaw>,
    bytes: &'a [u8],
    answers_at: usize,
    answers: u16,
}

impl<'a> Message<'a> {
    /// Reads a message, or the beginning of one. An error means that not even the question could
    /// be read.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Flaw> {
        let header: &[u8; HEADER_BYTES] = bytes.first_chunk().ok_or(Flaw::Short)?;
        let number = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let flags = number(2);
        let mut work = LABELS;
        let (question, answers_at) = match number(4) {
            0 => (None, HEADER_BYTES),
            1 => Question::read(bytes, HEADER_BYTES, &mut work)?,
            _ => return Err(Flaw::Questions),
        };
        let mut message = Self {
            id: number(0),
            response: flags & 0x8000 != 0,
            opcode: (flags >> 11 & 15) as u8,
            truncated: flags & 0x0200 != 0,
            response_code: ResponseCode(flags & 15),
            question,
            answers_told: number(6),
            flaw: None,
            bytes,
            answers_at,
            answers: 0,
        };
        let behind = message.read_answers(&mut work);
        let additional = number(10);
        if message.flaw.is_none() && additional > 0 {
            let records = u32::from(number(8)) + u32::from(additional);
            let extension = extended_code(bytes, behind, records.min(RECORDS_BEHIND));
            message.response_code.0 |= extension.unwrap_or(0) << 4;
        }
        Ok(message)
    }

    /// Counts the readable answers; returns where they end.
    fn read_answers(&mut self, work: &mut u32) -> usize {
        let mut at = self.answers_at;
        while self.answers < self.answers_told {
            if self.answers == ANSWERS {
                self.flaw = Some(Flaw::Bound);
                break;
            }
            match Answer::read(self.bytes, at, |bytes, at| Name::read(bytes, at, work)) {
                Ok((_, after)) => at = after,
                Err(flaw) => {
                    self.flaw = Some(flaw);
                    break;
                }
            }
            self.answers += 1;
        }
        at
    }

    /// The readable answers, in the message's order.
    pub fn answers(&self) -> impl Iterator<Item = Answer<'a>> + use<'a> {
        let (bytes, mut at, mut left) = (self.bytes, self.answers_at, self.answers);
        std::iter::from_fn(move || {
            left = left.checked_sub(1)?;
            let (answer, after) = Answer::read(bytes, at, Name::again).ok()?;
            at = after;
            Some(answer)
        })
    }

    /// Answers that [`Message::answers`] tells.
    pub fn readable_answers(&self) -> u16 {
        self.answers
    }
}

impl<'a> Question<'a> {
    fn read(bytes: &'a [u8], at: usize, work: &mut u32) -> Result<(Option<Self>, usize), Flaw> {
        let (name, at) = Name::read(bytes, at, work)?;
        let [t, y, c, l] = *chunk(bytes, at)?;
        let question = Self {
            name,
            record_type: RecordType(u16::from_be_bytes([t, y])),
            class: u16::from_be_bytes([c, l]),
        };
        Ok((Some(question), at + 4))
    }

    pub fn is_internet(&self) -> bool {
        self.class == CLASS_IN
    }
}

impl<'a> Answer<'a> {
    fn read(
        bytes: &'a [u8],
        at: usize,
        mut read_name: impl FnMut(&'a [u8], usize) -> Result<(Name<'a>, usize), Flaw>,
    ) -> Result<(Self, usize), Flaw> {
        let (name, at) = read_name(bytes, at)?;
        let (fixed, data) = Fixed::read(bytes, at)?;
        let after = data + fixed.data_bytes;
        let data = match fixed.class {
            // A name's pointers lead backwards, so the data's end ends them as well.
            CLASS_IN => Data::read(fixed.record_type, &bytes[..after], data, |bytes, at| {
                // The data are there, so what ends too early in them has another form.
                read_name(bytes, at).map_err(|flaw| match flaw {
                    Flaw::Short => Flaw::Data,
                    other => other,
                })
            })?,
            _ => Data::Other,
        };
        let answer = Self {
            name,
            record_type: fixed.record_type,
            class: fixed.class,
            ttl: fixed.ttl,
            data,
        };
        Ok((answer, after))
    }
}

impl<'a> Data<'a> {
    /// `bytes` ends with the data, which begin at `at`.
    fn read(
        record_type: RecordType,
        bytes: &'a [u8],
        at: usize,
        mut read_name: impl FnMut(&'a [u8], usize) -> Result<(Name<'a>, usize), Flaw>,
    ) -> Result<Self, Flaw> {
        let data = bytes.get(at..).ok_or(Flaw::Short)?;
        let before_target = match record_type {
            RecordType::A => {
                let address: [u8; 4] = data.try_into().map_err(|_| Flaw::Data)?;
                return Ok(Self::Address(Ipv4Addr::from(address).into()));
            }
            RecordType::AAAA => {
                let address: [u8; 16] = data.try_into().map_err(|_| Flaw::Data)?;
                return Ok(Self::Address(Ipv6Addr::from(address).into()));
            }
            RecordType::SVCB | RecordType::HTTPS => {
                let (target, after) = read_name(bytes, at + 2)?;
                let parameters = bytes.get(after..).unwrap_or_default();
                return Ok(Self::Service(Service { target, parameters }));
            }
            RecordType::TXT => return Ok(Self::Text(Text(data))),
            RecordType::NS | RecordType::CNAME | RecordType::PTR | RecordType::DNAME => 0,
            RecordType::MX => 2,
            RecordType::SRV => 6,
            _ => return Ok(Self::Other),
        };
        let (target, after) = read_name(bytes, at + before_target)?;
        if after != bytes.len() {
            return Err(Flaw::Data);
        }
        Ok(Self::Target(target))
    }
}

impl Service<'_> {
    /// Addresses that a browser may connect to without asking for them.
    pub fn hints(&self) -> impl Iterator<Item = IpAddr> {
        const IPV4_HINT: u16 = 4;
        const IPV6_HINT: u16 = 6;
        let mut rest = self.parameters;
        let parameters = std::iter::from_fn(move || {
            let ([k, y, l, n], behind) = rest.split_first_chunk()?;
            let length = usize::from(u16::from_be_bytes([*l, *n]));
            let (value, behind) = behind.split_at_checked(length)?;
            rest = behind;
            Some((u16::from_be_bytes([*k, *y]), value))
        });
        parameters.flat_map(|(key, value)| {
            let four = if key == IPV4_HINT { value } else { &[] };
            let six = if key == IPV6_HINT { value } else { &[] };
            let (four, _) = four.as_chunks::<4>();
            let (six, _) = six.as_chunks::<16>();
            let four = four.iter().map(|a| IpAddr::from(*a));
            four.chain(six.iter().map(|a| IpAddr::from(*a)))
        })
    }
}

impl<'a> Text<'a> {
    pub fn strings(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let (length, behind) = rest.split_first()?;
            // A last string that is cut is told as far as it goes.
            let end = usize::from(*length).min(behind.len());
            let (string, behind) = behind.split_at(end);
            rest = behind;
            Some(string)
        })
    }
}

/// The ten bytes between a record's name and its data.
struct Fixed {
    record_type: RecordType,
    class: u16,
    ttl: u32,
    data_bytes: usize,
}

impl Fixed {
    /// Also returns where the data begin; that they are all there is checked.
    fn read(bytes: &[u8], at: usize) -> Result<(Self, usize), Flaw> {
        let [t, y, c, l, t3, t2, t1, t0, d, b] = *chunk(bytes, at)?;
        let fixed = Self {
            record_type: RecordType(u16::from_be_bytes([t, y])),
            class: u16::from_be_bytes([c, l]),
            ttl: u32::from_be_bytes([t3, t2, t1, t0]),
            data_bytes: u16::from_be_bytes([d, b]).into(),
        };
        let data = at + 10;
        if bytes.len() < data + fixed.data_bytes {
            return Err(Flaw::Short);
        }
        Ok((fixed, data))
    }
}

fn chunk<const N: usize>(bytes: &[u8], at: usize) -> Result<&[u8; N], Flaw> {
    let rest = bytes.get(at..).ok_or(Flaw::Short)?;
    rest.first_chunk().ok_or(Flaw::Short)
}

/// The upper bits of the result code, in the first OPT of `records` records.
fn extended_code(bytes: &[u8], mut at: usize, records: u32) -> Option<u16> {
    for _ in 0..records {
        at = Name::skip(bytes, at).ok()?;
        let (fixed, data) = Fixed::read(bytes, at).ok()?;
        if fixed.record_type == RecordType::OPT {
            return Some((fixed.ttl >> 24) as u16);
        }
        at = data + fixed.data_bytes;
    }
    None
}

#[cfg(test)]
pub(super) mod tests;
