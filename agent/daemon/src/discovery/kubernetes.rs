//! The Kubernetes API as a source: a watch for each resource, all feeding one ledger.
//!
//! Promises that the world is not called synced before every resource was read to its end, that a burst of changes makes
//! few worlds, and that what was known stays in force while the API is away, or the definition of a policy.

mod definition;
mod health;
mod last_known;
mod memory;
mod object;
mod own_node;
mod policy_status;
mod remotes;
mod resource_watch;
mod secrets;

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use ambit_core::{discovery::Settings, model::ObjectName};
use kube::Client;
use serde_json::Value;
use tokio::{sync::Notify, task::JoinSet, time::sleep};
use tracing::info;

use super::{
    ClusterLocal, Feed, PolicyHold, RemoteClusters, Shared,
    kinds::{Entry, FieldError, Kind, Origins, Row},
    ledger::Ledger,
    wanted::WantedStatuses,
};
pub(super) use own_node::follow as follow_node;

use health::Health;
use resource_watch::ResourceWatch;

/// How long changes are gathered before a world is made of them.
const GATHER: Duration = Duration::from_millis(50);

/// Starts to watch; returns at once, with a feed that is not synced yet. Must be called in a tokio runtime.
pub(super) fn watch(
    client: &Client,
    settings: Settings,
    hold: PolicyHold,
    remotes: Option<RemoteClusters>,
) -> Feed {
    let feed = Feed::new(settings.clone());
    let hub = Arc::new(Hub {
        shared: Arc::downgrade(&feed.shared),
        settings,
        hold,
        unread: AtomicUsize::new(watched().count() + usize::from(remotes.is_some())),
        changed: Arc::new(Notify::new()),
        health: Health::default(),
        member: None,
    });
    let mut tasks = JoinSet::new();
    for row in watched() {
        tasks.spawn(ResourceWatch::new(row, client.clone(), hub.clone()).run());
    }
    tasks.spawn(publish(hub.clone()));
    tasks.spawn(secrets::follow(client.clone(), hub.clone()));
    if let Some(remotes) = remotes {
        tasks.spawn(remotes::wait_a_while(hub.clone()));
        tasks.spawn(memory::keep(hub.shared.clone(), memory::Memory::new(remotes.folder.clone())));
        tasks.spawn(remotes::follow(client.clone(), hub, remotes));
    }
    feed.shared.keep(tasks);
    feed
}

/// The kinds of which everything is watched.
fn watched() -> impl Iterator<Item = &'static Row> {
    Kind::rows().iter().filter(|row| row.origins == Origins::All)
}

/// Settles the ledger some time after it has changed.
async fn publish(hub: Arc<Hub>) {
    loop {
        hub.changed.notified().await;
        sleep(GATHER).await;
        let Some(shared) = hub.shared.upgrade() else { return };
        // Until the first complete state there is nothing to make a world of but problems.
        shared.update(|_| ());
    }
}

/// What the watches of one cluster share.
struct Hub {
    shared: Weak<Shared>,
    settings: Settings,
    hold: PolicyHold,
    /// Resources that have not been read to their end yet.
    unread: AtomicUsize,
    changed: Arc<Notify>,
    health: Health,
    /// The cluster that is read, if it is not our own.
    member: Option<Member>,
}

/// Another cluster.
struct Member {
    cluster: Arc<str>,
    local: ClusterLocal,
}

impl Hub {
    /// Writes into the ledger; a world follows soon.
    fn write(&self, change: impl FnOnce(&mut Ledger)) {
        if let Some(shared) = self.shared.upgrade() {
            change(&mut shared.ledger());
            self.changed.notify_one();
        }
    }

    /// Takes note of what the status of policies should say; no world follows.
    fn observe(&self, change: impl FnOnce(&mut WantedStatuses)) {
        if let Some(shared) = self.shared.upgrade() {
            change(&mut shared.wanted());
        }
    }

    fn cluster(&self) -> Option<&Arc<str>> {
        self.member.as_ref().map(|member| &member.cluster)
    }

    /// The name under which an object of this cluster is kept.
    fn name(&self, name: ObjectName) -> ObjectName {
        match self.cluster() {
            Some(cluster) => name.in_cluster(cluster),
            None => name,
        }
    }

    /// What an object of this cluster says.
    fn read(&self, kind: Kind, object: &Value) -> Result<Entry, FieldError> {
        let entry = Entry::read(kind, object, &self.settings)?;
        Ok(match &self.member {
            Some(Member { cluster, local }) => entry.in_cluster(cluster, local),
            None => entry,
        })
    }

    /// The API of another cluster has answered.
    fn answered(&self) {
        if let (Some(cluster), Some(shared)) = (self.cluster(), self.shared.upgrade()) {
            shared.clusters.send_modify(|clusters| clusters.answered(cluster));
        }
    }

    /// One more resource has been read to its end.
    fn read_one(&self) {
        if self.unread.fetch_sub(1, Ordering::AcqRel) == 1
            && let Some(shared) = self.shared.upgrade()
        {
            if let Some(cluster) = self.cluster() {
                info!(%cluster, "the objects of another cluster have been read");
                // Its objects are in force before anybody relies on it.
                shared.update(|ledger| ledger.set_unread(cluster, None));
                return shared.clusters.send_modify(|clusters| clusters.read(cluster));
            }
            shared.update(Ledger::complete);
            info!(problems = shared.world.load().problems.len(), "the cluster's objects have been read");
        }
    }
}

#[cfg(test)]
mod tests;
