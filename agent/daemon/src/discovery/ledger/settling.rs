//! Which claim to a name wins, and what that changes in mesh and policies.

use std::{net::IpAddr, sync::Arc, time::Instant};

use ambit_core::{
    discovery::{Change as MeshChange, Pod, Prefix},
    model::ObjectName,
    policy::Change as PolicyChange,
};

use super::{Change, Claim, InForce, Key, Kind, Ledger, Stated, World, problems};

impl Ledger {
    /// The node's CNI gave addresses to a pod.
    pub(in crate::discovery) fn assign_addresses(&mut self, uid: &str, ips: &[IpAddr], now: Instant) {
        let known = self.mesh.pod_by_uid(uid).map(|pod| Key { kind: Kind::Pod, name: pod.name.clone() });
        let pod = known.and_then(|key| pod(&self.in_force.get(&key)?.change).cloned());
        let before = pod.as_ref().map_or_else(Vec::new, |pod| pod.ips.clone());
        self.cni_addresses.insert(uid, ips, before, now);
        if let Some(pod) = pod {
            self.enforce(Change::Mesh(MeshChange::Pod(pod)));
        }
    }

    /// Brings the world up to date with the origins; none if nothing changed.
    pub(in crate::discovery) fn settle(&mut self) -> Option<World> {
        for key in std::mem::take(&mut self.stale) {
            self.settle_name(key);
        }
        let Self { doubtful, doubtful_from_start, .. } = self;
        doubtful_from_start.retain(|origin| doubtful.contains(origin));
        let mut reach = self.policies.set_incomplete(self.missing_policies());
        reach.merge(self.policies.set_closed(self.missing_authorizations()));
        self.changed |= !reach.is_empty();
        self.news.reach.merge(reach);
        let problems = self.current_problems();
        let news = problems != self.problems;
        if news {
            problems::log_changes(&self.problems, &problems);
            self.problems = problems;
            self.changed = true;
        }
        // Nobody acts on half a world, and a copy of it for every object would be what a start takes longest for.
        if !self.synced && !news {
            return None;
        }
        std::mem::take(&mut self.changed).then(|| self.world())
    }

    /// Nothing is known of another cluster but the networks of its pods, or more than that now.
    pub(in crate::discovery) fn set_unread(&mut self, cluster: &Arc<str>, networks: Option<Vec<Prefix>>) {
        let cluster = Arc::clone(cluster);
        self.enforce(Change::Mesh(match networks {
            Some(networks) => MeshChange::ClusterUnread { cluster, networks },
            None => MeshChange::ClusterKnown(cluster),
        }));
    }

    /// Decides which version of a name is in force, and applies it to mesh and policies if that is another one.
    fn settle_name(&mut self, key: Key) {
        let before = self.in_force.remove(&key);
        let claims = self.claims.get(&key).map_or(&[][..], Vec::as_slice);
        if claims.len() > 1 {
            self.contested.insert(key.clone());
        } else {
            self.contested.remove(&key);
        }
        let stated = |claim: &Claim| Some(&self.origins.get(&claim.0)?.objects.get(claim.1)?.1);
        let valid = claims.iter().find_map(|claim| {
            let change = match stated(claim)? {
                Stated::Good(change) | Stated::Strictest(change) => change,
                Stated::Bad(_) => {
                    let same = |before: &&InForce| before.claim.0 == claim.0 && !before.guessed;
                    &before.as_ref().filter(same)?.change
                }
            };
            Some((claim, change, false))
        });
        // An object that moved to another origin and broke on the way.
        let moved = || {
            let before = before.as_ref().filter(|before| !before.guessed)?;
            Some((claims.first()?, &before.change, false))
        };
        let guessed = || match stated(claims.first()?)? {
            Stated::Bad(Some(change)) => Some((&claims[0], change, true)),
            _ => None,
        };
        let now = valid.or_else(moved).or_else(guessed).map(|(claim, change, guessed)| InForce {
            claim: claim.clone(),
            change: change.clone(),
            guessed,
        });
        if let Some(old) = before.as_ref().and_then(|before| pod(&before.change))
            && now.as_ref().and_then(|now| pod(&now.change)).is_none_or(|new| new.uid != old.uid)
        {
            self.cni_addresses.forget(&old.uid);
        }
        match now {
            Some(now) => {
                if before.is_none_or(|before| before.change != now.change) {
                    self.enforce(now.change.clone());
                }
                self.in_force.insert(key, now);
            }
            None if before.is_some() => self.enforce((key.kind.row().gone)(key.name)),
            None => {}
        }
    }

    fn enforce(&mut self, change: Change) {
        self.changed = true;
        match change {
            Change::Mesh(change) => {
                let change = match change {
                    MeshChange::Pod(pod) => MeshChange::Pod(self.cni_addresses.fill_in(pod)),
                    other => other,
                };
                let service = match &change {
                    MeshChange::Service(service) => Some(service.name.clone()),
                    MeshChange::ServiceGone(name) => Some(name.clone()),
                    _ => None,
                };
                self.news.delta.merge(self.mesh.apply(change));
                self.tell_of_services(service);
            }
            Change::Policies(change) => {
                let targets: Vec<ObjectName> = match &change {
                    PolicyChange::AuthorizationPolicy(policy) => policy.services().collect(),
                    PolicyChange::RequestAuthentication(request) => request.services().collect(),
                    _ => Vec::new(),
                };
                self.news.reach.merge(self.policies.apply(change));
                self.tell_of_services(targets);
            }
        }
    }

    /// Policies may be for the pods of a service.
    fn tell_of_services(&mut self, names: impl IntoIterator<Item = ObjectName>) {
        for name in names {
            let selector = self.mesh.service_selector(&name);
            self.news.reach.merge(self.policies.set_service(&name, selector));
        }
    }
}

fn pod(change: &Change) -> Option<&Arc<Pod>> {
    match change {
        Change::Mesh(MeshChange::Pod(pod)) => Some(pod),
        _ => None,
    }
}
