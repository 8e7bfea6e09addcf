//! What there is, for those who ask about the mesh as a whole: none of it is on a connection's way, and any of it may cost as much
//! as the cluster is big.

use std::{ops::Bound, sync::Arc};

use super::{ByName, Mesh, start_of};
use crate::{
    discovery::{Service, join},
    model::{ObjectName, Workload},
};

impl Mesh {
    /// All pods, by name.
    pub fn pods(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.pods.values().map(|record| &record.workload)
    }

    /// The pods of a namespace, by name.
    pub fn pods_of<'a>(&'a self, namespace: &str) -> impl Iterator<Item = &'a Arc<Workload>> + use<'a> {
        self.pods_in(namespace).map(|record| &record.workload)
    }

    /// The TCP ports that a pod's containers state.
    pub fn stated_ports(&self, pod: &ObjectName) -> &[u16] {
        self.pods.get(pod).map_or(&[], |record| &record.pod.ports)
    }

    /// All services, by name.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values().map(|record| &record.service)
    }

    /// The service of that name.
    pub fn service(&self, name: &ObjectName) -> Option<&Arc<Service>> {
        self.services.get(name).map(|record| &record.service)
    }

    /// Whether anything of a namespace is known.
    pub fn has_namespace(&self, name: &str) -> bool {
        self.knows_namespace(name) || self.pods_in(name).next().is_some()
    }

    /// The pods behind a service, ready or not, each with its own port for that port of the service, where it has one.
    pub fn behind(&self, service: &Service, port: u16) -> Vec<(Arc<Workload>, u16)> {
        let Some(port) = join::tcp_ports(service).find(|own| own.port == port) else { return Vec::new() };
        if !service.selector.is_empty() {
            let pods = self.pods_in(&service.name.namespace).filter(|pod| join::selects(service, &pod.pod));
            let with_port =
                pods.filter_map(|pod| Some((Arc::clone(&pod.workload), join::target(port, &pod.pod)?)));
            return with_port.collect();
        }
        let slices = self.slices.get(&service.name).into_iter().flat_map(ByName::values);
        let addresses = slices.flat_map(|slice| {
            let target = join::slice_target(port, slice);
            slice
                .endpoints
                .iter()
                .flat_map(|endpoint| &endpoint.addresses)
                .filter_map(move |ip| Some((*ip, target?)))
        });
        let mut pods: Vec<_> = addresses
            .filter_map(|(ip, target)| Some((Arc::clone(self.workload_by_ip(ip)?), target)))
            .collect();
        pods.sort_by(|(one, _), (other, _)| one.name.cmp(&other.name));
        pods.dedup();
        pods
    }

    /// The services that select a pod.
    pub fn services_of(&self, pod: &ObjectName) -> Vec<&Arc<Service>> {
        let Some(record) = self.pods.get(pod) else { return Vec::new() };
        let (start, namespace) = start_of(&pod.namespace);
        let near = self
            .services
            .range((Bound::Included(start), Bound::Unbounded))
            .take_while(|(name, _)| name.namespace == namespace);
        near.map(|(_, own)| &own.service).filter(|service| join::selects(service, &record.pod)).collect()
    }
}
