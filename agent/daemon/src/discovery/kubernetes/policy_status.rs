//! What the status of a PeerAuthentication should say, if it does not say so already.

use ambit_core::policy::Mode;
use serde_json::Value;

use crate::discovery::{
    manifest::{Manifest, Object},
    said::{ACCEPTED_CONDITION, PolicyStatus},
};

/// Compares what was made of an object with what its status says. An object that is taken in full needs no words, unless
/// other ones were said of an earlier state of it.
///
/// Messages are not compared: agents of two versions would overwrite each other's for ever.
pub(super) fn unsaid(value: &Value, manifest: &Manifest) -> Option<PolicyStatus> {
    let (accepted, reason, message) = verdict(manifest);
    let metadata = value.get("metadata")?;
    let generation = metadata.get("generation").and_then(Value::as_i64);
    let conditions = value.pointer("/status/conditions").and_then(Value::as_array);
    let ours = |condition: &&Value| condition.get("type").and_then(Value::as_str) == Some(ACCEPTED_CONDITION);
    let said = conditions.and_then(|conditions| conditions.iter().find(ours));
    let is_said = match said {
        None => reason == "Accepted",
        Some(said) => {
            let text = |field: &str| said.get(field).and_then(Value::as_str);
            let status = if accepted { "True" } else { "False" };
            let same = text("status") == Some(status) && text("reason") == Some(reason);
            let current = said.get("observedGeneration").and_then(Value::as_i64) == generation;
            same && (current || reason == "Accepted")
        }
    };
    (!is_said).then(|| PolicyStatus {
        generation,
        version: metadata.get("resourceVersion").and_then(Value::as_str).unwrap_or_default().to_owned(),
        accepted,
        reason,
        message,
        others: conditions.into_iter().flatten().filter(|condition| !ours(condition)).cloned().collect(),
    })
}

fn verdict(manifest: &Manifest) -> (bool, &'static str, String) {
    let complaint = manifest.complaints.first().map(|(_, error)| match &error.field {
        Some(field) => format!("{field}: {}", error.message),
        None => error.message.clone(),
    });
    let Some(Object::PeerAuthentication(policy)) =
        manifest.entries.first().and_then(|entry| entry.object.as_ref())
    else {
        return (false, "Invalid", complaint.unwrap_or_else(|| "cannot be read".to_owned()));
    };
    // A selector without labels is pointed out as well, but has its full effect.
    if let Some(notice) = complaint.filter(|_| !policy.selector.is_empty()) {
        return (true, "UnsupportedValue", notice);
    }
    if policy.mode == Some(Mode::Disable) || policy.port_modes.values().any(|mode| *mode == Mode::Disable) {
        let message =
            "DISABLE has the effect of PERMISSIVE: mutual TLS from the mesh is accepted beside plaintext";
        return (true, "UnsupportedValue", message.to_owned());
    }
    (true, "Accepted", "in force".to_owned())
}
