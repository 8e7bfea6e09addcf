//! From an original destination to an endpoint.
//!
//! Promises that an endpoint known to be in the mesh, or that may be, is never reached in plaintext. Connecting is left to others.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use super::{Mesh, ServiceRecord};
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
        let dst = SocketAddr::new(dst.0.ip().to_canonical(), dst.0.port());
        let within = self.cluster_route(client, dst, random, &kept);
        within.unwrap_or_else(|| self.route_outside(client, dst, random))
    }

    /// The way to a pod, a service or a node, if it is one of those.
    pub(super) fn cluster_route(
        &self,
        client: &Workload,
        dst: SocketAddr,
        random: u64,
        kept: &dyn Fn(&ObjectName) -> Option<IpAddr>,
    ) -> Option<Route> {
        let pick = Pick { client, random, kept };
        let namespace = &*client.name.namespace;
        if let Some(service) = self.service_at(Destination::Address(dst.ip()), namespace) {
            let on = service.service.local_only.then_some(&client.node);
            return Some(self.route_to_service(service, dst, on, &pick));
        }
        if let Some(workload) = self.workload_by_ip(dst.ip()) {
            return Some(self.route_to(Endpoint {
                addr: PodAddr(dst),
                workload: Arc::clone(workload),
                service: None,
                kept_for: None,
                rule: None,
            }));
        }
        // Last: who may write a service can claim any address by it.
        if let Some(service) = self.service_at(Destination::Port(dst), namespace) {
            return Some(self.route_to_service(service, dst, None, &pick));
        }
        if let Some((pod, target)) = self.host_port(dst) {
            return pod.pod.ips.iter().find(|ip| ip.is_ipv4() == dst.is_ipv4()).map(|ip| {
                let addr = PodAddr(SocketAddr::new(*ip, *target));
                let workload = Arc::clone(&pod.workload);
                self.route_to(Endpoint { addr, workload, service: None, kept_for: None, rule: None })
            });
        }
        let (service, port, node) = self.service_at_node(dst, namespace)?;
        let on = (service.service.external_local && *node != client.node).then_some(node);
        let dst = SocketAddr::new(dst.ip(), port);
        Some(self.route_to_service(service, dst, on, &pick))
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
        let pick = Pick { client, random, kept: &|_| None };
        let mut routes = client.ips.iter().map(|ip| {
            let any = if ip.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
            self.route_to_service(record, SocketAddr::new(any, port), None, &pick)
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
        record: &ServiceRecord,
        dst: SocketAddr,
        on: Option<&Arc<str>>,
        pick: &Pick<'_>,
    ) -> Route {
        let Service { name, ports, session_affinity, .. } = &*record.service;
        if !ports.iter().any(|port| port.port == dst.port() && port.protocol == Protocol::Tcp) {
            return Route::Refuse(RouteError::UnknownPort { service: name.to_string(), port: dst.port() });
        }
        let usable = |backend: &&Backend| {
            on.is_none_or(|node| backend.node.as_ref() == Some(node)) && self.stands(backend)
        };
        let mut tiers = self.backends(record).tiers(dst.port(), dst.is_ipv6());
        let chosen = match session_affinity {
            Some(_) => tiers.find_map(|tier| pick.kept(name, tier.iter().filter(usable))),
            None => tiers.find_map(|tier| pick.random(tier).find(usable)),
        };
        match chosen.and_then(|backend| self.endpoint(record, backend)) {
            Some(endpoint) => {
                let rule = self.rule_for(pick.client, record, dst.port());
                self.route_to(Endpoint { rule, ..endpoint })
            }
            None => Route::Refuse(RouteError::NoEndpoint { service: name.to_string(), port: dst.port() }),
        }
    }

    /// Whether an endpoint is what it says. One that names a known pod must be at an address of that pod: the pod may
    /// be in the mesh, and its slice out of date. A pod of another cluster must be known, for its slice may be known before.
    fn stands(&self, backend: &Backend) -> bool {
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
        })
    }

    fn rule_for(&self, client: &Workload, record: &ServiceRecord, port: u16) -> Option<Box<ClientRule>> {
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

/// What decides among the endpoints of a service.
struct Pick<'a> {
    client: &'a Workload,
    random: u64,
    kept: &'a dyn Fn(&ObjectName) -> Option<IpAddr>,
}

impl Pick<'_> {
    /// From a random place on, round the list once: no copy of the list where, as ever, nearly all are usable.
    fn random<'a>(&self, backends: &'a [Backend]) -> impl Iterator<Item = &'a Backend> + use<'a> {
        let start = self.random.checked_rem(backends.len() as u64).unwrap_or(0) as usize;
        backends[start..].iter().chain(&backends[..start])
    }

    /// The endpoint that the client has kept to, else the one that its address gives it.
    fn kept<'a>(
        &self,
        service: &ObjectName,
        backends: impl Iterator<Item = &'a Backend>,
    ) -> Option<&'a Backend> {
        let kept = (self.kept)(service);
        backends.max_by_key(|backend| (kept == Some(backend.addr.ip()), affinity(self.client, backend.addr)))
    }
}

/// Which endpoint a client goes to first: the one with the highest weight, so that few clients move when endpoints come and
/// go. FNV-1a, because agents of all versions must agree.
fn affinity(client: &Workload, endpoint: SocketAddr) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut feed = |ip: IpAddr| {
        let (v4, v6);
        let octets: &[u8] = match ip {
            IpAddr::V4(ip) => {
                v4 = ip.octets();
                &v4
            }
            IpAddr::V6(ip) => {
                v6 = ip.octets();
                &v6
            }
        };
        for octet in octets {
            hash = (hash ^ u64::from(*octet)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    client.ips.first().copied().into_iter().for_each(&mut feed);
    feed(endpoint.ip());
    // The last octets alone would hardly reach the high bits that decide.
    (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests;
