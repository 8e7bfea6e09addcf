//! What other clusters of one flat network bring: namespaces that opt their pods in, and addresses that two clusters claim.
//!
//! Promises that nothing of another cluster takes the place of what this one has. Services stay this cluster's; endpoint slices
//! of others speak for those of the same name.

use std::{net::IpAddr, sync::Arc};

use rpds::HashTrieMapSync;

use super::{Mesh, change, withdraw};
use crate::{
    discovery::{Delta, Namespace, Pod},
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

    /// Whether enough is known of the pod to tell if it is in the mesh: of another cluster its namespace may come later.
    pub(super) fn is_judged(&self, pod: &Pod) -> bool {
        pod.name.cluster.is_none() || self.namespace_of(pod).is_some()
    }

    pub(super) fn put_remote_namespace(
        &mut self,
        cluster: &Arc<str>,
        name: &Arc<str>,
        namespace: Option<&Arc<Namespace>>,
        delta: &mut Delta,
    ) {
        match namespace {
            Some(namespace) => change(&mut self.remote_namespaces, cluster, |namespaces| {
                namespaces.insert_mut(Arc::clone(name), Arc::clone(namespace));
            }),
            None => withdraw(&mut self.remote_namespaces, cluster, HashTrieMapSync::is_empty, |namespaces| {
                namespaces.remove_mut(name);
            }),
        }
        self.reconsider_namespace(name, Some(cluster), delta);
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
