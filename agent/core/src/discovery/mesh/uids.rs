//! Pods by their UIDs, which no two should share: what tells pods apart elsewhere is made unique here.

use std::sync::Arc;

use super::{Mesh, Names, change, withdraw};
use crate::{
    discovery::{Delta, Pod},
    model::{ObjectName, Workload},
};

impl Mesh {
    /// The pod with that `metadata.uid`; `None` where several bear it.
    pub fn pod_by_uid(&self, uid: &str) -> Option<&Arc<Workload>> {
        let names = self.by_uid.get(uid).filter(|names| names.size() == 1)?;
        self.pod(names.first()?)
    }

    /// The UIDs that more than one pod bears, and those pods.
    pub fn shared_uids(&self) -> impl Iterator<Item = (&Arc<str>, impl Iterator<Item = &ObjectName>)> {
        self.shared_uids.iter().filter_map(|uid| Some((uid, self.by_uid.get(uid)?.iter())))
    }

    /// What tells the pod from every other: its UID, with its name where others bear that too.
    pub(super) fn unique_uid(&self, pod: &Pod) -> Arc<str> {
        if self.shared_uids.contains(&pod.uid) {
            format!("{}/{}", pod.name, pod.uid).into()
        } else {
            Arc::clone(&pod.uid)
        }
    }

    /// The pod of that name bears another UID than before.
    pub(super) fn claim_uid(
        &mut self,
        name: &ObjectName,
        before: Option<&Arc<str>>,
        after: Option<&Arc<str>>,
    ) {
        if let Some(before) = before {
            withdraw(&mut self.by_uid, before, Names::is_empty, |names| {
                names.remove_mut(name);
            });
        }
        if let Some(after) = after {
            change(&mut self.by_uid, after, |names| names.insert_mut(name.clone()));
        }
        for uid in before.into_iter().chain(after) {
            if self.by_uid.get(uid).is_some_and(|names| names.size() > 1) {
                self.shared_uids.insert_mut(Arc::clone(uid));
            } else {
                self.shared_uids.remove_mut(uid);
            }
        }
    }

    /// Another pod bears this UID from now on, or does not any more.
    pub(super) fn reconsider_uid(&mut self, uid: &Arc<str>, delta: &mut Delta) {
        let names: Vec<_> = self.by_uid.get(uid).into_iter().flat_map(Names::iter).cloned().collect();
        for name in names {
            let Some(record) = self.pods.get(&name) else { continue };
            if record.workload.uid != self.unique_uid(&record.pod) {
                let pod = Arc::clone(&record.pod);
                self.put_pod(&name, Some(pod), delta);
            }
        }
    }
}

#[cfg(test)]
mod tests;
