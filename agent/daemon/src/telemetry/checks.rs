//! Metrics of external authorization: how checks have ended, and how long they took.

use std::time::Duration;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::Registry,
};

/// How a check has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CheckResult {
    /// The provider lets in.
    Allowed,
    /// The provider denies, or is not to be asked.
    Denied,
    /// It could not be asked, and lets in then.
    FailedOpen,
    /// It took too long.
    TimedOut,
    /// There is no way to it.
    Unreachable,
    /// It answered nothing that decides.
    Failed,
}

impl CheckResult {
    fn label(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::FailedOpen => "failed_open",
            Self::TimedOut => "timed_out",
            Self::Unreachable => "unreachable",
            Self::Failed => "failed",
        }
    }
}

/// By provider, of which there are as many as are configured.
#[derive(Clone, Debug)]
pub(super) struct Checks {
    results: Family<ResultLabels, Counter>,
    durations: Family<ProviderLabels, Histogram>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    provider: String,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProviderLabels {
    provider: String,
}

/// In seconds.
const BOUNDS: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0];

impl Checks {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let checks = Self {
            results: Family::default(),
            durations: Family::new_with_constructor(|| Histogram::new(BOUNDS)),
        };
        registry.register(
            "ambit_ext_authz_checks",
            "Connections and requests that external authorization providers were asked about, by how that ended",
            checks.results.clone(),
        );
        registry.register(
            "ambit_ext_authz_check_duration_seconds",
            "How long external authorization providers took to answer",
            checks.durations.clone(),
        );
        checks
    }

    pub(super) fn ended(&self, provider: &str, result: CheckResult, took: Duration) {
        self.results
            .get_or_create(&ResultLabels { provider: provider.to_owned(), result: result.label() })
            .inc();
        if !took.is_zero() {
            let labels = ProviderLabels { provider: provider.to_owned() };
            self.durations.get_or_create(&labels).observe(took.as_secs_f64());
        }
    }
}
