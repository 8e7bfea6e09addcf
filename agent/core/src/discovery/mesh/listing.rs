//! What there is, for those who ask about the mesh as a whole: none of it is on a connection's way, and any of it may cost as much
//! as the cluster is big.

use std::{ops::Bound, sync::Arc};

use super::{Mesh, Names, start_of};
use crate::{
    discovery::{Service, Settings, join},
    model::{ObjectName, Workload},
};

impl Mesh {
    /// All pods of this cluster, by name.
    pub fn pods(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.pods.values().map(|record| &record.workload).filter(|pod| pod.name.cluster.is_none())
    }

    /// The pods of a namespace of this cluster, by name.
    pub fn pods_of<'a>(&'a self, namespace: &str) -> impl Iterator<Item = &'a Arc<Workload>> + use<'a> {
        self.pods_in(namespace).map(|record| &record.workload).filter(|pod| pod.name.cluster.is_none())
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

    /// The host name of a service of that name in the cluster's DNS.
    pub fn host_of_service(&self, service: &ObjectName) -> Arc<str> {
        join::service_name(&self.settings, service).host
    }

    /// What the installation has chosen.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The service that a DNS name leads to: `NAME.NAMESPACE.svc.<cluster domain>`, or a beginning of that with two parts at
    /// least. The error is for a name that can be no other host's, and of no service that is known.
    pub fn service_by_host(&self, host: &str) -> Result<Option<ObjectName>, ObjectName> {
        let mut parts = host.splitn(3, '.');
        let (Some(name), Some(namespace)) = (parts.next(), parts.next()) else { return Ok(None) };
        let rest = parts.next();
        let is_ours = rest == Some("svc")
            || rest.and_then(|rest| rest.strip_prefix("svc.")) == Some(&*self.settings.cluster_domain);
        let service = ObjectName::new(namespace, name);
        match self.services.contains_key(&service) {
            true if is_ours || rest.is_none() => Ok(Some(service)),
            false if is_ours => Err(service),
            _ => Ok(None),
        }
    }

    /// The service at which a provider is said to be: by its host, or by that and its namespace. The error is for one that is not known.
    pub fn provider_service(
        &self,
        namespace: Option<&str>,
        host: &str,
    ) -> Result<Option<ObjectName>, ObjectName> {
        match (namespace, self.service_by_host(host)?) {
            (_, Some(service)) => Ok(Some(service)),
            (None, None) => Ok(None),
            (Some(namespace), None) => {
                let service = ObjectName::new(namespace, host.split('.').next().unwrap_or(host));
                if self.services.contains_key(&service) { Ok(Some(service)) } else { Err(service) }
            }
        }
    }

    /// Whether anything of a namespace is known.
    pub fn has_namespace(&self, name: &str) -> bool {
        self.knows_namespace(name) || self.pods_in(name).next().is_some()
    }

    /// The pods behind a service, ready or not, each with its own port for that port of the service, where it has one: those that
    /// endpoint slices state, as for connections; where none speaks for the service, those that it selects.
    pub fn behind(&self, service: &Service, port: u16) -> Vec<(Arc<Workload>, u16)> {
        let Some(port) = join::tcp_ports(service).find(|own| own.port == port) else { return Vec::new() };
        let mut pods = Vec::new();
        if !self.is_spoken_for(&service.name) {
            let own = self.pods_in(&service.name.namespace).filter(|pod| join::selects(service, &pod.pod));
            pods.extend(
                own.filter_map(|pod| Some((Arc::clone(&pod.workload), join::target(port, &pod.pod)?))),
            );
        }
        for slice in self.slices_of(&service.name) {
            let Some(target) = join::slice_target(port, slice) else { continue };
            let addresses = slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses);
            let workloads = addresses.filter_map(|ip| self.workload_by_ip(*ip));
            pods.extend(workloads.map(|pod| (Arc::clone(pod), target)));
        }
        pods.sort_by(|(one, _), (other, _)| one.name.cmp(&other.name));
        pods.dedup();
        pods
    }

    /// The services that a pod is behind, by name.
    pub fn services_of(&self, pod: &ObjectName) -> Vec<&Arc<Service>> {
        let Some(record) = self.pods.get(pod) else { return Vec::new() };
        let (start, namespace) = start_of(&pod.namespace);
        let near = self
            .services
            .range((Bound::Included(start), Bound::Unbounded))
            .take_while(|(name, _)| name.namespace == namespace);
        let slices = record.pod.ips.iter().filter_map(|ip| self.by_endpoint.get(ip)).flat_map(Names::iter);
        let slices: Vec<_> = slices.filter(|slice| slice.cluster == pod.cluster).collect();
        let stated =
            |service: &ObjectName| slices.iter().any(|slice| self.slice_owners.get(*slice) == Some(service));
        near.map(|(_, own)| &own.service)
            .filter(|service| {
                let spoken_for = self.is_spoken_for(&service.name);
                stated(&service.name) || (!spoken_for && join::selects(service, &record.pod))
            })
            .collect()
    }
}
