//! What is told of other clusters: in the status, and in metrics.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use ambit_proto::admin::v1 as proto;
use tokio::time::timeout;

use crate::{
    discovery::{ClusterStatus, Feed},
    telemetry::{RemoteCluster, Telemetry},
};

/// How old the numbers in metrics get.
const EVERY: Duration = Duration::from_secs(5);

/// Keeps the metrics in step with how the clusters stand, for ever.
pub(super) async fn measure(feed: Feed, telemetry: Telemetry) {
    loop {
        let all = feed.clusters();
        let measured = all.iter().map(|cluster| RemoteCluster {
            name: &cluster.name,
            synced: cluster.synced.is_some(),
            objects: cluster.objects,
            errors: cluster.errors,
            away: cluster.away,
        });
        telemetry.remote_clusters(measured, SystemTime::now());
        let _ = timeout(EVERY, feed.clusters_changed()).await;
    }
}

/// The clusters, for `ambit status`.
pub(super) fn clusters(feed: &Feed) -> Vec<proto::Cluster> {
    let world = feed.world();
    let mut without: BTreeMap<&str, u32> = BTreeMap::new();
    for (cluster, _) in world.mesh.services_elsewhere() {
        *without.entry(cluster).or_default() += 1;
    }
    let told = |cluster: &ClusterStatus| proto::Cluster {
        name: cluster.name.to_string(),
        secret: cluster.secret.clone(),
        server: cluster.server.clone(),
        trust_domain: cluster.trust_domain.to_string(),
        synced: cluster.synced.map(Into::into),
        objects: cluster.objects as u64,
        remembered: cluster.remembered.map(Into::into),
        away: cluster.away.map(Into::into),
        error: cluster.error.clone().unwrap_or_default(),
        errors: cluster.errors,
        services_without_stub: without.get(&*cluster.name).copied().unwrap_or_default(),
    };
    feed.clusters().iter().map(told).collect()
}
