//! Keeps the pods of this node as the world says: enrolled, released, with their identities and listeners.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use ambit_core::model::{SpiffeId, Workload};
use arc_swap::ArcSwap;
use tokio::{
    sync::{mpsc, watch},
    task::{AbortHandle, JoinSet},
    time::{Instant, MissedTickBehavior, interval, sleep},
};

use super::locations::{FoundBy, Location, Locations};
use crate::{
    capture::{Capture, CaptureError, PodNet, PodSpec},
    discovery::{Feed, World},
    identity::{IdentityState, KeyStore, Root, roots},
    instance::{Gate, Readiness, Takeover},
    proxy::Proxy,
    telemetry::Telemetry,
    tunnel::Wallet,
};

/// How often what has failed is tried again, and what may have changed unseen is looked at.
const TICK: Duration = Duration::from_secs(1);
/// How often an agent that is to take over looks whether it has all it needs.
const PREPARE: Duration = Duration::from_millis(100);
/// How long such an agent waits for pods and certificates that do not come while others do.
const PATIENCE: Duration = Duration::from_secs(30);

/// How a pod of this node stands, for `ambit status`.
#[derive(Clone, Debug)]
pub(super) struct PodStatus {
    pub(super) workload: Arc<Workload>,
    /// Its network namespace's cookie once it is enrolled, else why it is not.
    pub(super) state: Result<u64, String>,
    /// How its network namespace was found, once it is.
    pub(super) found_by: Option<FoundBy>,
    pub(super) counters: ambit_ebpf_common::Counters,
}

/// The pods of this node as of the last look; read without a lock.
pub(super) type Pods = Arc<ArcSwap<Vec<PodStatus>>>;

/// The node's desired and actual state.
pub(super) struct Node {
    pub(super) name: String,
    pub(super) capture: Capture,
    pub(super) locations: Locations,
    pub(super) feed: Feed,
    pub(super) keys: KeyStore,
    pub(super) wallet: Wallet,
    pub(super) proxy: Proxy,
    pub(super) telemetry: Telemetry,
    pub(super) pods: Pods,
    /// Grows with every look, after `pods`.
    pub(super) rounds: watch::Sender<u64>,
    pub(super) enrolled: HashMap<Arc<str>, Enrolled>,
    pub(super) readiness: Readiness,
    /// Held while a certificate is about to end, or has, without being renewed.
    pub(super) certificates_late: Option<Gate>,
    pub(super) expiries: Expiries,
    pub(super) serving: JoinSet<()>,
    /// The first round over the pods is done.
    pub(super) settled: bool,
    /// The world whose addresses are captured.
    pub(super) led_by: Option<Arc<World>>,
}

/// What telemetry was last told of, to take back what is gone.
#[derive(Default)]
pub(super) struct Expiries {
    identities: HashSet<SpiffeId>,
    roots: HashSet<String>,
}

/// One enrolled pod.
pub(super) struct Enrolled {
    spec: PodSpec,
    net: Arc<PodNet>,
    tasks: Vec<AbortHandle>,
}

impl Enrolled {
    /// A network namespace is one pod's: two would speak with each other's identities.
    fn is_in_the_way_of(&self, spec: &PodSpec) -> bool {
        self.spec.uid != spec.uid && self.spec.netns == spec.netns
    }
}

/// A pod as it should be.
struct Desired {
    workload: Arc<Workload>,
    /// Where its namespace is, or why that is not known.
    location: Result<Location, String>,
}

impl Desired {
    fn spec(&self, location: &Location) -> PodSpec {
        let ips = &self.workload.ips;
        PodSpec {
            uid: self.workload.uid.clone(),
            netns: location.netns.clone(),
            v4: ips.iter().find_map(|ip| match ip {
                IpAddr::V4(v4) => Some(*v4),
                IpAddr::V6(_) => None,
            }),
            v6: ips.iter().find_map(|ip| match ip {
                IpAddr::V4(_) => None,
                IpAddr::V6(v6) => Some(*v6),
            }),
        }
    }
}

/// Why the node's pods are no longer this process's affair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// The sources of the world have ended.
    Sources,
    /// Another agent has taken over.
    Superseded,
}

impl Node {
    /// Follows the world until another agent takes over. `synced` is called after the first round.
    pub(super) async fn run(
        &mut self,
        synced: impl FnOnce(),
        mut takeovers: mpsc::Receiver<Takeover>,
    ) -> Left {
        let mut revisions = self.feed.subscribe();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut synced = Some(synced);
        let attachments = self.locations.attachments();
        loop {
            let world = self.feed.world();
            if world.synced {
                self.reconcile(&world).await;
                if let Some(synced) = synced.take() {
                    synced();
                }
            }
            tokio::select! {
                _ = tick.tick() => {}
                changed = revisions.changed() => if changed.is_err() { return Left::Sources },
                () = attachments.changed() => {}
                Some(takeover) = takeovers.recv() => {
                    tracing::info!("another agent takes over");
                    if takeover.grant().await {
                        return Left::Superseded;
                    }
                    self.take_back();
                }
            }
            while self.serving.try_join_next().is_some() {}
        }
    }

    /// Gets everything that is needed to serve the node's pods while another agent still does: their certificates, and
    /// listeners in their network namespaces.
    pub(super) async fn prepare(&mut self) {
        let mut revisions = self.feed.subscribe();
        let started = Instant::now();
        let mut told = false;
        loop {
            let world = self.feed.world();
            if world.synced {
                // What is lacking for a reason of its own is tried again, and told of, once this agent serves.
                let desired = self.desired(&world).await;
                self.keys.retain(desired.values().map(|pod| pod.workload.identity.clone()));
                let mut staged = 0;
                for pod in desired.values() {
                    let done = match &pod.location {
                        Ok(location) => {
                            let spec = pod.spec(location);
                            self.capture.stage(&spec).await.map_err(|error| error.to_string())
                        }
                        Err(unknown) => Err(unknown.clone()),
                    };
                    match done {
                        Ok(()) => staged += 1,
                        Err(error) => tracing::debug!(pod = %pod.workload.name, error, "not yet prepared"),
                    }
                }
                let patient = started.elapsed() < PATIENCE;
                if enough(staged, desired.len(), patient) && self.has_certificates(patient) {
                    return;
                }
                if !patient && !told {
                    told = true;
                    tracing::error!(
                        staged,
                        pods = desired.len(),
                        "no pod, or no certificate, can be had; the agent that serves this node goes on"
                    );
                }
            }
            tokio::select! {
                () = sleep(PREPARE) => {}
                // Without sources there is nothing to wait for.
                changed = revisions.changed() => if changed.is_err() { return },
            }
        }
    }

    fn has_certificates(&self, patient: bool) -> bool {
        let identities = self.keys.status();
        let valid = identities.iter().filter(|identity| identity.state == IdentityState::Valid).count();
        enough(valid, identities.len(), patient)
    }

    /// Leads the node's pods here; the agent that served them has paused.
    pub(super) async fn take_over(&mut self) {
        let world = self.feed.world();
        self.reconcile(&world).await;
    }

    /// The node's name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Leads the node's pods back here: the agent that was to take over has failed.
    pub(super) fn take_back(&mut self) {
        match self.capture.take_back() {
            Ok(()) => tracing::warn!("the other agent has not taken over; this one goes on"),
            Err(error) => tracing::error!(%error, "the other agent has not taken over; pods may be cut off"),
        }
    }

    async fn reconcile(&mut self, world: &Arc<World>) {
        let first = !self.settled;
        let mut failures = HashMap::new();
        let desired = self.desired(world).await;
        self.keys.retain(desired.values().map(|pod| pod.workload.identity.clone()));
        if first {
            self.sweep(world).await;
        }
        if !self.led_by.as_ref().is_some_and(|before| Arc::ptr_eq(before, world)) {
            match self.capture.set_destinations(world.mesh.captured_destinations().collect()) {
                Ok(()) => self.led_by = Some(world.clone()),
                Err(error) => tracing::error!(%error, "the list of meshed destinations could not be updated"),
            }
        }
        let gone: Vec<Arc<str>> =
            self.enrolled.keys().filter(|uid| !desired.contains_key(*uid)).cloned().collect();
        for uid in gone {
            self.release(&uid);
        }
        self.capture.tidy().await;
        for (uid, pod) in &desired {
            // A pod whose namespace is not to be found any more stays enrolled in the one that it had.
            let done = match &pod.location {
                Ok(location) => self.enroll(pod, location).await.map_err(|error| error.to_string()),
                Err(unknown) if self.enrolled.contains_key(uid) => {
                    tracing::debug!(pod = %pod.workload.name, unknown, "the pod stays where it was");
                    Ok(())
                }
                Err(unknown) => Err(unknown.clone()),
            };
            if let Err(error) = done {
                failures.insert(uid.clone(), (pod.workload.clone(), error));
            }
        }
        if first {
            match self.capture.settle() {
                Ok(()) => self.settled = true,
                Err(error) => tracing::error!(%error, "the programs cannot be attached"),
            }
        }
        let probes = desired.values().map(|pod| (&*pod.workload.uid, &*pod.workload.probe_ports));
        if let Err(error) = self.capture.set_probes(probes) {
            tracing::error!(%error, "the list of ports that the kubelet probes could not be updated");
        }
        self.publish(&desired, &failures);
        self.watch_expiries();
        let local: HashSet<&str> = desired.keys().map(|uid| &**uid).collect();
        self.proxy.sweep(|uid| local.contains(uid));
        self.wallet.retain(|id| desired.values().any(|pod| pod.workload.identity == *id));
    }

    /// The pods that should be enrolled here.
    async fn desired(&mut self, world: &World) -> HashMap<Arc<str>, Desired> {
        let here: Vec<_> = world.mesh.pods_on(&self.name).cloned().collect();
        self.locations.look(&here).await;
        let wanted = here.into_iter().filter(|pod| pod.enrolled);
        wanted
            .map(|workload| {
                let location = self.locations.of(&workload);
                (workload.uid.clone(), Desired { workload, location })
            })
            .collect()
    }

    /// Pods that opt in keep what an earlier agent left for them, be it that their address or namespace is not yet known
    /// to this one: they stay closed until it is.
    async fn sweep(&self, world: &World) {
        let here = world.mesh.pods_on(&self.name);
        let opted_in = here.filter(|pod| world.mesh.opts_in(&pod.name) == Some(true));
        let released = self.capture.sweep(&opted_in.map(|pod| pod.uid.clone()).collect()).await;
        if released > 0 {
            tracing::info!(released, "pods that left the mesh while no agent ran were released");
        }
    }

    async fn enroll(&mut self, pod: &Desired, location: &Location) -> Result<(), CaptureError> {
        let spec = pod.spec(location);
        if self.enrolled.get(&spec.uid).is_some_and(|enrolled| enrolled.spec == spec) {
            return Ok(());
        }
        if let Some(other) = self.enrolled.values().find(|other| other.is_in_the_way_of(&spec)) {
            return Err(CaptureError::Shared {
                netns: spec.netns.path().to_owned(),
                uid: other.spec.uid.clone(),
            });
        }
        let net = self.capture.enroll(&spec).await?;
        let policy = self.feed.follow_policy(&pod.workload);
        let tasks = (0..net.listeners())
            .map(|listener| {
                let (proxy, net, policy) = (self.proxy.clone(), net.clone(), policy.clone());
                self.serving.spawn(async move { proxy.serve(net, listener, policy).await })
            })
            .collect();
        tracing::info!(
            pod = %pod.workload.name,
            identity = %pod.workload.identity,
            netns = %spec.netns.path().display(),
            found_by = location.found_by.as_str(),
            "pod enrolled"
        );
        if let Some(old) = self.enrolled.insert(spec.uid.clone(), Enrolled { spec, net, tasks }) {
            old.tasks.iter().for_each(AbortHandle::abort);
        }
        Ok(())
    }

    fn release(&mut self, uid: &str) {
        if let Some(enrolled) = self.enrolled.remove(uid) {
            self.capture.release(uid);
            enrolled.tasks.iter().for_each(AbortHandle::abort);
            tracing::info!(%uid, netns = %enrolled.spec.netns.path().display(), "pod released");
        }
    }

    fn publish(
        &self,
        desired: &HashMap<Arc<str>, Desired>,
        failures: &HashMap<Arc<str>, (Arc<Workload>, String)>,
    ) {
        let before = self.pods.load();
        let known = |workload: &Workload, text: &str| {
            before.iter().any(|pod| {
                pod.workload.uid == workload.uid && pod.state.as_ref().err().is_some_and(|old| old == text)
            })
        };
        let failed = failures.values().map(|(workload, text)| {
            if !known(workload, text) {
                tracing::warn!(pod = %workload.name, error = %text, "pod cannot be enrolled; trying again every second");
            }
            PodStatus {
                workload: workload.clone(),
                state: Err(text.clone()),
                found_by: None,
                counters: Default::default(),
            }
        });
        let enrolled = desired.values().filter_map(|pod| {
            let uid = &pod.workload.uid;
            let enrolled = self.enrolled.get(uid)?;
            (!failures.contains_key(uid)).then(|| PodStatus {
                workload: pod.workload.clone(),
                state: Ok(enrolled.net.cookie()),
                found_by: pod.location.as_ref().ok().map(|location| location.found_by),
                counters: self.capture.counters(uid),
            })
        });
        let mut pods: Vec<PodStatus> = failed.chain(enrolled).collect();
        pods.sort_by(|a, b| a.workload.name.cmp(&b.workload.name));
        self.telemetry.probes(pods.iter().map(|pod| (&pod.workload.name, pod.counters.probes)));
        self.telemetry.enrolled_pods(pods.iter().filter(|pod| pod.state.is_ok()).count());
        self.pods.store(Arc::new(pods));
        self.rounds.send_modify(|round| *round += 1);
    }

    /// Metrics and readiness of certificates and roots.
    fn watch_expiries(&mut self) {
        let identities = self.keys.status();
        let counts = self.keys.counts();
        self.telemetry.renewals(counts.issued, counts.failed, counts.skewed);
        let late = identities.iter().filter(|identity| identity.late).count();
        self.telemetry.late_certificates(late);
        match (late, &self.certificates_late) {
            (0, Some(_)) => self.certificates_late = None,
            (1.., None) => {
                tracing::error!(
                    late,
                    "certificates are past 90 % of their life and not renewed; see ambit certs"
                );
                self.certificates_late = Some(self.readiness.gate("certificates"));
            }
            _ => {}
        }
        let roots: HashMap<String, Root> =
            roots(&identities).into_iter().map(|root| (root.fingerprint.clone(), root)).collect();
        for gone in self.expiries.roots.iter().filter(|root| !roots.contains_key(*root)) {
            self.telemetry.root(gone, None);
        }
        for root in roots.values() {
            self.telemetry.root(&root.fingerprint, Some(root.not_after));
        }
        let held: HashSet<SpiffeId> = identities.iter().map(|identity| identity.id.clone()).collect();
        for gone in self.expiries.identities.difference(&held) {
            self.telemetry.certificate(gone, None);
        }
        for identity in &identities {
            self.telemetry.certificate(&identity.id, identity.not_after);
        }
        self.expiries = Expiries { identities: held, roots: roots.into_keys().collect() };
    }
}

/// Whether an agent that serves can be relieved with `found` of `wanted`: with all of them, after a while with some. With
/// none something is wrong here, and the agent that serves is better off.
fn enough(found: usize, wanted: usize, patient: bool) -> bool {
    found >= wanted || (found > 0 && !patient)
}
