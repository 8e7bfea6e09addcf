//! What the Kubernetes API shows of the agents' reports, so that only what differs has to be written.
//!
//! Apart from the world: the agents' own writing comes back here and changes nothing that is decided by.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use ambit_core::model::ObjectName;
use serde_json::Value;

use super::kinds::{Key, Kind};

/// The annotation of a pod that says how it stands.
pub(crate) const STATE_ANNOTATION: &str = "ambit.dev/state";
/// The type of the agents' condition in the status of a policy object.
pub(crate) const ACCEPTED_CONDITION: &str = "AmbitAccepted";

/// What the API shows on this node's pods and on all policies. Cheap to clone; empty where the source is a folder.
#[derive(Clone, Debug, Default)]
pub(crate) struct ObservedStatus {
    /// Pods of this node that bear [`STATE_ANNOTATION`].
    pub(crate) pods: Arc<BTreeMap<ObjectName, PodState>>,
    /// Policies whose status does not say what the agents make of them, and what it should say.
    pub(crate) policies: Arc<BTreeMap<Key, PolicyStatus>>,
}

/// How a pod stands by its own annotation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodState {
    /// The pod's `metadata.uid`.
    pub(crate) uid: Arc<str>,
    /// The value of [`STATE_ANNOTATION`].
    pub(crate) state: Arc<str>,
}

/// What the status of a policy should say.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PolicyStatus {
    /// `metadata.generation` of what was judged.
    pub(crate) generation: Option<i64>,
    /// `metadata.resourceVersion` of what was judged: a write must not go over a newer one.
    pub(crate) version: String,
    /// The condition's status: whether the object is in force, be it not in every part.
    pub(crate) accepted: bool,
    /// The condition's reason: `Accepted`, `Invalid` or `UnsupportedValue`, as in the conditions of the Gateway API.
    pub(crate) reason: &'static str,
    /// The condition's message.
    pub(crate) message: String,
    /// The conditions of others, which a write must not take away.
    pub(crate) others: Vec<Value>,
}

/// What was observed on one object.
#[derive(Debug)]
pub(super) enum Observation {
    /// A pod of this node bears the annotation.
    Pod(PodState),
    /// A policy's status is to be written.
    Policy(PolicyStatus),
}

impl ObservedStatus {
    /// The object shows this now.
    pub(super) fn set(&mut self, key: &Key, observation: Option<Observation>) {
        match observation {
            Some(Observation::Pod(state)) => {
                Arc::make_mut(&mut self.pods).insert(key.name.clone(), state);
            }
            Some(Observation::Policy(status)) => {
                Arc::make_mut(&mut self.policies).insert(key.clone(), status);
            }
            None => self.forget(key),
        }
    }

    /// The object is gone, or shows nothing.
    pub(super) fn forget(&mut self, key: &Key) {
        if key.kind == Kind::Pod && self.pods.contains_key(&key.name) {
            Arc::make_mut(&mut self.pods).remove(&key.name);
        }
        if self.policies.contains_key(key) {
            Arc::make_mut(&mut self.policies).remove(key);
        }
    }

    /// Of that kind there are only these objects.
    pub(super) fn retain(&mut self, kind: Kind, present: &HashSet<ObjectName>) {
        if kind == Kind::Pod {
            Arc::make_mut(&mut self.pods).retain(|name, _| present.contains(name));
        }
        Arc::make_mut(&mut self.policies).retain(|key, _| key.kind != kind || present.contains(&key.name));
    }
}
