//! What objects in the Kubernetes API say of the agents' work, so that only what differs has to be written.

use std::{collections::BTreeMap, sync::Arc};

use ambit_core::model::ObjectName;
use serde_json::Value;

/// The annotation of a pod that tells how it stands.
pub(crate) const STATE_ANNOTATION: &str = "ambit.dev/state";
/// The type of our condition in the status of a policy object.
pub(crate) const ACCEPTED_CONDITION: &str = "AmbitAccepted";

/// What the API has, of this node's pods and of all policies. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct ObservedStatus {
    /// Pods of this node that bear [`STATE_ANNOTATION`].
    pub(crate) pods: Arc<BTreeMap<ObjectName, PodState>>,
    /// PeerAuthentications whose status does not say what the agents make of them.
    pub(crate) policies: Arc<BTreeMap<ObjectName, PolicyStatus>>,
}

/// What a pod bears of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodState {
    /// The pod's `metadata.uid`.
    pub(crate) uid: Arc<str>,
    /// The value of [`STATE_ANNOTATION`].
    pub(crate) state: Arc<str>,
}

/// What the status of a PeerAuthentication should say.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PolicyStatus {
    /// `metadata.generation` of what was judged.
    pub(crate) generation: Option<i64>,
    /// `metadata.resourceVersion` of what was judged: a write must not go over a newer one.
    pub(crate) version: String,
    /// The condition's status: whether the object is in force, be it not in every part.
    pub(crate) accepted: bool,
    /// The condition's reason: `Accepted`, `Invalid` or `UnsupportedValue` (spec/policy.md §10).
    pub(crate) reason: &'static str,
    /// The condition's message.
    pub(crate) message: String,
    /// The conditions of others, which a write must not take away.
    pub(crate) others: Vec<Value>,
}
