//! What became of queries by DNS.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

/// What became of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DnsResult {
    /// The agent has answered it.
    Answered,
    /// It went to the resolver that the pod asked.
    Passed,
    /// It went nowhere: there were too many, or the resolver could not be asked.
    Refused,
    /// What came as an answer was none, and went nowhere.
    Dropped,
}

impl DnsResult {
    const ALL: [Self; 4] = [Self::Answered, Self::Passed, Self::Refused, Self::Dropped];

    /// What logs and metrics call it.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Passed => "passed",
            Self::Refused => "refused",
            Self::Dropped => "dropped",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

/// Counted by result.
#[derive(Debug)]
pub(super) struct DnsCounts([Counter; 4]);

impl DnsCounts {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let family = Family::<ResultLabels, Counter>::default();
        let counts =
            DnsResult::ALL.map(|result| family.get_or_create_owned(&ResultLabels { result: result.label() }));
        registry.register(
            "ambit_dns_messages",
            "DNS of pods whose DNS is captured, by what became of it",
            family,
        );
        Self(counts)
    }

    pub(super) fn count(&self, result: DnsResult) {
        self.0[result as usize].inc();
    }
}
