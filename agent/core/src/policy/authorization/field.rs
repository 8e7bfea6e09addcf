//! One field of a rule: an attribute of the connection, and the values that it may have, or may not.

use std::net::IpAddr;

use super::value::{IpBlock, Pattern, ServiceAccount, TrustDomains, Wildcard, port};
use crate::{model::SpiffeId, policy::Facts};

/// Service accounts in one field, as in Istio's schema.
const MAX_SERVICE_ACCOUNTS: usize = 16;
/// Characters of a service account, as there.
const MAX_SERVICE_ACCOUNT: usize = 320;

/// What a field tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attribute {
    /// The client's identity, written as `<trust domain>/ns/<namespace>/sa/<service account>`.
    Principal,
    /// The namespace in the client's identity.
    Namespace,
    /// Namespace and service account in the client's identity.
    ServiceAccount,
    /// The trust domain of the client's identity.
    TrustDomain,
    /// The address that the connection comes from.
    SourceIp,
    /// The client's address as HTTP has it. Until that is read, DENY and AUDIT go by [`Attribute::SourceIp`].
    RemoteIp,
    /// The pod's own port.
    Port,
    /// The pod's address.
    DestinationIp,
    /// Something that can only be known within HTTP or TLS of the application.
    Layer7,
}

impl Attribute {
    /// Its key in `when`; of what is only known within HTTP any.
    pub fn key(self) -> &'static str {
        match self {
            Self::Principal => "source.principal",
            Self::Namespace => "source.namespace",
            Self::ServiceAccount => "source.serviceAccount",
            Self::TrustDomain => "source.trustDomain",
            Self::SourceIp => "source.ip",
            Self::RemoteIp => "remote.ip",
            Self::Port => "destination.port",
            Self::DestinationIp => "destination.ip",
            Self::Layer7 => "request",
        }
    }
}

/// A field with values. It holds where the attribute has one of them, or, where it is negated, none of them. A connection without
/// an identity has none of the values of an identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    name: Box<str>,
    negated: bool,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    Principal(Vec<Pattern>),
    Namespace(Vec<Wildcard>),
    ServiceAccount(Vec<ServiceAccount>),
    TrustDomain(Vec<Wildcard>),
    SourceIp(Vec<IpBlock>),
    RemoteIp(Vec<IpBlock>),
    Port(Vec<u16>),
    DestinationIp(Vec<IpBlock>),
    Layer7,
}

/// What values depend on.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The policy's namespace.
    pub namespace: &'a str,
    /// Ours.
    pub trust_domains: &'a TrustDomains,
}

/// A value that a field cannot have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct InvalidValue {
    /// Its place in the list; none where the list is meant.
    pub at: Option<usize>,
    /// What is wrong with it, as the end of a sentence that began with the field.
    pub problem: &'static str,
}

impl Field {
    /// The field of a rule at the path `name` from the rule, such as `from[0].source.principals`.
    pub fn new(
        name: &str,
        attribute: Attribute,
        negated: bool,
        values: &[String],
        context: Context<'_>,
    ) -> Result<Self, InvalidValue> {
        let Context { namespace, trust_domains } = context;
        let whole = |problem| InvalidValue { at: None, problem };
        if let Some(at) = values.iter().position(String::is_empty) {
            return Err(InvalidValue { at: Some(at), problem: "is empty" });
        }
        if attribute == Attribute::ServiceAccount && values.len() > MAX_SERVICE_ACCOUNTS {
            return Err(whole("has more than 16 service accounts"));
        }
        let test = match attribute {
            _ if values.is_empty() => return Err(whole("is an empty list")),
            Attribute::Principal => {
                let meant = values.iter().flat_map(|value| trust_domains.principals(value));
                Test::Principal(meant.map(|principal| Pattern::new(&principal)).collect())
            }
            Attribute::Namespace => {
                Test::Namespace(values.iter().map(|value| Wildcard::new(value)).collect())
            }
            Attribute::ServiceAccount => {
                let fits = |value: &&String| value.chars().count() <= MAX_SERVICE_ACCOUNT;
                let problem =
                    "is not NAME or NAMESPACE/NAME, without wildcards and at most 320 characters long";
                Test::ServiceAccount(each(values, problem, |value| {
                    Some(value).filter(fits).and_then(|value| ServiceAccount::new(value, namespace))
                })?)
            }
            Attribute::TrustDomain => {
                each(values, "is not a trust domain: it has a '/'", |value| {
                    (!value.contains('/')).then_some(())
                })?;
                let meant = values.iter().flat_map(|value| trust_domains.domains(value));
                Test::TrustDomain(meant.map(|domain| Wildcard::new(&domain)).collect())
            }
            Attribute::SourceIp => Test::SourceIp(blocks(values)?),
            Attribute::RemoteIp => Test::RemoteIp(blocks(values)?),
            Attribute::DestinationIp => Test::DestinationIp(blocks(values)?),
            Attribute::Port => Test::Port(each(values, "is not a port (0 to 65535)", |value| port(value))?),
            Attribute::Layer7 => Test::Layer7,
        };
        Ok(Self { name: name.into(), negated, test })
    }

    /// Its path from the rule.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it holds where the attribute has none of the values.
    pub fn is_negated(&self) -> bool {
        self.negated
    }

    /// What it tests.
    pub fn attribute(&self) -> Attribute {
        match &self.test {
            Test::Principal(_) => Attribute::Principal,
            Test::Namespace(_) => Attribute::Namespace,
            Test::ServiceAccount(_) => Attribute::ServiceAccount,
            Test::TrustDomain(_) => Attribute::TrustDomain,
            Test::SourceIp(_) => Attribute::SourceIp,
            Test::RemoteIp(_) => Attribute::RemoteIp,
            Test::Port(_) => Attribute::Port,
            Test::DestinationIp(_) => Attribute::DestinationIp,
            Test::Layer7 => Attribute::Layer7,
        }
    }

    /// Its values as they are meant: a principal in each of our trust domains, a service account with its namespace. None of
    /// what can only be known within HTTP.
    pub fn values(&self) -> Vec<String> {
        fn texts<T: ToString>(values: &[T]) -> Vec<String> {
            values.iter().map(ToString::to_string).collect()
        }
        match &self.test {
            Test::Principal(values) => texts(values),
            Test::Namespace(values) | Test::TrustDomain(values) => texts(values),
            Test::ServiceAccount(values) => texts(values),
            Test::SourceIp(values) | Test::RemoteIp(values) | Test::DestinationIp(values) => texts(values),
            Test::Port(values) => texts(values),
            Test::Layer7 => Vec::new(),
        }
    }

    /// What the connection has of the attribute, in words.
    pub(super) fn seen(&self, facts: &Facts<'_>) -> String {
        let of_peer = |part: fn(&SpiffeId) -> String| {
            facts.peer.map_or_else(|| "no identity, as it is plaintext".to_owned(), part)
        };
        match &self.test {
            Test::Principal(_) => of_peer(|id| id.to_string().trim_start_matches("spiffe://").to_owned()),
            Test::Namespace(_) => of_peer(|id| id.namespace().to_owned()),
            Test::ServiceAccount(_) => of_peer(|id| format!("{}/{}", id.namespace(), id.service_account())),
            Test::TrustDomain(_) => of_peer(|id| id.trust_domain().to_string()),
            Test::SourceIp(_) | Test::RemoteIp(_) => facts.source_ip.to_string(),
            Test::Port(_) => facts.port.to_string(),
            Test::DestinationIp(_) => facts.destination_ip.to_string(),
            Test::Layer7 => "what only HTTP would tell".to_owned(),
        }
    }

    /// Whether it holds wherever `other` does, as far as their values tell: never said of what is only known within HTTP.
    pub(super) fn covers(&self, other: &Self) -> bool {
        fn within<T: PartialEq>(few: &[T], many: &[T]) -> bool {
            few.iter().all(|value| many.contains(value))
        }
        fn fits<T: PartialEq>(own: &[T], other: &[T], negated: bool) -> bool {
            if negated { within(own, other) } else { within(other, own) }
        }
        self.negated == other.negated
            && match (&self.test, &other.test) {
                (Test::Principal(own), Test::Principal(other)) => fits(own, other, self.negated),
                (Test::Namespace(own), Test::Namespace(other))
                | (Test::TrustDomain(own), Test::TrustDomain(other)) => fits(own, other, self.negated),
                (Test::ServiceAccount(own), Test::ServiceAccount(other)) => fits(own, other, self.negated),
                (Test::SourceIp(own), Test::SourceIp(other))
                | (Test::DestinationIp(own), Test::DestinationIp(other)) => fits(own, other, self.negated),
                (Test::Port(own), Test::Port(other)) => fits(own, other, self.negated),
                _ => false,
            }
    }

    /// Whether it can only be known within HTTP or TLS of the application.
    pub fn needs_layer7(&self) -> bool {
        matches!(self.test, Test::Layer7 | Test::RemoteIp(_))
    }

    /// Whether nothing stands in for it while HTTP is not read.
    pub(super) fn is_unknown(&self) -> bool {
        self.test == Test::Layer7
    }

    /// Whether it holds, or cannot be known.
    pub(super) fn holds(&self, facts: &Facts<'_>) -> bool {
        let within = |blocks: &[IpBlock], ip: IpAddr| {
            let ip = ip.to_canonical();
            blocks.iter().any(|block| block.contains(ip))
        };
        let has_one = match &self.test {
            Test::Layer7 => return true,
            Test::Principal(values) => {
                facts.peer.is_some_and(|peer| values.iter().any(|value| value.matches(peer)))
            }
            Test::Namespace(values) => {
                facts.peer.is_some_and(|peer| values.iter().any(|value| value.matches(peer.namespace())))
            }
            Test::ServiceAccount(values) => {
                facts.peer.is_some_and(|peer| values.iter().any(|value| value.matches(peer)))
            }
            Test::TrustDomain(values) => facts
                .peer
                .is_some_and(|peer| values.iter().any(|value| value.matches(peer.trust_domain().as_str()))),
            Test::SourceIp(blocks) | Test::RemoteIp(blocks) => within(blocks, facts.source_ip),
            Test::DestinationIp(blocks) => within(blocks, facts.destination_ip),
            Test::Port(ports) => ports.contains(&facts.port),
        };
        has_one != self.negated
    }
}

fn blocks(values: &[String]) -> Result<Vec<IpBlock>, InvalidValue> {
    each(values, "is not an IP address or a block of them (CIDR)", |value| IpBlock::new(value))
}

fn each<T>(
    values: &[String],
    problem: &'static str,
    read: impl Fn(&String) -> Option<T>,
) -> Result<Vec<T>, InvalidValue> {
    let one = |(at, value)| read(value).ok_or(InvalidValue { at: Some(at), problem });
    values.iter().enumerate().map(one).collect()
}
