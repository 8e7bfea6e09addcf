//! RequestAuthentication: which tokens of end users count, and where in a request they stand, as an object says it and as it is for one
//! workload. Judging tokens is left to whoever reads requests.

use std::sync::Arc;

use super::{Doubt, Target};
use crate::model::ObjectName;

/// One RequestAuthentication, or what can be told of one that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestAuthentication {
    /// Namespace and name. The name has no meaning.
    pub name: ObjectName,
    /// The pods it is for.
    pub target: Target,
    /// The issuers whose tokens count.
    pub rules: Vec<Arc<JwtRule>>,
    /// What in it could not be read. There are no rules then, and it takes no request.
    pub doubt: Option<Doubt>,
}

/// Fields that say where a message goes, what form it has or where it ends.
const FRAMING: [&str; 12] = [
    "connection",
    "content-encoding",
    "content-length",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Whether a header of this name, in any case, may say what tokens say: not where the message would be another by it.
pub fn may_be_output(name: &str) -> bool {
    !FRAMING.iter().any(|framing| framing.eq_ignore_ascii_case(name))
}

/// What tokens are to one workload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tokens {
    /// The issuers whose tokens count, sorted by name.
    pub(super) rules: Arc<[Arc<JwtRule>]>,
    /// One of which it is not known what it demands.
    pub(super) unreadable: Option<ObjectName>,
}

impl Tokens {
    pub(super) fn of<'a>(requests: impl Iterator<Item = &'a Arc<RequestAuthentication>>) -> Self {
        let (mut rules, mut unreadable) = (Vec::new(), None);
        for request in requests {
            if request.doubt.is_some() {
                unreadable.get_or_insert_with(|| request.name.clone());
            }
            rules.extend(request.rules.iter().cloned());
        }
        rules.sort_by(|one: &Arc<JwtRule>, other| one.issuer.cmp(&other.issuer));
        Self { rules: rules.into(), unreadable }
    }

    /// Whether requests are all the same to it.
    pub(super) fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.unreadable.is_none()
    }
}

/// One issuer, and how its tokens are found, judged and passed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtRule {
    /// The issuer, exactly as the claim `iss` has it; empty is any.
    pub issuer: Box<str>,
    /// The audiences of which a token must have one; none is any.
    pub audiences: Vec<Box<str>>,
    /// Where the issuer's keys are.
    pub keys: Keys,
    /// Where a token stands in a request; empty is where OAuth 2.0 has it.
    pub places: Vec<TokenPlace>,
    /// The header that the token's payload is passed on in.
    pub payload_header: Option<Box<str>>,
    /// Claims that are passed on.
    pub claim_headers: Vec<ClaimHeader>,
    /// Whether the token stays in the request.
    pub forward: bool,
    /// How long keys may take to be fetched, in milliseconds.
    pub timeout_ms: u64,
    /// Claims that hold a list divided by spaces, beside those that always do.
    pub space_delimited: Vec<Box<str>>,
}

/// A claim of a token that is passed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimHeader {
    /// The header that it is passed on in.
    pub header: Box<str>,
    /// Its name; dots lead into claims within claims.
    pub claim: Box<str>,
}

/// Where the keys of an issuer are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keys {
    /// Where the issuer's OpenID configuration says.
    Discovered,
    /// At this URL.
    Url(Box<str>),
    /// Here: a JSON Web Key Set.
    Inline(Box<str>),
}

/// Where a token stands in a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenPlace {
    /// In this header, behind this prefix.
    Header {
        /// Its name.
        name: Box<str>,
        /// What comes before the token; it may be empty.
        prefix: Box<str>,
    },
    /// In this parameter of the query.
    Parameter(Box<str>),
    /// In this cookie.
    Cookie(Box<str>),
}
