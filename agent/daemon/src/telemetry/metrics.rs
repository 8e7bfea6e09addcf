//! The registry: Istio's TCP metrics, ambit's own, and the process's.

mod certificates;
mod clusters;
mod tokens;

use std::sync::{Arc, atomic::Ordering};

use ambit_core::{model::ObjectName, reason::Reason};
use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use self::{certificates::Certificates, clusters::Clusters, tokens::Tokens};
pub(crate) use self::{clusters::RemoteCluster, tokens::IssuerKeys};
use super::{
    Direction, Meta, bundles::BundleCounts, checks::Checks, dns::DnsCounts, kernel_tls::KernelTlsCounts,
    policy_metrics::PolicyMetrics, process::Process, requests::Requests, traces::SpanCounts,
    traffic::Traffic,
};

#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    pub(super) traffic: Arc<Traffic>,
    pub(super) requests: Arc<Requests>,
    pub(super) spans: SpanCounts,
    pub(super) policy: PolicyMetrics,
    pub(super) checks: Checks,
    sockets_open: [Gauge; 2],
    refusals: Family<ReasonLabels, Counter>,
    plaintext_refused: Family<NamespaceLabels, Counter>,
    failures: Family<ReasonLabels, Counter>,
    tls_failures: Family<ReasonLabels, Counter>,
    handshakes: Family<HandshakeLabels, Counter>,
    tunnels_open: Gauge,
    pub(super) tunnel_reuse: Counter,
    pub(super) tunnels_given_up: Counter,
    pub(super) kernel_tls: KernelTlsCounts,
    pub(super) bundles: BundleCounts,
    pub(super) dns: DnsCounts,
    pub(super) policy_wakes: Counter,
    pub(super) enrolled_pods: Gauge,
    pub(super) pods_kept_out: Gauge,
    pub(super) capture_everything: Gauge,
    probes: Family<PodLabels, Counter>,
    map_operations: Family<MapLabels, Counter>,
    pub(super) certificates: Certificates,
    pub(super) tokens: Tokens,
    pub(super) clusters: Clusters,
    cni_requests: Family<CniRequestLabels, Counter>,
    cni_repairs: Family<CniRepairLabels, Counter>,
    /// Without labels: a family, so that it is absent until it is set.
    cni_installed: Family<[(&'static str, &'static str); 0], Gauge>,
    pub(super) failed_pods: Gauge,
    not_ready: Family<GateLabels, Gauge>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PodLabels {
    namespace: String,
    pod: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MapLabels {
    map: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GateLabels {
    waits_for: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabels {
    component: &'static str,
    tag: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReporterLabels {
    reporter: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reporter: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NamespaceLabels {
    namespace: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HandshakeLabels {
    reporter: &'static str,
    resumed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CniRequestLabels {
    command: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CniRepairLabels {
    what: &'static str,
}

impl Metrics {
    pub(super) fn new() -> Self {
        let mut registry = Registry::default();
        let traffic = Arc::new(Traffic::new());
        registry.register_collector(Box::new(traffic.clone()));
        let requests = Arc::new(Requests::new());
        registry.register_collector(Box::new(requests.clone()));
        registry.register_collector(Box::new(Process));
        let spans = SpanCounts::register(&mut registry);
        let policy = PolicyMetrics::register(&mut registry);
        let checks = Checks::register(&mut registry);
        let dns = DnsCounts::register(&mut registry);
        let kernel_tls = KernelTlsCounts::register(&mut registry);
        let bundles = BundleCounts::register(&mut registry);

        let build = Family::<BuildLabels, Gauge>::default();
        build.get_or_create(&BuildLabels { component: "ambit", tag: env!("CARGO_PKG_VERSION") }).set(1);
        registry.register("istio_build", "The version that runs", build);

        let sockets = Family::<ReporterLabels, Gauge>::default();
        let sockets_open = [Direction::Outbound, Direction::Inbound]
            .map(|direction| sockets.get_or_create_owned(&ReporterLabels { reporter: direction.reporter() }));
        registry.register("istio_tcp_sockets_open", "Connections that are open now", sockets);

        let metrics = Self {
            traffic,
            requests,
            spans,
            policy,
            checks,
            sockets_open,
            refusals: Family::default(),
            plaintext_refused: Family::default(),
            failures: Family::default(),
            tls_failures: Family::default(),
            handshakes: Family::default(),
            tunnels_open: Gauge::default(),
            tunnel_reuse: Counter::default(),
            tunnels_given_up: Counter::default(),
            kernel_tls,
            bundles,
            dns,
            policy_wakes: Counter::default(),
            enrolled_pods: Gauge::default(),
            pods_kept_out: Gauge::default(),
            capture_everything: Gauge::default(),
            probes: Family::default(),
            map_operations: Family::default(),
            certificates: Certificates::default(),
            tokens: Tokens::default(),
            clusters: Clusters::default(),
            cni_requests: Family::default(),
            cni_repairs: Family::default(),
            cni_installed: Family::default(),
            failed_pods: Gauge::default(),
            not_ready: Family::default(),
            registry,
        };
        metrics.with_traffic().with_certificates().with_cni()
    }

    fn with_traffic(mut self) -> Self {
        let registry = &mut self.registry;
        registry.register(
            "ambit_refusals",
            "Connections refused by this agent or by the peer's, by reason",
            self.refusals.clone(),
        );
        registry.register(
            "ambit_plaintext_refused",
            "Plaintext connections refused because PeerAuthentication wants mutual TLS, by the namespace of the pod",
            self.plaintext_refused.clone(),
        );
        registry.register(
            "ambit_connection_failures",
            "Connections that were opened and broke, by reason",
            self.failures.clone(),
        );
        registry.register(
            "ambit_tls_failures",
            "TLS handshakes that failed, by reason",
            self.tls_failures.clone(),
        );
        registry.register("ambit_handshakes", "TLS handshakes that succeeded", self.handshakes.clone());
        registry.register(
            "ambit_tunnels_open",
            "Tunnels to and from other agents",
            self.tunnels_open.clone(),
        );
        registry.register(
            "ambit_tunnel_reuse",
            "Connections that went over a tunnel that was open already",
            self.tunnel_reuse.clone(),
        );
        registry.register(
            "ambit_tunnels_given_up",
            "Tunnels that rested and led nowhere when they were wanted again",
            self.tunnels_given_up.clone(),
        );
        registry.register(
            "ambit_policy_wakes",
            "Live connections that were judged again because their pod's policy changed",
            self.policy_wakes.clone(),
        );
        registry.register("ambit_enrolled_pods", "Pods of this node in the mesh", self.enrolled_pods.clone());
        registry.register(
            "ambit_pods_kept_out",
            "Pods of this node that a full eBPF map keeps out of the mesh",
            self.pods_kept_out.clone(),
        );
        registry.register(
            "ambit_pods_failed",
            "Pods of this node that opt in and could not be enrolled",
            self.failed_pods.clone(),
        );
        registry.register(
            "ambit_not_ready",
            "What the agent waits for before it is ready, by what `ambit status` calls it",
            self.not_ready.clone(),
        );
        registry.register(
            "ambit_capture_everything",
            "Whether all that pods in the mesh dial is captured, as the list of what should be does not fit its eBPF map",
            self.capture_everything.clone(),
        );
        registry.register(
            "ambit_probes",
            "Probes of the kubelet that were let through to a pod of this node",
            self.probes.clone(),
        );
        self
    }

    fn with_certificates(mut self) -> Self {
        let registry = &mut self.registry;
        registry.register(
            "ambit_map_operations",
            "System calls of the agent on the maps that it shares with the eBPF programs, by map",
            self.map_operations.clone(),
        );
        self.certificates.register(registry);
        self.tokens.register(registry);
        self.clusters.register(registry);
        self
    }

    fn with_cni(mut self) -> Self {
        let registry = &mut self.registry;
        registry.register(
            "ambit_cni_requests",
            "Requests of the CNI plugin, by command and result",
            self.cni_requests.clone(),
        );
        registry.register(
            "ambit_cni_repairs",
            "Times that the CNI plugin's binary or its place in the network configuration had to be put in again",
            self.cni_repairs.clone(),
        );
        registry.register(
            "ambit_cni_installed",
            "Whether the CNI plugin is installed and chained by this agent; absent where it is not to be",
            self.cni_installed.clone(),
        );
        self
    }

    pub(super) fn sockets_open(&self, direction: Direction) -> &Gauge {
        &self.sockets_open[direction as usize]
    }

    pub(super) fn refused(&self, meta: &Meta, reason: Reason) {
        self.refusals.get_or_create(&ReasonLabels::of(meta.direction, reason)).inc();
        let destination = meta.destination.workload.as_ref().map(|workload| &workload.name.namespace);
        if let (Reason::MtlsRequired, Direction::Inbound, Some(namespace)) =
            (reason, meta.direction, destination)
        {
            let labels = NamespaceLabels { namespace: namespace.to_string() };
            self.plaintext_refused.get_or_create(&labels).inc();
        }
    }

    pub(super) fn failed(&self, direction: Direction, reason: Reason) {
        self.failures.get_or_create(&ReasonLabels::of(direction, reason)).inc();
    }

    pub(super) fn tls_failed(&self, direction: Direction, reason: Reason) {
        self.tls_failures.get_or_create(&ReasonLabels::of(direction, reason)).inc();
    }

    pub(super) fn handshake(&self, direction: Direction, resumed: bool) {
        self.handshakes.get_or_create(&HandshakeLabels { reporter: direction.reporter(), resumed }).inc();
    }

    pub(super) fn tunnel(&self) -> OpenTunnel {
        self.tunnels_open.inc();
        OpenTunnel(self.tunnels_open.clone())
    }

    pub(super) fn cni_request(&self, command: &'static str, result: &'static str) {
        self.cni_requests.get_or_create(&CniRequestLabels { command, result }).inc();
    }

    pub(super) fn cni_installed(&self, installed: bool) {
        self.cni_installed.get_or_create(&[]).set(i64::from(installed));
    }

    pub(super) fn cni_repaired(&self, what: &'static str) {
        self.cni_repairs.get_or_create(&CniRepairLabels { what }).inc();
    }

    pub(super) fn probes<'a>(&self, pods: impl Iterator<Item = (&'a ObjectName, u64)>) {
        self.probes.clear();
        for (name, probes) in pods.filter(|(_, probes)| *probes > 0) {
            let labels = PodLabels { namespace: name.namespace.to_string(), pod: name.name.to_string() };
            self.probes.get_or_create(&labels).inner().store(probes, Ordering::Relaxed);
        }
    }

    pub(super) fn map_operations(&self, maps: impl Iterator<Item = (&'static str, u64)>) {
        for (map, operations) in maps {
            self.map_operations
                .get_or_create(&MapLabels { map })
                .inner()
                .store(operations, Ordering::Relaxed);
        }
    }

    pub(super) fn pending(&self, gates: &[&'static str]) {
        self.not_ready.clear();
        for gate in gates {
            self.not_ready.get_or_create(&GateLabels { waits_for: gate }).set(1);
        }
    }

    pub(super) fn encode(&self) -> String {
        let mut text = String::with_capacity(16 * 1024);
        // Writing into a String does not fail, and nothing registered refuses to be encoded.
        if let Err(error) = text::encode(&mut text, &self.registry) {
            tracing::error!(%error, "metrics could not be encoded");
        }
        text
    }
}

impl ReasonLabels {
    fn of(direction: Direction, reason: Reason) -> Self {
        Self { reporter: direction.reporter(), reason: reason.label() }
    }
}

/// Counts one tunnel as open for as long as it lives.
#[derive(Debug)]
pub(crate) struct OpenTunnel(Gauge);

impl Drop for OpenTunnel {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests;
