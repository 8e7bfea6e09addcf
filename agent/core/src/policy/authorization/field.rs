//! One field of a rule: an attribute of the connection or request, and the values that it may have, or may not.

mod test;

use std::{fmt, sync::Arc};

use self::test::Test;
use super::{
    sieve::Signs,
    value::{InvalidValue, TrustDomains},
};
use crate::policy::Facts;

/// What a field tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attribute<'a> {
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
    /// The client's address as HTTP has it. Without a request, DENY and AUDIT go by [`Attribute::SourceIp`].
    RemoteIp,
    /// The pod's own port.
    Port,
    /// The pod's address.
    DestinationIp,
    /// The host of a request with its port, whatever the case.
    Host,
    /// The method of a request.
    Method,
    /// The path of a request, normalised, without query.
    Path,
    /// The header of this name, or pseudo-header.
    Header(&'a str),
    /// Issuer and subject of the token of a request, joined by a slash.
    RequestPrincipal,
    /// The audiences of the token of a request.
    Audience,
    /// The presenter of the token of a request (`azp`).
    Presenter,
    /// The claim of the token of a request that is written so: `[a][b]`.
    Claim(&'a str),
    /// The name of the server that the application's own TLS asks for.
    Sni,
    /// Something that is never known here.
    Unsupported,
}

/// A field with values. It holds where the attribute has one of them, or, where it is negated, none of them. A connection without
/// an identity has none of the values of an identity, and a request without a token none of those of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    name: Arc<str>,
    negated: bool,
    /// What every connection has for which it holds.
    signs: Signs,
    test: Test,
}

/// What values depend on.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The policy's namespace.
    pub namespace: &'a str,
    /// Ours.
    pub trust_domains: &'a TrustDomains,
}

/// Whether something holds of a connection: for certain, for certain not, or dependent on what is not known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Holds {
    Never,
    Perhaps,
    Surely,
}

/// What a connection has to be known by for a field to be judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Needs(u8);

impl Needs {
    pub(super) const REQUEST: Self = Self(1);
    pub(super) const SNI: Self = Self(2);
    /// What is never known.
    pub(super) const MORE: Self = Self(4);

    /// What is not known.
    pub(super) fn unmet_by(facts: &Facts<'_>) -> Self {
        let request = if facts.request.is_some() { 0 } else { Self::REQUEST.0 };
        // Whoever speaks HTTP in clear text asks for no name.
        let sni = if facts.sni.is_some() || facts.request.is_some() { 0 } else { Self::SNI.0 };
        Self(request | sni | Self::MORE.0)
    }

    pub(super) fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) fn any_of(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub(super) fn is_nothing(self) -> bool {
        self.0 == 0
    }
}

impl Field {
    /// The field of a rule at the path `name` from the rule, such as `from[0].source.principals`.
    pub fn new(
        name: &str,
        attribute: Attribute<'_>,
        negated: bool,
        values: &[String],
        context: Context<'_>,
    ) -> Result<Self, InvalidValue> {
        if let Some(at) = values.iter().position(String::is_empty) {
            return Err(InvalidValue { at: Some(at), problem: "is empty" });
        }
        if values.is_empty() {
            return Err(InvalidValue { at: None, problem: "is an empty list" });
        }
        let test = Test::new(attribute, values, context)?;
        let signs = if negated { Signs::ANY } else { test.signs() };
        Ok(Self { name: name.into(), negated, signs, test })
    }

    /// Its path from the rule.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn shared_name(&self) -> &Arc<str> {
        &self.name
    }

    /// Whether it holds where the attribute has none of the values.
    pub fn is_negated(&self) -> bool {
        self.negated
    }

    /// What it tests.
    pub fn attribute(&self) -> Attribute<'_> {
        self.test.attribute()
    }

    /// Its values as they are meant: a principal in each of our trust domains, a service account with its namespace.
    pub fn values(&self) -> Vec<String> {
        self.test.values()
    }

    /// Whether it can only be known within HTTP or TLS of the application, or not at all.
    pub fn needs_layer7(&self) -> bool {
        !self.needs().is_nothing()
    }

    pub(super) fn needs(&self) -> Needs {
        match self.attribute() {
            Attribute::Principal
            | Attribute::Namespace
            | Attribute::ServiceAccount
            | Attribute::TrustDomain
            | Attribute::SourceIp
            | Attribute::Port
            | Attribute::DestinationIp => Needs::default(),
            Attribute::RemoteIp
            | Attribute::Host
            | Attribute::Method
            | Attribute::Path
            | Attribute::Header(_)
            | Attribute::RequestPrincipal
            | Attribute::Audience
            | Attribute::Presenter
            | Attribute::Claim(_) => Needs::REQUEST,
            Attribute::Sni => Needs::SNI,
            Attribute::Unsupported => Needs::MORE,
        }
    }

    /// Whether nothing stands in for it where there is no request.
    pub(super) fn is_unknown(&self) -> bool {
        self.needs_layer7() && self.attribute() != Attribute::RemoteIp
    }

    /// Its attribute, where what that needs is not known.
    pub(super) fn unmet(&self, facts: &Facts<'_>) -> Option<Attribute<'_>> {
        self.needs().any_of(Needs::unmet_by(facts)).then(|| self.attribute())
    }

    /// What the connection has of the attribute, in words.
    pub(super) fn seen(&self, facts: &Facts<'_>) -> String {
        self.test.seen(facts)
    }

    /// Whether it holds wherever `other` does, as far as their values tell.
    pub(super) fn covers(&self, other: &Self) -> bool {
        self.negated == other.negated && self.test.has_values_of(&other.test, self.negated)
    }

    /// What every connection has for which it holds.
    pub(super) fn signs(&self) -> Signs {
        self.signs
    }

    /// Whether it holds. `final_word` is whether what is not known stays unknown: then the address of the connection stands in for
    /// that of the client.
    pub(super) fn holds(&self, facts: &Facts<'_>, final_word: bool) -> Holds {
        match self.test.has_one(facts, final_word) {
            None if self.attribute() == Attribute::Unsupported => Holds::Surely,
            None => Holds::Perhaps,
            Some(has_one) if has_one != self.negated => Holds::Surely,
            Some(_) => Holds::Never,
        }
    }
}

/// Its key in `when`; of what has none there, the name that it has in `operation`.
impl fmt::Display for Attribute<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Principal => "source.principal",
            Self::Namespace => "source.namespace",
            Self::ServiceAccount => "source.serviceAccount",
            Self::TrustDomain => "source.trustDomain",
            Self::SourceIp => "source.ip",
            Self::RemoteIp => "remote.ip",
            Self::Port => "destination.port",
            Self::DestinationIp => "destination.ip",
            Self::Host => "hosts",
            Self::Method => "methods",
            Self::Path => "paths",
            Self::Header(name) => return write!(f, "request.headers[{name}]"),
            Self::RequestPrincipal => "request.auth.principal",
            Self::Audience => "request.auth.audiences",
            Self::Presenter => "request.auth.presenter",
            Self::Claim(path) => return write!(f, "request.auth.claims{path}"),
            Self::Sni => "connection.sni",
            Self::Unsupported => "what is not supported",
        })
    }
}
