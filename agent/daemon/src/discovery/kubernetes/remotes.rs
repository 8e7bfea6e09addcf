//! Other clusters, by the kubeconfigs in the labelled Secrets of one namespace, as Istio has them.
//!
//! Promises that a Secret that changes takes nothing away before its cluster has been read anew, that one that cannot be used changes
//! nothing, and that no cluster is waited for without end. What is read of a cluster is who runs where and what leads there: never
//! policies, which are those of the cluster of the pod that they protect.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    pin::pin,
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use ambit_core::{
    discovery::{Prefix, Settings},
    model::{ObjectName, TrustDomain},
};
use data_encoding::BASE64;
use kube::{
    Api, Client, Config,
    runtime::watcher::{self, Event, watcher},
};
use serde_json::Value;
use tokio::{
    task::{JoinSet, spawn_blocking},
    time::{sleep, timeout},
};
use tokio_stream::StreamExt;
use tracing::info;

use super::{
    Health, Hub, Member,
    memory::{Memory, Remembered},
    object::ApiObject,
    resource_watch::ResourceWatch,
};
use crate::{
    cluster::{self, watch_sentence},
    discovery::{
        Origin, RemoteClusters,
        clusters::Clusters,
        kinds::{Kind, Row, network},
    },
    error::with_causes,
};

/// The label of such Secrets.
const SELECTOR: &str = "istio/multiCluster=true";
/// The annotation of the Secret that says in which trust domain the identities of its clusters are; else they are in our own.
const TRUST_DOMAIN: &str = "ambit.dev/trust-domain";
/// The annotation that says in which networks the pods of its clusters are, with commas between.
const POD_NETWORKS: &str = "ambit.dev/pod-networks";
/// What is read of another cluster.
const KINDS: [Kind; 3] = [Kind::Namespace, Kind::Pod, Kind::EndpointSlice];
/// Clusters that are read.
pub(super) const MAX_CLUSTERS: usize = 32;
/// Networks of pods that a Secret names.
const MAX_NETWORKS: usize = 64;
/// The longest kubeconfig, in bytes.
const MAX_KUBECONFIG: usize = 256 * 1024;
/// How long the first complete state waits for other clusters.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same for those that have answered, and are being read.
const PATIENCE_WHILE_READING: Duration = Duration::from_secs(60);
/// How long a watch of the Secrets that has failed waits before the next.
const WAIT: Duration = Duration::from_secs(5);
/// How long the server keeps a watch, seconds.
const WATCH_SECONDS: u32 = 120;

/// The rows of what is read of another cluster.
pub(super) fn watched() -> impl Iterator<Item = &'static Row> {
    KINDS.into_iter().map(Kind::row)
}

/// Lets the first complete state come about once other clusters have been read too, or have had their time.
pub(super) async fn wait_a_while(hub: Arc<Hub>) {
    let Some(mut clusters) = hub.shared.upgrade().map(|shared| shared.clusters.subscribe()) else { return };
    // The sender is gone only at the end.
    let _ = clusters.wait_for(|clusters| clusters.recalled).await;
    // One that takes longer joins later.
    if timeout(PATIENCE, clusters.wait_for(Clusters::are_read)).await.is_err() {
        let left = PATIENCE_WHILE_READING - PATIENCE;
        let _ = timeout(left, clusters.wait_for(Clusters::are_read_or_silent)).await;
    }
    drop(clusters);
    hub.read_one();
}

/// Follows the Secrets and the clusters that they name, for ever.
pub(super) async fn follow(client: Client, hub: Arc<Hub>, sought: RemoteClusters) {
    let api: Api<ApiObject> = Api::namespaced_with(client, &sought.namespace, &Kind::Secret.api_resource());
    let config = watcher::Config {
        label_selector: Some(SELECTOR.to_owned()),
        timeout: Some(WATCH_SECONDS),
        initial_list_strategy: watcher::InitialListStrategy::default(),
        ..Default::default()
    };
    let mut events = pin!(watcher(api, config));
    let mut secrets: BTreeMap<ObjectName, Value> = BTreeMap::new();
    let mut met: Option<HashSet<ObjectName>> = None;
    let mut remotes = Remotes::new(hub.clone(), sought);
    remotes.recall().await;
    remotes.update(|clusters| clusters.recalled = true);
    let origin = Origin::Resource(Kind::Secret);
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => met = Some(HashSet::new()),
            Ok(Event::InitApply(secret)) => {
                met.get_or_insert_default().insert(secret.name());
                secrets.insert(secret.name(), secret.value);
            }
            Ok(Event::Apply(secret)) => {
                secrets.insert(secret.name(), secret.value);
            }
            Ok(Event::Delete(secret)) => {
                secrets.remove(&secret.name());
            }
            Ok(Event::InitDone) => {
                let met = met.take().unwrap_or_default();
                secrets.retain(|name, _| met.contains(name));
            }
            Err(error) => {
                let why = watch_sentence(&error);
                let text = format!(
                    "those of other clusters cannot be read: {why}; the agent's account needs get, list and watch on secrets in namespace {} \
                     (in the chart: multicluster.enabled). What was known before stays",
                    remotes.sought.namespace
                );
                hub.write(|ledger| ledger.set_source_problem(&origin, Some(text)));
                sleep(WAIT.mul_f64(rand::random_range(0.5..1.0))).await;
                continue;
            }
        }
        if met.is_none() {
            hub.write(|ledger| ledger.set_source_problem(&origin, None));
            remotes.bring_up_to_date(&secrets).await;
        }
    }
}

/// The clusters that are read.
struct Remotes {
    hub: Arc<Hub>,
    sought: RemoteClusters,
    memory: Memory,
    running: HashMap<Arc<str>, Running>,
}

struct Running {
    by: Wanted,
    /// Ended with this.
    watches: JoinSet<()>,
}

/// What a Secret says of one cluster.
#[derive(Clone, PartialEq, Eq)]
struct Wanted {
    secret: String,
    kubeconfig: Result<String, String>,
    trust_domain: TrustDomain,
    /// Where its pods are.
    networks: Vec<Prefix>,
}

impl Remotes {
    fn new(hub: Arc<Hub>, sought: RemoteClusters) -> Self {
        let memory = Memory::new(sought.folder.clone());
        Self { hub, sought, memory, running: HashMap::new() }
    }

    /// Brings into force what an earlier agent knew of clusters, until they have been read. Which of them are named still, the Secrets
    /// will say.
    async fn recall(&self) {
        let (memory, settings, local) =
            (self.memory.clone(), self.hub.settings.clone(), self.sought.local.clone());
        let recalled = spawn_blocking(move || memory.recall(&settings, &local)).await;
        // The pool refuses only while the runtime ends.
        let Ok((all, problems)) = recalled else { return };
        for Remembered { cluster, trust_domain, written, entries } in all {
            info!(%cluster, objects = entries.len(), "what was last known of another cluster is in force until it has been read");
            self.hub.write(|ledger| {
                for entry in entries {
                    ledger.take(&Origin::Object(entry.key.clone()), vec![entry], Vec::new());
                }
            });
            self.update(|clusters| clusters.remember(&cluster, &trust_domain, written));
        }
        self.hub.write(|ledger| {
            for (origin, problem) in problems {
                ledger.set_source_problem(&origin, Some(problem));
            }
        });
    }

    async fn bring_up_to_date(&mut self, secrets: &BTreeMap<ObjectName, Value>) {
        let (wanted, twice) = wanted(secrets, &self.sought.own_name, &self.hub.settings.trust_domain);
        let gone: Vec<Arc<str>> =
            self.known().into_iter().filter(|name| !wanted.contains_key(name)).collect();
        for name in gone {
            info!(cluster = %name, "its Secret is gone, and so are its objects");
            self.stop(&name).await;
            self.update(|clusters| clusters.remove(&name));
            self.hub.write(|ledger| {
                ledger.set_source_problem(&Origin::Cluster(Arc::clone(&name)), None);
                ledger.set_unread(&name, None);
                ledger.forget_cluster(&name);
            });
        }
        let (memory, named) = (self.memory.clone(), wanted.keys().cloned().collect::<HashSet<_>>());
        // The pool refuses only while the runtime ends.
        let forgotten = spawn_blocking(move || memory.retain(|name| named.contains(name))).await;
        self.hub.write(|ledger| {
            for name in forgotten.iter().flatten() {
                ledger.set_source_problem(&self.memory.origin(name), None);
            }
        });
        for (name, by) in wanted {
            if self.running.get(&name).is_none_or(|running| running.by != by) {
                self.read(&name, by).await;
                continue;
            }
            let mut was_refused = false;
            self.update(|clusters| was_refused = clusters.accept(&name));
            if was_refused {
                self.hub.write(|ledger| ledger.set_source_problem(&Origin::Cluster(name), None));
            }
        }
        let several = (!twice.is_empty()).then(|| twice.join("; "));
        let origin = Origin::Resource(Kind::Secret);
        self.hub.write(|ledger| ledger.set_source_problem(&origin, several));
        self.update(|clusters| clusters.listed = true);
    }

    /// Reads a cluster as its Secret says, from now on. If that cannot be used, all stays as it was.
    async fn read(&mut self, name: &Arc<str>, by: Wanted) {
        if !self.is_known(name) {
            self.hub.write(|ledger| ledger.set_unread(name, Some(by.networks.clone())));
        }
        let config = match &by.kubeconfig {
            Ok(text) => cluster::remote_config(text).await.map_err(|error| with_causes(&error)),
            Err(problem) => Err(problem.clone()),
        };
        let client = config.and_then(|config: Config| {
            let server = config.cluster_url.to_string();
            let client = cluster::client(config).map_err(|error| with_causes(&error))?;
            Ok((client, server))
        });
        let origin = Origin::Cluster(Arc::clone(name));
        let (client, server) = match client {
            Ok(ready) => ready,
            Err(problem) => {
                let text = format!(
                    "Secret {}: its kubeconfig cannot be used: {problem}; what was known of the cluster before stays",
                    by.secret
                );
                self.update(|clusters| clusters.refuse(name, &by.secret, &by.trust_domain, text.clone()));
                return self.hub.write(|ledger| ledger.set_source_problem(&origin, Some(text)));
            }
        };
        self.stop(name).await;
        info!(cluster = %name, secret = by.secret, server, "reading another cluster");
        self.update(|clusters| clusters.begin(name, &by.secret, server, by.trust_domain.clone()));
        self.hub.write(|ledger| ledger.set_source_problem(&origin, None));
        let hub = Arc::new(Hub {
            shared: self.hub.shared.clone(),
            settings: Settings { trust_domain: by.trust_domain.clone(), ..self.hub.settings.clone() },
            hold: self.hub.hold.clone(),
            unread: AtomicUsize::new(KINDS.len()),
            changed: Arc::clone(&self.hub.changed),
            health: Health::default(),
            member: Some(Member { cluster: Arc::clone(name), local: self.sought.local.clone() }),
        });
        let mut watches = JoinSet::new();
        for row in watched() {
            watches.spawn(ResourceWatch::new(row, client.clone(), hub.clone()).run());
        }
        self.running.insert(Arc::clone(name), Running { by, watches });
    }

    /// Ends the watches of a cluster, so that they write nothing more.
    async fn stop(&mut self, name: &str) {
        if let Some(mut running) = self.running.remove(name) {
            running.watches.shutdown().await;
        }
    }

    fn is_known(&self, name: &str) -> bool {
        self.hub.shared.upgrade().is_some_and(|shared| shared.clusters.borrow().is_known(name))
    }

    /// Those that are read, and those that cannot be.
    fn known(&self) -> Vec<Arc<str>> {
        let Some(shared) = self.hub.shared.upgrade() else { return Vec::new() };
        let clusters = shared.clusters.borrow();
        clusters.statuses().map(|status| status.name).collect()
    }

    fn update(&self, change: impl FnOnce(&mut Clusters)) {
        if let Some(shared) = self.hub.shared.upgrade() {
            shared.clusters.send_modify(change);
        }
    }
}

/// The clusters that Secrets name, and what is wrong with those names. Of two Secrets that name one, the first by name counts, and so
/// for every agent.
fn wanted(
    secrets: &BTreeMap<ObjectName, Value>,
    own: &str,
    own_trust_domain: &TrustDomain,
) -> (BTreeMap<Arc<str>, Wanted>, Vec<String>) {
    let (mut all, mut problems) = (BTreeMap::<Arc<str>, Wanted>::new(), Vec::new());
    for (secret, object) in secrets {
        let data = object.get("data").and_then(Value::as_object);
        // A Secret that names every cluster of the mesh may be applied to them all.
        for (name, value) in data.into_iter().flatten().filter(|(name, _)| *name != own) {
            if let Some(other) = all.get(&**name) {
                problems.push(format!(
                    "Secret {secret} names cluster {name}, as {} does, which counts",
                    other.secret
                ));
            } else if all.len() >= MAX_CLUSTERS {
                problems
                    .push(format!("Secret {secret}: more than {MAX_CLUSTERS} clusters; {name} is not read"));
            } else {
                let by = wanted_of(secret, object, value, own_trust_domain);
                all.insert(name.as_str().into(), by);
            }
        }
    }
    (all, problems)
}

fn wanted_of(secret: &ObjectName, object: &Value, value: &Value, own: &TrustDomain) -> Wanted {
    let stated = object.pointer("/metadata/annotations").and_then(|all| all.get(TRUST_DOMAIN)?.as_str());
    let trust_domain = stated.map_or_else(|| Ok(own.clone()), |text| text.trim().parse::<TrustDomain>());
    let stated = object.pointer("/metadata/annotations").and_then(|all| all.get(POD_NETWORKS)?.as_str());
    let networks = stated.map_or_else(|| Ok(Vec::new()), networks);
    let kubeconfig = match (&trust_domain, &networks) {
        (Ok(_), Ok(_)) => kubeconfig(value),
        (Err(error), _) => Err(format!("the annotation {TRUST_DOMAIN}: {error}")),
        (_, Err(error)) => Err(format!("the annotation {error}")),
    };
    Wanted {
        secret: secret.to_string(),
        kubeconfig,
        trust_domain: trust_domain.unwrap_or_else(|_| own.clone()),
        networks: networks.unwrap_or_default(),
    }
}

fn networks(text: &str) -> Result<Vec<Prefix>, String> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let networks: Vec<Prefix> = parts
        .map(|part| network(POD_NETWORKS, part))
        .collect::<Result<_, _>>()
        .map_err(|error| error.to_string())?;
    if networks.len() > MAX_NETWORKS {
        return Err(format!("{POD_NETWORKS}: more than {MAX_NETWORKS} networks"));
    }
    Ok(networks)
}

/// No word of it is ever said in a message.
fn kubeconfig(value: &Value) -> Result<String, String> {
    let bytes = value.as_str().and_then(|text| BASE64.decode(text.as_bytes()).ok());
    let bytes = bytes.ok_or("it is not base64")?;
    if bytes.len() > MAX_KUBECONFIG {
        return Err(format!("it is longer than {MAX_KUBECONFIG} bytes"));
    }
    String::from_utf8(bytes).map_err(|_| "it is not text".to_owned())
}

#[cfg(test)]
mod tests;
