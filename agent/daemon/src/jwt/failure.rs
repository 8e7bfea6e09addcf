//! What may be wrong with a token, and how clients, metrics and logs hear of it. The texts are those of Envoy's JWT filter, which
//! clients and runbooks know.

use http::StatusCode;

/// Why a token does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// It has no three parts.
    Form,
    HeaderEncoding,
    HeaderJson,
    /// Its header names no algorithm.
    AlgorithmMissing,
    /// Its header names one that does not count: symmetric, none, or unknown.
    AlgorithmUnsupported,
    /// Its header's `kid` is no text.
    KeyId,
    /// Its header has extensions that must be understood (RFC 7515, section 4.1.11).
    Critical,
    PayloadEncoding,
    PayloadJson,
    IssuerType,
    SubjectType,
    IdType,
    ExpiryType,
    NotBeforeType,
    IssuedAtType,
    AudienceType,
    /// It is of an issuer that the rule does not name.
    Issuer,
    /// Its time has not come; `soon` if a clock may be off.
    NotYetValid {
        soon: bool,
    },
    /// Its time is over; `just` if a clock may be off.
    Expired {
        just: bool,
    },
    /// It is for others.
    Audience,
    /// No key is of its `kid` and algorithm.
    NoKey,
    /// No key has signed it.
    Signature,
    /// The issuer's keys could not be had.
    KeysUnavailable,
}

impl Failure {
    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::Audience => StatusCode::FORBIDDEN,
            _ => StatusCode::UNAUTHORIZED,
        }
    }

    /// The body of the answer.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Form => "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections",
            Self::HeaderEncoding => "Jwt header is an invalid Base64url encoded",
            Self::HeaderJson => "Jwt header is an invalid JSON",
            Self::AlgorithmMissing => "Jwt header [alg] field is required and must be a string",
            Self::AlgorithmUnsupported => "Jwt header [alg] is not supported",
            Self::KeyId => "Jwt header [kid] field is not a string",
            Self::Critical => "Jwt header [crit] is not supported",
            Self::PayloadEncoding => "Jwt payload is an invalid Base64url encoded",
            Self::PayloadJson => "Jwt payload is an invalid JSON",
            Self::IssuerType => "Jwt payload [iss] field is not a string",
            Self::SubjectType => "Jwt payload [sub] field is not a string",
            Self::IdType => "Jwt payload [jti] field is not a string",
            Self::ExpiryType => "Jwt payload [exp] field is not a positive integer",
            Self::NotBeforeType => "Jwt payload [nbf] field is not a positive integer",
            Self::IssuedAtType => "Jwt payload [iat] field is not a positive integer",
            Self::AudienceType => "Jwt payload [aud] field is not a string or string list",
            Self::Issuer => "Jwt issuer is not configured",
            Self::NotYetValid { .. } => "Jwt not yet valid",
            Self::Expired { .. } => "Jwt is expired",
            Self::Audience => "Audiences in Jwt are not allowed",
            Self::NoKey => "Jwks doesn't have key to match kid or alg from Jwt",
            Self::Signature => "Jwt verification fails",
            Self::KeysUnavailable => "Jwks remote fetch is failed",
        }
    }

    /// Its name in metrics: few, so that each is worth a series.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Issuer => "issuer",
            Self::NotYetValid { .. } => "not_yet_valid",
            Self::Expired { .. } => "expired",
            Self::Audience => "audience",
            Self::NoKey => "no_key",
            Self::Signature => "signature",
            Self::KeysUnavailable => "keys_unavailable",
            _ => "malformed",
        }
    }

    /// Whether the token would be good by a clock that differs by a few minutes.
    pub(super) fn is_clock_skew(self) -> bool {
        matches!(self, Self::NotYetValid { soon: true } | Self::Expired { just: true })
    }
}
