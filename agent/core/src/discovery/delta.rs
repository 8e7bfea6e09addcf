//! What changes of the cluster made different, for those who follow the mesh.
//!
//! Promises that deltas of changes one after another merge into the delta of them all: what was undone is not in it.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
};

use super::Destination;
use crate::model::{ObjectName, Workload};

/// What differs between two states of a mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// Whether it is captured now; it was not before if it is, and was if it is not.
    destinations: BTreeMap<Destination, bool>,
    pods: BTreeMap<ObjectName, PodDelta>,
    /// Which pods have everything captured may differ.
    pods_to_reconsider: bool,
}

/// A pod that appeared, went or became another workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodDelta {
    /// What it was; `None` if it was not there.
    pub before: Option<Arc<Workload>>,
    /// What it is; `None` if it is gone.
    pub after: Option<Arc<Workload>>,
}

impl PodDelta {
    /// Whether the pod is, or was, on `node`.
    pub fn is_on(&self, node: &str) -> bool {
        [&self.before, &self.after].into_iter().flatten().any(|workload| *workload.node == *node)
    }
}

impl Delta {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.destinations.is_empty() && self.pods.is_empty() && !self.pods_to_reconsider
    }

    /// The destinations whose capture begins.
    pub fn begun(&self) -> impl Iterator<Item = Destination> + '_ {
        self.destinations.iter().filter(|(_, captured)| **captured).map(|(destination, _)| *destination)
    }

    /// The destinations whose capture ends.
    pub fn ended(&self) -> impl Iterator<Item = Destination> + '_ {
        self.destinations.iter().filter(|(_, captured)| !**captured).map(|(destination, _)| *destination)
    }

    /// Whether of which pods everything is captured may differ.
    pub fn reconsiders_pods(&self) -> bool {
        self.pods_to_reconsider
    }

    /// The pods that differ, by name.
    pub fn pods(&self) -> impl Iterator<Item = (&ObjectName, &PodDelta)> {
        self.pods.iter()
    }

    /// The same for one who follows `node`: all destinations, and the pods that are or were there.
    pub fn on(&self, node: &str) -> Self {
        let pods = self.pods.iter().filter(|(_, pod)| pod.is_on(node));
        Self {
            destinations: self.destinations.clone(),
            pods: pods.map(|(name, pod)| (name.clone(), pod.clone())).collect(),
            pods_to_reconsider: self.pods_to_reconsider,
        }
    }

    /// Takes in what changed after this.
    pub fn merge(&mut self, later: Self) {
        for (destination, captured) in later.destinations {
            self.capture(destination, captured);
        }
        for (name, pod) in later.pods {
            self.pod(name, pod);
        }
        self.pods_to_reconsider |= later.pods_to_reconsider;
    }

    /// Which pods have everything captured may differ.
    pub(super) fn reconsider_pods(&mut self) {
        self.pods_to_reconsider = true;
    }

    /// The capture of `destination`, which was the other way, becomes this.
    pub(super) fn capture(&mut self, destination: Destination, captured: bool) {
        match self.destinations.entry(destination) {
            Entry::Vacant(entry) => {
                entry.insert(captured);
            }
            Entry::Occupied(entry) if *entry.get() != captured => {
                entry.remove();
            }
            Entry::Occupied(_) => {}
        }
    }

    /// The pod becomes this.
    pub(super) fn pod(&mut self, name: ObjectName, pod: PodDelta) {
        match self.pods.entry(name) {
            Entry::Vacant(entry) if pod.before != pod.after => {
                entry.insert(pod);
            }
            Entry::Vacant(_) => {}
            Entry::Occupied(entry) if entry.get().before == pod.after => {
                entry.remove();
            }
            Entry::Occupied(mut entry) => entry.get_mut().after = pod.after,
        }
    }
}
