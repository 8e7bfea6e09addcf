//! What other clusters of one flat network bring: namespaces that opt their pods in, addresses that two clusters claim, and networks of
//! which nothing else is known yet.
//!
//! Promises that nothing of another cluster takes the place of what this one has. Services stay this cluster's; endpoint slices
//! of others speak for those of the same name.

use std::{net::IpAddr, sync::Arc};

use rpds::HashTrieMapSync;

use super::{Mesh, change, withdraw};
use crate::{
    discovery::{Change, Delta, Destination, Namespace, Pod, Prefix},
    model::{ObjectName, Workload},
};

impl Mesh {
    /// The pods of other clusters, by name.
    pub fn remote_pods(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.pods.values().map(|record| &record.workload).filter(|pod| pod.name.cluster.is_some())
    }

    /// Addresses that pods of more than one cluster claim: who has each, and one that claims it too.
    pub fn disputed_addresses(&self) -> impl Iterator<Item = (IpAddr, &ObjectName, &ObjectName)> {
        self.disputed.iter().filter_map(|ip| {
            let (owner, others) = self.by_ip.get(ip)?.split_first()?;
            let owner = &owner.pod.name;
            let other =
                others.iter().map(|other| &other.pod.name).find(|name| name.cluster != owner.cluster)?;
            Some((*ip, owner, other))
        })
    }

    /// The services that slices of other clusters speak for and that this cluster does not have, so that no address leads there;
    /// each with one of those clusters.
    pub fn services_elsewhere(&self) -> impl Iterator<Item = (&Arc<str>, &ObjectName)> {
        let missing = self.slices.iter().filter(|(service, _)| !self.services.contains_key(*service));
        missing.filter_map(|(service, slices)| {
            Some((slices.keys().find_map(|slice| slice.cluster.as_ref())?, service))
        })
    }

    /// What is known of another cluster, as changes that bring about the same in a mesh that knows nothing: namespaces first, as
    /// nothing else counts without them, then pods.
    pub fn known_of(&self, cluster: &Arc<str>) -> impl Iterator<Item = Change> {
        let of_cluster = move |name: &ObjectName| name.cluster.as_ref() == Some(cluster);
        let namespaces = self.remote_namespaces.get(cluster).into_iter().flat_map(HashTrieMapSync::values);
        let namespaces = namespaces.map(move |namespace| Change::RemoteNamespace {
            cluster: Arc::clone(cluster),
            namespace: Arc::clone(namespace),
        });
        let pods = self.pods.values().filter(move |record| of_cluster(&record.pod.name));
        let slices = self.slices.values().flat_map(|slices| slices.values());
        let slices = slices.filter(move |slice| of_cluster(&slice.name));
        namespaces
            .chain(pods.map(|record| Change::Pod(Arc::clone(&record.pod))))
            .chain(slices.map(|slice| Change::EndpointSlice(Arc::clone(slice))))
    }

    /// Whether enough is known of the pod to tell if it is in the mesh: of another cluster its namespace may come later.
    pub(super) fn is_judged(&self, pod: &Pod) -> bool {
        pod.name.cluster.is_none() || self.namespace_of(pod).is_some()
    }

    /// Whether the pod that has an address may be in the mesh, as the namespace that says it is not known.
    pub(super) fn is_unjudged(&self, ip: IpAddr) -> bool {
        let owner = self.by_ip.get(&ip).and_then(|claimants| claimants.first());
        owner.is_some_and(|owner| !self.is_judged(&owner.pod) && !self.node_ips.contains_key(&ip))
    }

    /// The cluster that has not been read and one of whose pods may have an address.
    pub(super) fn unread_at(&self, ip: IpAddr) -> Option<&Arc<str>> {
        let mut unread = self.unread.iter();
        unread.find(|(_, networks)| networks.iter().any(|network| network.contains(ip))).map(|(name, _)| name)
    }

    /// As long as there is one, all has to be captured: who is there is not known.
    pub(super) fn put_unread(&mut self, cluster: &Arc<str>, networks: Vec<Prefix>, delta: &mut Delta) {
        let before = self.unread.is_empty();
        if networks.is_empty() {
            self.unread.remove_mut(cluster);
        } else {
            self.unread.insert_mut(Arc::clone(cluster), networks);
        }
        if before != self.unread.is_empty() {
            delta.reconsider_pods();
        }
    }

    pub(super) fn put_remote_namespace(
        &mut self,
        cluster: &Arc<str>,
        name: &Arc<str>,
        namespace: Option<&Arc<Namespace>>,
        delta: &mut Delta,
    ) {
        let known = self.remote_namespaces.get(cluster).is_some_and(|all| all.contains_key(name));
        match namespace {
            Some(namespace) => change(&mut self.remote_namespaces, cluster, |namespaces| {
                namespaces.insert_mut(Arc::clone(name), Arc::clone(namespace));
            }),
            None => withdraw(&mut self.remote_namespaces, cluster, HashTrieMapSync::is_empty, |namespaces| {
                namespaces.remove_mut(name);
            }),
        }
        self.reconsider_namespace(name, Some(cluster), delta);
        if known != namespace.is_some() {
            self.follow_judgement(name, cluster, delta);
        }
    }

    /// Pods of that namespace may be in the mesh as long as it is not known, and are or are not once it is.
    fn follow_judgement(&mut self, namespace: &str, cluster: &Arc<str>, delta: &mut Delta) {
        let pods = self.pods_in(namespace).filter(|record| record.pod.name.cluster.as_ref() == Some(cluster));
        let addresses: Vec<IpAddr> = pods.flat_map(|record| record.claimed().iter().copied()).collect();
        for ip in addresses {
            let ways = self.ways_to(ip);
            self.follow_capture(ways.into_iter().chain([Destination::Address(ip)]), delta);
        }
    }

    /// The pods that claim an address are others than before.
    pub(super) fn note_dispute(&mut self, ip: &IpAddr) {
        let clusters = || self.by_ip.get(ip).into_iter().flatten().map(|record| &record.pod.name.cluster);
        if clusters().any(|cluster| Some(cluster) != clusters().next()) {
            self.disputed.insert_mut(*ip);
        } else {
            self.disputed.remove_mut(ip);
        }
    }
}

#[cfg(test)]
mod tests;
