//! Wiring: the only room that knows everyone. Builds the rooms, hands each what it needs, and ends them.

mod attachment;
mod ca;
mod federation;
mod installation;
mod issuer;
mod lifecycle;
mod locations;
mod node;
mod revocation;
mod source;
mod status;
mod uninstall;

use std::{path::Path, sync::Arc, time::SystemTime};

use ambit_core::discovery::Settings;
use anyhow::Context as _;
use tokio::sync::watch;

pub(crate) use ca::run_ca;

use self::{
    attachment::Attaching,
    lifecycle::Signals,
    locations::Locations,
    node::{Node, Pods, Rooms},
    status::Status,
    uninstall::Release,
};
use crate::{
    admin::{Claim, Readiness, RunDir},
    capture::{self, Capture, CaptureSettings, Cgroups},
    cli::{self, AgentConfig},
    cni,
    identity::{Clock, KeyStore, SystemClock},
    proxy::Proxy,
    telemetry::Telemetry,
    tunnel::{Wallet, tls},
};

/// Runs the agent of one node until SIGTERM or SIGINT, or until another agent has taken over. Enrolled pods stay closed
/// after it: the next agent, or `ambit uninstall`, opens them.
pub(crate) async fn run(config: AgentConfig) -> anyhow::Result<()> {
    let claim = RunDir::claim_or_succeed(&config.run_dir, &config.node)?;
    let readiness = Readiness::default();
    let (objects, pods_enrolled) = (readiness.gate(config.source.gate()), readiness.gate("pods"));
    let telemetry = Telemetry::new();
    let trust_domain = config.trust_domain.clone();
    let (feed, api) = source::open(&config).await?;

    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let issuer = issuer::issuer(&config, &feed, clock.clone()).await?;
    let keys = KeyStore::new(issuer, clock.clone(), config.svid_ttl);
    let tls = tls::TlsSettings {
        post_quantum: match config.post_quantum {
            cli::PostQuantum::Off => tls::PostQuantum::Off,
            cli::PostQuantum::Offer => tls::PostQuantum::Offer,
            cli::PostQuantum::Prefer => tls::PostQuantum::Prefer,
            cli::PostQuantum::Require => tls::PostQuantum::Require,
        },
        trust_domains: [trust_domain].into_iter().chain(config.trust_domain_aliases.clone()).collect(),
    };
    let wallet = Wallet::new(keys.clone(), tls, clock);
    let revocations = match config.crl_file.clone() {
        Some(file) => Some(revocation::follow(file, wallet.clone(), telemetry.clone()).await?),
        None => None,
    };
    let mut following = tokio::task::JoinSet::new();
    for (domain, file) in config.trust_bundles.clone() {
        following.spawn(federation::follow(domain, file, wallet.clone()).await?);
    }
    let proxy = Proxy::new(feed.clone(), wallet.clone(), telemetry.clone());
    let capture = Capture::new(CaptureSettings {
        node: config.node.clone(),
        bpf_root: config.bpf_root.clone(),
        cgroup_root: config.cgroup_root.clone(),
        kubelet_cgroup: config.kubelet_cgroup.clone(),
    })?;

    let by_operator = matches!(config.source, cli::SourceConfig::Folder(_));
    let locations = Locations::new(Cgroups::new(config.cgroup_root.as_deref())?, by_operator);
    let pods = Pods::default();
    let rounds = watch::Sender::new(0);
    let status = Status {
        node: config.node.clone(),
        instance: config.instance.clone(),
        started: SystemTime::now(),
        readiness: readiness.clone(),
        pods: pods.clone(),
        feed: feed.clone(),
        keys: keys.clone(),
        telemetry: telemetry.clone(),
    };
    let attaching = Attaching {
        node: config.node.clone(),
        feed: feed.clone(),
        keys: keys.clone(),
        pods: pods.clone(),
        rounds: rounds.subscribe(),
        attachments: locations.attachments(),
        telemetry: telemetry.clone(),
    };
    following.spawn({
        let feed = feed.clone();
        async move {
            feed.synced().await;
            drop(objects);
        }
    });
    if let Some(api) = api {
        let readiness = readiness.clone();
        let known = move || !readiness.pending().contains(&"pods");
        following.spawn(source::report(api, config.node.clone(), feed.clone(), pods.clone(), known));
    }
    if let Some(revocations) = revocations {
        following.spawn(revocations);
    }
    following.spawn({
        let proxy = proxy.clone();
        async move { proxy.follow_trust().await }
    });
    installation::inform(&config, &feed, &mut following);
    let mut node = Node::new(Rooms {
        name: config.node.clone(),
        capture,
        locations,
        feed,
        keys,
        wallet,
        proxy: proxy.clone(),
        telemetry: telemetry.clone(),
        readiness: readiness.clone(),
        pods,
        rounds,
    });
    let mut signals = Signals::listen()?;
    let release = Release::follow(config.daemonset.clone());
    let run_dir = match claim {
        Claim::Free(run_dir) => run_dir,
        Claim::Held(successor) => {
            tracing::info!(
                node = config.node,
                version = env!("CARGO_PKG_VERSION"),
                "another agent serves this node"
            );
            tokio::select! {
                taken = lifecycle::take_over(&mut node, successor) => taken?,
                () = signals.next() => return Ok(()),
            }
        }
    };
    tracing::info!(node = config.node, version = env!("CARGO_PKG_VERSION"), "agent started");
    // Not before: an agent that dies on the way leaves the installation to the one that goes on.
    let installed = installation::keep(&config, &telemetry)?;
    let ended = lifecycle::Serving {
        node: &mut node,
        proxy,
        telemetry,
        status: Arc::new(status),
        attaching,
        addrs: lifecycle::Addrs { metrics: config.metrics_addr, admin: config.admin_addr },
        readiness,
        drain: config.drain,
        signals,
    }
    .run(run_dir, || drop(pods_enrolled))
    .await;
    node.end().await;
    if ended.is_ok() && release.uninstall_wanted().await {
        // The plugin first, and what repairs and informs it before that: without an agent it would keep new pods waiting.
        drop(installed);
        following.shutdown().await;
        let mut removed = config
            .cni
            .as_ref()
            .map_or_else(|| Ok(Vec::new()), |dirs| cni::uninstall(&dirs.bin, &dirs.conf))?;
        removed.extend(capture::uninstall(&config.bpf_root, Some(&config.node)).await?);
        uninstall::remove_run_dir(&config.run_dir);
        tracing::info!(
            node = config.node,
            items = removed.len(),
            "the agents' DaemonSet is gone: taken off this node"
        );
    } else if ended.is_ok() {
        tracing::info!(
            node = config.node,
            "agent stopped; enrolled pods stay closed until the next one starts"
        );
    }
    ended
}

/// Takes off what the agents of `node`, or of all nodes, left in the kernel; says what that was.
pub(crate) fn uninstall(bpf_root: &Path, node: Option<&str>) -> anyhow::Result<Vec<String>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime
        .block_on(capture::uninstall(bpf_root, node))
        .with_context(|| format!("cannot look through {}", bpf_root.display()))
}

fn mesh_settings(config: &AgentConfig) -> Settings {
    Settings {
        trust_domain: config.trust_domain.clone(),
        cluster_domain: config.cluster_domain.as_str().into(),
        root_namespace: config.root_namespace.as_str().into(),
        label: config.dataplane_label.key.as_str().into(),
        enabled: config.dataplane_label.enabled.as_str().into(),
        disabled: config.dataplane_label.disabled.as_str().into(),
    }
}
