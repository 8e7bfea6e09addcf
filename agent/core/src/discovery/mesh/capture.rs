//! What enrolled pods must have captured, kept as the mesh changes.

use std::{collections::BTreeSet, net::IpAddr};

use super::{Mesh, pods::PodRecord};
use crate::{
    discovery::{Delta, Destination, Pod, join},
    model::ObjectName,
};

impl Mesh {
    /// Looks again at destinations that a change may have touched.
    pub(super) fn follow_capture(
        &mut self,
        destinations: impl IntoIterator<Item = Destination>,
        delta: &mut Delta,
    ) {
        for destination in destinations {
            let captured = self.is_to_be_captured(destination);
            self.set_captured(destination, captured, delta);
        }
    }

    /// The destination is captured from now on, or not.
    pub(super) fn set_captured(&mut self, destination: Destination, captured: bool, delta: &mut Delta) {
        if captured == self.captured.contains(&destination) {
            return;
        }
        if captured {
            self.captured.insert_mut(destination);
        } else {
            self.captured.remove_mut(&destination);
        }
        delta.capture(destination, captured);
    }

    /// Whether the owner of an address is in the mesh, or may be.
    pub(super) fn is_enrolled(&self, ip: IpAddr) -> bool {
        self.workload_by_ip(ip).is_some_and(|workload| workload.enrolled)
            || self.is_contested(ip)
            || self.is_unjudged(ip)
    }

    /// Whether it is in doubt which pod an address is of, and that pod may be in the mesh.
    pub(super) fn is_contested(&self, ip: IpAddr) -> bool {
        self.by_ip.get(&ip).is_some_and(|claimants| PodRecord::is_contested(claimants))
    }

    /// Whether a destination is the address or a host port of an enrolled pod, the address of a node, or leads to a service
    /// with an enrolled endpoint, ready or not, or to one of which a DestinationRule speaks, or to a ServiceEntry.
    pub(super) fn is_to_be_captured(&self, destination: Destination) -> bool {
        match destination {
            Destination::Node(ip) => self.node_ips.contains_key(&ip),
            Destination::Address(ip)
                if self.is_enrolled(ip)
                    || self.is_ruled_by_pod_ip(ip)
                    || self.entries.vips.holder(ip).is_some() =>
            {
                true
            }
            Destination::Port(at) if self.host_port(at).is_some_and(|(pod, _)| pod.workload.enrolled) => true,
            Destination::Port(at) if self.entry_captures(at) => true,
            _ => {
                let mut claimants = self.claims.get(&destination).into_iter().flatten();
                claimants.any(|name| self.has_enrolled_endpoint(&name.name) || self.rules.act_on(&name.host))
            }
        }
    }

    /// What leads to the services that may have an endpoint at `ip`.
    pub(super) fn ways_to(&self, ip: IpAddr) -> Vec<Destination> {
        let slices = self.by_endpoint.get(&ip).into_iter().flatten();
        let mut services: BTreeSet<ObjectName> =
            slices.filter_map(|slice| self.slice_owners.get(slice)).cloned().collect();
        for claimant in self.by_ip.get(&ip).into_iter().flatten() {
            services.extend(self.selecting(&claimant.pod));
        }
        services.iter().flat_map(|service| self.destinations_of(service)).collect()
    }

    /// Ends at the first such endpoint: in a mesh most are.
    fn has_enrolled_endpoint(&self, service: &ObjectName) -> bool {
        let Some(record) = self.services.get(service) else { return false };
        let mut stated =
            self.slices_of(service).flat_map(|slice| join::endpoint_addresses(&record.service, slice));
        stated.any(|ip| self.is_enrolled(ip))
            || (!self.is_spoken_for(service)
                && self.pods_in(&service.namespace).any(|pod| {
                    join::is_endpoint(&record.service, &pod.pod) && self.is_enrolled_endpoint(&pod.pod)
                }))
    }

    /// Whether the pod is in the mesh as an endpoint. One on the host network is at an address that no pod has.
    pub(super) fn is_enrolled_endpoint(&self, pod: &Pod) -> bool {
        !pod.host_network && pod.ips.iter().any(|ip| self.is_enrolled(*ip))
    }
}

#[cfg(test)]
mod tests;
