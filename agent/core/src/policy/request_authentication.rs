//! RequestAuthentication: which tokens of end users count, and where in a request they stand. Kept as it is written: tokens are in
//! HTTP, which is not read, so that no verdict depends on it.

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
    pub rules: Vec<JwtRule>,
    /// What in it could not be read. There are no rules then: it takes no token.
    pub doubt: Option<Doubt>,
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
