//! Workloads, services and endpoints, and the way from an original destination to an endpoint.
//!
//! Promises that a look-up costs the same in a large cluster as in a small one and that a snapshot never changes. Objects
//! arrive validated; reading them, and policy, are left to others.

mod objects;
mod routing;

use std::{
    cmp::Reverse,
    hash::Hash,
    net::IpAddr,
    ops::Bound,
    sync::{Arc, OnceLock},
};

pub use objects::{
    Change, EndpointSlice, Namespace, Pod, Protocol, Service, ServicePort, Settings, SliceEndpoint,
    SlicePort, TargetPort,
};
pub use routing::{Endpoint, Route, RouteError};

use rpds::{HashTrieMapSync, RedBlackTreeMapSync};

use crate::model::{ObjectName, ServiceName, Workload};
use routing::Backends;

/// Objects by name, which puts those of one namespace side by side. Persistent, as all maps here: a change to a mesh of
/// which readers hold snapshots copies the way to what changed, not the map.
type ByName<T> = RedBlackTreeMapSync<ObjectName, Arc<T>>;

/// What is known of the cluster. Cheap to clone; readers take a snapshot.
#[derive(Clone, Debug, Default)]
pub struct Mesh {
    settings: Arc<Settings>,
    namespaces: HashTrieMapSync<Arc<str>, Arc<Namespace>>,
    pods: ByName<PodRecord>,
    services: ByName<ServiceRecord>,
    /// Slices by the service they belong to, then by name.
    slices: HashTrieMapSync<ObjectName, ByName<EndpointSlice>>,
    /// The service of each slice, to find it again when the slice changes or goes.
    slice_owners: HashTrieMapSync<ObjectName, ObjectName>,
    /// The pods that claim an address; the first one has it.
    by_ip: HashTrieMapSync<IpAddr, Vec<Arc<PodRecord>>>,
    by_node: HashTrieMapSync<Arc<str>, ByName<Workload>>,
    /// The services that claim a cluster IP, oldest first.
    by_vip: HashTrieMapSync<IpAddr, Vec<Arc<ServiceName>>>,
}

#[derive(Debug)]
struct PodRecord {
    pod: Arc<Pod>,
    workload: Arc<Workload>,
}

#[derive(Debug)]
struct ServiceRecord {
    service: Arc<Service>,
    name: Arc<ServiceName>,
    /// Worked out when first asked for; a change to what it is made of starts a new record.
    backends: OnceLock<Backends>,
}

impl Mesh {
    /// A mesh without objects.
    pub fn new(settings: Settings) -> Self {
        Self { settings: Arc::new(settings), ..Self::default() }
    }

    /// Takes in one change. An object replaces the one of the same kind and name; removing what is not there does
    /// nothing.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Namespace(namespace) => {
                let name = Arc::clone(&namespace.name);
                self.namespaces.insert_mut(Arc::clone(&name), namespace);
                self.reconsider_namespace(&name);
            }
            Change::NamespaceGone(name) => {
                if self.namespaces.contains_key(&name) {
                    self.namespaces.remove_mut(&name);
                    self.reconsider_namespace(&name);
                }
            }
            Change::Pod(pod) => self.upsert_pod(pod),
            Change::PodGone(name) => self.remove_pod(&name),
            Change::Service(service) => self.upsert_service(service),
            Change::ServiceGone(name) => self.remove_service(&name),
            Change::EndpointSlice(slice) => self.upsert_slice(slice),
            Change::EndpointSliceGone(name) => self.remove_slice(&name),
        }
    }

    /// The pod that owns `ip`; pods on the host network and terminated pods are never found by address.
    ///
    /// Where several pods claim one address (it was reused before the old pod was removed) one that is not being deleted
    /// has it before one that is, then the newest; a pod without timestamp counts as newer than any with one, and of
    /// equals an enrolled one goes first, then the name.
    pub fn workload_by_ip(&self, ip: IpAddr) -> Option<&Arc<Workload>> {
        Some(&self.by_ip.get(&ip.to_canonical())?.first()?.workload)
    }

    /// The pods scheduled on `node`, by name; terminated and host-network pods too (they are not enrolled).
    pub fn pods_on<'a>(&'a self, node: &'a str) -> impl Iterator<Item = &'a Arc<Workload>> + 'a {
        self.by_node.get(node).into_iter().flat_map(ByName::values)
    }

    /// The pod of that name, whatever its state.
    pub fn pod(&self, name: &ObjectName) -> Option<&Arc<Workload>> {
        self.pods.get(name).map(|record| &record.workload)
    }

    /// The pod with that `metadata.uid`. Looks through all pods: not for a connection's way.
    pub fn pod_by_uid(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.pods.values().map(|record| &record.workload).find(|workload| &*workload.uid == uid)
    }

    /// Whether the pod of that name is to be in the mesh, be it that it has no address yet; `None` if it is not known.
    pub fn opts_in(&self, name: &ObjectName) -> Option<bool> {
        self.pods.get(name).map(|record| self.opted_in(&record.pod))
    }

    /// Whether the namespace's own object is known, without which its pods' place in the mesh is not.
    pub fn knows_namespace(&self, name: &str) -> bool {
        self.namespaces.contains_key(name)
    }

    /// The namespaces that opt in, in no order.
    pub fn namespaces_opted_in(&self) -> impl Iterator<Item = &Arc<str>> {
        let Settings { label, enabled, .. } = &*self.settings;
        let opted_in =
            |namespace: &Namespace| namespace.labels.get(&**label).is_some_and(|value| **value == **enabled);
        self.namespaces.values().filter(move |namespace| opted_in(namespace)).map(|namespace| &namespace.name)
    }

    /// Every address whose traffic enrolled pods must have captured: IPs of enrolled pods, and cluster IPs of services
    /// with an enrolled endpoint, ready or not. Each address comes once.
    pub fn captured_destinations(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let enrolled = |ip: &IpAddr| self.workload_by_ip(*ip).is_some_and(|workload| workload.enrolled);
        let owner_enrolled =
            |claimants: &Vec<Arc<PodRecord>>| claimants.first().is_some_and(|pod| pod.workload.enrolled);
        let pods =
            self.by_ip.iter().filter(move |(_, claimants)| owner_enrolled(claimants)).map(|(ip, _)| *ip);
        let services = self.by_vip.iter().filter(move |(ip, claimants)| {
            !enrolled(ip) && claimants.iter().any(|name| self.has_enrolled_endpoint(&name.name))
        });
        pods.chain(services.map(|(ip, _)| *ip))
    }

    fn has_enrolled_endpoint(&self, service: &ObjectName) -> bool {
        let Some(record) = self.services.get(service) else { return false };
        self.backends(record)
            .addresses()
            .any(|ip| self.workload_by_ip(ip).is_some_and(|workload| workload.enrolled))
    }

    fn reconsider_namespace(&mut self, namespace: &str) {
        let pods: Vec<_> = self
            .pods_in(namespace)
            .filter(|record| self.enrolled(&record.pod) != record.workload.enrolled)
            .map(|record| Arc::clone(&record.pod))
            .collect();
        for pod in pods {
            self.upsert_pod(pod);
        }
    }

    fn enrolled(&self, pod: &Pod) -> bool {
        self.opted_in(pod) && !pod.ips.is_empty()
    }

    fn opted_in(&self, pod: &Pod) -> bool {
        let namespace = self.namespaces.get(&pod.name.namespace).map(|namespace| &namespace.labels);
        self.settings.opts_in(namespace, &pod.labels) && !pod.host_network && !pod.terminal
    }

    fn upsert_pod(&mut self, pod: Arc<Pod>) {
        self.forget_pod(&pod.name);
        let workload = Arc::new(Workload {
            name: pod.name.clone(),
            uid: Arc::clone(&pod.uid),
            identity: pod.identity.clone(),
            node: Arc::clone(&pod.node),
            ips: pod.ips.clone(),
            labels: pod.labels.clone(),
            named_ports: pod.named_ports.clone(),
            probe_ports: pod.probe_ports.clone(),
            host_network: pod.host_network,
            enrolled: self.enrolled(&pod),
            netns: pod.netns.clone(),
        });
        let record = Arc::new(PodRecord { pod, workload });
        if !record.pod.host_network && !record.pod.terminal {
            for ip in &record.pod.ips {
                change(&mut self.by_ip, ip, |claimants| {
                    let at = claimants.partition_point(|other| other.claim() < record.claim());
                    claimants.insert(at, Arc::clone(&record));
                });
            }
        }
        change(&mut self.by_node, &record.pod.node, |pods| {
            pods.insert_mut(record.pod.name.clone(), Arc::clone(&record.workload));
        });
        self.reset_selecting_services(&record.pod.name.namespace);
        self.pods.insert_mut(record.pod.name.clone(), record);
    }

    fn remove_pod(&mut self, name: &ObjectName) {
        self.forget_pod(name);
        self.reset_selecting_services(&name.namespace);
    }

    fn forget_pod(&mut self, name: &ObjectName) {
        let Some(old) = self.pods.get(name).cloned() else { return };
        self.pods.remove_mut(name);
        for ip in &old.pod.ips {
            if let Some(claimants) = self.by_ip.get_mut(ip) {
                claimants.retain(|record| record.pod.name != *name);
                if claimants.is_empty() {
                    self.by_ip.remove_mut(ip);
                }
            }
        }
        if let Some(pods) = self.by_node.get_mut(&old.pod.node) {
            pods.remove_mut(name);
            if pods.is_empty() {
                self.by_node.remove_mut(&old.pod.node);
            }
        }
    }

    fn pods_in<'a>(&'a self, namespace: &str) -> impl Iterator<Item = &'a Arc<PodRecord>> + use<'a> {
        in_namespace(&self.pods, namespace).map(|(_, record)| record)
    }

    fn upsert_service(&mut self, service: Arc<Service>) {
        self.remove_service(&service.name);
        let ObjectName { namespace, name } = &service.name;
        let host = format!("{name}.{namespace}.svc.{}", self.settings.cluster_domain);
        let name = Arc::new(ServiceName { name: service.name.clone(), host: host.into() });
        let vips: Vec<IpAddr> = service.cluster_ips.clone();
        let record = Arc::new(ServiceRecord { service, name: Arc::clone(&name), backends: OnceLock::new() });
        self.services.insert_mut(name.name.clone(), record);
        for vip in vips {
            let services = &self.services;
            let age = |name: &ServiceName| {
                let created = services.get(&name.name).and_then(|record| record.service.created);
                (created.unwrap_or(i64::MAX), name.name.clone())
            };
            change(&mut self.by_vip, &vip, |claimants| {
                claimants.push(Arc::clone(&name));
                claimants.sort_by_cached_key(|name| age(name));
            });
        }
    }

    fn remove_service(&mut self, name: &ObjectName) {
        let Some(old) = self.services.get(name).cloned() else { return };
        self.services.remove_mut(name);
        for vip in &old.service.cluster_ips {
            if let Some(claimants) = self.by_vip.get_mut(vip) {
                claimants.retain(|claimant| claimant.name != *name);
                if claimants.is_empty() {
                    self.by_vip.remove_mut(vip);
                }
            }
        }
    }

    fn upsert_slice(&mut self, slice: Arc<EndpointSlice>) {
        self.remove_slice(&slice.name);
        let Some(service) = slice.service.clone() else { return };
        self.slice_owners.insert_mut(slice.name.clone(), service.clone());
        change(&mut self.slices, &service, |slices| slices.insert_mut(slice.name.clone(), slice));
        self.reset_service(&service);
    }

    fn remove_slice(&mut self, name: &ObjectName) {
        let Some(service) = self.slice_owners.get(name).cloned() else { return };
        self.slice_owners.remove_mut(name);
        if let Some(of_service) = self.slices.get_mut(&service) {
            of_service.remove_mut(name);
            if of_service.is_empty() {
                self.slices.remove_mut(&service);
            }
        }
        self.reset_service(&service);
    }

    fn backends<'a>(&'a self, record: &'a ServiceRecord) -> &'a Backends {
        record.backends.get_or_init(|| match self.slices.get(&record.service.name) {
            Some(slices) => Backends::from_slices(&record.service, slices.values()),
            None => Backends::from_pods(
                &record.service,
                self.pods_in(&record.service.name.namespace).map(|pod| &*pod.pod),
            ),
        })
    }

    /// Drops what was worked out for the services of a namespace that take their endpoints from its pods.
    fn reset_selecting_services(&mut self, namespace: &str) {
        let stale: Vec<ObjectName> = in_namespace(&self.services, namespace)
            .filter(|(_, record)| record.backends.get().is_some_and(|backends| backends.selected))
            .map(|(name, _)| name.clone())
            .collect();
        for service in &stale {
            self.reset_service(service);
        }
    }

    fn reset_service(&mut self, name: &ObjectName) {
        if self.services.get(name).is_none_or(|record| record.backends.get().is_none()) {
            return;
        }
        if let Some(record) = self.services.get_mut(name) {
            *record = Arc::new(ServiceRecord {
                service: Arc::clone(&record.service),
                name: Arc::clone(&record.name),
                backends: OnceLock::new(),
            });
        }
    }
}

impl PodRecord {
    /// Orders the pods that claim one address, the rightful one first.
    fn claim(&self) -> (bool, Reverse<i64>, Reverse<bool>, &ObjectName) {
        let created = self.pod.created.unwrap_or(i64::MAX);
        (self.pod.deleting, Reverse(created), Reverse(self.workload.enrolled), &self.pod.name)
    }
}

/// The part of a map by name that lies in one namespace.
fn in_namespace<'a, T>(
    map: &'a ByName<T>,
    namespace: &str,
) -> impl Iterator<Item = (&'a ObjectName, &'a Arc<T>)> + use<'a, T> {
    let start = ObjectName::new(namespace, "");
    let namespace = Arc::clone(&start.namespace);
    map.range((Bound::Included(start), Bound::Unbounded))
        .take_while(move |(name, _)| name.namespace == namespace)
}

/// Changes what the map holds at a key, from empty if it holds nothing.
fn change<K: Clone + Eq + Hash, V: Clone + Default>(
    map: &mut HashTrieMapSync<K, V>,
    key: &K,
    change: impl FnOnce(&mut V),
) {
    let mut value = map.get(key).cloned().unwrap_or_default();
    change(&mut value);
    map.insert_mut(key.clone(), value);
}

#[cfg(test)]
mod tests;
