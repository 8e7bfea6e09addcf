//! The issuer that the configuration names.

use std::{
    collections::{BTreeSet, HashSet},
    path::PathBuf,
    sync::Arc,
};

use ambit_core::model::SpiffeId;
use anyhow::Context as _;
use kube::Client;
use rustls_pki_types::CertificateDer;
use tokio::task::{JoinSet, spawn_blocking};

use super::roots;
use crate::{
    config::{AgentConfig, IssuerConfig, Publication},
    discovery::{Changes, Feed},
    files::{self, ReadError},
    identity::{
        AlsoTrusting, Clock, FilesIssuer, Issuer, IstioIssuer, LiveCa, PublishedRoots, Selectors,
        SpireIssuer, TrustBundle, VaultIssuer, certificates,
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
    let issuer = configured(config, feed, api, clock, background).await?;
    if config.also_trust.is_empty() {
        return Ok(issuer);
    }
    let mut roots = Vec::new();
    for file in &config.also_trust {
        let read = read_roots(file.clone()).await;
        roots.extend(read.with_context(|| format!("--also-trust {}", file.display()))?);
    }
    tracing::info!(roots = roots.len(), "roots beside the issuer's are trusted");
    Ok(Arc::new(AlsoTrusting::new(issuer, roots)))
}

async fn read_roots(file: PathBuf) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    /// The longest file read, in bytes.
    const MAX_FILE: u64 = 1024 * 1024;
    let content = spawn_blocking(move || files::read(&file, MAX_FILE)).await?;
    let roots = certificates(&content.map_err(ReadError::into_problem)?).map_err(anyhow::Error::msg)?;
    TrustBundle { roots: roots.clone() }.anchors().context("holds a root that cannot be used")?;
    Ok(roots)
}

async fn configured(
    config: &AgentConfig,
    feed: &Feed,
    api: Option<&Client>,
    clock: Arc<dyn Clock>,
    background: &mut JoinSet<()>,
) -> anyhow::Result<Arc<dyn Issuer>> {
    let trust_domain = config.trust_domain.clone();
    Ok(match &config.issuer {
        IssuerConfig::Builtin { ca_dir } => Arc::new(LiveCa::open(ca_dir, trust_domain, clock).await?),
        IssuerConfig::Istio { name, service, published } => {
            let published = published.clone().map(|place| follow(place, api, background)).transpose()?;
            let issuer = IstioIssuer::new(service.clone(), published)
                .map_err(|name| anyhow::anyhow!("{name:?} cannot be the name of a certificate service"))?;
            Arc::new(issuer.called(name))
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
