//! What the CA counts: certificates, refusals, how long requests take, and when the CA and its roots end.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use super::refusal::Refusal;
use crate::{admin::Exposition, identity::RootStanding};

/// Upper bounds of the latency histogram, seconds.
const BUCKETS: [f64; 11] = [0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0];

/// The handle that the parts of the CA count with. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct CaMetrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    issued: Counter,
    refused: Family<ReasonLabels, Counter>,
    duration: Histogram,
    ca_expiry: Gauge,
    root_expiry: Family<RootLabels, Gauge>,
    reload_failures: Counter,
    dropped: Family<ReasonLabels, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabels {
    component: &'static str,
    tag: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RootLabels {
    serial: String,
}

impl CaMetrics {
    /// Starts with everything at zero.
    pub(crate) fn new() -> Self {
        let mut registry = Registry::default();
        let build = Family::<BuildLabels, Gauge>::default();
        build.get_or_create(&BuildLabels { component: "ambit-ca", tag: env!("CARGO_PKG_VERSION") }).set(1);
        registry.register("istio_build", "The version that runs", build);
        let (issued, reload_failures) = (Counter::default(), Counter::default());
        let (refused, root_expiry, dropped) = (Family::default(), Family::default(), Family::default());
        let duration = Histogram::new(BUCKETS);
        let ca_expiry = Gauge::default();
        registry.register("ambit_ca_issued", "Certificates signed for workloads", issued.clone());
        registry.register("ambit_ca_refused", "Requests refused, by reason", refused.clone());
        registry.register(
            "ambit_ca_request_duration_seconds",
            "How long a request for a certificate took, refused ones included",
            duration.clone(),
        );
        registry.register(
            "ambit_ca_certificate_expiry_timestamp_seconds",
            "When the CA's own certificate ends, in seconds since 1970",
            ca_expiry.clone(),
        );
        registry.register(
            "ambit_ca_root_expiry_timestamp_seconds",
            "When a root of the trust bundle ends, in seconds since 1970",
            root_expiry.clone(),
        );
        registry.register(
            "ambit_ca_reload_failures",
            "How often changed files of the CA could not be used",
            reload_failures.clone(),
        );
        registry.register(
            "ambit_ca_connections_dropped",
            "Connections that never got as far as a request: rate and full are those of floods",
            dropped.clone(),
        );
        Self(Arc::new(Inner {
            registry,
            issued,
            refused,
            duration,
            ca_expiry,
            root_expiry,
            reload_failures,
            dropped,
        }))
    }

    pub(super) fn answered(&self, outcome: Result<(), &Refusal>, took: Duration) {
        match outcome {
            Ok(()) => self.0.issued.inc(),
            Err(refusal) => self.0.refused.get_or_create(&ReasonLabels { reason: refusal.label() }).inc(),
        };
        self.0.duration.observe(took.as_secs_f64());
    }

    pub(super) fn ca(&self, not_after: SystemTime, roots: &[RootStanding]) {
        self.0.ca_expiry.set(seconds(not_after));
        self.0.root_expiry.clear();
        for root in roots {
            let labels = RootLabels { serial: root.serial.clone() };
            self.0.root_expiry.get_or_create(&labels).set(seconds(root.not_after));
        }
    }

    /// A connection has ended before its TLS handshake was done: `rate`, `full` or `handshake`.
    pub(super) fn dropped(&self, reason: &'static str) {
        self.0.dropped.get_or_create(&ReasonLabels { reason }).inc();
    }

    pub(super) fn reload_failed(&self) {
        self.0.reload_failures.inc();
    }
}

impl Exposition for CaMetrics {
    fn encode(&self) -> String {
        let mut text = String::with_capacity(4 * 1024);
        // Writing into a String does not fail, and nothing registered refuses to be encoded.
        if let Err(error) = text::encode(&mut text, &self.0.registry) {
            tracing::error!(%error, "metrics could not be encoded");
        }
        text
    }
}

fn seconds(at: SystemTime) -> i64 {
    let since_epoch = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX)
}
