//! The condition `AmbitAccepted` in the status of policies that are not taken in full, by server-side apply, and an event that
//! says the same.
//!
//! Every agent sees the same; each waits for a time of its own before it writes, so that mostly one does and the others
//! see it done. Whoever has written the condition makes the event.

use std::time::{Duration, SystemTime};

use ambit_core::model::ObjectName;
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    core::{ApiResource, DynamicObject},
};
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::time::Instant;

use super::{MANAGER, Outcome, note::Note, pace::Pace, send};
use crate::discovery::{ACCEPTED_CONDITION, Key, PolicyStatus, WantedStatuses};

/// The longest that an agent waits before it writes what another may write.
const SPREAD: Duration = Duration::from_secs(10);
/// Conditions written at one look.
const AT_A_TIME: usize = 5;

/// Keeps the conditions.
pub(super) struct PolicyStatusWriter {
    client: Client,
    node: String,
    /// By object and the version judged.
    pace: Pace<(Key, String)>,
}

impl PolicyStatusWriter {
    pub(super) fn new(client: Client, node: &str) -> Self {
        Self { client, node: node.to_owned(), pace: Pace::new("the status of policies") }
    }

    /// Writes what has been wanted for as long as this agent waits.
    pub(super) async fn write(&mut self, wanted: &WantedStatuses, now: Instant) {
        self.pace.retain(|(key, version)| wanted.get(key).is_some_and(|status| status.version == *version));
        let mut written = 0;
        for (key, status) in wanted.iter() {
            let subject = (key.clone(), status.version.clone());
            if !self.pace.due(&subject, SPREAD.mul_f64(rand::random()), now) {
                continue;
            }
            let resource = key.kind.api_resource();
            let api: Api<DynamicObject> =
                Api::namespaced_with(self.client.clone(), &key.name.namespace, &resource);
            let patch = Patch::Apply(patch(&resource, &key.name, status, SystemTime::now()));
            let params = PatchParams::apply(MANAGER).force();
            let outcome = send("policy status", api.patch_status(&key.name.name, &params, &patch)).await;
            self.pace.done(&subject, &outcome, now);
            if outcome == Outcome::Written && status.is_worth_an_event() {
                // The condition stands there in any case.
                let _: Outcome = self.tell(&resource, &key.name, status).await;
            }
            written += 1;
            if written == AT_A_TIME || matches!(outcome, Outcome::Failed(_)) {
                return;
            }
        }
    }
}

impl PolicyStatusWriter {
    async fn tell(&self, resource: &ApiResource, name: &ObjectName, status: &PolicyStatus) -> Outcome {
        let effect =
            if status.accepted { "in force, but not as it stands" } else { "not in force as it stands" };
        let note = Note {
            kind: (&resource.api_version, &resource.kind),
            name,
            uid: &status.uid,
            action: "Enforce",
            warning: true,
            reason: status.reason,
            text: format!("{effect}: {}", status.message),
        };
        let now = Timestamp::now();
        note.create(&self.client, &self.node, &format!("{:x}", now.as_nanosecond()), now).await
    }
}

fn patch(resource: &ApiResource, name: &ObjectName, status: &PolicyStatus, now: SystemTime) -> Value {
    let mut condition = json!({
        "type": ACCEPTED_CONDITION,
        "status": if status.accepted { "True" } else { "False" },
        "reason": status.reason,
        "message": status.message,
        "lastTransitionTime": OffsetDateTime::from(now).replace_nanosecond(0).ok().and_then(|now| now.format(&Rfc3339).ok()),
    });
    if let Some(generation) = status.generation {
        condition["observedGeneration"] = generation.into();
    }
    // The list may be one that is replaced as a whole: the conditions of others go with it.
    let conditions: Vec<Value> = status.others.iter().cloned().chain([condition]).collect();
    json!({
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": {"name": &*name.name, "namespace": &*name.namespace, "resourceVersion": status.version},
        "status": {"conditions": conditions},
    })
}
