//! Which addresses enrolled pods must have captured, kept as the mesh changes.

use std::{collections::BTreeSet, net::IpAddr};

use super::{Mesh, pods::PodRecord};
use crate::{
    discovery::{Delta, Pod, join},
    model::ObjectName,
};

impl Mesh {
    /// Looks again at addresses that a change may have touched.
    pub(super) fn follow_capture(&mut self, addresses: Vec<IpAddr>, delta: &mut Delta) {
        for ip in addresses {
            let captured = self.is_to_be_captured(ip);
            self.set_captured(ip, captured, delta);
        }
    }

    /// The address is captured from now on, or not.
    pub(super) fn set_captured(&mut self, ip: IpAddr, captured: bool, delta: &mut Delta) {
        if captured == self.captured.contains(&ip) {
            return;
        }
        if captured {
            self.captured.insert_mut(ip);
        } else {
            self.captured.remove_mut(&ip);
        }
        delta.capture(ip, captured);
    }

    /// Whether the owner of an address is in the mesh, or may be.
    pub(super) fn is_enrolled(&self, ip: IpAddr) -> bool {
        self.workload_by_ip(ip).is_some_and(|workload| workload.enrolled) || self.is_contested(ip)
    }

    /// Whether it is in doubt which pod an address is of, and that pod may be in the mesh.
    pub(super) fn is_contested(&self, ip: IpAddr) -> bool {
        self.by_ip.get(&ip).is_some_and(|claimants| PodRecord::is_contested(claimants))
    }

    /// Whether an address is that of an enrolled pod, or of a service with an enrolled endpoint, ready or not.
    pub(super) fn is_to_be_captured(&self, ip: IpAddr) -> bool {
        let claimants = || self.by_vip.get(&ip).into_iter().flatten();
        self.is_enrolled(ip) || claimants().any(|name| self.has_enrolled_endpoint(&name.name))
    }

    /// The cluster IPs of the services that may have an endpoint at `ip`.
    pub(super) fn cluster_ips_at(&self, ip: IpAddr) -> Vec<IpAddr> {
        let slices = self.by_endpoint.get(&ip).into_iter().flatten();
        let mut services: BTreeSet<ObjectName> =
            slices.filter_map(|slice| self.slice_owners.get(slice)).cloned().collect();
        for claimant in self.by_ip.get(&ip).into_iter().flatten() {
            services.extend(self.selecting(&claimant.pod));
        }
        services.iter().flat_map(|service| self.cluster_ips(service)).collect()
    }

    /// Ends at the first such endpoint: in a mesh most are.
    fn has_enrolled_endpoint(&self, service: &ObjectName) -> bool {
        let Some(record) = self.services.get(service) else { return false };
        match self.slices.get(service) {
            Some(slices) => slices
                .values()
                .flat_map(|slice| join::endpoint_addresses(&record.service, slice))
                .any(|ip| self.is_enrolled(ip)),
            None => self.pods_in(&service.namespace).any(|pod| {
                join::is_endpoint(&record.service, &pod.pod) && self.is_enrolled_endpoint(&pod.pod)
            }),
        }
    }

    /// Whether the pod is in the mesh as an endpoint. One on the host network is at an address that no pod has.
    pub(super) fn is_enrolled_endpoint(&self, pod: &Pod) -> bool {
        !pod.host_network && pod.ips.iter().any(|ip| self.is_enrolled(*ip))
    }
}

#[cfg(test)]
mod tests;
