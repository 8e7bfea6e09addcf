//! Pods as they come and go, and as their namespaces opt in and out.

use std::{
    cmp::Reverse,
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use rpds::RedBlackTreeMapSync;

use super::{ByName, Mesh, change, withdraw};
use crate::{
    discovery::{Delta, Destination, Pod, PodDelta, join},
    model::{ObjectName, Workload},
};

#[derive(Debug)]
pub(super) struct PodRecord {
    pub(super) pod: Arc<Pod>,
    pub(super) workload: Arc<Workload>,
}

impl PodRecord {
    /// Orders the pods that claim one address, the rightful one first.
    fn claim(&self) -> (&Option<Arc<str>>, bool, Reverse<i64>, Reverse<bool>, &ObjectName) {
        let created = self.pod.created.unwrap_or(i64::MAX);
        let Pod { name, deleting, .. } = &*self.pod;
        (&name.cluster, *deleting, Reverse(created), Reverse(self.workload.enrolled), name)
    }

    /// Whether the address is in doubt that the first of these has: another pod that is to stay claims it, and is in the mesh. What
    /// is of this cluster no other one puts in doubt.
    pub(super) fn is_contested(claimants: &[Arc<Self>]) -> bool {
        claimants.split_first().is_some_and(|(owner, others)| {
            !owner.workload.enrolled
                && others
                    .iter()
                    .filter(|other| owner.pod.name.cluster.is_some() || other.pod.name.cluster.is_none())
                    .any(|other| other.workload.enrolled && other.pod.deleting == owner.pod.deleting)
        })
    }

    /// The addresses that it claims: that of the host is no pod's, and one of a pod that has ended may be another's.
    pub(super) fn claimed(&self) -> &[IpAddr] {
        if self.pod.host_network || self.pod.terminal { &[] } else { &self.pod.ips }
    }

    /// The addresses of its node that it states: a node may be gone when a pod that has ended there is not. Node ports of another
    /// cluster's nodes lead to that one's services, of which nothing is known here.
    fn host_ips(&self) -> &[IpAddr] {
        let of_no_node = self.pod.terminal || self.pod.node.is_empty() || self.pod.name.cluster.is_some();
        if of_no_node { &[] } else { &self.pod.host_ips }
    }

    /// The ports of its node that it claims, each with its own port.
    fn host_ports(&self) -> impl Iterator<Item = (SocketAddr, u16)> + '_ {
        let ports = if self.pod.host_network { &[][..] } else { &self.pod.host_ports };
        ports.iter().flat_map(|port| {
            // Who makes a pod may write anybody's address there.
            let at = self.host_ips().iter().filter(|ip| port.ip.is_none_or(|only| only == **ip));
            at.map(|ip| (SocketAddr::new(*ip, port.port), port.target))
        })
    }
}

impl Mesh {
    /// The pod of that name becomes this, or goes.
    pub(super) fn put_pod(&mut self, name: &ObjectName, pod: Option<Arc<Pod>>, delta: &mut Delta) {
        let before = self.pods.get(name).cloned();
        let captured_dns = self.captures_dns_of(name);
        let uids =
            [before.as_ref().map(|before| &before.pod), pod.as_ref()].map(|pod| Some(Arc::clone(&pod?.uid)));
        self.claim_uid(name, uids[0].as_ref(), uids[1].as_ref());
        let after = pod.map(|pod| Arc::new(self.record(pod, before.as_deref())));
        let records = || before.iter().chain(&after);
        let claimed: Vec<(IpAddr, bool)> =
            records().flat_map(|record| record.claimed()).map(|ip| (*ip, self.is_enrolled(*ip))).collect();
        if let Some(before) = &before {
            self.unlink(before);
        }
        if let Some(after) = &after {
            self.link(after);
        }
        let hosts = records().flat_map(|record| record.host_ips()).map(|ip| Destination::Node(*ip));
        let addresses = claimed.iter().map(|(ip, _)| Destination::Address(*ip));
        let host_ports =
            records().flat_map(|record| record.host_ports()).map(|(at, _)| Destination::Port(at));
        let mut affected: Vec<Destination> = addresses.chain(hosts).chain(host_ports).collect();
        let selecting = |record: &Option<Arc<PodRecord>>| {
            record.iter().flat_map(|record| self.selecting(&record.pod)).collect()
        };
        let (were, are): (BTreeSet<ObjectName>, BTreeSet<ObjectName>) =
            (selecting(&before), selecting(&after));
        let enrolled = after.as_ref().is_some_and(|after| self.is_enrolled_endpoint(&after.pod));
        for service in were.union(&are) {
            self.reset_backends(service);
            if self.is_ruled_headless(service) {
                affected.extend(
                    records().flat_map(|record| record.claimed()).map(|ip| Destination::Address(*ip)),
                );
            }
            let destinations = self.destinations_of(service);
            // No look at the service's other pods where this one is enough.
            if enrolled && are.contains(service) {
                destinations.into_iter().for_each(|destination| self.set_captured(destination, true, delta));
            } else {
                affected.extend(destinations);
            }
        }
        for (ip, enrolled) in claimed {
            if self.is_enrolled(ip) != enrolled {
                affected.extend(self.ways_to(ip));
            }
        }
        self.follow_capture(affected, delta);
        if captured_dns != self.captures_dns_of(name) {
            delta.reconsider_pods();
        }
        let workload = |record: &Arc<PodRecord>| Arc::clone(&record.workload);
        let pod = PodDelta { before: before.as_ref().map(workload), after: after.as_ref().map(workload) };
        delta.pod(name.clone(), pod);
        if uids[0] != uids[1] {
            uids.iter().flatten().for_each(|uid| self.reconsider_uid(uid, delta));
        }
    }

    /// The pod that a port of a node leads to, and its own port.
    pub(super) fn host_port(&self, at: SocketAddr) -> Option<&(Arc<PodRecord>, u16)> {
        self.host_ports.get(&at)?.first()
    }

    /// The namespace's labels may have changed.
    pub(super) fn reconsider_namespace(
        &mut self,
        namespace: &str,
        cluster: Option<&Arc<str>>,
        delta: &mut Delta,
    ) {
        let enrolled =
            |pod: &Pod| join::opts_in(&self.settings, self.namespace_of(pod), pod) && !pod.ips.is_empty();
        let watched = |pod: &Pod| join::wants_requests(&self.settings, self.namespace_of(pod), pod);
        let pods: Vec<_> = self
            .pods_in(namespace)
            .filter(|record| record.pod.name.cluster.as_ref() == cluster)
            .filter(|record| {
                enrolled(&record.pod) != record.workload.enrolled
                    || watched(&record.pod) != record.workload.http_telemetry
            })
            .map(|record| Arc::clone(&record.pod))
            .collect();
        for pod in pods {
            self.put_pod(&pod.name.clone(), Some(pod), delta);
        }
    }

    /// A workload that is the same as before stays the same value.
    fn record(&self, pod: Arc<Pod>, before: Option<&PodRecord>) -> PodRecord {
        let mut workload = join::workload(&self.settings, self.namespace_of(&pod), &pod);
        workload.uid = self.unique_uid(&pod);
        let workload = match before {
            Some(before) if *before.workload == workload => Arc::clone(&before.workload),
            _ => Arc::new(workload),
        };
        PodRecord { pod, workload }
    }

    fn link(&mut self, record: &Arc<PodRecord>) {
        for ip in record.claimed() {
            change(&mut self.by_ip, ip, |claimants| {
                let at = claimants.partition_point(|other| other.claim() < record.claim());
                claimants.insert(at, Arc::clone(record));
            });
            self.note_dispute(ip);
        }
        for (at, target) in record.host_ports() {
            change(&mut self.host_ports, &at, |claimants| {
                let before = claimants.partition_point(|(other, _)| other.claim() < record.claim());
                claimants.insert(before, (Arc::clone(record), target));
            });
        }
        for ip in record.host_ips() {
            change(&mut self.node_ips, ip, |nodes| {
                let pods = nodes.get(&record.pod.node).copied().unwrap_or_default();
                nodes.insert_mut(Arc::clone(&record.pod.node), pods + 1);
            });
        }
        change(&mut self.by_node, &record.pod.node, |pods| {
            pods.insert_mut(record.pod.name.clone(), Arc::clone(&record.workload));
        });
        self.pods.insert_mut(record.pod.name.clone(), Arc::clone(record));
    }

    fn unlink(&mut self, record: &PodRecord) {
        let name = &record.pod.name;
        self.pods.remove_mut(name);
        for ip in record.claimed() {
            withdraw(&mut self.by_ip, ip, Vec::is_empty, |claimants| {
                claimants.retain(|other| other.pod.name != *name);
            });
            self.note_dispute(ip);
        }
        for (at, _) in record.host_ports() {
            withdraw(&mut self.host_ports, &at, Vec::is_empty, |claimants| {
                claimants.retain(|(other, _)| other.pod.name != *name);
            });
        }
        for ip in record.host_ips() {
            withdraw(&mut self.node_ips, ip, RedBlackTreeMapSync::is_empty, |nodes| {
                match nodes.get(&record.pod.node).copied() {
                    Some(pods @ 2..) => nodes.insert_mut(Arc::clone(&record.pod.node), pods - 1),
                    _ => {
                        nodes.remove_mut(&record.pod.node);
                    }
                }
            });
        }
        withdraw(&mut self.by_node, &record.pod.node, ByName::is_empty, |pods| {
            pods.remove_mut(name);
        });
    }
}
