//! Which workloads a change of policy may concern, so that only those are compiled and judged again.

use std::{collections::BTreeMap, sync::Arc};

use super::PeerAuthentication;
use crate::model::{Labels, Workload};

/// The workloads that one or more changed policies may concern.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Every workload of the mesh.
    mesh: bool,
    /// By namespace: the selectors that matter there; an empty one is the whole namespace.
    namespaces: BTreeMap<Arc<str>, Vec<Labels>>,
    /// The selectors that matter in every namespace.
    anywhere: Vec<Labels>,
}

impl Reach {
    /// All workloads.
    pub(super) fn mesh() -> Self {
        Self { mesh: true, ..Self::default() }
    }

    /// Whether no workload is concerned.
    pub fn is_empty(&self) -> bool {
        !self.mesh && self.namespaces.is_empty() && self.anywhere.is_empty()
    }

    /// Whether `workload` may be concerned.
    pub fn covers(&self, workload: &Workload) -> bool {
        let selects =
            |selector: &Labels| selector.iter().all(|(key, value)| workload.labels.get(key) == Some(value));
        self.mesh
            || self
                .namespaces
                .get(&workload.name.namespace)
                .is_some_and(|selectors| selectors.iter().any(selects))
            || self.anywhere.iter().any(selects)
    }

    /// Takes in another change.
    pub fn merge(&mut self, other: Self) {
        self.mesh |= other.mesh;
        for (namespace, selectors) in other.namespaces {
            self.namespaces.entry(namespace).or_default().extend(selectors);
        }
        self.anywhere.extend(other.anywhere);
    }

    /// Takes in the pods of a namespace that a selector selects.
    pub(super) fn select(&mut self, namespace: &Arc<str>, selector: &Labels) {
        self.namespaces.entry(Arc::clone(namespace)).or_default().push(selector.clone());
    }

    /// The same, where the root namespace speaks for all namespaces.
    pub(super) fn select_from(&mut self, root_namespace: &str, namespace: &Arc<str>, selector: &Labels) {
        if **namespace != *root_namespace {
            self.select(namespace, selector);
        } else if selector.is_empty() {
            self.mesh = true;
        } else {
            self.anywhere.push(selector.clone());
        }
    }

    /// Takes in what `policy` may concern: in the root namespace an object without a selector speaks for the mesh, and
    /// one with a selector for nobody.
    pub(super) fn extend(&mut self, root_namespace: &str, policy: &PeerAuthentication) {
        if *policy.name.namespace != *root_namespace {
            let selectors = self.namespaces.entry(Arc::clone(&policy.name.namespace)).or_default();
            selectors.push(policy.selector.clone());
        } else if policy.selector.is_empty() {
            self.mesh = true;
        }
    }
}
