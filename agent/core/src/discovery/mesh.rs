//! The index of all workloads and services, and what each change makes different.
//!
//! Promises that a snapshot never changes, and that a change costs what it changes: not the pods, services or endpoints of
//! the cluster. A service for which no endpoint slice speaks may cost the pods of its own namespace.

mod capture;
mod choice;
mod dns;
mod entries;
mod headless;
mod listing;
mod outside;
mod pods;
mod protocol;
mod remote;
mod routing;
mod services;
mod uids;

use std::{
    hash::Hash,
    net::{IpAddr, SocketAddr},
    ops::Bound,
    sync::{Arc, OnceLock},
};

pub use choice::Preferences;
pub use protocol::{PortProtocol, ProtocolOrigin};
pub use routing::{ClientRule, Endpoint, Named, Route, RouteError};

use rpds::{HashTrieMapSync, HashTrieSetSync, RedBlackTreeMapSync, RedBlackTreeSetSync};

use super::{
    Change, Delta, Destination, EndpointSlice, ForeignProbe, Namespace, Pod, Service, Settings,
    join::{self, Backends},
    rules::Rules,
    service_entry::Prefix,
};
use crate::model::{ObjectName, ServiceName, Workload};
use entries::Entries;
use pods::PodRecord;

/// Objects by name, which puts those of one namespace side by side. Persistent, as all maps here: a change to a mesh of
/// which readers hold snapshots copies the way to what changed, not the map.
type ByName<T> = RedBlackTreeMapSync<ObjectName, Arc<T>>;
/// Names, those of one namespace side by side.
type Names = RedBlackTreeSetSync<ObjectName>;

/// What is known of the cluster. Cheap to clone; readers take a snapshot.
#[derive(Clone, Debug, Default)]
pub struct Mesh {
    settings: Arc<Settings>,
    namespaces: HashTrieMapSync<Arc<str>, Arc<Namespace>>,
    pods: ByName<PodRecord>,
    services: ByName<ServiceRecord>,
    /// The services whose endpoints are the pods that they select, because no slice speaks for them.
    selecting: Names,
    /// Slices by the service they belong to, then by name.
    slices: HashTrieMapSync<ObjectName, ByName<EndpointSlice>>,
    /// The service of each slice, to find it again when the slice changes or goes.
    slice_owners: HashTrieMapSync<ObjectName, ObjectName>,
    /// The slices that state an endpoint at an address.
    by_endpoint: HashTrieMapSync<IpAddr, Names>,
    /// The pods that bear a UID: one, unless a manifest is wrong.
    by_uid: HashTrieMapSync<Arc<str>, Names>,
    /// The UIDs that more than one pod bears.
    shared_uids: RedBlackTreeSetSync<Arc<str>>,
    /// Namespaces of other clusters, by cluster and name.
    remote_namespaces: HashTrieMapSync<Arc<str>, HashTrieMapSync<Arc<str>, Arc<Namespace>>>,
    /// The pods' networks of those other clusters of which nothing else is known.
    unread: RedBlackTreeMapSync<Arc<str>, Vec<Prefix>>,
    /// Addresses that pods of more than one cluster claim.
    disputed: RedBlackTreeSetSync<IpAddr>,
    /// The pods that claim an address; the first one has it.
    by_ip: HashTrieMapSync<IpAddr, Vec<Arc<PodRecord>>>,
    by_node: HashTrieMapSync<Arc<str>, ByName<Workload>>,
    /// The services that claim a destination, oldest first.
    claims: HashTrieMapSync<Destination, Vec<Arc<ServiceName>>>,
    /// Addresses of nodes: the nodes' names, and how many pods there state it.
    node_ips: HashTrieMapSync<IpAddr, RedBlackTreeMapSync<Arc<str>, usize>>,
    /// The pods that claim a port of their node, with their own port; the first one has it.
    host_ports: HashTrieMapSync<SocketAddr, Vec<(Arc<PodRecord>, u16)>>,
    /// The zones of nodes, as far as they are known.
    zones: HashTrieMapSync<Arc<str>, Arc<str>>,
    /// What enrolled pods must have captured.
    captured: HashTrieSetSync<Destination>,
    rules: Rules,
    entries: Entries,
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
        let entries = Entries::new(settings.vip_ranges);
        Self { settings: Arc::new(settings), entries, ..Self::default() }
    }

    /// Takes in one change, and says what it made different. An object replaces the one of the same kind and name; removing
    /// what is not there does nothing.
    pub fn apply(&mut self, change: Change) -> Delta {
        let mut delta = Delta::default();
        match change {
            Change::Namespace(namespace) => {
                let name = Arc::clone(&namespace.name);
                let before = self.captures_everything_of(&name);
                let captures_dns = self.namespace_captures_dns(Some(&namespace));
                let captured_dns = self.namespace_captures_dns(self.namespaces.get(&name));
                self.namespaces.insert_mut(Arc::clone(&name), namespace);
                if before != self.captures_everything_of(&name) || captures_dns != captured_dns {
                    delta.reconsider_pods();
                }
                self.reconsider_namespace(&name, None, &mut delta);
            }
            Change::NamespaceGone(name) => {
                if self.namespaces.contains_key(&name) {
                    self.namespaces.remove_mut(&name);
                    delta.reconsider_pods();
                    self.reconsider_namespace(&name, None, &mut delta);
                }
            }
            Change::RemoteNamespace { cluster, namespace } => {
                self.put_remote_namespace(&cluster, &namespace.name, Some(&namespace), &mut delta);
            }
            Change::RemoteNamespaceGone { cluster, name } => {
                self.put_remote_namespace(&cluster, &name, None, &mut delta);
            }
            Change::ClusterUnread { cluster, networks } => {
                self.put_unread(&cluster, networks, &mut delta);
            }
            Change::ClusterKnown(cluster) => self.put_unread(&cluster, Vec::new(), &mut delta),
            Change::Node(node) => self.put_node(&node.name, node.zone.as_ref()),
            Change::NodeGone(name) => self.put_node(&name, None),
            Change::Pod(pod) => self.put_pod(&pod.name.clone(), Some(pod), &mut delta),
            Change::PodGone(name) => self.put_pod(&name, None, &mut delta),
            Change::Service(service) => self.put_service(&service.name.clone(), Some(service), &mut delta),
            Change::ServiceGone(name) => self.put_service(&name, None, &mut delta),
            Change::EndpointSlice(slice) => self.put_slice(&slice.name.clone(), Some(slice), &mut delta),
            Change::EndpointSliceGone(name) => self.put_slice(&name, None, &mut delta),
            Change::DestinationRule(rule) => self.put_rule(&rule.name.clone(), Some(rule), &mut delta),
            Change::DestinationRuleGone(name) => self.put_rule(&name, None, &mut delta),
            Change::ServiceEntry(entry) => self.put_entry(&entry.name.clone(), Some(entry), &mut delta),
            Change::ServiceEntryGone(name) => self.put_entry(&name, None, &mut delta),
            Change::WorkloadEntry(workload) => {
                self.put_workload_entry(&workload.name.clone(), Some(workload))
            }
            Change::WorkloadEntryGone(name) => self.put_workload_entry(&name, None),
            Change::Secret(secret) => self.put_secret(&secret.name.clone(), Some(secret)),
            Change::SecretGone(name) => self.put_secret(&name, None),
        }
        delta
    }

    /// The pod that owns `ip`; pods on the host network and terminated pods are never found by address.
    ///
    /// Where several pods claim one address (it was reused before the old pod was removed) one that is not being deleted
    /// has it before one that is, then the newest; a pod without timestamp counts as newer than any with one, and of
    /// equals an enrolled one goes first, then the name. Before all that, a pod of this cluster has it before one of another, as has
    /// a node.
    pub fn workload_by_ip(&self, ip: IpAddr) -> Option<&Arc<Workload>> {
        let ip = ip.to_canonical();
        let owner = self.by_ip.get(&ip)?.first()?;
        let foreign = owner.pod.name.cluster.is_some() && self.node_ips.contains_key(&ip);
        (!foreign).then_some(&owner.workload)
    }

    /// The pod with that UID at `ip`: an address that it states, or one of which no pod is known, as that of a second interface.
    /// `None` where the address is another pod's.
    pub fn workload_at(&self, ip: IpAddr, uid: &str) -> Option<&Arc<Workload>> {
        match self.workload_by_ip(ip) {
            Some(workload) => (*workload.uid == *uid).then_some(workload),
            None => self.pod_by_uid(uid),
        }
    }

    /// The pods scheduled on `node`, by name; terminated and host-network pods too (they are not enrolled).
    pub fn pods_on<'a>(&'a self, node: &'a str) -> impl Iterator<Item = &'a Arc<Workload>> + 'a {
        self.by_node.get(node).into_iter().flat_map(ByName::values)
    }

    /// The pod of that name, whatever its state.
    pub fn pod(&self, name: &ObjectName) -> Option<&Arc<Workload>> {
        self.pods.get(name).map(|record| &record.workload)
    }

    /// Where pods on `node` have the kubelet connect to that is not those pods, each with the pod that says so.
    pub fn foreign_probes_on<'a>(
        &'a self,
        node: &'a str,
    ) -> impl Iterator<Item = (&'a ObjectName, ForeignProbe)> + 'a {
        let records = self.pods_on(node).filter_map(|pod| self.pods.get(&pod.name));
        let running = records.map(|record| &record.pod).filter(|pod| !pod.terminal);
        running.flat_map(|pod| pod.foreign_probes.iter().map(|probe| (&pod.name, *probe)))
    }

    /// Whether the pod of that name is to be in the mesh, be it that it has no address yet; `None` if it is not known.
    pub fn opts_in(&self, name: &ObjectName) -> Option<bool> {
        let pod = &self.pods.get(name)?.pod;
        Some(join::opts_in(&self.settings, self.namespace_of(pod), pod))
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

    /// Everything that enrolled pods must have captured: IPs and host ports of enrolled pods; cluster IPs, ports of external addresses and
    /// node ports of services with an enrolled endpoint, ready or not; the nodes' addresses. Each comes once.
    pub fn captured_destinations(&self) -> impl Iterator<Item = Destination> + '_ {
        self.captured.iter().copied()
    }

    fn namespace_of(&self, pod: &Pod) -> Option<&Namespace> {
        let namespaces = match &pod.name.cluster {
            Some(cluster) => self.remote_namespaces.get(cluster)?,
            None => &self.namespaces,
        };
        namespaces.get(&pod.name.namespace).map(|namespace| &**namespace)
    }

    fn pods_in<'a>(&'a self, namespace: &str) -> impl Iterator<Item = &'a Arc<PodRecord>> + use<'a> {
        let (start, namespace) = start_of(namespace);
        self.pods
            .range((Bound::Included(start), Bound::Unbounded))
            .take_while(move |(name, _)| name.namespace == namespace)
            .map(|(_, record)| record)
    }
}

/// Where the names of a namespace begin, and the namespace.
fn start_of(namespace: &str) -> (ObjectName, Arc<str>) {
    let start = ObjectName::new(namespace, "");
    let namespace = Arc::clone(&start.namespace);
    (start, namespace)
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

/// Changes what the map holds at a key, if anything, and removes what is empty then.
fn withdraw<K: Clone + Eq + Hash, V: Clone>(
    map: &mut HashTrieMapSync<K, V>,
    key: &K,
    is_empty: impl FnOnce(&V) -> bool,
    withdraw: impl FnOnce(&mut V),
) {
    let Some(value) = map.get_mut(key) else { return };
    withdraw(value);
    if is_empty(value) {
        map.remove_mut(key);
    }
}

#[cfg(test)]
mod tests;
