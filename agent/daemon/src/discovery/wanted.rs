//! What the status of policy objects should say, where it does not say so already: only what differs has to be written.
//!
//! Apart from the world: the agents' own writing comes back here and changes nothing that is decided by.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use ambit_core::model::ObjectName;
use serde_json::Value;

use super::kinds::{Key, Kind};

/// The type of the agents' condition in the status of a policy object.
pub(crate) const ACCEPTED_CONDITION: &str = "AmbitAccepted";

/// Policies whose status does not say what the agents make of them, and what it should say. Cheap to clone; empty where the
/// source is a folder.
#[derive(Clone, Debug, Default)]
pub(crate) struct WantedStatuses(Arc<BTreeMap<Key, PolicyStatus>>);

/// What the status of a policy should say.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PolicyStatus {
    /// `metadata.generation` of what was judged.
    pub(crate) generation: Option<i64>,
    /// `metadata.uid`.
    pub(crate) uid: String,
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

impl PolicyStatus {
    /// Whether whoever made the object should hear of it: it is not taken as it stands.
    pub(crate) fn is_worth_an_event(&self) -> bool {
        self.reason != "Accepted"
    }
}

impl WantedStatuses {
    /// The one of an object.
    pub(crate) fn get(&self, key: &Key) -> Option<&PolicyStatus> {
        self.0.get(key)
    }

    /// All, in a steady order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Key, &PolicyStatus)> {
        self.0.iter()
    }

    /// The object's status should say this now; none if it says what it should.
    pub(super) fn set(&mut self, key: &Key, status: Option<PolicyStatus>) {
        match status {
            Some(status) => {
                Arc::make_mut(&mut self.0).insert(key.clone(), status);
            }
            None => self.forget(key),
        }
    }

    /// The object is gone, or says what it should.
    pub(super) fn forget(&mut self, key: &Key) {
        if self.0.contains_key(key) {
            Arc::make_mut(&mut self.0).remove(key);
        }
    }

    /// Of that kind there are only these objects.
    pub(super) fn retain(&mut self, kind: Kind, present: &HashSet<ObjectName>) {
        Arc::make_mut(&mut self.0).retain(|key, _| key.kind != kind || present.contains(&key.name));
    }
}
