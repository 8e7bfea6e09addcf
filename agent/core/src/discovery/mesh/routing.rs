//! From an original destination to an endpoint.
//!
//! Promises that an endpoint known to be in the mesh, or that may be, is never reached in plaintext. Connecting is left to others.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{Mesh, ServiceRecord};
use crate::discovery::{Protocol, Service, join::Backend};
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
    /// Several pods claim the address, and not all are in the mesh: plaintext might reach one that is.
    #[error("{address} is claimed by several pods, of which not all are in the mesh")]
    Contested {
        /// The address.
        address: IpAddr,
    },
}

impl Mesh {
    /// Where a connection from `client` to `dst` goes. `random` picks among equal endpoints; a service with session
    /// affinity goes by the client instead.
    pub fn route(&self, client: &Workload, dst: OriginalDst, random: u64) -> Route {
        let dst = SocketAddr::new(dst.0.ip().to_canonical(), dst.0.port());
        if let Some(service) = self.service_by_vip(dst.ip(), &client.name.namespace) {
            return self.route_to_service(service, client, dst, random);
        }
        match self.workload_by_ip(dst.ip()) {
            Some(workload) => {
                self.route_to(Endpoint { addr: PodAddr(dst), workload: Arc::clone(workload), service: None })
            }
            None => Route::Passthrough,
        }
    }

    /// The service that owns a cluster IP; where several claim it, one in the client's namespace, else the oldest.
    fn service_by_vip(&self, vip: IpAddr, namespace: &str) -> Option<&ServiceRecord> {
        let claimants = self.by_vip.get(&vip)?;
        let near = claimants.iter().find(|name| &*name.name.namespace == namespace);
        self.services.get(&near.or_else(|| claimants.first())?.name).map(|record| &**record)
    }

    fn route_to_service(
        &self,
        record: &ServiceRecord,
        client: &Workload,
        dst: SocketAddr,
        random: u64,
    ) -> Route {
        let Service { name, ports, session_affinity, local_only, .. } = &*record.service;
        if !ports.iter().any(|port| port.port == dst.port() && port.protocol == Protocol::Tcp) {
            return Route::Refuse(RouteError::UnknownPort { service: name.to_string(), port: dst.port() });
        }
        let ready = self.backends(record).ready(dst.port(), dst.is_ipv6());
        let usable = |backend: &&Backend| {
            (!*local_only || backend.node.as_ref() == Some(&client.node)) && self.stands(backend)
        };
        let chosen = if *session_affinity {
            ready.iter().filter(usable).max_by_key(|backend| affinity(client, backend.addr))
        } else {
            // From a random place on, round the list once: no copy of the list where, as ever, nearly all are usable.
            let start = random.checked_rem(ready.len() as u64).unwrap_or(0) as usize;
            ready[start..].iter().chain(&ready[..start]).find(usable)
        };
        match chosen.and_then(|backend| self.endpoint(record, backend)) {
            Some(endpoint) => self.route_to(endpoint),
            None => Route::Refuse(RouteError::NoEndpoint { service: name.to_string(), port: dst.port() }),
        }
    }

    /// Whether an endpoint is what it says. One that names a known pod must be at an address of that pod: the pod may
    /// be in the mesh, and its slice out of date.
    fn stands(&self, backend: &Backend) -> bool {
        let ip = backend.addr.ip();
        match backend.pod.as_ref().and_then(|name| self.pods.get(name)) {
            Some(record) => !record.pod.terminal && record.pod.ips.contains(&ip),
            None => true,
        }
    }

    fn endpoint(&self, record: &ServiceRecord, backend: &Backend) -> Option<Endpoint> {
        let ip = backend.addr.ip();
        let named = || Some(&self.pods.get(backend.pod.as_ref()?)?.workload);
        // The owner of the address before all else; only host-network pods own none.
        let workload = match self.workload_by_ip(ip).or_else(named) {
            Some(workload) => Arc::clone(workload),
            None => Arc::new(self.unknown_workload(&record.service.name.namespace, backend)?),
        };
        Some(Endpoint { addr: PodAddr(backend.addr), workload, service: Some((*record.name).clone()) })
    }

    fn route_to(&self, endpoint: Endpoint) -> Route {
        let address = endpoint.addr.0.ip();
        match endpoint.workload.enrolled {
            true => Route::Tunnel(endpoint),
            false if self.is_contested(address) => Route::Refuse(RouteError::Contested { address }),
            false => Route::Plain(endpoint),
        }
    }

    fn unknown_workload(&self, namespace: &Arc<str>, backend: &Backend) -> Option<Workload> {
        let ip = backend.addr.ip();
        Some(Workload {
            name: ObjectName::new(Arc::clone(namespace), "unknown"),
            uid: ip.to_string().into(),
            identity: SpiffeId::new(self.settings.trust_domain.clone(), namespace, "unknown").ok()?,
            node: backend.node.clone().unwrap_or_default(),
            ips: vec![ip],
            labels: Labels::new(),
            named_ports: BTreeMap::new(),
            probe_ports: vec![],
            host_network: false,
            enrolled: false,
            netns: None,
        })
    }
}

/// Which endpoint a client keeps to: the one with the highest weight, so that few clients move when endpoints come and
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
