//! The agent's own node, for its zone: the only node that the agent asks the API for.
//!
//! What was known stays while the API is away. Nothing waits for it: without a zone endpoints are chosen from all zones.

use std::{pin::pin, sync::Weak, time::Duration};

use ambit_core::{discovery::Settings, model::ObjectName};
use kube::{
    Api, Client,
    runtime::watcher::{self, Event, watcher},
};
use tokio::time::sleep;
use tokio_stream::StreamExt;

use super::object::ApiObject;
use crate::{
    cluster::watch_sentence,
    discovery::{
        Origin, Shared,
        kinds::{Entry, Key, Kind},
    },
};

/// How long a watch that has failed waits before the next.
const WAIT: Duration = Duration::from_secs(5);
/// How long the server keeps a watch, seconds.
const WATCH_SECONDS: u32 = 120;

/// Follows the node for ever.
pub(in crate::discovery) async fn follow(client: Client, shared: Weak<Shared>, node: String) {
    let api: Api<ApiObject> = Api::all_with(client, &Kind::Node.api_resource());
    let config = watcher::Config {
        field_selector: Some(format!("metadata.name={node}")),
        timeout: Some(WATCH_SECONDS),
        ..Default::default()
    };
    let key = Key { kind: Kind::Node, name: ObjectName::new("", &*node) };
    let origin = Origin::Object(key);
    let mut events = pin!(watcher(api, config));
    while let Some(event) = events.next().await {
        let Some(shared) = shared.upgrade() else { return };
        match event {
            Ok(Event::InitApply(object) | Event::Apply(object)) => {
                // Of a node only its name could be bad, and no setting changes how it is read.
                let Ok(entry) = Entry::read(Kind::Node, &object.value, &Settings::default()) else {
                    continue;
                };
                let mut ledger = shared.ledger();
                ledger.set_source_problem(&origin, None);
                ledger.take(&origin, vec![entry], Vec::new());
            }
            Ok(Event::Delete(_)) => shared.ledger().forget(&origin),
            Ok(Event::Init | Event::InitDone) => continue,
            Err(error) => {
                let why = watch_sentence(&error);
                let text = format!(
                    "Node {node}, on which this agent runs, cannot be read: {why}; its zone is not known, and endpoints are chosen \
                     from all zones. The agent's account needs list and watch on nodes in a ClusterRole"
                );
                shared.ledger().set_source_problem(&origin, Some(text));
                shared.update(|_| ());
                drop(shared);
                sleep(WAIT.mul_f64(rand::random_range(0.5..1.0))).await;
                continue;
            }
        }
        shared.update(|_| ());
    }
}
