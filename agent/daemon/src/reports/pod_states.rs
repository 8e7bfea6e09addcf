//! The annotation `ambit.dev/state` on this node's pods: `enrolled`, `pending`, or none for a pod outside the mesh.
//!
//! Written through `pods/status`, which the API server lets change a pod's annotations but nothing that it runs.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use ambit_core::model::ObjectName;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::time::Instant;

use super::{MANAGER, Outcome, PodReport, pace::Pace, send};
use crate::discovery::{PodState, STATE_ANNOTATION};

/// Annotations written at one look.
const AT_A_TIME: usize = 20;

const ENROLLED: &str = "enrolled";
const PENDING: &str = "pending";

/// Keeps the annotations.
pub(super) struct PodStateWriter {
    client: Client,
    /// By UID and the state to be written.
    pace: Pace<(Arc<str>, Option<&'static str>)>,
}

impl PodStateWriter {
    pub(super) fn new(client: Client) -> Self {
        Self { client, pace: Pace::new("the annotation ambit.dev/state") }
    }

    /// Writes what differs; the UIDs of the pods that were annotated as enrolled just now.
    pub(super) async fn write(
        &mut self,
        observed: &BTreeMap<ObjectName, PodState>,
        pods: &[PodReport],
        now: Instant,
    ) -> Vec<Arc<str>> {
        let mut differ = differences(observed, pods);
        self.pace
            .retain(|(uid, state)| differ.iter().any(|change| change.uid == *uid && change.state == *state));
        differ.retain(|change| self.pace.due(&change.subject(), Duration::ZERO, now));
        let mut enrolled = Vec::new();
        for change in differ.into_iter().take(AT_A_TIME) {
            let patch = json!({
                // Of a pod of the same name that has taken its place the API server refuses it.
                "metadata": {"uid": &*change.uid, "annotations": {STATE_ANNOTATION: change.state}}
            });
            let api: Api<Pod> = Api::namespaced(self.client.clone(), &change.name.namespace);
            let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..Default::default() };
            let patch = Patch::Merge(patch);
            let outcome = send("pod annotation", api.patch_status(&change.name.name, &params, &patch)).await;
            if outcome == Outcome::Written && change.state == Some(ENROLLED) {
                enrolled.push(change.uid.clone());
            }
            let failed = matches!(outcome, Outcome::Failed(_));
            self.pace.done(&change.subject(), &outcome, now);
            if failed {
                // The others would most likely fail as well, each after its time.
                break;
            }
        }
        enrolled
    }
}

/// A pod whose annotation is not as it should be.
#[derive(Debug, PartialEq, Eq)]
struct Change {
    name: ObjectName,
    uid: Arc<str>,
    /// None to take it away.
    state: Option<&'static str>,
}

impl Change {
    fn subject(&self) -> (Arc<str>, Option<&'static str>) {
        (self.uid.clone(), self.state)
    }
}

fn differences(observed: &BTreeMap<ObjectName, PodState>, pods: &[PodReport]) -> Vec<Change> {
    let mut annotated: HashMap<&str, &str> = observed.values().map(|pod| (&*pod.uid, &*pod.state)).collect();
    let mut changes = Vec::new();
    for pod in pods {
        let state = if pod.problem.is_none() { ENROLLED } else { PENDING };
        if annotated.remove(&*pod.uid) != Some(state) {
            changes.push(Change { name: pod.name.clone(), uid: pod.uid.clone(), state: Some(state) });
        }
    }
    let left = observed.iter().filter(|(_, pod)| annotated.contains_key(&*pod.uid));
    changes.extend(left.map(|(name, pod)| Change { name: name.clone(), uid: pod.uid.clone(), state: None }));
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_written() {
        let annotated = |uid: &str, state: &str| PodState { uid: uid.into(), state: state.into() };
        let name = |name: &str| ObjectName::new("shop", name);
        let observed = BTreeMap::from([
            (name("same"), annotated("1", "enrolled")),
            (name("worse"), annotated("2", "enrolled")),
            (name("left"), annotated("3", "enrolled")),
            (name("replaced"), annotated("4", "pending")),
        ]);
        let report = |pod: &str, uid: &str, problem: Option<&str>| PodReport {
            name: name(pod),
            uid: uid.into(),
            identity: "spiffe://td/ns/shop/sa/web".parse().unwrap(),
            problem: problem.map(str::to_owned),
        };
        let pods = [
            report("same", "1", None),
            report("worse", "2", Some("no")),
            report("replaced", "5", Some("no")),
            report("new", "6", None),
        ];
        let changes: Vec<_> = differences(&observed, &pods)
            .into_iter()
            .map(|change| (change.uid.to_string(), change.state))
            .collect();
        let expected =
            [("2", Some(PENDING)), ("5", Some(PENDING)), ("6", Some(ENROLLED)), ("3", None), ("4", None)];
        assert_eq!(changes, expected.map(|(uid, state)| (uid.to_owned(), state)));
    }
}
