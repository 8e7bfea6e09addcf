//! The grammar of values: patterns, blocks of addresses, service accounts, trust domains. Matching allocates nothing.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
};

use crate::model::{SpiffeId, TrustDomain};

/// A value that a field cannot have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct InvalidValue {
    /// Its place in the list; none where the list is meant.
    pub at: Option<usize>,
    /// What is wrong with it, as the end of a sentence that began with the field.
    pub problem: &'static str,
}

/// `*` is any text, `*x` an end, `x*` a beginning, and everything else itself: only one end is magic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Pattern {
    Present,
    Exact(Box<str>),
    Prefix(Box<str>),
    Suffix(Box<str>),
}

impl Pattern {
    pub(super) fn new(text: &str) -> Self {
        match (text.strip_prefix('*'), text.strip_suffix('*')) {
            (Some(""), _) => Self::Present,
            (Some(end), _) => Self::Suffix(end.into()),
            (None, Some(start)) => Self::Prefix(start.into()),
            (None, None) => Self::Exact(text.into()),
        }
    }

    /// Whether it matches the identity, written as `<trust domain>/ns/<namespace>/sa/<service account>`.
    pub(super) fn matches(&self, id: &SpiffeId) -> bool {
        let pieces = [id.trust_domain().as_str(), "/ns/", id.namespace(), "/sa/", id.service_account()];
        match self {
            Self::Present => true,
            Self::Exact(text) => {
                text.len() == pieces.iter().map(|piece| piece.len()).sum::<usize>()
                    && starts_with(pieces, text)
            }
            Self::Prefix(text) => starts_with(pieces, text),
            Self::Suffix(text) => ends_with(pieces, text),
        }
    }

    /// Whether it matches a text; `*` demands that there is some.
    pub(super) fn matches_text(&self, text: &[u8]) -> bool {
        match self {
            Self::Present => !text.is_empty(),
            Self::Exact(exact) => text == exact.as_bytes(),
            Self::Prefix(start) => text.starts_with(start.as_bytes()),
            Self::Suffix(end) => text.ends_with(end.as_bytes()),
        }
    }

    /// The same, whatever the case of ASCII letters.
    pub(super) fn matches_ignoring_case(&self, text: &[u8]) -> bool {
        let part = |start: usize, part: &str| {
            text.get(start..start + part.len()).is_some_and(|text| text.eq_ignore_ascii_case(part.as_bytes()))
        };
        match self {
            Self::Present => !text.is_empty(),
            Self::Exact(exact) => text.eq_ignore_ascii_case(exact.as_bytes()),
            Self::Prefix(start) => part(0, start),
            Self::Suffix(end) => text.len().checked_sub(end.len()).is_some_and(|start| part(start, end)),
        }
    }

    /// The text that alone matches.
    pub(super) fn exact(&self) -> Option<&str> {
        match self {
            Self::Exact(text) => Some(text),
            Self::Present | Self::Prefix(_) | Self::Suffix(_) => None,
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Present => f.write_str("*"),
            Self::Exact(text) => f.write_str(text),
            Self::Prefix(text) => write!(f, "{text}*"),
            Self::Suffix(text) => write!(f, "*{text}"),
        }
    }
}

/// Whether the pieces, one behind the other, start so.
fn starts_with(pieces: [&str; 5], start: &str) -> bool {
    let mut left = start.as_bytes();
    for piece in pieces.map(str::as_bytes) {
        let common = piece.len().min(left.len());
        if piece[..common] != left[..common] {
            return false;
        }
        left = &left[common..];
    }
    left.is_empty()
}

fn ends_with(pieces: [&str; 5], end: &str) -> bool {
    let mut left = end.as_bytes();
    for piece in pieces.iter().rev().map(|piece| piece.as_bytes()) {
        let common = piece.len().min(left.len());
        let (rest, tail) = left.split_at(left.len() - common);
        if piece[piece.len() - common..] != *tail {
            return false;
        }
        left = rest;
    }
    left.is_empty()
}

/// A name in which each `*` stands for any characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wildcard(Box<str>);

impl Wildcard {
    pub(super) fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// The name that alone matches.
    pub(super) fn exact(&self) -> Option<&str> {
        (!self.0.contains('*')).then_some(&*self.0)
    }

    pub(super) fn matches(&self, name: &str) -> bool {
        let (pattern, name) = (self.0.as_bytes(), name.as_bytes());
        let (mut at, mut in_name) = (0, 0);
        // The last star, and how much of the name it stands for so far.
        let mut star: Option<(usize, usize)> = None;
        while in_name < name.len() {
            match pattern.get(at) {
                Some(b'*') => {
                    star = Some((at, in_name));
                    at += 1;
                }
                Some(byte) if *byte == name[in_name] => {
                    at += 1;
                    in_name += 1;
                }
                _ => {
                    let Some((place, taken)) = &mut star else { return false };
                    *taken += 1;
                    (at, in_name) = (*place + 1, *taken);
                }
            }
        }
        pattern[at..].iter().all(|byte| *byte == b'*')
    }
}

impl fmt::Display for Wildcard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A service account in any trust domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServiceAccount {
    namespace: Box<str>,
    name: Box<str>,
}

impl ServiceAccount {
    /// Reads `namespace/name`, or a name in the namespace of the policy.
    pub(super) fn new(text: &str, namespace: &str) -> Option<Self> {
        let (namespace, name) = text.split_once('/').unwrap_or((namespace, text));
        let legal = |part: &str| !part.is_empty() && !part.contains(['/', '*']);
        (legal(namespace) && legal(name)).then(|| Self { namespace: namespace.into(), name: name.into() })
    }

    pub(super) fn parts(&self) -> (&str, &str) {
        (&self.namespace, &self.name)
    }

    pub(super) fn matches(&self, id: &SpiffeId) -> bool {
        *self.namespace == *id.namespace() && *self.name == *id.service_account()
    }
}

impl fmt::Display for ServiceAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// An address, or a block of them in CIDR notation; bits behind the prefix do not matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IpBlock {
    address: IpAddr,
    prefix: u32,
}

impl IpBlock {
    pub(super) fn new(text: &str) -> Option<Self> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(decimal(prefix)?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.unwrap_or(bits);
        // An IPv4 address that is written as IPv6 is an IPv4 address; a block of more than those is not.
        let mapped = match address {
            IpAddr::V6(v6) if prefix >= 96 => v6.to_ipv4_mapped(),
            _ => None,
        };
        Some(match mapped {
            _ if prefix > bits => return None,
            Some(v4) => Self { address: v4.into(), prefix: prefix - 96 },
            None => Self { address, prefix },
        })
    }

    /// `ip` is canonical.
    /// The block's first byte, where all of its addresses are of IPv4 and have it in common.
    pub(super) fn first_byte(&self) -> Option<u8> {
        match self.address {
            IpAddr::V4(v4) if self.prefix >= 8 => Some(v4.octets()[0]),
            _ => None,
        }
    }

    pub(super) fn contains(&self, ip: IpAddr) -> bool {
        match (self.address, ip) {
            (IpAddr::V4(own), IpAddr::V4(ip)) => {
                let differing = own.to_bits() ^ ip.to_bits();
                differing.checked_shr(32 - self.prefix).unwrap_or(0) == 0
            }
            (IpAddr::V6(own), IpAddr::V6(ip)) => {
                let differing = Ipv6Addr::to_bits(own) ^ ip.to_bits();
                differing.checked_shr(128 - self.prefix).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

impl fmt::Display for IpBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = if self.address.is_ipv4() { 32 } else { 128 };
        if self.prefix == bits {
            write!(f, "{}", self.address)
        } else {
            write!(f, "{}/{}", self.address, self.prefix)
        }
    }
}

/// A port, 0 to 65535.
pub(super) fn port(text: &str) -> Option<u16> {
    decimal(text)?.try_into().ok()
}

/// A number without a sign.
fn decimal(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

/// The trust domains that are one: ours, and those that it is known by besides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustDomains(Vec<TrustDomain>);

/// In a policy this names our own trust domain, whatever that is called.
const LOCAL: &str = "cluster.local";

impl TrustDomains {
    /// Our own trust domain and its aliases.
    pub fn new(own: TrustDomain, aliases: impl IntoIterator<Item = TrustDomain>) -> Self {
        Self([own].into_iter().chain(aliases).collect())
    }

    /// A principal as it is meant: one that names a trust domain of ours stands for the same workload in all of them.
    pub(super) fn principals(&self, principal: &str) -> Vec<String> {
        let (domain, workload) = principal.split_once('/').unwrap_or((principal, ""));
        let names_domain = workload.split('/').count() == 4 && domain != "*";
        if !names_domain || !(domain == LOCAL || self.0.iter().any(|own| covers(domain, own))) {
            return vec![principal.to_owned()];
        }
        let mut meant: Vec<String> = Vec::new();
        for own in &self.0 {
            // One that begins with a star covers it as it is.
            let written = domain.starts_with('*') && covers(domain, own);
            let principal = if written { principal.to_owned() } else { format!("{own}/{workload}") };
            if !meant.contains(&principal) {
                meant.push(principal);
            }
        }
        meant
    }

    /// A trust domain as it is meant.
    pub(super) fn domains(&self, domain: &str) -> Vec<String> {
        if self.0.iter().any(|own| own.as_str() == domain) {
            self.0.iter().map(ToString::to_string).collect()
        } else {
            vec![domain.to_owned()]
        }
    }
}

/// Whether a trust domain as a principal has it, `*` at its start or not, is this one.
fn covers(pattern: &str, own: &TrustDomain) -> bool {
    match pattern.strip_prefix('*') {
        Some(end) => own.as_str().ends_with(end),
        None => pattern == own.as_str(),
    }
}
