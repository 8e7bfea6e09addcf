//! The registry: Istio's TCP metrics, ambit's own, and the process's.

use std::{
    sync::{Arc, atomic::Ordering},
    time::SystemTime,
};

use ambit_core::{
    model::{ObjectName, SpiffeId},
    reason::Reason,
};
use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::{Direction, process::Process, traffic::Traffic};

#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    pub(super) traffic: Arc<Traffic>,
    sockets_open: [Gauge; 2],
    refusals: Family<ReasonLabels, Counter>,
    failures: Family<ReasonLabels, Counter>,
    tls_failures: Family<ReasonLabels, Counter>,
    handshakes: Family<HandshakeLabels, Counter>,
    tunnels_open: Gauge,
    pub(super) tunnel_reuse: Counter,
    pub(super) tunnels_given_up: Counter,
    pub(super) policy_wakes: Counter,
    pub(super) enrolled_pods: Gauge,
    pub(super) pods_kept_out: Gauge,
    pub(super) capture_everything: Gauge,
    probes: Family<PodLabels, Counter>,
    map_operations: Family<MapLabels, Counter>,
    certificate_expiry: Family<IdentityLabels, Gauge>,
    root_expiry: Family<RootLabels, Gauge>,
    crl_next_update: Family<IssuerLabels, Gauge>,
    certificates_issued: Counter,
    certificate_failures: Counter,
    clock_skews: Counter,
    cni_requests: Family<CniRequestLabels, Counter>,
    cni_repairs: Family<CniRepairLabels, Counter>,
    pub(super) cni_installed: Gauge,
    pub(super) late_certificates: Gauge,
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
struct RootLabels {
    root: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct IssuerLabels {
    issuer: String,
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

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct IdentityLabels {
    identity: String,
}

impl Metrics {
    pub(super) fn new() -> Self {
        let mut registry = Registry::default();
        let traffic = Arc::new(Traffic::new());
        registry.register_collector(Box::new(traffic.clone()));
        registry.register_collector(Box::new(Process));

        let build = Family::<BuildLabels, Gauge>::default();
        build.get_or_create(&BuildLabels { component: "ambit", tag: env!("CARGO_PKG_VERSION") }).set(1);
        registry.register("istio_build", "The version that runs", build);

        let sockets = Family::<ReporterLabels, Gauge>::default();
        let sockets_open = [Direction::Outbound, Direction::Inbound]
            .map(|direction| sockets.get_or_create_owned(&ReporterLabels { reporter: direction.reporter() }));
        registry.register("istio_tcp_sockets_open", "Connections that are open now", sockets);

        let metrics = Self {
            traffic,
            sockets_open,
            refusals: Family::default(),
            failures: Family::default(),
            tls_failures: Family::default(),
            handshakes: Family::default(),
            tunnels_open: Gauge::default(),
            tunnel_reuse: Counter::default(),
            tunnels_given_up: Counter::default(),
            policy_wakes: Counter::default(),
            enrolled_pods: Gauge::default(),
            pods_kept_out: Gauge::default(),
            capture_everything: Gauge::default(),
            probes: Family::default(),
            map_operations: Family::default(),
            certificate_expiry: Family::default(),
            root_expiry: Family::default(),
            crl_next_update: Family::default(),
            certificates_issued: Counter::default(),
            certificate_failures: Counter::default(),
            clock_skews: Counter::default(),
            cni_requests: Family::default(),
            cni_repairs: Family::default(),
            cni_installed: Gauge::default(),
            late_certificates: Gauge::default(),
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
        registry.register(
            "ambit_certificate_expiry_timestamp_seconds",
            "When the certificate held for an identity ends, in seconds since 1970",
            self.certificate_expiry.clone(),
        );
        registry.register(
            "ambit_root_expiry_timestamp_seconds",
            "When a root that an identity trusts ends, in seconds since 1970; by its SHA-256",
            self.root_expiry.clone(),
        );
        registry.register(
            "ambit_crl_next_update_timestamp_seconds",
            "When a newer revocation list should be there, in seconds since 1970",
            self.crl_next_update.clone(),
        );
        registry.register(
            "ambit_certificates_issued",
            "Certificates taken into use, first ones and renewals",
            self.certificates_issued.clone(),
        );
        registry.register(
            "ambit_certificate_failures",
            "Attempts to get a certificate that gave none",
            self.certificate_failures.clone(),
        );
        registry.register(
            "ambit_certificate_clock_skews",
            "Certificates refused because this node's clock and the issuer's differ too much",
            self.clock_skews.clone(),
        );
        registry.register(
            "ambit_certificates_late",
            "Certificates past 90 % of their life, or expired, and not renewed",
            self.late_certificates.clone(),
        );
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
            "Whether the CNI plugin is installed and chained by this agent",
            self.cni_installed.clone(),
        );
        self
    }

    pub(super) fn sockets_open(&self, direction: Direction) -> &Gauge {
        &self.sockets_open[direction as usize]
    }

    pub(super) fn refused(&self, direction: Direction, reason: Reason) {
        self.refusals.get_or_create(&ReasonLabels::of(direction, reason)).inc();
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

    pub(super) fn certificate(&self, identity: &SpiffeId, not_after: Option<SystemTime>) {
        let labels = IdentityLabels { identity: identity.to_string() };
        match not_after {
            Some(not_after) => {
                self.certificate_expiry.get_or_create(&labels).set(timestamp(not_after));
            }
            None => {
                self.certificate_expiry.remove(&labels);
            }
        }
    }

    pub(super) fn root(&self, fingerprint: &str, not_after: Option<SystemTime>) {
        let labels = RootLabels { root: fingerprint.to_owned() };
        match not_after {
            Some(not_after) => {
                self.root_expiry.get_or_create(&labels).set(timestamp(not_after));
            }
            None => {
                self.root_expiry.remove(&labels);
            }
        }
    }

    pub(super) fn renewals(&self, issued: u64, failed: u64, skewed: u64) {
        self.certificates_issued.inner().store(issued, Ordering::Relaxed);
        self.certificate_failures.inner().store(failed, Ordering::Relaxed);
        self.clock_skews.inner().store(skewed, Ordering::Relaxed);
    }

    pub(super) fn revocation_lists(&self, lists: &[(String, Option<SystemTime>)]) {
        self.crl_next_update.clear();
        for (issuer, end) in lists {
            if let Some(end) = end {
                let labels = IssuerLabels { issuer: issuer.clone() };
                self.crl_next_update.get_or_create(&labels).set(timestamp(*end));
            }
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

fn timestamp(time: SystemTime) -> i64 {
    let since_epoch = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX)
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
