//! What is measured of certificates, their roots, and revocation lists.

use std::{ops::Range, sync::atomic::Ordering, time::SystemTime};

use ambit_core::model::SpiffeId;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

#[derive(Debug, Default)]
pub(in crate::telemetry) struct Certificates {
    expiry: Family<IdentityLabels, Gauge>,
    root_expiry: Family<RootLabels, Gauge>,
    root_lifetime: Family<RootLabels, Gauge>,
    root_certificates: Family<RootLabels, Gauge>,
    crl_next_update: Family<IssuerLabels, Gauge>,
    issued: Counter,
    failures: Counter,
    clock_skews: Counter,
    pub(in crate::telemetry) late: Gauge,
    pub(in crate::telemetry) missing: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct IdentityLabels {
    identity: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RootLabels {
    root: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct IssuerLabels {
    issuer: String,
}

impl Certificates {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "ambit_certificate_expiry_timestamp_seconds",
            "When the certificate held for an identity ends, in seconds since 1970",
            self.expiry.clone(),
        );
        registry.register(
            "ambit_root_expiry_timestamp_seconds",
            "When a root that an identity trusts ends, in seconds since 1970; by its SHA-256",
            self.root_expiry.clone(),
        );
        registry.register(
            "ambit_root_lifetime_seconds",
            "How long a root that an identity trusts lives in all; by its SHA-256",
            self.root_lifetime.clone(),
        );
        registry.register(
            "ambit_root_certificates",
            "How many of this node's certificates lead to a root; by its SHA-256",
            self.root_certificates.clone(),
        );
        registry.register(
            "ambit_crl_next_update_timestamp_seconds",
            "When a newer revocation list should be there, in seconds since 1970",
            self.crl_next_update.clone(),
        );
        registry.register(
            "ambit_certificates_issued",
            "Certificates taken into use, first ones and renewals",
            self.issued.clone(),
        );
        registry.register(
            "ambit_certificate_failures",
            "Attempts to get a certificate that gave none",
            self.failures.clone(),
        );
        registry.register(
            "ambit_certificate_clock_skews",
            "Certificates refused because this node's clock and the issuer's differ too much",
            self.clock_skews.clone(),
        );
        registry.register(
            "ambit_certificates_late",
            "Certificates past 90 % of their life, or expired, and not renewed",
            self.late.clone(),
        );
        registry.register(
            "ambit_certificates_missing",
            "Identities of this node's pods without a valid certificate, whose connections are refused",
            self.missing.clone(),
        );
    }

    pub(in crate::telemetry) fn certificate(&self, identity: &SpiffeId, not_after: Option<SystemTime>) {
        let labels = IdentityLabels { identity: identity.to_string() };
        match not_after {
            Some(not_after) => {
                self.expiry.get_or_create(&labels).set(timestamp(not_after));
            }
            None => {
                self.expiry.remove(&labels);
            }
        }
    }

    pub(in crate::telemetry) fn root(&self, fingerprint: &str, life: Option<(Range<SystemTime>, usize)>) {
        let labels = RootLabels { root: fingerprint.to_owned() };
        let families = [&self.root_expiry, &self.root_lifetime, &self.root_certificates];
        match life {
            Some((life, certificates)) => {
                let whole = life.end.duration_since(life.start).unwrap_or_default().as_secs();
                let values = [
                    timestamp(life.end),
                    i64::try_from(whole).unwrap_or(i64::MAX),
                    i64::try_from(certificates).unwrap_or(i64::MAX),
                ];
                for (family, value) in families.into_iter().zip(values) {
                    family.get_or_create(&labels).set(value);
                }
            }
            None => families.into_iter().for_each(|family| {
                family.remove(&labels);
            }),
        }
    }

    pub(in crate::telemetry) fn renewals(&self, issued: u64, failed: u64, skewed: u64) {
        self.issued.inner().store(issued, Ordering::Relaxed);
        self.failures.inner().store(failed, Ordering::Relaxed);
        self.clock_skews.inner().store(skewed, Ordering::Relaxed);
    }

    pub(in crate::telemetry) fn revocation_lists(&self, lists: &[(String, Option<SystemTime>)]) {
        self.crl_next_update.clear();
        for (issuer, end) in lists {
            if let Some(end) = end {
                let labels = IssuerLabels { issuer: issuer.clone() };
                self.crl_next_update.get_or_create(&labels).set(timestamp(*end));
            }
        }
    }
}

pub(super) fn timestamp(time: SystemTime) -> i64 {
    let since_epoch = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX)
}
