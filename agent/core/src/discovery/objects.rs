//! The objects that discovery is fed, as the domain sees them: validated, defaults filled in, addresses canonical.
//!
//! Sources convert their wire types into these; nothing here knows JSON, YAML or an API server.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use super::{
    destination_rule::{DestinationRule, TlsSecret},
    service_entry::{Prefix, ServiceEntry, WorkloadEntry},
    vips::VipRanges,
};
use crate::model::{DATAPLANE_LABEL, Labels, ObjectName, PathNormalization, SpiffeId, TrustDomain};

/// What an installation may choose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The trust domain of every identity; `cluster.local`.
    pub trust_domain: TrustDomain,
    /// Other names of that trust domain; none.
    pub trust_domain_aliases: Vec<TrustDomain>,
    /// The DNS domain of services; `cluster.local`.
    pub cluster_domain: Arc<str>,
    /// The namespace whose policies speak for the whole mesh; `ambit-system`.
    pub root_namespace: Arc<str>,
    /// The key of the opt-in label; `ambit.dev/dataplane`.
    pub label: Arc<str>,
    /// The label's value that opts a namespace or pod in; `enabled`.
    pub enabled: Arc<str>,
    /// The label's value that opts a pod out; `disabled`.
    pub disabled: Arc<str>,
    /// How paths of requests are rewritten; [`PathNormalization::Base`].
    pub path_normalization: PathNormalization,
    /// The external providers that CUSTOM policies may name; none.
    pub providers: Vec<Arc<str>>,
    /// Where those are.
    pub provider_places: Vec<ProviderPlace>,
    /// HTTP requests to pods are counted and logged where neither they nor their namespaces say anything; not so.
    pub http_telemetry: bool,
    /// Where pods may connect to whose namespace says nothing of it.
    pub outbound_policy: OutboundPolicy,
    /// Connections to outside are captured, so that they are counted and logged as others; no.
    pub observe_outbound: bool,
    /// DNS of pods is captured where neither they nor their namespaces say anything; no.
    pub dns_capture: bool,
    /// Where addresses for hosts of ServiceEntries without any come from.
    pub vip_ranges: VipRanges,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            trust_domain: TrustDomain::default(),
            trust_domain_aliases: Vec::new(),
            cluster_domain: "cluster.local".into(),
            root_namespace: "ambit-system".into(),
            label: DATAPLANE_LABEL.into(),
            enabled: "enabled".into(),
            disabled: "disabled".into(),
            path_normalization: PathNormalization::default(),
            providers: Vec::new(),
            provider_places: Vec::new(),
            http_telemetry: false,
            outbound_policy: OutboundPolicy::default(),
            observe_outbound: false,
            dns_capture: false,
            vip_ranges: VipRanges::default(),
        }
    }
}

impl Settings {
    /// Whether the labels of a pod and its namespace opt it in.
    pub fn opts_in(&self, namespace: Option<&Labels>, pod: &Labels) -> bool {
        let value = |labels: &Labels| labels.get(&*self.label).cloned();
        let (on_pod, on_namespace) = (value(pod), namespace.and_then(value));
        on_pod.as_deref() == Some(&*self.enabled)
            || (on_namespace.as_deref() == Some(&*self.enabled) && on_pod.as_deref() != Some(&*self.disabled))
    }
}

/// Where an external provider is said to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProviderPlace {
    /// Its name.
    pub provider: Arc<str>,
    /// The namespace of its service, where the host does not say it.
    pub namespace: Option<Arc<str>>,
    /// A service's name as DNS has it, another name, or an IP address.
    pub host: Arc<str>,
    /// The service's port.
    pub port: u16,
}

/// One step from a source: an object as it is now, or the name of one that is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A namespace as it is now.
    Namespace(Arc<Namespace>),
    /// A namespace is gone.
    NamespaceGone(Arc<str>),
    /// A namespace of another cluster as it is now.
    RemoteNamespace {
        /// That cluster.
        cluster: Arc<str>,
        /// The namespace.
        namespace: Arc<Namespace>,
    },
    /// A namespace of another cluster is gone.
    RemoteNamespaceGone {
        /// That cluster.
        cluster: Arc<str>,
        /// The namespace's name.
        name: Arc<str>,
    },
    /// Of another cluster nothing is known yet but the networks of its pods.
    ClusterUnread {
        /// That cluster.
        cluster: Arc<str>,
        /// The networks.
        networks: Vec<Prefix>,
    },
    /// Another cluster has been read, or is none of ours any more.
    ClusterKnown(Arc<str>),
    /// A node as it is now.
    Node(Arc<Node>),
    /// A node is gone.
    NodeGone(Arc<str>),
    /// A pod as it is now.
    Pod(Arc<Pod>),
    /// A pod is gone.
    PodGone(ObjectName),
    /// A service as it is now.
    Service(Arc<Service>),
    /// A service is gone.
    ServiceGone(ObjectName),
    /// An endpoint slice as it is now.
    EndpointSlice(Arc<EndpointSlice>),
    /// An endpoint slice is gone.
    EndpointSliceGone(ObjectName),
    /// A DestinationRule as it is now.
    DestinationRule(Arc<DestinationRule>),
    /// A DestinationRule is gone.
    DestinationRuleGone(ObjectName),
    /// A ServiceEntry as it is now.
    ServiceEntry(Arc<ServiceEntry>),
    /// A ServiceEntry is gone.
    ServiceEntryGone(ObjectName),
    /// A WorkloadEntry as it is now.
    WorkloadEntry(Arc<WorkloadEntry>),
    /// A WorkloadEntry is gone.
    WorkloadEntryGone(ObjectName),
    /// A Secret that a DestinationRule names, as it is now.
    Secret(Arc<TlsSecret>),
    /// A Secret is gone.
    SecretGone(ObjectName),
}

/// Where pods may connect to, as `meshConfig.outboundTrafficPolicy.mode` of Istio has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutboundPolicy {
    /// Anywhere.
    #[default]
    AllowAny,
    /// To pods, services and nodes of the cluster, and to what a ServiceEntry names.
    RegistryOnly,
}

/// The label of a namespace that states the outbound policy of its pods.
pub const OUTBOUND_POLICY_LABEL: &str = "ambit.dev/outbound-policy";

/// The label of a namespace or pod that has DNS of its pods captured (`enabled`) or not (`disabled`).
pub const DNS_CAPTURE_LABEL: &str = "ambit.dev/dns-capture";

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: Arc<str>,
    /// Its labels.
    pub labels: Labels,
    /// What its annotation wants of requests to its pods.
    pub http_telemetry: Option<bool>,
}

/// What discovery needs of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Namespace and name.
    pub name: ObjectName,
    /// `metadata.uid`; where a manifest has none, `namespace/name`.
    pub uid: Arc<str>,
    /// `metadata.creationTimestamp` in seconds since 1970.
    pub created: Option<i64>,
    /// The identity its service account gives it (`default` where none is named).
    pub identity: SpiffeId,
    /// `spec.nodeName`; empty while unscheduled.
    pub node: Arc<str>,
    /// `status.podIPs`, primary first, canonical.
    pub ips: Vec<IpAddr>,
    /// `status.hostIPs`: addresses of the node, canonical.
    pub host_ips: Vec<IpAddr>,
    /// Labels.
    pub labels: Labels,
    /// `spec.hostNetwork`.
    pub host_network: bool,
    /// Phase Succeeded or Failed: it runs no more and its address may be another's.
    pub terminal: bool,
    /// Asked to go (`metadata.deletionTimestamp`): it serves until it is gone, but its address may be another's sooner.
    pub deleting: bool,
    /// The Ready condition; a pod that states none counts as ready.
    pub ready: bool,
    /// Named TCP ports of its containers.
    pub named_ports: BTreeMap<String, u16>,
    /// TCP ports that its containers state, ascending; they may listen on others too.
    pub ports: Vec<u16>,
    /// TCP ports on the pod that its liveness, readiness and startup probes name, ascending.
    pub probe_ports: Vec<u16>,
    /// TCP ports of its node that lead to ports of its own (`hostPort`).
    pub host_ports: Vec<HostPort>,
    /// Where its probes and hooks have the kubelet connect to, if that is not the pod itself.
    pub foreign_probes: Vec<ForeignProbe>,
    /// The network namespace that the annotation names: a path, or a name under `/run/netns`.
    pub netns: Option<Arc<str>>,
    /// What its annotation wants of requests to it.
    pub http_telemetry: Option<bool>,
}

/// A port of a node that leads to a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// The node's address, if it is only there.
    pub ip: Option<IpAddr>,
    /// The port on the node.
    pub port: u16,
    /// The port on the pod.
    pub target: u16,
}

/// Where a probe or a hook of a pod has the kubelet connect to, which is not the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ForeignProbe {
    /// The address, canonical; `None` where a host name is given, which may lead to any.
    pub host: Option<IpAddr>,
    /// The port; `None` where that cannot be told.
    pub port: Option<u16>,
}

impl ForeignProbe {
    /// Whether it may lead to `port` of `ip`.
    pub fn may_reach(&self, ip: IpAddr, port: u16) -> bool {
        self.host.is_none_or(|host| host == ip) && self.port.is_none_or(|own| own == port)
    }
}

/// A transport protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP, also where none is stated.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// What discovery needs of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub name: ObjectName,
    /// `metadata.creationTimestamp` in seconds since 1970.
    pub created: Option<i64>,
    /// Its virtual addresses, canonical; none for headless and external-name services.
    pub cluster_ips: Vec<IpAddr>,
    /// Other addresses at which its ports are to be had, canonical: `spec.externalIPs`, and those of its load balancer that
    /// lead past that (`ipMode: VIP`). They may be anybody's otherwise.
    pub external_ips: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// The pods behind it, where no endpoint slice says so; empty selects none.
    pub selector: Labels,
    /// `sessionAffinity: ClientIP`: for how long after its last connection a client keeps to its endpoint.
    pub session_affinity: Option<Duration>,
    /// `internalTrafficPolicy: Local`: only endpoints on the client's node.
    pub local_only: bool,
    /// `externalTrafficPolicy: Local`: a node port leads to endpoints on the node that is dialled.
    pub external_local: bool,
    /// `publishNotReadyAddresses`.
    pub publish_not_ready: bool,
    /// `trafficDistribution`: which endpoints clients go to first, where no endpoint slice says so.
    pub distribution: Option<Distribution>,
    /// `loadBalancerSourceRanges`: the clients that its load balancer's addresses are for; empty for all.
    pub source_ranges: Vec<Prefix>,
    /// Those of `external_ips` that are its load balancer's alone.
    pub balancer_ips: Vec<IpAddr>,
}

/// Which endpoints clients go to first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distribution {
    /// Those of the client's zone.
    SameZone,
    /// Those on the client's node, then those of its zone.
    SameNode,
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; empty where it has none.
    pub name: String,
    /// The port that clients dial.
    pub port: u16,
    /// The port of every node that leads to it, if there is one.
    pub node_port: Option<u16>,
    /// The port on the pods.
    pub target: TargetPort,
    /// Its protocol.
    pub protocol: Protocol,
    /// What is spoken there, where `appProtocol` says so.
    pub app_protocol: Option<Box<str>>,
}

impl ServicePort {
    /// What is spoken there, in lower case: `appProtocol`, else the port's name up to its first dash; `None` where neither says it.
    /// Some ports are known. By <https://istio.io/latest/docs/ops/configuration/traffic-management/protocol-selection/>.
    pub fn application(&self) -> Option<String> {
        let stated = self.app_protocol.as_deref().map(str::to_ascii_lowercase);
        let named = || self.name.split('-').next().map(str::to_ascii_lowercase);
        let said = stated.or_else(named).filter(|name| KNOWN.contains(&&**name));
        // Whose servers speak first.
        said.or_else(|| [25, 53, 3306, 27_017].contains(&self.port).then(|| "tcp".to_owned()))
    }

    /// Whether it is known to carry something else than HTTP in the clear.
    pub fn is_not_http(&self) -> bool {
        let opaque = ["https", "tls", "tcp", "mongo", "redis", "mysql"];
        self.application().is_some_and(|name| opaque.contains(&&*name))
    }
}

/// The protocols that a port can say.
const KNOWN: [&str; 13] = [
    "http",
    "http2",
    "grpc",
    "grpc-web",
    "https",
    "tls",
    "tcp",
    "mongo",
    "redis",
    "mysql",
    "kubernetes.io/h2c",
    "kubernetes.io/ws",
    "kubernetes.io/wss",
];

/// A port on the pods of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// The same number on every pod.
    Number(u16),
    /// The port of that name, which may differ between pods.
    Name(String),
}

/// What discovery needs of an endpoint slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Namespace and name.
    pub name: ObjectName,
    /// The service it belongs to (label `kubernetes.io/service-name`); without one it has no effect.
    pub service: Option<ObjectName>,
    /// The pods' ports by the name of the service's port.
    pub ports: Vec<SlicePort>,
    /// The endpoints; none where the slice holds host names.
    pub endpoints: Vec<SliceEndpoint>,
}

/// A port of an endpoint slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// The name of the service's port; empty where that has none.
    pub name: String,
    /// The port on the endpoints.
    pub port: u16,
    /// Its protocol.
    pub protocol: Protocol,
}

/// An endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// Its addresses, canonical, all of one family.
    pub addresses: Vec<IpAddr>,
    /// The ready condition; absent counts as ready.
    pub ready: bool,
    /// It terminates, and serves until it is gone.
    pub leaving: bool,
    /// The pod it stands for.
    pub pod: Option<ObjectName>,
    /// The node it is on.
    pub node: Option<Arc<str>>,
    /// Whose clients it is meant for, if that is stated.
    pub hints: Option<Arc<Hints>>,
}

/// Which clients an endpoint is meant for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// Those on these nodes.
    pub nodes: Vec<Arc<str>>,
    /// Those in these zones.
    pub zones: Vec<Arc<str>>,
}

/// What discovery needs of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: Arc<str>,
    /// Its label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
}
