//! From Kubernetes objects to what they mean together: who is in the mesh, and which endpoints stand behind a service.
//!
//! Functions of the objects they are given; keeping the results while objects come and go is left to the mesh.

mod backends;

use std::{net::IpAddr, sync::Arc};

pub(super) use backends::{Backend, Backends, Tier};

use super::{EndpointSlice, Namespace, Pod, Protocol, Service, ServicePort, Settings, TargetPort};
use crate::model::{ObjectName, ServiceName, Workload};

/// Whether the pod is to be in the mesh, be it that it has no address yet. The kubelet's namespace is the node's for a pod
/// on the host network, and a pod that has ended opens no connections: neither can be.
pub(super) fn opts_in(settings: &Settings, namespace: Option<&Namespace>, pod: &Pod) -> bool {
    settings.opts_in(namespace.map(|namespace| &namespace.labels), &pod.labels)
        && !pod.host_network
        && !pod.terminal
}

/// The pod as everyone else knows it.
pub(super) fn workload(settings: &Settings, namespace: Option<&Namespace>, pod: &Pod) -> Workload {
    Workload {
        name: pod.name.clone(),
        uid: Arc::clone(&pod.uid),
        identity: pod.identity.clone(),
        node: Arc::clone(&pod.node),
        ips: pod.ips.clone(),
        labels: pod.labels.clone(),
        named_ports: pod.named_ports.clone(),
        probe_ports: pod.probe_ports.clone(),
        host_network: pod.host_network,
        enrolled: opts_in(settings, namespace, pod) && !pod.ips.is_empty(),
        netns: pod.netns.clone(),
        http_telemetry: wants_requests(settings, namespace, pod),
    }
}

/// Whether HTTP requests to the pod are to be counted and logged.
pub(super) fn wants_requests(settings: &Settings, namespace: Option<&Namespace>, pod: &Pod) -> bool {
    pod.http_telemetry.or_else(|| namespace?.http_telemetry).unwrap_or(settings.http_telemetry)
}

/// The service's name, and its host name in the cluster's DNS.
pub(super) fn service_name(settings: &Settings, service: &ObjectName) -> ServiceName {
    let ObjectName { namespace, name, .. } = service;
    let host = format!("{name}.{namespace}.svc.{}", settings.cluster_domain);
    ServiceName { name: service.clone(), host: host.into() }
}

/// Whether the pod is an endpoint, ready or not, of a service for which no slice speaks.
pub(super) fn is_endpoint(service: &Service, pod: &Pod) -> bool {
    selects(service, pod) && tcp_ports(service).any(|port| target(port, pod).is_some())
}

/// The addresses of the endpoints, ready or not, that a slice states for the service; one may come twice.
pub(super) fn endpoint_addresses<'a>(
    service: &Service,
    slice: &'a EndpointSlice,
) -> impl Iterator<Item = IpAddr> + use<'a> {
    let serves = tcp_ports(service).any(|port| slice_target(port, slice).is_some());
    let endpoints = if serves { &slice.endpoints[..] } else { &[] };
    endpoints.iter().flat_map(|endpoint| endpoint.addresses.iter().copied())
}

/// Whether the service has a selector, and the pod its labels. What another cluster's pods are behind, its slices say.
pub(super) fn selects(service: &Service, pod: &Pod) -> bool {
    pod.name.cluster.is_none()
        && !service.selector.is_empty()
        && !pod.terminal
        && service.selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value))
}

/// The ports that count: nothing else is carried.
pub(super) fn tcp_ports(service: &Service) -> impl Iterator<Item = &ServicePort> {
    service.ports.iter().filter(|port| port.protocol == Protocol::Tcp)
}

/// The pod's own port behind a port of its service.
pub(super) fn target(port: &ServicePort, pod: &Pod) -> Option<u16> {
    match &port.target {
        TargetPort::Number(number) => Some(*number),
        TargetPort::Name(name) => pod.named_ports.get(name).copied(),
    }
}

/// The port of a slice's endpoints behind a port of their service.
pub(super) fn slice_target(port: &ServicePort, slice: &EndpointSlice) -> Option<u16> {
    let target =
        slice.ports.iter().find(|target| target.protocol == Protocol::Tcp && target.name == port.name);
    target.map(|target| target.port)
}
