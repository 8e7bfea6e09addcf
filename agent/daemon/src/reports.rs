//! What the agent tells by the Kubernetes API: how its pods stand, by events, and what became of policies.
//!
//! Promises that only what differs is written, that writing is bounded in rate and never holds anything else up, and that
//! agents of many nodes do not all write the same. Nothing that it writes is read by an agent to decide by. Decides nothing
//! itself: it is handed what is so.

mod events;
mod note;
mod pace;
mod policy_status;

use std::{sync::Arc, time::Duration};

use ambit_core::model::{ObjectName, SpiffeId};
use kube::Client;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tracing::debug;

use crate::discovery::Feed;
use events::Events;
use policy_status::PolicyStatusWriter;

/// How often the reports are compared with what the API shows.
const PERIOD: Duration = Duration::from_secs(1);
/// How long the API may take over one write.
const PATIENCE: Duration = Duration::from_secs(5);
/// The field manager of what we write.
const MANAGER: &str = "ambit";

/// A pod of this node that has opted in.
#[derive(Clone, Debug)]
pub(crate) struct PodReport {
    /// Its namespace and name.
    pub(crate) name: ObjectName,
    /// Its `metadata.uid`.
    pub(crate) uid: Arc<str>,
    /// The identity under which its traffic goes.
    pub(crate) identity: SpiffeId,
    /// What keeps it from talking, if something does.
    pub(crate) hindrance: Option<Hindrance>,
}

/// Why every connection of a pod is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Hindrance {
    /// It cannot be enrolled.
    Enrolment(String),
    /// Its identity has no valid certificate.
    Certificate(String),
}

impl Hindrance {
    /// The reason of the event that tells of it.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Enrolment(_) => "EnrolmentFailed",
            Self::Certificate(_) => "NoCertificate",
        }
    }
}

/// A text without what may differ from one attempt to the next: times, counts, numbers of processes.
pub(crate) fn without_numbers(text: &str) -> String {
    text.chars().filter(|c| !c.is_ascii_digit()).collect()
}

/// Reports for ever. `pods` gives this node's pods that have opted in, once that is known; until then nothing is written.
pub(crate) async fn run(client: Client, node: &str, feed: Feed, pods: impl Fn() -> Option<Vec<PodReport>>) {
    let mut events = Events::new(client.clone(), node);
    let mut statuses = PolicyStatusWriter::new(client, node);
    let mut tick = interval(PERIOD);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let world = feed.world();
        let Some(pods) = pods().filter(|_| world.synced) else { continue };
        let now = Instant::now();
        let opted_out = |name: &ObjectName, uid: &str| {
            let same = world.mesh.pod(name).is_some_and(|pod| &*pod.uid == uid);
            same && world.mesh.opts_in(name) == Some(false)
        };
        events.write(&pods, opted_out, now).await;
        statuses.write(&feed.wanted_statuses(), now).await;
    }
}

/// Sends one write, within bounds. What went wrong stands in the log for those who look; that reading fails is
/// reported by discovery.
async fn send<T>(what: &str, write: impl Future<Output = kube::Result<T>>) -> Outcome {
    match timeout(PATIENCE, write).await {
        Ok(Ok(_)) => Outcome::Written,
        Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => {
            debug!(what, status = status.code, "not written: the object is gone or has changed");
            Outcome::Moot
        }
        Ok(Err(error)) => {
            let error = crate::cluster::sentence(&error);
            debug!(what, error, "not written");
            Outcome::Failed(error)
        }
        Err(_) => {
            debug!(what, "not written: the API server did not answer in time");
            Outcome::Failed("the API server did not answer in time".to_owned())
        }
    }
}

/// What became of a write.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Written,
    /// The object it was meant for is gone, or has changed and will be looked at again.
    Moot,
    Failed(String),
}

#[cfg(test)]
mod tests;
