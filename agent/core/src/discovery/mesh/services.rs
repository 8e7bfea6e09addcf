//! Services and their endpoint slices as they come and go.

use std::{
    net::{IpAddr, SocketAddr},
    ops::Bound,
    sync::{Arc, OnceLock},
};

use super::{ByName, Mesh, Names, ServiceRecord, change, start_of, withdraw};
use crate::{
    discovery::{
        Delta, Destination, EndpointSlice, Pod, Service,
        join::{self, Backends},
    },
    model::{Labels, ObjectName, ServiceName},
};

impl Mesh {
    /// The service of that name becomes this, or goes.
    pub(super) fn put_service(
        &mut self,
        name: &ObjectName,
        service: Option<Arc<Service>>,
        delta: &mut Delta,
    ) {
        let mut affected = self.destinations_of(name);
        affected.extend(self.headless_endpoints(name));
        affected.extend(self.entries_behind(&join::service_name(&self.settings, name).host));
        self.unlink_service(name);
        if let Some(service) = service {
            self.link_service(service);
            affected.extend(self.destinations_of(name));
            affected.extend(self.headless_endpoints(name));
        }
        self.follow_capture(affected, delta);
    }

    /// The zone of a node becomes this one, or is not known any more.
    pub(super) fn put_node(&mut self, name: &Arc<str>, zone: Option<&Arc<str>>) {
        if self.zones.get(name) == zone {
            return;
        }
        match zone {
            Some(zone) => self.zones.insert_mut(Arc::clone(name), Arc::clone(zone)),
            None => {
                self.zones.remove_mut(name);
            }
        }
        let selecting: Vec<ObjectName> = self.selecting.iter().cloned().collect();
        selecting.iter().for_each(|service| self.reset_backends(service));
    }

    /// The slice of that name becomes this, or goes.
    pub(super) fn put_slice(
        &mut self,
        name: &ObjectName,
        slice: Option<Arc<EndpointSlice>>,
        delta: &mut Delta,
    ) {
        let owners = [self.slice_owners.get(name).cloned(), slice.as_ref().and_then(|s| s.service.clone())];
        let mut affected: Vec<Destination> =
            owners.iter().flatten().flat_map(|owner| self.headless_endpoints(owner)).collect();
        if let Some(owner) = &owners[0] {
            self.unlink_slice(name, owner);
        }
        if let (Some(slice), Some(owner)) = (slice, &owners[1]) {
            self.link_slice(slice, owner);
        }
        for owner in owners.into_iter().flatten() {
            self.reset_backends(&owner);
            self.note_selecting(&owner);
            affected.extend(self.destinations_of(&owner));
            affected.extend(self.headless_endpoints(&owner));
        }
        self.follow_capture(affected, delta);
    }

    /// The services for which no slice speaks and of which the pod is an endpoint.
    pub(super) fn selecting(&self, pod: &Pod) -> Vec<ObjectName> {
        let (start, namespace) = start_of(&pod.name.namespace);
        let of_namespace = self
            .selecting
            .range((Bound::Included(start), Bound::Unbounded))
            .take_while(|name| name.namespace == namespace);
        let selects = |name: &&ObjectName| {
            self.services.get(*name).is_some_and(|record| join::is_endpoint(&record.service, pod))
        };
        of_namespace.filter(selects).cloned().collect()
    }

    /// The labels of the pods behind a service; empty where it has no selector, and none where it is not known.
    pub fn service_selector(&self, service: &ObjectName) -> Option<&Labels> {
        self.services.get(service).map(|record| &record.service.selector)
    }

    /// What leads to a service.
    pub(super) fn destinations_of(&self, service: &ObjectName) -> Vec<Destination> {
        self.services.get(service).map(|record| destinations(&record.service)).unwrap_or_default()
    }

    pub(super) fn backends<'a>(&'a self, record: &'a ServiceRecord) -> &'a Backends {
        record.backends.get_or_init(|| {
            let name = &record.service.name;
            let mut backends = Backends::from_slices(&record.service, self.slices_of(name));
            if !self.is_spoken_for(name) {
                let pods = self.pods_in(&name.namespace).map(|pod| &*pod.pod);
                backends
                    .join(Backends::from_pods(&record.service, pods, |node| self.zones.get(node).cloned()));
            }
            backends
        })
    }

    /// The slices for a service, of all clusters.
    pub(super) fn slices_of(&self, service: &ObjectName) -> impl Iterator<Item = &Arc<EndpointSlice>> {
        self.slices.get(service).into_iter().flat_map(ByName::values)
    }

    /// Whether slices of this cluster say which endpoints it has of a service.
    pub(super) fn is_spoken_for(&self, service: &ObjectName) -> bool {
        self.slices.get(service).is_some_and(|slices| slices.keys().any(|slice| slice.cluster.is_none()))
    }

    /// Drops what was worked out of a service's endpoints.
    pub(super) fn reset_backends(&mut self, service: &ObjectName) {
        if self.services.get(service).is_none_or(|record| record.backends.get().is_none()) {
            return;
        }
        if let Some(record) = self.services.get_mut(service) {
            *record = Arc::new(ServiceRecord {
                service: Arc::clone(&record.service),
                name: Arc::clone(&record.name),
                backends: OnceLock::new(),
            });
        }
    }

    /// Takes note of whether a service has to look for its pods itself.
    fn note_selecting(&mut self, name: &ObjectName) {
        let selects = self.services.get(name).is_some_and(|record| !record.service.selector.is_empty());
        if selects && !self.is_spoken_for(name) {
            self.selecting.insert_mut(name.clone());
        } else {
            self.selecting.remove_mut(name);
        }
    }

    fn link_service(&mut self, service: Arc<Service>) {
        let name: Arc<ServiceName> = Arc::new(join::service_name(&self.settings, &service.name));
        let claimed = destinations(&service);
        let record = Arc::new(ServiceRecord { service, name: Arc::clone(&name), backends: OnceLock::new() });
        self.services.insert_mut(name.name.clone(), record);
        for destination in claimed {
            let services = &self.services;
            let age = |name: &ServiceName| {
                let created = services.get(&name.name).and_then(|record| record.service.created);
                (created.unwrap_or(i64::MAX), name.name.clone())
            };
            change(&mut self.claims, &destination, |claimants| {
                claimants.push(Arc::clone(&name));
                claimants.sort_by_cached_key(|name| age(name));
            });
        }
        self.note_selecting(&name.name);
    }

    fn unlink_service(&mut self, name: &ObjectName) {
        for destination in self.destinations_of(name) {
            withdraw(&mut self.claims, &destination, Vec::is_empty, |claimants| {
                claimants.retain(|claimant| claimant.name != *name);
            });
        }
        self.services.remove_mut(name);
        self.note_selecting(name);
    }

    fn link_slice(&mut self, slice: Arc<EndpointSlice>, owner: &ObjectName) {
        self.slice_owners.insert_mut(slice.name.clone(), owner.clone());
        for ip in addresses(&slice) {
            change(&mut self.by_endpoint, &ip, |slices| slices.insert_mut(slice.name.clone()));
        }
        change(&mut self.slices, owner, |slices| slices.insert_mut(slice.name.clone(), slice));
    }

    fn unlink_slice(&mut self, name: &ObjectName, owner: &ObjectName) {
        self.slice_owners.remove_mut(name);
        let Some(slice) = self.slices.get(owner).and_then(|slices| slices.get(name)).cloned() else { return };
        for ip in addresses(&slice) {
            withdraw(&mut self.by_endpoint, &ip, Names::is_empty, |slices| {
                slices.remove_mut(name);
            });
        }
        withdraw(&mut self.slices, owner, ByName::is_empty, |slices| {
            slices.remove_mut(name);
        });
    }
}

fn destinations(service: &Service) -> Vec<Destination> {
    let tcp_ports = || join::tcp_ports(service);
    let external = service.external_ips.iter();
    let mut all: Vec<Destination> = service.cluster_ips.iter().copied().map(Destination::Address).collect();
    all.extend(
        external.flat_map(|ip| tcp_ports().map(|port| Destination::Port(SocketAddr::new(*ip, port.port)))),
    );
    all.extend(tcp_ports().filter_map(|port| port.node_port).map(Destination::NodePort));
    // Two ports of one number differ in their protocol, or are a mistake.
    all.sort_unstable();
    all.dedup();
    all
}

fn addresses(slice: &EndpointSlice) -> impl Iterator<Item = IpAddr> + '_ {
    slice.endpoints.iter().flat_map(|endpoint| endpoint.addresses.iter().copied())
}
