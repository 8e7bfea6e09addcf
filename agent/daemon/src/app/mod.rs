//! Wiring: the only room that knows everyone. Builds the rooms, hands each what it needs, and ends them.

mod ca;
mod federation;
mod issuer;
mod node;
mod revocation;
mod source;
mod status;
mod uninstall;

use std::{collections::HashMap, path::Path, sync::Arc, time::SystemTime};

use ambit_core::discovery::Settings;
use anyhow::Context as _;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

pub(crate) use ca::run_ca;

use self::{
    node::{Node, Pods},
    status::Status,
    uninstall::Release,
};
use crate::{
    admin::{self, Readiness, RunDir},
    capture::{self, Capture, CaptureSettings},
    cli::{self, AgentConfig},
    identity::{Clock, KeyStore, SystemClock},
    proxy::Proxy,
    telemetry::Telemetry,
    tunnel::{Wallet, tls},
};

/// Runs the agent of one node until SIGTERM or SIGINT. Enrolled pods stay closed after it: the next agent, or
/// `ambit uninstall`, opens them.
pub(crate) async fn run(config: AgentConfig) -> anyhow::Result<()> {
    let run_dir = RunDir::claim(&config.run_dir)?;
    let readiness = Readiness::default();
    let (objects, pods_enrolled) = (readiness.gate(config.source.gate()), readiness.gate("pods"));
    let telemetry = Telemetry::new();
    let (stop, stopped) = watch::channel(false);

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

    let pods = Pods::default();
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
    let mut serving = tokio::task::JoinSet::new();
    let until = |mut stopped: watch::Receiver<bool>| async move {
        // An error means that the sender is gone, which is a stop as well.
        let _ = stopped.wait_for(|stop| *stop).await;
    };
    let status = Arc::new(status);
    if let Some(addr) = config.admin_addr {
        serving.spawn(admin::serve_status_tcp(addr, status.clone(), until(stopped.clone())));
    }
    serving.spawn(admin::serve_status(run_dir, status, until(stopped.clone())));
    if let Some(addr) = config.metrics_addr {
        serving.spawn(admin::serve_http(addr, telemetry.clone(), readiness.clone(), until(stopped)));
    }
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
    let node = Node {
        name: config.node.clone(),
        capture,
        feed,
        keys,
        wallet,
        proxy,
        telemetry,
        pods,
        enrolled: HashMap::new(),
        readiness: readiness.clone(),
        certificates_late: None,
        expiries: Default::default(),
        serving: tokio::task::JoinSet::new(),
    };
    let release = Release::follow(config.daemonset);
    let name = config.node;
    tracing::info!(node = name, version = env!("CARGO_PKG_VERSION"), "agent started");
    let ended = tokio::select! {
        () = node.run(|| drop(pods_enrolled)) => Err(anyhow::anyhow!("the source of objects has ended")),
        Some(served) = serving.join_next() => match served {
            Ok(Ok(())) => Err(anyhow::anyhow!("a server of the agent has ended")),
            Ok(Err(error)) => Err(error.into()),
            Err(error) => Err(error.into()),
        },
        signal = terminated() => signal,
    };
    let uninstalled = ended.is_ok() && release.uninstall_wanted().await;
    if uninstalled {
        let removed = capture::uninstall(&config.bpf_root, Some(&name)).await?;
        tracing::info!(
            node = name,
            pins = removed.len(),
            "the agents' DaemonSet is gone: taken off this node"
        );
    }
    // The receivers may be gone with their servers.
    let _ = stop.send(true);
    while serving.join_next().await.is_some() {}
    if ended.is_ok() && !uninstalled {
        tracing::info!(node = name, "agent stopped; enrolled pods stay closed until the next one starts");
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

async fn terminated() -> anyhow::Result<()> {
    let (mut term, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
