//! What is measured of other clusters whose objects are read.

use std::{sync::atomic::Ordering, time::SystemTime};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

#[derive(Debug, Default)]
pub(in crate::telemetry) struct Clusters {
    synced: Family<Labels, Gauge>,
    objects: Family<Labels, Gauge>,
    errors: Family<Labels, Counter>,
    lag: Family<Labels, Gauge>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    cluster: String,
}

/// Another cluster as it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RemoteCluster<'a> {
    /// Its name.
    pub(crate) name: &'a str,
    /// All of it has been read once.
    pub(crate) synced: bool,
    /// How many of its objects are known.
    pub(crate) objects: usize,
    /// Requests to its API that failed.
    pub(crate) errors: u64,
    /// Since when something of it cannot be read.
    pub(crate) away: Option<SystemTime>,
}

impl Clusters {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "ambit_remote_cluster_synced",
            "Whether all of another cluster has been read once: 1 or 0",
            self.synced.clone(),
        );
        registry.register(
            "ambit_remote_cluster_objects",
            "How many objects of another cluster are known",
            self.objects.clone(),
        );
        registry.register(
            "ambit_remote_cluster_errors",
            "Requests to another cluster's API that have failed since its Secret was first seen",
            self.errors.clone(),
        );
        registry.register(
            "ambit_remote_cluster_lag_seconds",
            "For how long changes of another cluster may not have arrived, because something of it cannot be read",
            self.lag.clone(),
        );
    }

    pub(in crate::telemetry) fn set<'a>(
        &self,
        all: impl Iterator<Item = RemoteCluster<'a>>,
        now: SystemTime,
    ) {
        [&self.synced, &self.objects, &self.lag].into_iter().for_each(Family::clear);
        self.errors.clear();
        let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        for cluster in all {
            let labels = Labels { cluster: cluster.name.to_owned() };
            self.synced.get_or_create(&labels).set(i64::from(cluster.synced));
            self.objects.get_or_create(&labels).set(number(cluster.objects as u64));
            self.errors.get_or_create(&labels).inner().store(cluster.errors, Ordering::Relaxed);
            let lag = cluster.away.map(|since| now.duration_since(since).unwrap_or_default());
            self.lag.get_or_create(&labels).set(number(lag.unwrap_or_default().as_secs()));
        }
    }
}
