//! The pods that should be enrolled on this node, where their network namespaces are, and what keeps them from it.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use ambit_core::{
    discovery::Delta,
    model::{SpiffeId, Workload},
};

use crate::{
    app::locations::{Attachments, Location, Locations},
    capture::PodSpec,
    discovery::World,
};

/// A pod as it should be.
pub(super) struct Desired {
    pub(super) workload: Arc<Workload>,
    /// Where its namespace is, or why that is not known.
    pub(super) location: Result<Location, String>,
    /// Why it could not be enrolled when that was last tried.
    pub(super) failure: Option<String>,
}

impl Desired {
    fn new(workload: Arc<Workload>, failure: Option<String>) -> Self {
        Self {
            workload,
            location: Err("the pod's network namespace has not been looked for".into()),
            failure,
        }
    }

    pub(super) fn spec(&self, location: &Location) -> PodSpec {
        let ips = &self.workload.ips;
        PodSpec {
            uid: self.workload.uid.clone(),
            netns: location.netns.clone(),
            v4: ips.iter().find_map(|ip| match ip {
                IpAddr::V4(v4) => Some(*v4),
                IpAddr::V6(_) => None,
            }),
            v6: ips.iter().find_map(|ip| match ip {
                IpAddr::V4(_) => None,
                IpAddr::V6(v6) => Some(*v6),
            }),
        }
    }

    /// Takes note of how the last try went; says so once.
    pub(super) fn tried(&mut self, failure: Option<String>) {
        if let Some(error) = failure.as_ref().filter(|error| self.failure.as_ref() != Some(*error)) {
            tracing::warn!(pod = %self.workload.name, error, "pod cannot be enrolled; trying again every second");
        }
        self.failure = failure;
    }
}

/// The pods by UID.
pub(super) struct DesiredPods {
    node: String,
    locations: Locations,
    pods: HashMap<Arc<str>, Desired>,
}

impl DesiredPods {
    pub(super) fn new(node: String, locations: Locations) -> Self {
        Self { node, locations, pods: HashMap::new() }
    }

    /// Where the CNI's words go.
    pub(super) fn attachments(&self) -> Attachments {
        self.locations.attachments()
    }

    /// Looks at all pods of the node again.
    pub(super) async fn look_at_all(&mut self, world: &World) {
        let here: Vec<_> = world.mesh.pods_on(&self.node).cloned().collect();
        self.locations.retain(&here);
        let mut before = std::mem::take(&mut self.pods);
        let wanted: Vec<_> = here.into_iter().filter(|pod| pod.enrolled).collect();
        for workload in &wanted {
            let failure = before.remove(&workload.uid).and_then(|pod| pod.failure);
            self.pods.insert(workload.uid.clone(), Desired::new(workload.clone(), failure));
        }
        self.locate(&wanted).await;
    }

    /// Looks at the pods that differ, and answers with their UIDs, of those that are to leave too.
    pub(super) async fn follow(&mut self, delta: &Delta) -> HashSet<Arc<str>> {
        let mut before = HashMap::new();
        for (_, pod) in delta.pods() {
            if let Some(workload) = &pod.before {
                let failure = self.pods.remove(&workload.uid).and_then(|pod| pod.failure);
                before.insert(workload.uid.clone(), failure);
            }
        }
        let here = |pod: &&Arc<Workload>| pod.enrolled && *pod.node == *self.node;
        let wanted: Vec<_> =
            delta.pods().filter_map(|(_, pod)| pod.after.as_ref()).filter(here).cloned().collect();
        for workload in &wanted {
            let failure = before.entry(workload.uid.clone()).or_default().take();
            self.pods.insert(workload.uid.clone(), Desired::new(workload.clone(), failure));
        }
        self.locate(&wanted).await;
        before.into_keys().collect()
    }

    pub(super) fn len(&self) -> usize {
        self.pods.len()
    }

    pub(super) fn contains(&self, uid: &str) -> bool {
        self.pods.contains_key(uid)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Desired)> {
        self.pods.iter()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&Arc<str>, &mut Desired)> {
        self.pods.iter_mut()
    }

    /// The identities that the pods need.
    pub(super) fn identities(&self) -> HashSet<SpiffeId> {
        self.pods.values().map(|pod| pod.workload.identity.clone()).collect()
    }

    async fn locate(&mut self, pods: &[Arc<Workload>]) {
        self.locations.look(pods).await;
        for workload in pods {
            if let Some(pod) = self.pods.get_mut(&workload.uid) {
                pod.location = self.locations.of(workload);
            }
        }
    }
}
