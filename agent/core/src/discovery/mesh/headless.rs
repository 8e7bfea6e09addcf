//! Which DestinationRule holds where a pod of a headless service is dialled by its own address.
//!
//! Promises that a rule which wants TLS is not passed by: where several headless services lead to one port of a pod, and rules speak of
//! more than one of them, the strictest counts. Services with a cluster IP are not asked: who dials a pod's address did not dial them.
//! Nor are services of a namespace that is neither the pod's nor the client's: whoever writes a service can claim any address by it.

use std::{
    cmp::Reverse,
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use super::{Mesh, ServiceRecord, routing::ClientRule};
use crate::{
    discovery::{ClientTls, Destination, Service, join},
    model::{ObjectName, Workload},
};

impl Mesh {
    /// What rules say of a client's connections to a pod's own address.
    pub(super) fn headless_rule(&self, client: &Workload, dst: SocketAddr) -> Option<Box<ClientRule>> {
        if self.rules.are_idle() {
            return None;
        }
        let owner = self.workload_by_ip(dst.ip()).map(|pod| &pod.name.namespace);
        let candidates = self.headless_at(dst.ip()).into_iter().filter_map(|name| {
            let near = name.namespace == client.name.namespace;
            if !near && owner != Some(&name.namespace) {
                return None;
            }
            let record = self.services.get(&name)?;
            let rule = self.rule_for(client, record, self.port_behind(record, dst)?)?;
            let age = record.service.created.unwrap_or(i64::MAX);
            Some(((strictness(&rule.settings.tls), near, Reverse((age, record.service.name.clone()))), rule))
        });
        candidates.max_by(|(one, _), (other, _)| one.cmp(other)).map(|(_, rule)| rule)
    }

    /// Whether rules speak of a headless service that has an endpoint at the address.
    pub(super) fn is_ruled_by_pod_ip(&self, ip: IpAddr) -> bool {
        !self.rules.are_idle() && self.headless_at(ip).iter().any(|name| self.is_ruled_headless(name))
    }

    /// Whether it is a headless service of which rules speak.
    pub(super) fn is_ruled_headless(&self, name: &ObjectName) -> bool {
        !self.rules.are_idle()
            && self
                .services
                .get(name)
                .is_some_and(|record| is_headless(&record.service) && self.rules.act_on(&record.name.host))
    }

    /// The addresses of its endpoints, if rules speak of the service and it is headless.
    pub(super) fn headless_endpoints(&self, name: &ObjectName) -> Vec<Destination> {
        if self.is_ruled_headless(name) { self.endpoints_if_headless(name) } else { Vec::new() }
    }

    /// The addresses of its endpoints, ready or not, if the service is headless.
    pub(super) fn endpoints_if_headless(&self, name: &ObjectName) -> Vec<Destination> {
        let Some(record) = self.services.get(name).filter(|record| is_headless(&record.service)) else {
            return Vec::new();
        };
        let ips: BTreeSet<IpAddr> = match self.slices.get(name) {
            Some(slices) => {
                slices.values().flat_map(|slice| join::endpoint_addresses(&record.service, slice)).collect()
            }
            None => self
                .pods_in(&name.namespace)
                .filter(|pod| join::is_endpoint(&record.service, &pod.pod))
                .flat_map(|pod| pod.pod.ips.iter().copied())
                .collect(),
        };
        ips.into_iter().map(Destination::Address).collect()
    }

    /// The headless services that have an endpoint at the address.
    fn headless_at(&self, ip: IpAddr) -> BTreeSet<ObjectName> {
        let slices = self.by_endpoint.get(&ip).into_iter().flatten();
        let mut names: BTreeSet<ObjectName> =
            slices.filter_map(|slice| self.slice_owners.get(slice)).cloned().collect();
        for claimant in self.by_ip.get(&ip).into_iter().flatten() {
            names.extend(self.selecting(&claimant.pod));
        }
        names.retain(|name| self.services.get(name).is_some_and(|record| is_headless(&record.service)));
        names
    }

    /// The service's port behind which the endpoint's is.
    fn port_behind(&self, record: &ServiceRecord, at: SocketAddr) -> Option<u16> {
        let service = &*record.service;
        let mut ports = join::tcp_ports(service);
        let found = match self.slices.get(&service.name) {
            Some(slices) => ports.find(|port| {
                slices.values().any(|slice| {
                    join::slice_target(port, slice) == Some(at.port())
                        && slice.endpoints.iter().any(|endpoint| endpoint.addresses.contains(&at.ip()))
                })
            }),
            None => ports.find(|port| {
                self.by_ip.get(&at.ip()).into_iter().flatten().any(|claimant| {
                    join::selects(service, &claimant.pod)
                        && join::target(port, &claimant.pod) == Some(at.port())
                })
            }),
        };
        found.map(|port| port.port)
    }
}

fn is_headless(service: &Service) -> bool {
    service.cluster_ips.is_empty()
}

/// How much a rule demands.
fn strictness(tls: &ClientTls) -> u8 {
    match tls {
        ClientTls::Unset | ClientTls::Disable => 0,
        ClientTls::Originate(tls) if tls.insecure => 1,
        ClientTls::Originate(_) => 2,
        ClientTls::IstioMutual => 3,
        ClientTls::Unusable(_) => 4,
    }
}

#[cfg(test)]
mod tests;
