//! Is an address in a CIDR network?

use std::net::IpAddr;

/// An address range as in `10.0.0.0/8` or `fe80::/10`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Network {
    base: IpAddr,
    prefix_bits: u8,
}

impl Network {
    pub fn parse(text: &str) -> Option<Network> {
        let (address, bits) = text.split_once('/')?;
        let base: IpAddr = address.parse().ok()?;
        let prefix_bits: u8 = bits.parse().ok()?;
        let width = if base.is_ipv4() { 32 } else { 128 };
        (prefix_bits <= width).then_some(Network { base, prefix_bits })
    }

    pub fn contains(self, address: &str) -> bool {
        let Ok(address) = address.parse::<IpAddr>() else {
            return false;
        };
        match (self.base, address.to_canonical()) {
            (IpAddr::V4(base), IpAddr::V4(address)) => same_prefix(
                base.to_bits().into(),
                address.to_bits().into(),
                32,
                self.prefix_bits,
            ),
            (IpAddr::V6(base), IpAddr::V6(address)) => {
                same_prefix(base.to_bits(), address.to_bits(), 128, self.prefix_bits)
            }
            _ => false,
        }
    }
}

fn same_prefix(a: u128, b: u128, width: u8, prefix_bits: u8) -> bool {
    (a ^ b)
        .checked_shr(u32::from(width - prefix_bits))
        .unwrap_or(0)
        == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn membership() {
        let inside = |net, address| Network::parse(net).expect("network").contains(address);
        assert!(inside("10.0.0.0/8", "10.255.0.1") && !inside("10.0.0.0/8", "11.0.0.1"));
        assert!(inside("10.0.0.0/8", "::ffff:10.1.2.3"));
        assert!(inside("0.0.0.0/0", "1.2.3.4") && !inside("0.0.0.0/0", "::1"));
        assert!(inside("::/0", "2001:db8::1") && inside("fe80::/10", "fe80::1"));
        assert!(inside("127.0.0.1/32", "127.0.0.1") && !inside("127.0.0.1/32", "127.0.0.2"));
        assert!(!inside("10.0.0.0/8", "host.example"));
        assert!(Network::parse("10.0.0.0/33").is_none() && Network::parse("10.0.0.0").is_none());
    }
}
