//! How many small messages have shared packets on their way to another node.

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};

/// What is counted of bundles.
#[derive(Clone, Debug, Default)]
pub(crate) struct BundleCounts {
    /// Connections of bundles at present, of either end.
    pub(crate) open: Gauge,
    /// Messages that this end has sent by them.
    pub(crate) messages: Counter,
    /// How many times some were sent together.
    pub(crate) batches: Counter,
}

impl BundleCounts {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let counts = Self::default();
        registry.register(
            "ambit_bundles_open",
            "Connections to and from other agents that carry the small messages of many connections",
            counts.open.clone(),
        );
        registry.register(
            "ambit_bundled_messages",
            "Small messages that were sent together with those of other connections, or might have been",
            counts.messages.clone(),
        );
        registry.register(
            "ambit_bundle_batches",
            "How many times such messages were sent, one or several at a time",
            counts.batches.clone(),
        );
        counts
    }
}
