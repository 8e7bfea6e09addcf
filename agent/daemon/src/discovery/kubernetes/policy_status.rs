//! What the status of a policy should say, if it does not say so already.

use serde_json::Value;

use crate::discovery::{ACCEPTED_CONDITION, PolicyStatus, kinds::Entry};

/// What an object's metadata and status say, as far as the agents' condition goes.
#[derive(Debug)]
pub(super) struct CurrentStatus {
    generation: Option<i64>,
    uid: String,
    version: String,
    ours: Option<Condition>,
    others: Vec<Value>,
}

/// The agents' condition as it stands there.
#[derive(Debug)]
struct Condition {
    status: Option<String>,
    reason: Option<String>,
    generation: Option<i64>,
}

impl CurrentStatus {
    /// Reads what `object` says.
    pub(super) fn of(object: &Value) -> Self {
        let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
        let (ours, others): (Vec<_>, Vec<_>) = conditions
            .into_iter()
            .flatten()
            .partition(|condition| text(condition, "/type").as_deref() == Some(ACCEPTED_CONDITION));
        let ours = ours.first().map(|condition| Condition {
            status: text(condition, "/status"),
            reason: text(condition, "/reason"),
            generation: condition.get("observedGeneration").and_then(Value::as_i64),
        });
        Self {
            generation: object.pointer("/metadata/generation").and_then(Value::as_i64),
            uid: text(object, "/metadata/uid").unwrap_or_default(),
            version: text(object, "/metadata/resourceVersion").unwrap_or_default(),
            ours,
            others: others.into_iter().cloned().collect(),
        }
    }

    /// What it should say of what was made of the object; none if it says so. An object that is taken in full needs no
    /// condition, unless there is another one about an earlier state of it.
    ///
    /// Messages are not compared, or agents of two versions would overwrite each other's for ever.
    pub(super) fn wanted(self, entry: &Entry) -> Option<PolicyStatus> {
        let (accepted, reason, message) = judged(entry);
        let up_to_date = match &self.ours {
            None => reason == "Accepted",
            Some(ours) => {
                let status = if accepted { "True" } else { "False" };
                let same = ours.status.as_deref() == Some(status) && ours.reason.as_deref() == Some(reason);
                same && (ours.generation == self.generation || reason == "Accepted")
            }
        };
        (!up_to_date).then_some(PolicyStatus {
            generation: self.generation,
            uid: self.uid,
            version: self.version,
            accepted,
            reason,
            message,
            others: self.others,
        })
    }
}

fn text(value: &Value, pointer: &str) -> Option<String> {
    value.pointer(pointer)?.as_str().map(str::to_owned)
}

fn judged(entry: &Entry) -> (bool, &'static str, String) {
    if !entry.stated.is_good() {
        let problem = entry.problem.as_ref().map(ToString::to_string);
        return (false, "Invalid", problem.unwrap_or_else(|| "cannot be read".to_owned()));
    }
    match &entry.unsupported {
        Some(unsupported) => (!entry.idle, "UnsupportedValue", unsupported.clone()),
        None => (true, "Accepted", "in force".to_owned()),
    }
}
