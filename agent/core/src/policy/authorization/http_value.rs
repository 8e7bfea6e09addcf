//! Values that only requests have: paths, the principals of tokens, the names of claims. Matching allocates nothing.

use std::fmt;

use serde_json::Value;

use super::value::Pattern;
use crate::policy::{Claims, path::Template};

/// A path, by its beginning, its end or all of it, or by a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PathPattern {
    Text(Pattern),
    Template(Template),
}

impl PathPattern {
    /// None if a template is meant that is none: braces have no other use in paths.
    pub(super) fn new(text: &str) -> Option<Self> {
        if Template::is_meant(text) {
            return Template::new(text).map(Self::Template);
        }
        (!text.contains(['{', '}'])).then(|| Self::Text(Pattern::new(text)))
    }

    pub(super) fn matches(&self, path: &str) -> bool {
        match self {
            Self::Text(pattern) => pattern.matches_text(path.as_bytes()),
            Self::Template(template) => template.matches(path),
        }
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(pattern) => pattern.fmt(f),
            Self::Template(template) => template.fmt(f),
        }
    }
}

/// Who a token is for, written as `<issuer>/<subject>`: divided at the last slash, as issuers hold slashes and subjects may hold none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RequestPrincipal {
    written: Box<str>,
    issuer: Pattern,
    subject: Pattern,
}

impl RequestPrincipal {
    pub(super) fn new(text: &str) -> Self {
        let (issuer, subject) = match text.rsplit_once('/') {
            Some((issuer, subject)) => (Pattern::new(issuer), Pattern::new(subject)),
            // A beginning is one of the issuer, an end one of the subject.
            None => match Pattern::new(text) {
                end @ Pattern::Suffix(_) => (Pattern::Present, end),
                // No principal is without a slash, so that this matches none.
                whole @ Pattern::Exact(_) => (whole, Pattern::Exact(Box::default())),
                start => (start, Pattern::Present),
            },
        };
        Self { written: text.into(), issuer, subject }
    }

    /// Whether a token has both claims, and these values of them.
    pub(super) fn matches(&self, claims: &Claims) -> bool {
        let has = |name, pattern: &Pattern| {
            let claim = claims.get(name).and_then(Value::as_str).unwrap_or_default();
            !claim.is_empty() && pattern.matches_text(claim.as_bytes())
        };
        has("iss", &self.issuer) && has("sub", &self.subject)
    }
}

impl fmt::Display for RequestPrincipal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

/// Where a claim stands in a token, written as `[a][b]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ClaimPath {
    written: Box<str>,
    keys: Box<[Box<str>]>,
}

impl ClaimPath {
    /// Dots divide nothing. Where brackets do not pair, what stands between the outermost ones is one key.
    pub(super) fn new(written: &str) -> Self {
        let within = written.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(written);
        let keys: Vec<&str> = within.split("][").collect();
        let pairs = keys.iter().all(|key| !key.is_empty() && !key.contains(['[', ']']));
        let keys = if pairs { keys } else { vec![within] };
        Self { written: written.into(), keys: keys.into_iter().map(Box::from).collect() }
    }

    pub(super) fn written(&self) -> &str {
        &self.written
    }

    pub(super) fn find<'a>(&self, claims: &'a Claims) -> Option<&'a Value> {
        let (first, rest) = self.keys.split_first()?;
        rest.iter().try_fold(claims.get(first)?, |value, key| value.as_object()?.get(&**key))
    }
}

/// Whether a claim is a text that one of the patterns matches, or a list with such a text. Numbers and truth values never match.
pub(super) fn claim_matches(claim: Option<&Value>, patterns: &[Pattern]) -> bool {
    let one = |value: &Value| {
        value
            .as_str()
            .is_some_and(|text| patterns.iter().any(|pattern| pattern.matches_text(text.as_bytes())))
    };
    match claim {
        Some(Value::Array(values)) => values.iter().any(one),
        Some(value) => one(value),
        None => false,
    }
}
