//! Pods whose compiled policy someone follows.
//!
//! Promises that a follower hears of a policy only if the pod's verdicts may differ, and that nothing is kept for pods that
//! nobody follows. Which policies a change may concern is told by the sources.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

use ambit_core::{
    discovery::Delta,
    model::{ObjectName, Workload},
    policy::{Reach, WorkloadPolicy},
};
use tokio::sync::watch;

use super::World;

/// The followed pods by name.
#[derive(Debug, Default)]
pub(super) struct Followers(HashMap<ObjectName, Followed>);

#[derive(Debug)]
struct Followed {
    uid: Arc<str>,
    /// The pod while it is in the mesh. One that has left it keeps the verdicts it had, and may come back.
    workload: Option<Arc<Workload>>,
    policy: watch::Sender<Arc<WorkloadPolicy>>,
}

impl Followers {
    /// What the policies make of `workload` from now on. Nothing is published while the pod is gone or out of the mesh; the
    /// channel closes when another pod of its name is followed.
    pub(super) fn follow(
        &mut self,
        world: &World,
        workload: &Workload,
    ) -> watch::Receiver<Arc<WorkloadPolicy>> {
        self.0.retain(|_, followed| followed.policy.receiver_count() > 0);
        let new = || {
            let present = enrolled(world, &workload.name, &workload.uid);
            let policy = world.policies.compile(present.map_or(workload, |present| &**present));
            Followed {
                uid: workload.uid.clone(),
                workload: present.cloned(),
                policy: watch::Sender::new(policy),
            }
        };
        match self.0.entry(workload.name.clone()) {
            Entry::Occupied(entry) if entry.get().uid == workload.uid => entry.get().policy.subscribe(),
            entry => entry.insert_entry(new()).get().policy.subscribe(),
        }
    }

    /// Publishes what differs in this world, to pods that changed and to those that `reach` covers.
    pub(super) fn publish(&mut self, world: &World, delta: &Delta, reach: &Reach) {
        if self.0.is_empty() {
            return;
        }
        for (name, _) in delta.pods() {
            let Some(followed) = self.0.get_mut(name) else { continue };
            if followed.policy.receiver_count() == 0 {
                self.0.remove(name);
                continue;
            }
            followed.workload = enrolled(world, name, &followed.uid).cloned();
            followed.compile(world);
        }
        if !reach.is_empty() {
            let covered = |followed: &&Followed| {
                followed.workload.as_ref().is_some_and(|workload| reach.covers(workload))
            };
            self.0.values().filter(covered).for_each(|followed| followed.compile(world));
        }
    }
}

impl Followed {
    fn compile(&self, world: &World) {
        let Some(workload) = &self.workload else { return };
        let compiled = world.policies.compile(workload);
        self.policy.send_if_modified(|policy| {
            let differs = *policy != compiled;
            if differs {
                *policy = compiled;
            }
            differs
        });
    }
}

/// The pod as it is, if it is the same and in the mesh.
fn enrolled<'a>(world: &'a World, name: &ObjectName, uid: &str) -> Option<&'a Arc<Workload>> {
    world.mesh.pod(name).filter(|pod| *pod.uid == *uid && pod.enrolled)
}

#[cfg(test)]
mod tests;
