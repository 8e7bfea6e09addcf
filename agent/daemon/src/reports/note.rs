//! One event, and how it is created. What is there is never changed: the agent has no right to.

use ambit_core::model::ObjectName;
use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};

use super::{Outcome, send};

/// The API server takes no longer notes, bytes.
const MAX_NOTE: usize = 1_024;
/// So much of an object's name goes into that of an event, which has 253 characters at most.
const MAX_NAME: usize = 200;

const CONTROLLER: &str = "ambit.dev/agent";

/// What is to be told of an object.
pub(super) struct Note<'a> {
    /// Its `apiVersion` and `kind`.
    pub(super) kind: (&'a str, &'a str),
    pub(super) name: &'a ObjectName,
    pub(super) uid: &'a str,
    /// What the agent was about to do.
    pub(super) action: &'static str,
    pub(super) warning: bool,
    pub(super) reason: &'static str,
    pub(super) text: String,
}

impl Note<'_> {
    /// Creates the event under a name that ends in `suffix`.
    pub(super) async fn create(self, client: &Client, node: &str, suffix: &str, now: Timestamp) -> Outcome {
        let name = &self.name.name;
        let beginning = name[..name.floor_char_boundary(MAX_NAME)].trim_end_matches(['.', '-']);
        let mut text = self.text;
        text.truncate(text.floor_char_boundary(MAX_NOTE));
        let (api_version, kind) = self.kind;
        let event = Event {
            metadata: ObjectMeta {
                name: Some(format!("{beginning}.ambit-{suffix}")),
                namespace: Some(self.name.namespace.to_string()),
                ..Default::default()
            },
            action: Some(self.action.to_owned()),
            event_time: Some(MicroTime(now)),
            note: Some(text),
            reason: Some(self.reason.to_owned()),
            regarding: Some(ObjectReference {
                api_version: Some(api_version.to_owned()),
                kind: Some(kind.to_owned()),
                name: Some(name.to_string()),
                namespace: Some(self.name.namespace.to_string()),
                uid: Some(self.uid.to_owned()),
                ..Default::default()
            }),
            reporting_controller: Some(CONTROLLER.to_owned()),
            reporting_instance: Some(node.to_owned()),
            type_: Some(if self.warning { "Warning" } else { "Normal" }.to_owned()),
            ..Default::default()
        };
        let events: Api<Event> = Api::namespaced(client.clone(), &self.name.namespace);
        send("event", events.create(&PostParams::default(), &event)).await
    }
}
