//! A quick look that rules out nearly all rules which do not match, side by side in memory: a rule's signs are what every connection
//! has that it matches, as one bit of 64 for each of a few properties. Never rules out one that matches.

use std::net::IpAddr;

use crate::policy::Facts;

/// A set of values of each property, with a bit for every value that is in it. Values share bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Signs {
    /// Namespace and service account of the client.
    account: u64,
    /// Namespace of the client.
    namespace: u64,
    /// The first byte of its IPv4 address.
    address: u64,
    port: u64,
}

/// The bit of what is not among the values: no identity, an IPv6 address.
const OTHER: u64 = 1 << 63;

impl Signs {
    /// Those of every connection.
    pub(super) const ANY: Self = Self { account: !0, namespace: !0, address: !0, port: !0 };
    pub(super) const NONE: Self = Self { account: 0, namespace: 0, address: 0, port: 0 };

    /// The signs of one connection.
    pub(super) fn of(facts: &Facts<'_>) -> Self {
        let (account, namespace) = match facts.peer {
            Some(peer) => {
                let namespace = hash(START, peer.namespace().as_bytes());
                (bit(hash(namespace, peer.service_account().as_bytes())), bit(namespace))
            }
            None => (OTHER, OTHER),
        };
        let address = match facts.source_ip.to_canonical() {
            IpAddr::V4(ip) => bit(ip.octets()[0].into()),
            IpAddr::V6(_) => OTHER,
        };
        Self { account, namespace, address, port: bit(facts.port.into()) }
    }

    /// Of one of these accounts; an unknown one may be any.
    pub(super) fn of_accounts<'a>(accounts: impl Iterator<Item = Option<(&'a str, &'a str)>>) -> Self {
        accounts.fold(Self { account: 0, namespace: 0, ..Self::ANY }, |signs, account| {
            let Some((namespace, name)) = account else { return Self::ANY.or(signs) };
            let namespace = hash(START, namespace.as_bytes());
            let account = bit(hash(namespace, name.as_bytes()));
            Self { account: signs.account | account, namespace: signs.namespace | bit(namespace), ..signs }
        })
    }

    /// Of one of these namespaces; an unknown one may be any.
    pub(super) fn of_namespaces<'a>(namespaces: impl Iterator<Item = Option<&'a str>>) -> Self {
        let bits = namespaces.map(|name| name.map_or(!0, |name| bit(hash(START, name.as_bytes()))));
        Self { namespace: bits.fold(0, |all, bit| all | bit), ..Self::ANY }
    }

    /// Of addresses with one of these first bytes; without one they may be any.
    pub(super) fn of_addresses(bytes: impl Iterator<Item = Option<u8>>) -> Self {
        let bits = bytes.map(|byte| byte.map_or(!0, |byte| bit(byte.into())));
        Self { address: bits.fold(0, |all, bit| all | bit), ..Self::ANY }
    }

    pub(super) fn of_ports(ports: &[u16]) -> Self {
        Self { port: ports.iter().fold(0, |all, port| all | bit((*port).into())), ..Self::ANY }
    }

    pub(super) fn or(self, other: Self) -> Self {
        Self {
            account: self.account | other.account,
            namespace: self.namespace | other.namespace,
            address: self.address | other.address,
            port: self.port | other.port,
        }
    }

    pub(super) fn and(self, other: Self) -> Self {
        Self {
            account: self.account & other.account,
            namespace: self.namespace & other.namespace,
            address: self.address & other.address,
            port: self.port & other.port,
        }
    }

    /// Whether one of each property is in both.
    pub(super) fn meet(self, other: Self) -> bool {
        let both = self.and(other);
        (both.account != 0) & (both.namespace != 0) & (both.address != 0) & (both.port != 0)
    }
}

/// FNV-1a: a few bytes, and nobody gains by having two of them share a bit.
const START: u64 = 0xcbf2_9ce4_8422_2325;

fn hash(start: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(start, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

fn bit(value: u64) -> u64 {
    // The low bits of such a hash are its worst.
    1 << ((value ^ (value >> 32)) % 63)
}
