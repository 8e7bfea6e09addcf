//! Where the objects come from, and what is told there in return.

use std::{net::IpAddr, time::SystemTime};

use ambit_core::discovery::{OutboundPolicy, Prefix, Settings, VipRanges};
use anyhow::Context as _;
use kube::Client;

use super::{health, node::Pods};
use crate::{
    authz::ProviderSettings,
    cluster,
    config::{self, AgentConfig, HttpTelemetry, SourceConfig},
    discovery::{self, ClusterLocal, Feed, PolicyHold, RemoteClusters},
    identity::KeyStore,
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
            let hold = PolicyHold { time: config.policy_hold, folder: Some(config.run_dir.clone()) };
            let feed = discovery::watch_cluster(&client, settings, hold, remotes(config));
            discovery::follow_node(&feed, &client, &config.node);
            Ok((feed, Some(client)))
        }
    }
}

/// Where other clusters are named, if that is asked for.
fn remotes(config: &AgentConfig) -> Option<RemoteClusters> {
    let namespace = config.remote_clusters.clone()?;
    let mut local = ClusterLocal {
        // As Istio has it; and the control plane of either cluster.
        namespaces: vec!["kube-system".to_owned(), namespace.clone(), config.root_namespace.clone()],
        services: vec![("default".to_owned(), "kubernetes".to_owned())],
    };
    for (namespace, name) in config.cluster_local.iter().cloned() {
        match name {
            Some(name) => local.services.push((namespace, name)),
            None => local.namespaces.push(namespace),
        }
    }
    Some(RemoteClusters {
        namespace,
        own_name: config.cluster_name.clone(),
        local,
        folder: config.state_dir.clone(),
    })
}

/// What decides which objects are whose.
pub(super) fn mesh_settings(config: &AgentConfig) -> Settings {
    Settings {
        trust_domain: config.trust_domain.clone(),
        trust_domain_aliases: config.trust_domain_aliases.clone(),
        cluster_domain: config.cluster_domain.as_str().into(),
        root_namespace: config.root_namespace.as_str().into(),
        label: config.dataplane_label.key.as_str().into(),
        enabled: config.dataplane_label.enabled.as_str().into(),
        disabled: config.dataplane_label.disabled.as_str().into(),
        path_normalization: config.path_normalization,
        provider_places: config.extension_providers.iter().map(ProviderSettings::place).collect(),
        providers: config.extension_providers.iter().map(|provider| provider.name.clone()).collect(),
        http_telemetry: config.http_telemetry == HttpTelemetry::All,
        outbound_policy: match config.outbound_policy {
            config::OutboundPolicy::AllowAny => OutboundPolicy::AllowAny,
            config::OutboundPolicy::RegistryOnly => OutboundPolicy::RegistryOnly,
        },
        observe_outbound: config.observe_outbound,
        dns_capture: config.dns_capture,
        vip_ranges: vip_ranges(&config.vip_ranges.0),
    }
}

/// The configuration has networks with room, one of a family.
fn vip_ranges(networks: &[(IpAddr, u8)]) -> VipRanges {
    let prefixes: Option<Vec<Prefix>> =
        networks.iter().map(|(address, len)| Prefix::new(*address, *len)).collect();
    prefixes.and_then(|prefixes| VipRanges::new(&prefixes)).unwrap_or_default()
}

/// Tells the API for ever how the node's pods stand and what became of policies. `known` says whether `pods` is what was
/// found, not what was there at the start.
pub(super) async fn report(
    client: Client,
    node: String,
    feed: Feed,
    pods: Pods,
    keys: KeyStore,
    known: impl Fn() -> bool,
) {
    let reports = || {
        let (pods, identities, now) = (pods.load(), keys.status(), SystemTime::now());
        let identities = health::by_name(&identities);
        let report = pods.iter().map(|pod| PodReport {
            name: pod.workload.name.clone(),
            uid: pod.workload.uid.clone(),
            identity: pod.workload.identity.clone(),
            hindrance: health::hindrance(pod, &identities, now),
        });
        known().then(|| report.collect())
    };
    reports::run(client, &node, feed, reports).await;
}
