//! What connections to outside the mesh are held to.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use super::IpBlocks;

/// Where addresses for hosts of ServiceEntries come from: a network of each family at most, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VipNetworks(pub(crate) Vec<(IpAddr, u8)>);

impl Default for VipNetworks {
    fn default() -> Self {
        let v6 = Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 0);
        Self(vec![(Ipv4Addr::new(240, 240, 0, 0).into(), 16), (v6.into(), 48)])
    }
}

impl FromStr for VipNetworks {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(Vec::new()));
        }
        let networks: Result<IpBlocks, String> = text.parse();
        let IpBlocks(networks) = networks.map_err(|error| format!("{error}, or none"))?;
        let of = |v4: bool| networks.iter().filter(move |(address, _)| address.is_ipv4() == v4);
        let fits = |(address, len): &(IpAddr, u8)| *len <= if address.is_ipv4() { 30 } else { 126 };
        if of(true).count() > 1 || of(false).count() > 1 || !networks.iter().all(fits) {
            return Err(
                "use one network of each family at most, no smaller than a /30 or /126, such as 240.240.0.0/16,2001:2::/48, or none"
                    .to_owned(),
            );
        }
        Ok(Self(networks))
    }
}

impl fmt::Display for VipNetworks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for (index, (address, len)) in self.0.iter().enumerate() {
            write!(f, "{}{address}/{len}", if index == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_for_addresses_are_one_of_a_family() {
        assert_eq!("240.240.0.0/16,2001:2::/48".parse(), Ok(VipNetworks::default()));
        assert_eq!(VipNetworks::default().to_string(), "240.240.0.0/16,2001:2::/48");
        for text in ["none", "10.9.0.0/16", "fd00::/64"] {
            assert_eq!(text.parse::<VipNetworks>().unwrap().to_string(), text);
        }
        for bad in ["", "10.0.0.0/8,11.0.0.0/8", "10.0.0.0/31", "fd00::/127", "10.0.0.1", "x"] {
            let error = bad.parse::<VipNetworks>().unwrap_err();
            assert!(error.ends_with(", or none"), "{bad}: {error}");
        }
    }
}
