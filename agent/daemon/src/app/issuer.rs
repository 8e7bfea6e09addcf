//! The issuer that the configuration names.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use ambit_core::model::SpiffeId;
use anyhow::Context as _;
use kube::Client;
use tokio::task::JoinSet;

use super::roots;
use crate::{
    config::{AgentConfig, IssuerConfig, Publication},
    discovery::{Changes, Feed},
    identity::{
        Clock, FilesIssuer, Issuer, IstioIssuer, LiveCa, PublishedRoots, Selectors, SpireIssuer, VaultIssuer,
    },
};

/// Builds the issuer. A task in `background` follows what it publishes, in a file or over `api`. Must be called in a tokio
/// runtime.
pub(super) async fn issuer(
    config: &AgentConfig,
    feed: &Feed,
    api: Option<&Client>,
    clock: Arc<dyn Clock>,
    background: &mut JoinSet<()>,
) -> anyhow::Result<Arc<dyn Issuer>> {
    let trust_domain = config.trust_domain.clone();
    Ok(match &config.issuer {
        IssuerConfig::Builtin { ca_dir } => Arc::new(LiveCa::open(ca_dir, trust_domain, clock).await?),
        IssuerConfig::Istio { service, published } => {
            let published = published.clone().map(|place| follow(place, api, background)).transpose()?;
            let issuer = IstioIssuer::new(service.clone(), published)
                .map_err(|name| anyhow::anyhow!("{name:?} cannot be the name of a certificate service"))?;
            Arc::new(issuer)
        }
        IssuerConfig::Files { dir } => Arc::new(FilesIssuer::new(dir.clone())),
        IssuerConfig::Vault(vault) => Arc::new(VaultIssuer::new(*vault.clone())),
        IssuerConfig::Spire { socket } => {
            let changes = feed.changes(&config.node);
            let issuer = Arc::new(SpireIssuer::new(socket, trust_domain, selectors(feed, &config.node)));
            background.spawn(follow_pods(changes, issuer.clone()));
            issuer
        }
    })
}

/// The roots that a certificate service publishes.
fn follow(
    place: Publication,
    api: Option<&Client>,
    background: &mut JoinSet<()>,
) -> anyhow::Result<PublishedRoots> {
    let roots = PublishedRoots::default();
    match place {
        Publication::File(path) => background.spawn(roots::follow_file(path, roots.clone())),
        Publication::ConfigMap { namespace, name, key } => {
            let api =
                api.cloned().context("--ca-root-config-map needs a cluster as the source of objects")?;
            let map = roots::PublishedMap { namespace, name, key };
            background.spawn(roots::follow_config_map(api, map, roots.clone()))
        }
    };
    Ok(roots)
}

/// Tells SPIRE's issuer of every change of the node's pods: one may take another's place, or get other labels.
async fn follow_pods(mut changes: Changes, issuer: Arc<SpireIssuer>) {
    loop {
        changes.changed().await;
        let (_, delta) = changes.take();
        let pods = delta.pods().flat_map(|(_, pod)| [&pod.before, &pod.after]).flatten();
        let ids: HashSet<_> = pods.map(|pod| &pod.identity).collect();
        issuer.pods_changed(ids);
    }
}

/// What SPIRE's Kubernetes attestor would find out about the node's pods of an identity.
fn selectors(feed: &Feed, node: &str) -> Selectors {
    let (feed, node) = (feed.clone(), node.to_owned());
    Arc::new(move |id: &SpiffeId| {
        let mut found: BTreeSet<String> = [
            format!("ns:{}", id.namespace()),
            format!("sa:{}", id.service_account()),
            format!("node-name:{node}"),
        ]
        .into();
        for pod in feed.world().mesh.pods_on(&node).filter(|pod| pod.identity == *id) {
            found.insert(format!("pod-uid:{}", pod.uid));
            found.insert(format!("pod-name:{}", pod.name.name));
            found.extend(pod.labels.iter().map(|(key, value)| format!("pod-label:{key}:{value}")));
        }
        found.into_iter().map(|value| ("k8s".to_owned(), value)).collect()
    })
}
