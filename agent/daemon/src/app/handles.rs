//! The rooms of one agent, built in the order in which they need each other, and what keeps them in step.

use std::{sync::Arc, time::SystemTime};

use kube::Client;
use tokio::{sync::watch, task::JoinSet};

use super::{
    attachment::Attaching,
    clusters,
    control_plane::issuing_service,
    footprint::keep_small,
    installation, kernel_tls,
    lifecycle::{Addrs, Serving},
    locations::Locations,
    node::{Node, Pods, Rooms},
    source,
    status::Status,
    tokens, trust,
};
use crate::{
    admin::{Guard, METRICS_PATH, Page, StatusProvider},
    authz::Providers,
    capture::{Capture, CaptureSettings, Cgroups, Pinned},
    cluster::Authorizer,
    config::{self, AgentConfig, LocalTraffic, SourceConfig},
    discovery::Feed,
    identity::KeyStore,
    instance::{Capacity, Gate, MemoryUse, Readiness, Signals},
    jwt::Tokens,
    proxy::{Bundling, BusyPoll, Judges, Manner, Proxy},
    telemetry::{self, Telemetry},
    tunnel::Wallet,
};

/// Handles to the rooms; each part gets clones of those that it needs.
pub(super) struct Handles {
    started: SystemTime,
    pub(super) readiness: Readiness,
    pub(super) telemetry: Telemetry,
    feed: Feed,
    /// The API that the objects come from, unless a folder is the source.
    api: Option<Client>,
    keys: KeyStore,
    wallet: Wallet,
    proxy: Proxy,
    providers: Providers,
    pods: Pods,
    tokens: Tokens,
    /// Whether the kernel has the TLS records of tunnels.
    kernel_tls: String,
}

impl Handles {
    /// Builds them; what has to go on for ever is spawned into `background`. Must be called in a tokio runtime.
    pub(super) async fn open(
        config: &AgentConfig,
        busy: Arc<BusyPoll>,
        readiness: Readiness,
        background: &mut JoinSet<()>,
    ) -> anyhow::Result<Self> {
        let (started, telemetry) = (SystemTime::now(), Telemetry::new());
        telemetry::name_cluster(&config.cluster_name);
        if let Some(traces) = &config.traces {
            telemetry.export_traces(traces.clone());
        }
        // Before anything is asked of others: it may be the end.
        let records = kernel_tls::decide(config.kernel_tls)?;
        let (feed, api) = source::open(config).await?;
        let (keys, wallet) = trust::open(config, &feed, api.as_ref(), &telemetry, background).await?;
        let capacity = Capacity::of_this_process();
        tracing::debug!(?capacity, "what this agent may hold");
        let providers = Providers::new(config.extension_providers.clone(), &telemetry);
        let tokens = tokens::open(config, &telemetry);
        let judges = Judges {
            providers: providers.clone(),
            tokens: tokens.clone(),
            trusted_proxies: config.trusted_proxies,
        };
        let bundling = match config.bundles {
            config::Bundling::Off => Bundling::Off,
            config::Bundling::Auto => Bundling::Auto,
            config::Bundling::Force => Bundling::Force,
        };
        let manner = Manner { join: config.local_traffic == LocalTraffic::Join, busy, bundling };
        let proxy = Proxy::new(feed.clone(), wallet.clone(), telemetry.clone(), judges, capacity, manner);
        if let Some(folder) = &config.egress_files {
            proxy.set_egress_files(folder.clone());
        }
        if let Some(ability) = records.ability {
            proxy.hand_records_to_kernel(ability);
        }
        let (pods, kernel_tls) = (Pods::default(), records.state);
        Ok(Self {
            started,
            readiness,
            telemetry,
            feed,
            api,
            keys,
            wallet,
            proxy,
            providers,
            pods,
            tokens,
            kernel_tls,
        })
    }

    /// Keeps the rooms in step with each other by tasks in `background`. The gate `objects` is passed once the objects are
    /// known.
    pub(super) fn connect(&self, config: &AgentConfig, objects: Gate, background: &mut JoinSet<()>) {
        let feed = self.feed.clone();
        background.spawn(async move {
            feed.synced().await;
            drop(objects);
        });
        if let Some(api) = self.api.clone() {
            let readiness = self.readiness.clone();
            let known = move || !readiness.pending().contains(&"pods");
            let (feed, pods, keys) = (self.feed.clone(), self.pods.clone(), self.keys.clone());
            background.spawn(source::report(api, config.node.clone(), feed, pods, keys, known));
        }
        let proxy = self.proxy.clone();
        background.spawn(async move { proxy.follow_trust().await });
        if let Some(memory) = MemoryUse::of_this_process() {
            let proxy = self.proxy.clone();
            background.spawn(async move { proxy.follow_memory(memory).await });
        }
        if config.remote_clusters.is_some() {
            background.spawn(clusters::measure(self.feed.clone(), self.telemetry.clone()));
        }
        background.spawn(keep_small(self.readiness.clone(), self.proxy.clone()));
        background.spawn(tokens::follow(self.feed.clone(), config.node.clone(), self.tokens.clone()));
        installation::inform(config, &self.feed, background);
    }

    /// The node, not yet followed, and the answers to its CNI plugin.
    pub(super) fn node(&self, config: &AgentConfig) -> anyhow::Result<(Node, Attaching)> {
        let by_operator = matches!(config.source, SourceConfig::Folder(_));
        let cgroups = Cgroups::new(config.cgroup_root.as_deref())?;
        let pins = Pinned::new(&config.bpf_root, &config.node);
        let locations = Locations::new(cgroups, pins, by_operator);
        let rounds = watch::Sender::new(0);
        let attaching = Attaching {
            node: config.node.clone(),
            feed: self.feed.clone(),
            keys: self.keys.clone(),
            pods: self.pods.clone(),
            rounds: rounds.subscribe(),
            attachments: locations.attachments(),
            telemetry: self.telemetry.clone(),
        };
        let node = Node::new(Rooms {
            name: config.node.clone(),
            capture: Capture::new(CaptureSettings {
                node: config.node.clone(),
                bpf_root: config.bpf_root.clone(),
                cgroup_root: config.cgroup_root.clone(),
                kubelet_cgroup: config.kubelet_cgroup.clone(),
                map_entries: config.map_entries.0.clone(),
            })?,
            locations,
            feed: self.feed.clone(),
            keys: self.keys.clone(),
            wallet: self.wallet.clone(),
            proxy: self.proxy.clone(),
            telemetry: self.telemetry.clone(),
            pods: self.pods.clone(),
            rounds,
            readiness: self.readiness.clone(),
            tokens: self.tokens.clone(),
        });
        Ok((node, attaching))
    }

    /// What tells how this agent stands.
    pub(super) fn status(&self, config: &AgentConfig) -> Arc<dyn StatusProvider> {
        Arc::new(Status {
            node: config.node.clone(),
            root_namespace: config.root_namespace.clone(),
            instance: config.instance.clone(),
            started: self.started,
            readiness: self.readiness.clone(),
            pods: self.pods.clone(),
            feed: self.feed.clone(),
            keys: self.keys.clone(),
            telemetry: self.telemetry.clone(),
            providers: self.providers.clone(),
            tokens: self.tokens.clone(),
            issuing_service: issuing_service(&config.issuer),
            kernel_tls: self.kernel_tls.clone(),
        })
    }

    /// What serves `node` and answers for it.
    pub(super) fn serving<'a>(
        &self,
        config: &AgentConfig,
        node: &'a mut Node,
        attaching: Attaching,
        signals: Signals,
    ) -> anyhow::Result<Serving<'a>> {
        let page = Page {
            metrics: Some(Arc::new(self.telemetry.clone())),
            guard: self.guard(config)?,
            readiness: self.readiness.clone(),
        };
        Ok(Serving {
            node,
            proxy: self.proxy.clone(),
            telemetry: self.telemetry.clone(),
            status: self.status(config),
            attaching,
            addrs: Addrs { metrics: config.metrics_addr, admin: config.admin_addr },
            page,
            readiness: self.readiness.clone(),
            drain: config.drain,
            signals,
        })
    }

    /// What stands before the metrics, if they are not for everybody.
    fn guard(&self, config: &AgentConfig) -> anyhow::Result<Option<Arc<Guard>>> {
        let Some(api) = self.api.clone().filter(|_| config.metrics_guarded) else { return Ok(None) };
        Ok(Some(Arc::new(Guard::new(Authorizer::new(api, METRICS_PATH))?)))
    }
}
