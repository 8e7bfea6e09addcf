//! What ServiceEntries and WorkloadEntries say of destinations that are no Kubernetes services.
//!
//! Objects arrive validated; resolving names is left to others.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use super::destination_rule::ExportTo;
use crate::model::{Labels, ObjectName, SpiffeId};

/// A ServiceEntry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceEntry {
    /// Namespace and name.
    pub name: ObjectName,
    /// `metadata.creationTimestamp` in seconds since 1970.
    pub created: Option<i64>,
    /// Its hosts without wildcards, in lower case. At an address, which tells no host, the first counts.
    pub hosts: Vec<Arc<str>>,
    /// Hosts with a wildcard, as suffixes that begin with a dot.
    pub wildcards: Vec<Arc<str>>,
    /// The addresses that clients dial.
    pub addresses: Vec<Prefix>,
    /// Its hosts want none allocated, if it states none.
    pub no_vips: bool,
    /// Its ports.
    pub ports: Vec<EntryPort>,
    /// How an endpoint is found.
    pub resolution: Resolution,
    /// Its endpoints, as far as they stand in it.
    pub endpoints: Vec<EntryEndpoint>,
    /// `workloadSelector`: WorkloadEntries and pods of its namespace with these labels are its endpoints.
    pub selector: Option<Labels>,
    /// Whose clients see it.
    pub exported_to: ExportTo,
    /// Names that servers' certificates may have, where a DestinationRule with TLS says none.
    pub subject_alt_names: Vec<Arc<str>>,
    /// Those of them that are workloads' identities: endpoints in the mesh may have them instead of their own.
    pub identities: Option<Arc<[SpiffeId]>>,
}

impl ServiceEntry {
    /// Whether addresses are to be allocated for its hosts.
    pub fn wants_vips(&self) -> bool {
        self.addresses.is_empty() && self.resolution != Resolution::None && !self.no_vips
    }
}

/// How the endpoint of a ServiceEntry is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// It is the address that was dialled.
    None,
    /// One of the endpoints' addresses.
    Static,
    /// One of the addresses that all names of endpoints, or else the host, resolve to.
    Dns,
    /// The first of the addresses that the name of the endpoint, or else the host, resolves to.
    DnsRoundRobin,
}

/// A port of a ServiceEntry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryPort {
    /// The port that clients dial.
    pub number: u16,
    /// Its name.
    pub name: Arc<str>,
    /// The port of endpoints, where they say no other.
    pub target: u16,
    /// What is spoken there.
    pub protocol: EntryProtocol,
}

/// What is spoken at a port of a ServiceEntry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryProtocol {
    /// HTTP/1 in the clear.
    Http,
    /// HTTP/2 in the clear, gRPC included.
    Http2,
    /// TLS that the application speaks.
    Tls,
    /// Anything else.
    Tcp,
}

/// An endpoint of a ServiceEntry, or a WorkloadEntry as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryEndpoint {
    /// Where it is.
    pub address: EntryAddress,
    /// Its ports, by the name of the entry's port.
    pub ports: BTreeMap<Arc<str>, u16>,
}

impl EntryEndpoint {
    /// Its port behind a port of the entry.
    pub fn port(&self, port: &EntryPort) -> u16 {
        self.ports.get(&port.name).copied().unwrap_or(port.target)
    }
}

/// Where an endpoint is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryAddress {
    /// At this address.
    Ip(IpAddr),
    /// Where this name leads, in lower case.
    Name(Arc<str>),
}

/// A WorkloadEntry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadEntry {
    /// Namespace and name.
    pub name: ObjectName,
    /// Its labels: the object's and those of its `spec`.
    pub labels: Labels,
    /// Where it is, and its ports.
    pub endpoint: EntryEndpoint,
}

/// A network, canonical: host bits are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    address: IpAddr,
    len: u8,
}

impl Prefix {
    /// The network of `address` with that many leading bits; `None` if an address has not so many.
    pub fn new(address: IpAddr, len: u8) -> Option<Self> {
        let bits = width(address);
        (len <= bits).then(|| Self { address: masked(address, len), len })
    }

    /// One address.
    pub fn single(address: IpAddr) -> Self {
        Self { address, len: width(address) }
    }

    /// Its first address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// How many leading bits its addresses have in common.
    #[expect(clippy::len_without_is_empty, reason = "the length of a prefix, not of a collection")]
    pub fn len(&self) -> u8 {
        self.len
    }

    /// The address, if it is only one.
    pub fn as_single(&self) -> Option<IpAddr> {
        (self.len == width(self.address)).then_some(self.address)
    }

    /// Whether `ip` is in it.
    pub fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.address.is_ipv4() && masked(ip, self.len) == self.address
    }
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.as_single() {
            Some(ip) => ip.fmt(f),
            None => write!(f, "{}/{}", self.address, self.len),
        }
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn masked(address: IpAddr, len: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
            IpAddr::V4((v4.to_bits() & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
            IpAddr::V6((v6.to_bits() & mask).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_contain_what_begins_as_they_do() {
        let prefix = |text: &str, len| Prefix::new(text.parse().unwrap(), len).unwrap();
        for (network, ip, inside) in [
            (prefix("198.18.1.7", 24), "198.18.1.200", true),
            (prefix("198.18.1.7", 24), "198.18.2.1", false),
            (prefix("198.18.1.7", 32), "198.18.1.7", true),
            (prefix("0.0.0.0", 0), "198.18.1.7", true),
            (prefix("0.0.0.0", 0), "fd00:198::1", false),
            (prefix("fd00:198::9", 64), "fd00:198::1", true),
            (prefix("fd00:198::9", 128), "fd00:198::1", false),
        ] {
            assert_eq!(network.contains(ip.parse().unwrap()), inside, "{network} {ip}");
        }
        assert_eq!(Prefix::new("198.18.1.7".parse().unwrap(), 33), None);
    }
}
