//! From an original destination to an endpoint.
//!
//! Promises that an endpoint known to be in the mesh, or that may be, is never reached in plaintext. Connecting is left to others.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use super::{Mesh, Preferences, ServiceRecord};
use crate::discovery::{
    Destination, Protocol, Service,
    destination_rule::ClientSettings,
    join::{self, Backend},
};
use crate::model::{Labels, ObjectName, OriginalDst, PodAddr, ServiceName, SpiffeId, Workload};

/// Where a captured connection goes.
#[derive(Clone, Debug)]
pub enum Route {
    /// To a pod that is in the mesh: mutual TLS, never anything less.
    Tunnel(Endpoint),
    /// To a pod outside the mesh, in plaintext, at its own address.
    Plain(Endpoint),
    /// To the original destination as it is; nothing is known of it.
    Passthrough,
    /// To where names lead.
    Resolve(Named),
    /// Nowhere.
    Refuse(RouteError),
}

/// The pod chosen for a connection.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Pod IP and target port.
    pub addr: PodAddr,
    /// The pod. An endpoint of a service that is no known pod (an address outside the cluster) gets a workload named
    /// `unknown`, never enrolled.
    pub workload: Arc<Workload>,
    /// The service by which it was addressed, if it was.
    pub service: Option<ServiceName>,
    /// For how long the client is to keep to it, if the service has session affinity.
    pub kept_for: Option<Duration>,
    /// What a DestinationRule says of connections to it.
    pub rule: Option<Box<ClientRule>>,
    /// Identities that it may have instead of the pod's, where it was addressed by a ServiceEntry that says so.
    pub identities: Option<Arc<[SpiffeId]>>,
}

/// A DestinationRule's word on the connections of a client to a port of a service or entry.
#[derive(Clone, Debug)]
pub struct ClientRule {
    /// How to connect.
    pub settings: Arc<ClientSettings>,
    /// The destination's host.
    pub host: Arc<str>,
    /// Names that the server's certificate may have where the rule says none (of the ServiceEntry).
    pub names: Vec<Arc<str>>,
    /// The application speaks HTTP/2.
    pub http2: bool,
}

/// A destination of which only names are known.
#[derive(Clone, Debug)]
pub struct Named {
    /// The names, each with the port to connect to.
    pub names: Vec<(Arc<str>, u16)>,
    /// Of all addresses that are found, the first is the one.
    pub first_only: bool,
    /// The entry by which it was addressed.
    pub service: ServiceName,
    /// What a DestinationRule says of connections to it.
    pub rule: Option<Box<ClientRule>>,
    /// Identities that its endpoints may have instead of their own.
    pub identities: Option<Arc<[SpiffeId]>>,
}

/// Why a destination that is known leads nowhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// The service has no such port. kube-proxy would not forward it either, so nothing is tried instead.
    #[error("service {service} has no port {port}")]
    UnknownPort {
        /// `namespace/name`.
        service: String,
        /// The port that was dialled.
        port: u16,
    },
    /// The service has no endpoint that could take the connection.
    #[error("service {service} has no ready endpoint for port {port}")]
    NoEndpoint {
        /// `namespace/name`.
        service: String,
        /// The port that was dialled.
        port: u16,
    },
    /// The address is for certain clients only.
    #[error(
        "service {service} takes at {address} only clients of its loadBalancerSourceRanges, and {client} is in none of them"
    )]
    SourceRange {
        /// `namespace/name`.
        service: String,
        /// The load balancer's address.
        address: IpAddr,
        /// The client's.
        client: IpAddr,
    },
    /// The client's namespace may connect to nothing outside that no ServiceEntry names.
    #[error(
        "{destination} is outside, no ServiceEntry that namespace {namespace} sees has that address and port, and its outbound policy is REGISTRY_ONLY"
    )]
    NotRegistered {
        /// What was dialled.
        destination: SocketAddr,
        /// The client's namespace.
        namespace: Arc<str>,
    },
    /// Several pods claim the address, and not all are in the mesh: plaintext might reach one that is.
    #[error("{address} is claimed by several pods, of which not all are in the mesh")]
    Contested {
        /// The address.
        address: IpAddr,
    },
    /// Whether a pod of another cluster is in the mesh is not known yet: plaintext might reach one that is.
    #[error("{address} is a pod of another cluster, of which it is not known yet whether it is in the mesh")]
    Unjudged {
        /// The address.
        address: IpAddr,
    },
    /// The address is in a network of another cluster's pods, of which none is known: plaintext might reach one that is in the mesh.
    #[error("{address} is in a network of the pods of cluster {cluster}, which has not been read yet")]
    Unread {
        /// The address.
        address: IpAddr,
        /// The cluster.
        cluster: Arc<str>,
    },
}

impl Mesh {
    /// Where a connection from `client` to `dst` goes. `random` picks among equal endpoints. A service with session affinity goes
    /// to the endpoint that the client has `kept` to, as long as that takes connections, and else by the client's address.
    pub fn route(
        &self,
        client: &Workload,
        dst: OriginalDst,
        random: u64,
        kept: impl Fn(&ObjectName) -> Option<IpAddr>,
    ) -> Route {
        self.route_preferring(client, dst, &Preferences { kept: &kept, ..Preferences::random(random) })
    }

    /// The same, with all that the client knows of endpoints.
    pub fn route_preferring(
        &self,
        client: &Workload,
        dst: OriginalDst,
        preferences: &Preferences<'_>,
    ) -> Route {
        let dst = SocketAddr::new(dst.0.ip().to_canonical(), dst.0.port());
        let within = self.known_route(client, dst, preferences);
        within.unwrap_or_else(|| self.route_outside(client, dst, preferences))
    }

    /// The way to what is a cluster's: nowhere where that may be a pod's of which nothing is known yet.
    pub(super) fn known_route(
        &self,
        client: &Workload,
        dst: SocketAddr,
        preferences: &Preferences<'_>,
    ) -> Option<Route> {
        self.cluster_route(client, dst, preferences).or_else(|| {
            let cluster = Arc::clone(self.unread_at(dst.ip())?);
            Some(Route::Refuse(RouteError::Unread { address: dst.ip(), cluster }))
        })
    }

    /// The way to a pod, a service or a node, if it is one of those.
    fn cluster_route(
        &self,
        client: &Workload,
        dst: SocketAddr,
        preferences: &Preferences<'_>,
    ) -> Option<Route> {
        let namespace = &*client.name.namespace;
        if let Some(service) = self.service_at(Destination::Address(dst.ip()), namespace) {
            let on = service.service.local_only.then_some(&client.node);
            return Some(self.route_to_service(client, service, dst, on, preferences));
        }
        if let Some(workload) = self.workload_by_ip(dst.ip()) {
            return Some(self.route_to(Endpoint {
                addr: PodAddr(dst),
                workload: Arc::clone(workload),
                service: None,
                kept_for: None,
                rule: self.headless_rule(client, dst),
                identities: None,
            }));
        }
        if let Some(rule) = self.headless_rule(client, dst) {
            let workload = self.unknown_workload(&client.name.namespace, dst.ip(), None)?;
            return Some(Route::Plain(Endpoint {
                addr: PodAddr(dst),
                workload: Arc::new(workload),
                service: None,
                kept_for: None,
                rule: Some(rule),
                identities: None,
            }));
        }
        // Last: who may write a service can claim any address by it.
        if let Some(service) = self.service_at(Destination::Port(dst), namespace) {
            return Some(match source_range(client, &service.service, dst.ip()) {
                Ok(()) => self.route_to_service(client, service, dst, None, preferences),
                Err(error) => Route::Refuse(error),
            });
        }
        if let Some((pod, target)) = self.host_port(dst) {
            return pod.pod.ips.iter().find(|ip| ip.is_ipv4() == dst.is_ipv4()).map(|ip| {
                let addr = PodAddr(SocketAddr::new(*ip, *target));
                let workload = Arc::clone(&pod.workload);
                let (service, kept_for, rule, identities) = (None, None, None, None);
                self.route_to(Endpoint { addr, workload, service, kept_for, rule, identities })
            });
        }
        let (service, port, node) = self.service_at_node(dst, namespace)?;
        let on = (service.service.external_local && *node != client.node).then_some(node);
        let dst = SocketAddr::new(dst.ip(), port);
        Some(self.route_to_service(client, service, dst, on, preferences))
    }

    /// The same to a port of a service that is called by its name, whatever addresses it has: first by endpoints of the family that
    /// the client's first address is of. `None` if there is no such service.
    pub fn route_by_name(
        &self,
        client: &Workload,
        service: &ObjectName,
        port: u16,
        random: u64,
    ) -> Option<Route> {
        let record = self.services.get(service)?;
        let preferences = Preferences::random(random);
        let mut routes = client.ips.iter().map(|ip| {
            let any = if ip.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
            self.route_to_service(client, record, SocketAddr::new(any, port), None, &preferences)
        });
        let refused = |route: &Route| matches!(route, Route::Refuse(_));
        let first = routes.next()?;
        Some(if refused(&first) { routes.find(|route| !refused(route)).unwrap_or(first) } else { first })
    }

    /// The service that a destination leads to; where several claim it, one in the client's namespace, else the oldest.
    fn service_at(&self, destination: Destination, namespace: &str) -> Option<&ServiceRecord> {
        let claimants = self.claims.get(&destination)?;
        let near = claimants.iter().find(|name| &*name.name.namespace == namespace);
        self.services.get(&near.or_else(|| claimants.first())?.name).map(|record| &**record)
    }

    /// The service behind a node port, its own port there, and the node that is dialled.
    fn service_at_node(&self, dst: SocketAddr, namespace: &str) -> Option<(&ServiceRecord, u16, &Arc<str>)> {
        let (node, _) = self.node_ips.get(&dst.ip())?.first()?;
        let service = self.service_at(Destination::NodePort(dst.port()), namespace)?;
        let mut ports = join::tcp_ports(&service.service);
        Some((service, ports.find(|port| port.node_port == Some(dst.port()))?.port, node))
    }

    /// The way to the service's port of the number in `dst`, by endpoints of its family; only those `on` a node if one is
    /// given.
    fn route_to_service(
        &self,
        client: &Workload,
        record: &ServiceRecord,
        dst: SocketAddr,
        on: Option<&Arc<str>>,
        preferences: &Preferences<'_>,
    ) -> Route {
        let Service { name, ports, .. } = &*record.service;
        if !ports.iter().any(|port| port.port == dst.port() && port.protocol == Protocol::Tcp) {
            return Route::Refuse(RouteError::UnknownPort { service: name.to_string(), port: dst.port() });
        }
        let chosen = self.choose(client, record, dst, on, preferences);
        match chosen.and_then(|backend| self.endpoint(record, backend)) {
            Some(endpoint) => {
                let rule = self.rule_for(client, record, dst.port());
                self.route_to(Endpoint { rule, ..endpoint })
            }
            None => Route::Refuse(RouteError::NoEndpoint { service: name.to_string(), port: dst.port() }),
        }
    }

    /// Whether an endpoint is what it says. One that names a known pod must be at an address of that pod: the pod may
    /// be in the mesh, and its slice out of date. A pod of another cluster must be known, for its slice may be known before.
    pub(super) fn stands(&self, backend: &Backend) -> bool {
        let ip = backend.addr.ip();
        let Some(name) = &backend.pod else { return true };
        match self.pods.get(name) {
            Some(record) => {
                !record.pod.terminal && record.pod.ips.contains(&ip) && self.is_judged(&record.pod)
            }
            None => name.cluster.is_none(),
        }
    }

    fn endpoint(&self, record: &ServiceRecord, backend: &Backend) -> Option<Endpoint> {
        let ip = backend.addr.ip();
        let named = || Some(&self.pods.get(backend.pod.as_ref()?)?.workload);
        // The owner of the address before all else; only host-network pods own none.
        let workload = match self.workload_by_ip(ip).or_else(named) {
            Some(workload) => Arc::clone(workload),
            None => {
                let namespace = &record.service.name.namespace;
                Arc::new(self.unknown_workload(namespace, ip, backend.node.as_ref())?)
            }
        };
        Some(Endpoint {
            addr: PodAddr(backend.addr),
            workload,
            service: Some((*record.name).clone()),
            kept_for: record.service.session_affinity,
            rule: None,
            identities: None,
        })
    }

    pub(super) fn rule_for(
        &self,
        client: &Workload,
        record: &ServiceRecord,
        port: u16,
    ) -> Option<Box<ClientRule>> {
        let settings = self.client_settings(client, &record.name, port)?;
        let spoken = join::tcp_ports(&record.service).find(|own| own.port == port)?.application();
        let http2 = spoken.is_some_and(|name| ["http2", "grpc", "kubernetes.io/h2c"].contains(&&*name));
        Some(Box::new(ClientRule { settings, host: Arc::clone(&record.name.host), names: Vec::new(), http2 }))
    }

    fn route_to(&self, endpoint: Endpoint) -> Route {
        let address = endpoint.addr.0.ip();
        match endpoint.workload.enrolled {
            true => Route::Tunnel(endpoint),
            false if self.is_contested(address) => Route::Refuse(RouteError::Contested { address }),
            false if self.is_unjudged(address) => Route::Refuse(RouteError::Unjudged { address }),
            false => Route::Plain(endpoint),
        }
    }

    pub(super) fn unknown_workload(
        &self,
        namespace: &Arc<str>,
        ip: IpAddr,
        node: Option<&Arc<str>>,
    ) -> Option<Workload> {
        Some(Workload {
            name: ObjectName::new(Arc::clone(namespace), "unknown"),
            uid: ip.to_string().into(),
            identity: SpiffeId::new(self.settings.trust_domain.clone(), namespace, "unknown").ok()?,
            node: node.cloned().unwrap_or_default(),
            ips: vec![ip],
            labels: Labels::new(),
            named_ports: BTreeMap::new(),
            probe_ports: vec![],
            host_network: false,
            enrolled: false,
            netns: None,
            http_telemetry: false,
        })
    }
}

/// Whether the client may use the address of the service, which may be its load balancer's.
fn source_range(client: &Workload, service: &Service, address: IpAddr) -> Result<(), RouteError> {
    let Some(own) = client.ips.iter().find(|ip| ip.is_ipv4() == address.is_ipv4()) else { return Ok(()) };
    let mut ranges = service.source_ranges.iter();
    if !service.balancer_ips.contains(&address)
        || service.source_ranges.is_empty()
        || ranges.any(|range| range.contains(*own))
    {
        return Ok(());
    }
    Err(RouteError::SourceRange { service: service.name.to_string(), address, client: *own })
}

#[cfg(test)]
mod tests;
