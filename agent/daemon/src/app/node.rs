//! Keeps the pods of this node as the world says: enrolled, released, with their identities and listeners.
//!
//! Promises that a change costs the pods that it touches, and that what has failed is tried again. What is compared as a whole
//! is what another agent may have left: at the start, when this one takes over and when it takes back.

mod deputies;
mod desired;
mod enrolment;
mod expiry;
mod fullness;
mod publication;

use std::{collections::HashSet, sync::Arc, time::Duration};

use ambit_core::discovery::Delta;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval, sleep},
};

pub(super) use publication::{PodStatus, Pods};

use self::{
    deputies::Deputies, desired::DesiredPods, enrolment::Enrolment, expiry::ExpiryWatch,
    fullness::FullnessWatch, publication::Publication,
};
use super::locations::Locations;
use crate::{
    capture::Capture,
    discovery::{Changes, Feed, World},
    identity::{IdentityState, KeyStore},
    instance::{Readiness, Takeover},
    jwt::Tokens,
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

/// What a node is made of.
pub(super) struct Rooms {
    pub(super) name: String,
    pub(super) capture: Capture,
    pub(super) locations: Locations,
    pub(super) feed: Feed,
    pub(super) keys: KeyStore,
    pub(super) wallet: Wallet,
    pub(super) proxy: Proxy,
    pub(super) telemetry: Telemetry,
    pub(super) readiness: Readiness,
    /// Where it is published how pods stand.
    pub(super) pods: Pods,
    /// Grows with every publication.
    pub(super) rounds: watch::Sender<u64>,
    pub(super) tokens: Tokens,
}

/// The node's desired and actual state.
pub(super) struct Node {
    name: String,
    changes: Changes,
    desired: DesiredPods,
    deputies: Deputies,
    enrolment: Enrolment,
    keys: KeyStore,
    wallet: Wallet,
    proxy: Proxy,
    publication: Publication,
    expiry: ExpiryWatch,
    fullness: FullnessWatch,
    readiness: Readiness,
    telemetry: Telemetry,
    tokens: Tokens,
    /// The first round over the pods is done.
    settled: bool,
}

/// Why the node's pods are no longer this process's affair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// Another agent has taken over.
    Superseded,
}

/// What a round is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Round {
    /// All pods, and what is counted.
    Tick,
    /// All pods: some have got a network namespace.
    Attached,
    /// What differs in the world.
    Changes,
    /// What differs in the world, and the kubelet is somewhere else.
    Kubelet,
}

impl Node {
    pub(super) fn new(rooms: Rooms) -> Self {
        let Rooms {
            name,
            capture,
            locations,
            feed,
            keys,
            wallet,
            proxy,
            telemetry,
            readiness,
            pods,
            rounds,
            tokens,
        } = rooms;
        Self {
            changes: feed.changes(&name),
            desired: DesiredPods::new(name.clone(), locations),
            name,
            deputies: Deputies::default(),
            enrolment: Enrolment::new(capture, proxy.clone(), feed, readiness.clone()),
            publication: Publication::new(pods, rounds, telemetry.clone()),
            expiry: ExpiryWatch::new(keys.clone(), telemetry.clone(), readiness.clone()),
            fullness: FullnessWatch::new(telemetry.clone(), readiness.clone()),
            readiness,
            telemetry,
            keys,
            wallet,
            proxy,
            tokens,
            settled: false,
        }
    }

    /// Follows the world until another agent takes over. `synced` is called after the first round.
    pub(super) async fn run(
        &mut self,
        synced: impl FnOnce(),
        mut takeovers: mpsc::Receiver<Takeover>,
    ) -> Left {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut synced = Some(synced);
        let attachments = self.desired.attachments();
        let mut kubelet = self.enrolment.kubelet();
        let mut next = Round::Tick;
        loop {
            let (world, delta) = self.changes.take();
            if world.synced {
                self.round(next, &world, &delta).await;
                if let Some(synced) = synced.take_if(|_| self.settled) {
                    synced();
                }
            }
            if next == Round::Tick {
                self.telemetry.pending(&self.readiness.pending());
            }
            next = tokio::select! {
                _ = tick.tick() => Round::Tick,
                () = self.changes.changed() => Round::Changes,
                () = attachments.changed() => Round::Attached,
                // An error means that it is not followed, which is so at the end only.
                Ok(()) = kubelet.changed() => Round::Kubelet,
                Some(takeover) = takeovers.recv() => {
                    tracing::info!("another agent takes over");
                    if takeover.grant().await {
                        return Left::Superseded;
                    }
                    self.take_back();
                    Round::Tick
                }
            };
        }
    }

    /// Gets everything that is needed to serve the node's pods while another agent still does: their certificates, listeners in
    /// their network namespaces, and the keys of the issuers whose tokens they take.
    pub(super) async fn prepare(&mut self) {
        let started = Instant::now();
        let mut told = false;
        loop {
            let (world, _) = self.changes.take();
            if world.synced {
                // What is lacking for a reason of its own is tried again, and told of, once this agent serves.
                self.desired.look_at_all(&world).await;
                self.keys.retain(self.desired.identities());
                let mut staged = 0;
                for (_, pod) in self.desired.iter() {
                    match self.enrolment.stage(pod).await {
                        Ok(()) => staged += 1,
                        Err(error) => tracing::debug!(pod = %pod.workload.name, error, "not yet prepared"),
                    }
                }
                let patient = started.elapsed() < PATIENCE;
                let keys_asked = !patient || self.tokens.settled();
                if enough(staged, self.desired.len(), patient) && self.has_certificates(patient) && keys_asked
                {
                    return;
                }
                if !patient && !told {
                    told = true;
                    tracing::error!(
                        staged,
                        pods = self.desired.len(),
                        "no pod, or no certificate, can be had; the agent that serves this node goes on"
                    );
                }
            }
            tokio::select! {
                () = sleep(PREPARE) => {}
                () = self.changes.changed() => {}
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
        let (world, delta) = self.changes.take();
        self.round(Round::Tick, &world, &delta).await;
    }

    /// The node's name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Leads the node's pods back here: the agent that was to take over has failed.
    pub(super) fn take_back(&mut self) {
        match self.enrolment.take_back() {
            Ok(()) => tracing::warn!("the other agent has not taken over; this one goes on"),
            Err(error) => tracing::error!(%error, "the other agent has not taken over; pods may be cut off"),
        }
    }

    /// Takes the last of released pods off, whatever they still carry.
    pub(super) async fn end(&mut self) {
        self.enrolment.end().await;
    }

    /// Brings the node up to date with a world, of which `delta` says what differs from the one before.
    async fn round(&mut self, round: Round, world: &World, delta: &Delta) {
        if !self.settled {
            return self.first_round(world).await;
        }
        if round == Round::Kubelet {
            self.enrolment.follow_kubelet();
        }
        self.enrolment.change_destinations(delta);
        if matches!(round, Round::Changes | Round::Kubelet) {
            if delta.reconsiders_pods() {
                self.enrolment.capture_everything(&self.desired, world);
            }
            if delta.pods().next().is_some() {
                let changed = self.desired.follow(delta).await;
                self.keep_pods(world, Some(&changed)).await;
                self.publication.publish(&self.enrolment, &self.desired);
            }
            self.fullness.look(&self.enrolment);
            return;
        }
        self.desired.look_at_all(world).await;
        self.keep_pods(world, None).await;
        self.publish(round == Round::Tick);
    }

    /// Takes over what earlier agents left.
    async fn first_round(&mut self, world: &World) {
        self.desired.look_at_all(world).await;
        self.sweep(world).await;
        self.enrolment.set_destinations(world);
        self.keep_pods(world, None).await;
        self.settled = self.enrolment.settle();
        self.publish(true);
    }

    /// Pods that opt in keep what an earlier agent left for them, be it that their address or namespace is not yet known
    /// to this one: they stay closed until it is.
    async fn sweep(&self, world: &World) {
        let here = world.mesh.pods_on(&self.name);
        let opted_in = here.filter(|pod| world.mesh.opts_in(&pod.name) == Some(true));
        self.enrolment.sweep(&opted_in.map(|pod| pod.uid.clone()).collect()).await;
    }

    /// Enrols and releases pods, those that have `changed` (UIDs) or all, with all that hangs on them.
    async fn keep_pods(&mut self, world: &World, changed: Option<&HashSet<Arc<str>>>) {
        // First: what was let through so far may be another pod's asking from now on.
        self.deputies.look(&world.mesh, &self.name, std::time::Instant::now());
        self.enrolment.set_probes(&self.desired, &mut self.deputies);
        let identities = self.desired.identities();
        self.keys.retain(identities.iter().cloned());
        self.enrolment.capture_everything(&self.desired, world);
        // A pod that leaves may have been in the way of another.
        let released = self.enrolment.release_others(&self.desired);
        self.enrolment.tidy().await;
        for (uid, pod) in self.desired.iter_mut() {
            let again = released && pod.failure.is_some();
            if again || changed.is_none_or(|changed| changed.contains(uid)) {
                let done = self.enrolment.enroll(pod).await;
                pod.tried(done.err());
            }
        }
        self.enrolment.set_probes(&self.desired, &mut self.deputies);
        self.proxy.sweep(|uid| self.desired.contains(uid));
        self.wallet.retain(|id| identities.contains(id));
    }

    fn publish(&mut self, count: bool) {
        if count {
            self.publication.count(&self.enrolment, &self.desired);
            self.expiry.look();
        }
        self.fullness.look(&self.enrolment);
        self.publication.publish(&self.enrolment, &self.desired);
    }
}

/// Whether an agent that serves can be relieved with `found` of `wanted`: with all of them, after a while with some. With
/// none something is wrong here, and the agent that serves is better off.
fn enough(found: usize, wanted: usize, patient: bool) -> bool {
    found >= wanted || (found > 0 && !patient)
}
