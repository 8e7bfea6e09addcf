//! What is measured of end users' tokens and their issuers' keys.

use std::time::SystemTime;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

#[derive(Debug, Default)]
pub(in crate::telemetry) struct Tokens {
    refusals: Family<ReasonLabels, Counter>,
    clock_skews: Counter,
    fetches: Family<ResultLabels, Counter>,
    keys: Family<IssuerLabels, Gauge>,
    fetched: Family<IssuerLabels, Gauge>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct IssuerLabels {
    issuer: String,
    url: String,
}

/// An issuer's keys as they are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IssuerKeys<'a> {
    /// As tokens name it.
    pub(crate) issuer: &'a str,
    /// Where its keys are fetched; empty if its OpenID configuration says so.
    pub(crate) url: &'a str,
    /// How many there are.
    pub(crate) keys: usize,
    /// When they were fetched.
    pub(crate) fetched: Option<SystemTime>,
}

impl Tokens {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "ambit_jwt_refusals",
            "Requests refused for the token of an end user in them, by reason",
            self.refusals.clone(),
        );
        registry.register(
            "ambit_jwt_clock_skews",
            "Of these, those whose token expired less than five minutes ago or begins within five, beyond the minute that is \
             allowed: a clock may be off",
            self.clock_skews.clone(),
        );
        registry.register(
            "ambit_jwks_fetches",
            "Attempts to fetch the keys of an issuer of tokens, by result",
            self.fetches.clone(),
        );
        registry.register(
            "ambit_jwks_keys",
            "How many keys there are to verify an issuer's tokens with; without one they are refused",
            self.keys.clone(),
        );
        registry.register(
            "ambit_jwks_fetched_timestamp_seconds",
            "When an issuer's keys were fetched, in seconds since 1970",
            self.fetched.clone(),
        );
    }

    pub(in crate::telemetry) fn refused(&self, reason: &'static str, clock_skew: bool) {
        self.refusals.get_or_create(&ReasonLabels { reason }).inc();
        if clock_skew {
            self.clock_skews.inc();
        }
    }

    pub(in crate::telemetry) fn fetched(&self, good: bool) {
        let result = if good { "ok" } else { "failed" };
        self.fetches.get_or_create(&ResultLabels { result }).inc();
    }

    pub(in crate::telemetry) fn issuers<'a>(&self, all: impl Iterator<Item = IssuerKeys<'a>>) {
        self.keys.clear();
        self.fetched.clear();
        all.for_each(|issuer| self.issuer(issuer));
    }

    pub(in crate::telemetry) fn issuer(&self, issuer: IssuerKeys<'_>) {
        let labels = IssuerLabels { issuer: issuer.issuer.to_owned(), url: issuer.url.to_owned() };
        self.keys.get_or_create(&labels).set(i64::try_from(issuer.keys).unwrap_or(i64::MAX));
        if let Some(at) = issuer.fetched {
            self.fetched.get_or_create(&labels).set(super::certificates::timestamp(at));
        }
    }
}
