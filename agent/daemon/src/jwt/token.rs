//! One token as it came: its three parts read, and all of it checked that needs no key. Nothing of it is believed before its
//! signature has been verified.

use ambit_core::policy::JwtRule;
use data_encoding::BASE64URL_NOPAD;
use serde_json::{Map, Value};

use super::failure::Failure;

/// How far clocks may differ, in seconds: fixed, as in Envoy and Istio.
const SKEW: u64 = 60;
/// Up to how much more, in seconds, a refusal is put down to clocks.
const SUSPECT: u64 = 300;

/// A token whose signature has not been verified.
#[derive(Debug)]
pub(super) struct Unverified<'a> {
    /// What is signed: the first two parts.
    pub(super) signed: &'a str,
    /// The third part.
    pub(super) signature: &'a str,
    pub(super) algorithm: Algorithm,
    pub(super) key_id: Option<String>,
    pub(super) claims: Map<String, Value>,
    pub(super) times: Times,
}

/// When a token is good, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Times {
    not_before: Option<u64>,
    expires: Option<u64>,
}

/// The signatures that count: those with a public key (RFC 7518, section 3.1; RFC 8037).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    Es512,
    EdDsa,
}

impl Algorithm {
    pub(super) const ALL: [Self; 10] = [
        Self::Rs256,
        Self::Rs384,
        Self::Rs512,
        Self::Ps256,
        Self::Ps384,
        Self::Ps512,
        Self::Es256,
        Self::Es384,
        Self::Es512,
        Self::EdDsa,
    ];

    /// Its name in tokens and keys.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
            Self::Ps256 => "PS256",
            Self::Ps384 => "PS384",
            Self::Ps512 => "PS512",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::Es512 => "ES512",
            Self::EdDsa => "EdDSA",
        }
    }
}

impl<'a> Unverified<'a> {
    /// Reads header and payload; what is wrong first is what it fails for.
    pub(super) fn parse(token: &'a str) -> Result<Self, Failure> {
        let (signed, signature) = token.rsplit_once('.').ok_or(Failure::Form)?;
        let (header, payload) = signed.split_once('.').ok_or(Failure::Form)?;
        if payload.contains('.') {
            return Err(Failure::Form);
        }
        let header = object(header, Failure::HeaderEncoding, Failure::HeaderJson)?;
        let named = header.get("alg").and_then(Value::as_str).ok_or(Failure::AlgorithmMissing)?;
        let algorithm = Algorithm::ALL.into_iter().find(|algorithm| algorithm.name() == named);
        let algorithm = algorithm.ok_or(Failure::AlgorithmUnsupported)?;
        let key_id = text(&header, "kid", Failure::KeyId)?.map(str::to_owned);
        if header.contains_key("crit") {
            return Err(Failure::Critical);
        }
        let claims = object(payload, Failure::PayloadEncoding, Failure::PayloadJson)?;
        text(&claims, "iss", Failure::IssuerType)?;
        text(&claims, "sub", Failure::SubjectType)?;
        let _issued_at = time(&claims, "iat", Failure::IssuedAtType)?;
        let times = Times {
            not_before: time(&claims, "nbf", Failure::NotBeforeType)?,
            expires: time(&claims, "exp", Failure::ExpiryType)?,
        };
        text(&claims, "jti", Failure::IdType)?;
        audiences(&claims)?;
        Ok(Self { signed, signature, algorithm, key_id, claims, times })
    }

    /// Whether the rule is for it: issuer, times, audience, in this order.
    pub(super) fn check(&self, rule: &JwtRule, now: u64) -> Result<(), Failure> {
        let issuer = self.claims.get("iss").and_then(Value::as_str);
        if !rule.issuer.is_empty() && issuer != Some(&*rule.issuer) {
            return Err(Failure::Issuer);
        }
        self.times.check(now)?;
        if rule.audiences.is_empty() {
            return Ok(());
        }
        let own = audiences(&self.claims)?;
        let wanted = |audience: &str| rule.audiences.iter().any(|wanted| bare(wanted) == bare(audience));
        if own.into_iter().any(wanted) { Ok(()) } else { Err(Failure::Audience) }
    }
}

impl Times {
    /// Whether the token is good at `now`, by a clock that may be off by a minute. Without an expiry it is good for ever.
    pub(super) fn check(self, now: u64) -> Result<(), Failure> {
        if let Some(begin) = self.not_before.filter(|begin| now.saturating_add(SKEW) < *begin) {
            return Err(Failure::NotYetValid { soon: now.saturating_add(SKEW + SUSPECT) >= begin });
        }
        match self.expires.map(|end| end.saturating_add(SKEW)) {
            Some(end) if now > end => Err(Failure::Expired { just: now <= end.saturating_add(SUSPECT) }),
            _ => Ok(()),
        }
    }
}

fn object(part: &str, encoding: Failure, json: Failure) -> Result<Map<String, Value>, Failure> {
    let decoded = BASE64URL_NOPAD.decode(part.as_bytes()).map_err(|_| encoding)?;
    serde_json::from_slice(&decoded).map_err(|_| json)
}

fn text<'m>(object: &'m Map<String, Value>, name: &str, wrong: Failure) -> Result<Option<&'m str>, Failure> {
    object.get(name).map(|value| value.as_str().ok_or(wrong)).transpose()
}

/// Issuers that give fractions of seconds mean the second.
fn time(claims: &Map<String, Value>, name: &str, wrong: Failure) -> Result<Option<u64>, Failure> {
    let Some(value) = claims.get(name) else { return Ok(None) };
    let fraction = || value.as_f64().filter(|seconds| (0.0..1e15).contains(seconds));
    value.as_u64().or_else(|| fraction().map(|seconds| seconds as u64)).map(Some).ok_or(wrong)
}

fn audiences(claims: &Map<String, Value>) -> Result<Vec<&str>, Failure> {
    match claims.get("aud") {
        None => Ok(Vec::new()),
        Some(Value::String(audience)) => Ok(vec![audience]),
        Some(Value::Array(list)) => {
            list.iter().map(|audience| audience.as_str().ok_or(Failure::AudienceType)).collect()
        }
        Some(_) => Err(Failure::AudienceType),
    }
}

/// An audience without what URLs of the same service may differ in.
fn bare(audience: &str) -> &str {
    let host = audience.strip_prefix("https://").or_else(|| audience.strip_prefix("http://"));
    let host = host.unwrap_or(audience);
    host.strip_suffix('/').unwrap_or(host)
}
