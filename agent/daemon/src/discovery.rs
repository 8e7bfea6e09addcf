//! Feeds: the outside world's objects become one snapshot of mesh and policies.
//!
//! Promises that a snapshot is read without a lock, that a bad object is reported and changes nothing, and that a
//! source that fails never ends the feed. What to do with the state is left to others.

mod changes;
mod clusters;
mod folder;
mod followers;
mod judged;
mod kinds;
mod kubernetes;
mod ledger;
mod offline;
mod origin;
mod wanted;

use std::{
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ambit_core::{
    discovery::{Mesh, Settings},
    model::Workload,
    policy::{PolicySet, WorkloadPolicy},
};
use arc_swap::ArcSwap;
use kube::Client;
use tokio::{sync::watch, task::JoinSet};

pub(crate) use changes::Changes;
pub(crate) use clusters::{ClusterStatus, RemoteClusters};
pub(crate) use judged::judge_policies;
pub(crate) use kinds::{ClusterLocal, Key};
pub(crate) use offline::{Reading, read_manifests};
pub(crate) use origin::Origin;
pub(crate) use wanted::{ACCEPTED_CONDITION, PolicyStatus, WantedStatuses};

use changes::Readers;
use clusters::Clusters;
pub(crate) use folder::documents::Syntax;
use folder::{documents, manifest};
use followers::Followers;
use ledger::{Ledger, News};

/// The state of the sources at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct World {
    /// Workloads, services and endpoints in force.
    pub(crate) mesh: Mesh,
    /// Policies in force.
    pub(crate) policies: PolicySet,
    /// What is wrong with the source, in the order of its origins.
    pub(crate) problems: Vec<Problem>,
    /// The first complete state has been read. Until then nothing may be decided by this world.
    pub(crate) synced: bool,
}

/// Something wrong in a source, as an operator needs it to put it right. Displays as one line.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Problem {
    /// Where it is.
    pub(crate) origin: Origin,
    /// Kind and name of the object, as in `PeerAuthentication shop/default`.
    pub(crate) object: Option<String>,
    /// The field, as in `spec.mtls.mode`.
    pub(crate) field: Option<String>,
    /// What is wrong, and what is done about it where that is not plain.
    pub(crate) message: String,
    /// The object can be read all the same: this is only worth knowing.
    pub(crate) notice: bool,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.origin)?;
        for part in [&self.object, &self.field].into_iter().flatten() {
            write!(f, "{part}: ")?;
        }
        f.write_str(&self.message)
    }
}

/// What becomes of policies whose definition is removed from the cluster.
#[derive(Clone, Debug, Default)]
pub(crate) struct PolicyHold {
    /// How long they stay in force, and how long a definition that was never seen is waited for. Zero takes the API's word.
    pub(crate) time: Duration,
    /// Where they are kept over a restart of the agent; a folder that only this user can write to.
    pub(crate) folder: Option<PathBuf>,
}

/// Why a feed cannot start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiscoveryError {
    /// The folder is missing, no folder, or not ours to read.
    #[error("cannot read the manifest folder {}", .folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// No thread to watch with.
    #[error("cannot start watching {}", .folder.display())]
    Thread {
        /// The folder.
        folder: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// What a folder with one file makes of that file's versions, one after another, as many problems as each; then of its removal.
/// For those who look for texts that break it.
pub(crate) fn read_versions(versions: &[&[u8]], syntax: Syntax) -> Vec<usize> {
    let (settings, file) = (Settings::default(), Origin::file(Path::new("manifest")));
    let mut ledger = Ledger::new(settings.clone());
    ledger.complete();
    let mut problems = |change: &dyn Fn(&mut Ledger)| {
        change(&mut ledger);
        ledger.settle();
        ledger.world().problems.len()
    };
    let read = |version: &&[u8]| {
        problems(&|ledger| manifest::take(ledger, &file, documents::read(version, syntax), &settings))
    };
    let mut counts: Vec<usize> = versions.iter().map(read).collect();
    counts.push(problems(&|ledger| ledger.forget(&file)));
    counts
}

/// A handle to the present state. The source is watched as long as one handle exists.
#[derive(Clone, Debug)]
pub(crate) struct Feed {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// What the source fills and the world is settled from; readers have no part in it.
    ledger: Mutex<Ledger>,
    world: ArcSwap<World>,
    wanted: Mutex<WantedStatuses>,
    /// Locked while a world is published: who begins to follow misses none.
    audience: Mutex<Audience>,
    revision: watch::Sender<u64>,
    /// The other clusters that are read.
    clusters: watch::Sender<Clusters>,
    /// Ended with the last handle.
    tasks: Mutex<JoinSet<()>>,
}

/// Those who are told what differs in a new world.
#[derive(Debug, Default)]
struct Audience {
    followers: Followers,
    readers: Readers,
}

impl Feed {
    /// The present state; takes no lock.
    pub(crate) fn world(&self) -> Arc<World> {
        self.shared.world.load_full()
    }

    /// A number that grows with every new state, published after the state itself.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.shared.revision.subscribe()
    }

    /// What the policies make of `workload`, now and whenever it becomes something else. Nothing comes while the pod is gone
    /// or out of the mesh; it keeps the verdicts it had.
    pub(crate) fn follow_policy(&self, workload: &Workload) -> watch::Receiver<Arc<WorkloadPolicy>> {
        self.shared.audience().followers.follow(&self.world(), workload)
    }

    /// Begins to follow the pods of `node` and the captured destinations of all.
    pub(crate) fn changes(&self, node: &str) -> Changes {
        self.shared.audience().readers.join(self.clone(), node)
    }

    /// Addresses that this node's CNI gave to the pod of that `metadata.uid`, in force when this returns. They count while
    /// the pod's object has none, and are forgotten when it gets its own or goes; where no object comes, after two minutes.
    pub(crate) fn assign_addresses(&self, uid: &str, ips: &[IpAddr]) {
        self.shared.update(|ledger| ledger.assign_addresses(uid, ips, Instant::now()));
    }

    /// The policies whose status does not say what the agents make of them, and what it should say. A change of it makes no
    /// new revision.
    pub(crate) fn wanted_statuses(&self) -> WantedStatuses {
        self.shared.wanted().clone()
    }

    /// Returns when the first complete state has been read.
    pub(crate) async fn synced(&self) {
        let mut revisions = self.subscribe();
        // The sender lives as long as this handle.
        while !self.world().synced && revisions.changed().await.is_ok() {}
    }

    /// How the other clusters stand that are read, by name.
    pub(crate) fn clusters(&self) -> Vec<ClusterStatus> {
        let mut all: Vec<ClusterStatus> = self.shared.clusters.borrow().statuses().collect();
        // Neither lock within the other.
        let ledger = self.shared.ledger();
        all.iter_mut().for_each(|cluster| cluster.objects = ledger.objects_of(&cluster.name));
        all
    }

    /// Returns when some other cluster stands otherwise than when this was called.
    pub(crate) async fn clusters_changed(&self) {
        // The sender lives as long as this handle.
        let _ = self.shared.clusters.subscribe().changed().await;
    }

    fn new(settings: Settings) -> Self {
        let ledger = Ledger::new(settings);
        let world = ArcSwap::from_pointee(ledger.world());
        let shared = Shared {
            ledger: Mutex::new(ledger),
            world,
            wanted: Mutex::default(),
            audience: Mutex::default(),
            revision: watch::Sender::new(1),
            clusters: watch::Sender::default(),
            tasks: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }
}

impl Shared {
    /// Changes the ledger, and publishes the world that follows if it is another one.
    fn update<R>(&self, change: impl FnOnce(&mut Ledger) -> R) -> R {
        let mut ledger = self.ledger();
        let result = change(&mut ledger);
        // Under the lock, or an older world could be published last.
        if let Some(world) = ledger.settle() {
            let News { delta, reach } = ledger.news();
            let mut audience = self.audience();
            let before = self.world.swap(Arc::new(world));
            let world = self.world.load();
            audience.followers.publish(&world, &delta, &reach);
            if before.synced {
                audience.readers.publish(&delta);
            } else if world.synced {
                audience.readers.begin();
            }
            self.revision.send_modify(|revision| *revision += 1);
        }
        result
    }

    /// Ends the tasks when the last handle is gone.
    fn keep(&self, tasks: JoinSet<()>) {
        *self.tasks.lock().unwrap_or_else(PoisonError::into_inner) = tasks;
    }

    fn wanted(&self) -> MutexGuard<'_, WantedStatuses> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn audience(&self) -> MutexGuard<'_, Audience> {
        self.audience.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the manifests in `dir` and goes on watching them. The first state is complete when this returns; what is wrong
/// with single files is in [`World::problems`]. Changes are in force well within a second.
///
/// Takes `*.yaml`, `*.yml` and `*.json` in the folder itself, as `kubectl get -o yaml` prints them; hidden files are left
/// alone. Fails only if the folder cannot be read at all.
pub(crate) fn watch_folder(dir: &Path, settings: Settings) -> Result<Feed, DiscoveryError> {
    folder::watch(dir, settings)
}

/// Watches the objects of the cluster that `client` leads to. Returns at once; the feed is not synced before everything has
/// been read. Changes are in force well within a second, and what is known stays in force while the API is away, of policies
/// also without their definition, for as long as `hold` says. The pods and endpoints of other clusters are read beside them where
/// `remotes` says. Must be called in a tokio runtime.
pub(crate) fn watch_cluster(
    client: &Client,
    settings: Settings,
    hold: PolicyHold,
    remotes: Option<RemoteClusters>,
) -> Feed {
    kubernetes::watch(client, settings, hold, remotes)
}

/// Has `feed` know the zone of `node`, the agent's own, for as long as it lives. Must be called in a tokio runtime.
pub(crate) fn follow_node(feed: &Feed, client: &Client, node: &str) {
    let task = kubernetes::follow_node(client.clone(), Arc::downgrade(&feed.shared), node.to_owned());
    feed.shared.tasks.lock().unwrap_or_else(PoisonError::into_inner).spawn(task);
}
