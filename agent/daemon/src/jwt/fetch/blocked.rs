//! Addresses that a policy must not have an agent dial: an agent runs in the network of its node, and reaches what no author of a
//! policy does.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// This host, links, multicast, and where clouds give a machine its credentials.
const ALWAYS: [(IpAddr, u8); 14] = [
    (v4(0, 0, 0, 0), 8),
    (v4(127, 0, 0, 0), 8),
    // The metadata of most clouds is in it, at 169.254.169.254.
    (v4(169, 254, 0, 0), 16),
    (v4(224, 0, 0, 0), 4),
    (v4(240, 0, 0, 0), 4),
    // Alibaba Cloud, Oracle Cloud, Azure.
    (v4(100, 100, 100, 200), 32),
    (v4(192, 0, 0, 192), 32),
    (v4(168, 63, 129, 16), 32),
    // Unspecified, loopback, and addresses with an IPv4 address in them in the way that is no longer used.
    (v6([0, 0, 0, 0, 0, 0, 0, 0]), 96),
    (v6([0xfe80, 0, 0, 0, 0, 0, 0, 0]), 10),
    (v6([0xff00, 0, 0, 0, 0, 0, 0, 0]), 8),
    // AWS, Google Cloud, Oracle Cloud.
    (v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0]), 32),
    (v6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254]), 128),
    (v6([0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe]), 128),
];

/// Blocks of addresses that are not dialled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Blocked(Vec<(IpAddr, u8)>);

impl Default for Blocked {
    /// Those that never are.
    fn default() -> Self {
        Self(ALWAYS.to_vec())
    }
}

impl Blocked {
    /// The same and these.
    pub(crate) fn and(blocks: impl IntoIterator<Item = (IpAddr, u8)>) -> Self {
        let mut all = Self::default();
        all.0.extend(blocks);
        all
    }

    /// None at all.
    #[cfg(test)]
    pub(crate) fn nothing() -> Self {
        Self(Vec::new())
    }

    /// Whether `address`, or the IPv4 address that is in it, is one of these.
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        let is_in = |address| self.0.iter().any(|(block, bits)| covers(*block, *bits, address));
        is_in(address.to_canonical()) || embedded(address).is_some_and(is_in)
    }
}

fn covers(block: IpAddr, bits: u8, address: IpAddr) -> bool {
    let same = |length: u8, differing: u32| differing >= u32::from(bits.min(length));
    match (block, address) {
        (IpAddr::V4(block), IpAddr::V4(address)) => {
            same(32, (block.to_bits() ^ address.to_bits()).leading_zeros())
        }
        (IpAddr::V6(block), IpAddr::V6(address)) => {
            same(128, (block.to_bits() ^ address.to_bits()).leading_zeros())
        }
        _ => false,
    }
}

/// The IPv4 address that a translator or a tunnel makes of it (RFC 6052, section 2.1; RFC 3056, section 2).
fn embedded(address: IpAddr) -> Option<IpAddr> {
    let IpAddr::V6(v6) = address else { return None };
    let from =
        |high: u16, low: u16| IpAddr::from(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)));
    match v6.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(from(high, low)),
        [0x2002, high, low, ..] => Some(from(high, low)),
        _ => None,
    }
}

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

const fn v6(parts: [u16; 8]) -> IpAddr {
    let [a, b, c, d, e, f, g, h] = parts;
    IpAddr::V6(Ipv6Addr::new(a, b, c, d, e, f, g, h))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_leads_no_agent_to_its_host_its_links_or_a_cloud_s_metadata() {
        let blocked = Blocked::and([("10.9.0.0".parse().unwrap(), 16)]);
        for (address, expected) in [
            ("127.0.0.1", true),
            ("127.9.9.9", true),
            ("0.0.0.0", true),
            ("169.254.169.254", true),
            ("169.253.255.255", false),
            ("100.100.100.200", true),
            ("100.100.100.201", false),
            ("168.63.129.16", true),
            ("224.0.0.1", true),
            ("255.255.255.255", true),
            ("10.9.1.2", true),
            ("10.8.1.2", false),
            ("192.0.2.1", false),
            ("::", true),
            ("::1", true),
            ("fe80::1", true),
            ("fec0::1", false),
            ("ff02::1", true),
            ("fd00:ec2::254", true),
            ("fd20:ce::254", true),
            ("fd00:c1::a9fe:a9fe", true),
            ("fd00::1", false),
            ("2001:db8::1", false),
            ("::ffff:127.0.0.1", true),
            ("::ffff:192.0.2.1", false),
            ("::7f00:1", true),
            ("64:ff9b::a9fe:a9fe", true),
            ("64:ff9b::192.0.2.1", false),
            ("2002:7f00:1::1", true),
            ("2002:c000:201::1", false),
        ] {
            assert_eq!(blocked.contains(address.parse().unwrap()), expected, "{address}");
        }
    }
}
