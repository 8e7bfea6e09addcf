//! Pods whose compiled policy someone follows.
//!
//! Promises that a follower hears of a policy only if the pod's verdicts may differ, and that nothing is kept for pods that
//! nobody follows. Which policies a change may concern is told by the sources.

use std::{collections::HashMap, sync::Arc};

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
    workload: Arc<Workload>,
    policy: watch::Sender<Arc<WorkloadPolicy>>,
}

impl Followers {
    /// What the policies make of `workload` from now on. The channel is closed once the pod is gone or out of the mesh, be
    /// it at once.
    pub(super) fn follow(
        &mut self,
        world: &World,
        workload: &Workload,
    ) -> watch::Receiver<Arc<WorkloadPolicy>> {
        self.0.retain(|_, followed| followed.policy.receiver_count() > 0);
        let Some(present) = enrolled(world, &workload.name, &workload.uid) else {
            return watch::channel(world.policies.compile(workload)).1;
        };
        let followed = self.0.entry(workload.name.clone()).or_insert_with(|| Followed {
            workload: present.clone(),
            policy: watch::Sender::new(world.policies.compile(present)),
        });
        followed.policy.subscribe()
    }

    /// Publishes what differs in this world, to pods that changed and to those that `reach` covers.
    pub(super) fn publish(&mut self, world: &World, delta: &Delta, reach: &Reach) {
        if self.0.is_empty() {
            return;
        }
        for (name, _) in delta.pods() {
            let Some(followed) = self.0.get_mut(name) else { continue };
            match enrolled(world, name, &followed.workload.uid) {
                Some(present) => {
                    followed.workload = present.clone();
                    followed.compile(world);
                }
                None => {
                    self.0.remove(name);
                }
            }
        }
        if !reach.is_empty() {
            for followed in self.0.values().filter(|followed| reach.covers(&followed.workload)) {
                followed.compile(world);
            }
        }
    }
}

impl Followed {
    fn compile(&self, world: &World) {
        let compiled = world.policies.compile(&self.workload);
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
