//! Workloads, services and endpoints, and the way from an original destination to an endpoint.

use std::{net::IpAddr, sync::Arc};

use crate::model::{OriginalDst, PodAddr, ServiceName, Workload};

/// What is known of the cluster. Cheap to clone (shared maps of `Arc`s); readers take a snapshot.
#[derive(Clone, Debug, Default)]
pub struct Mesh {}

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
    /// The pod.
    pub workload: Arc<Workload>,
    /// The service by which it was addressed, if it was.
    pub service: Option<ServiceName>,
}

/// Why a destination that is known leads nowhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// The service has no such port (spec/policy.md §5: close, no fallback).
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
}

impl Mesh {
    /// Where a connection from `client` to `dst` goes. `random` picks among equal endpoints.
    pub fn route(&self, _client: &Workload, _dst: OriginalDst, _random: u64) -> Route {
        Route::Passthrough
    }

    /// The pod that owns `ip`; pods on the host network are never found by address.
    pub fn workload_by_ip(&self, _ip: IpAddr) -> Option<&Arc<Workload>> {
        None
    }

    /// The pods scheduled on `node`.
    pub fn pods_on<'a>(&'a self, _node: &'a str) -> impl Iterator<Item = &'a Arc<Workload>> + 'a {
        std::iter::empty()
    }

    /// Every address whose traffic enrolled pods must have captured: IPs of enrolled pods, and cluster IPs of services
    /// with an enrolled endpoint.
    pub fn captured_destinations(&self) -> impl Iterator<Item = IpAddr> + '_ {
        std::iter::empty()
    }
}
