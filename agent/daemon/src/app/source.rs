//! Where the objects come from, and what is told there in return.

use anyhow::Context as _;
use kube::Client;

use super::{mesh_settings, node::Pods};
use crate::{
    cli::{AgentConfig, SourceConfig},
    cluster,
    discovery::{self, Feed},
    reports::{self, PodReport},
};

/// The source that the configuration names, and the API if it is one. A folder has been read when this returns, a cluster
/// has not. Must be called in a tokio runtime.
pub(super) async fn open(config: &AgentConfig) -> anyhow::Result<(Feed, Option<Client>)> {
    let settings = mesh_settings(config);
    match &config.source {
        SourceConfig::Folder(dir) => Ok((discovery::watch_folder(dir, settings)?, None)),
        SourceConfig::Cluster { kubeconfig } => {
            let connected = async || cluster::client(cluster::config(kubeconfig.as_deref()).await?);
            let hint = "cannot watch a cluster; for a folder of manifests pass --manifests DIR";
            let client = connected().await.context(hint)?;
            Ok((discovery::watch_cluster(&client, settings, &config.node), Some(client)))
        }
    }
}

/// Tells the API for ever how the node's pods stand and what became of policies. `known` says whether `pods` is what was
/// found, not what was there at the start.
pub(super) async fn report(client: Client, node: String, feed: Feed, pods: Pods, known: impl Fn() -> bool) {
    let reports = || {
        let pods = pods.load();
        let report = pods.iter().map(|pod| PodReport {
            name: pod.workload.name.clone(),
            uid: pod.workload.uid.clone(),
            identity: pod.workload.identity.clone(),
            problem: pod.state.as_ref().err().cloned(),
        });
        known().then(|| report.collect())
    };
    reports::run(client, &node, feed, reports).await;
}
