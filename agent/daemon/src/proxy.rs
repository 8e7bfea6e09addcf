//! The two directions of a connection and the relay between their two ends. Asks discovery where to, policy whether, and
//! the tunnel for a session; knows no dialect, no TLS library and no maps.

mod admission;
mod attempts;
mod bundles;
mod busy;
mod choices;
mod describe;
mod dns;
mod egress;
mod external;
mod inbound;
mod join;
mod names;
mod neighbours;
mod order;
mod outbound;
mod pressure;
mod relay;
mod requests;
mod sessions;
mod settled;
mod waiting;

use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use ambit_core::{
    model::{PodAddr, SpiffeId},
    policy::{self, Decision, Facts, Outlook, WorkloadPolicy},
    reason::{Reason, Refusal},
};
use tokio::sync::watch;

pub(crate) use self::busy::BusyPoll;
use self::{
    admission::{Admission, Lane, Place},
    choices::Choices,
    egress::Egress,
    inbound::Arrival,
    neighbours::{Neighbour, Neighbours},
    order::{Arrivals, Numbers},
    pressure::Broken,
    settled::Settled,
};
pub(crate) use crate::tunnel::Bundling;
use crate::{
    authz::Providers,
    capture::{Accepted, Client, Dial, PodNet, QuerySocket},
    discovery::{Feed, World},
    dns::Responder,
    http::rehearse,
    instance::{Capacity, MemoryUse},
    jwt::Tokens,
    telemetry::{Connection, Direction, Ending, Meta, Telemetry},
    tunnel::{Ability, Budget, Bundles, LegError, Offload, Pool, PoolKey, Share, Wallet},
};

/// Both directions for all pods of the node. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Proxy(Arc<Shared>);

struct Shared {
    feed: Feed,
    wallet: Wallet,
    telemetry: Telemetry,
    providers: Providers,
    tokens: Tokens,
    trusted_proxies: usize,
    pool: Pool,
    bundles: Bundles,
    budget: Budget,
    admission: Admission,
    busy: Arc<BusyPoll>,
    neighbours: Arc<Neighbours<PodNet>>,
    egress: Egress,
    dns: Responder,
    memory: watch::Sender<pressure::State>,
    /// Tunnels are not kept for further streams any more.
    draining: watch::Sender<bool>,
    /// Tasks that carry connections and tunnels.
    active: AtomicUsize,
}

/// What requests are judged by beside policy.
#[derive(Default)]
pub(crate) struct Judges {
    /// External authorization.
    pub(crate) providers: Providers,
    /// Tokens of end users.
    pub(crate) tokens: Tokens,
    /// How many proxies in front of a client are believed about whose request it is.
    pub(crate) trusted_proxies: usize,
}

/// How bytes are carried.
#[derive(Default)]
pub(crate) struct Manner {
    /// Connections between two pods of this node need no tunnel.
    pub(crate) join: bool,
    /// What tasks share that look for the next message before their thread sleeps.
    pub(crate) busy: Arc<BusyPoll>,
    /// Whether small messages of many streams share packets.
    pub(crate) bundling: Bundling,
}

impl Proxy {
    /// Over the snapshots and keys of this node, within what the process may hold.
    pub(crate) fn new(
        feed: Feed,
        wallet: Wallet,
        telemetry: Telemetry,
        judges: Judges,
        capacity: Capacity,
        manner: Manner,
    ) -> Self {
        let Judges { providers, tokens, trusted_proxies } = judges;
        let dns = Responder::new(feed.clone(), telemetry.clone(), capacity.files);
        Self(Arc::new(Shared {
            feed,
            wallet,
            telemetry,
            providers,
            tokens,
            trusted_proxies,
            pool: Pool::new(capacity.files),
            bundles: Bundles::new(manner.bundling),
            budget: Budget::new(capacity.memory),
            admission: Admission::new(capacity),
            busy: manner.busy,
            neighbours: Neighbours::new(manner.join),
            egress: Egress::default(),
            dns,
            memory: watch::Sender::default(),
            draining: watch::Sender::new(false),
            active: AtomicUsize::new(0),
        }))
    }

    /// The folder with a folder for each namespace, in which the files are that its pods' DestinationRules name. Set once.
    pub(crate) fn set_egress_files(&self, folder: PathBuf) {
        self.0.egress.set_files(folder);
    }

    /// Has the kernel seal and open the records of tunnels that are made from now on, of which `ability` is known. Set once.
    pub(crate) fn hand_records_to_kernel(&self, ability: Ability) {
        self.0.budget.offload(Offload::new(ability, self.0.telemetry.kernel_tls()));
    }

    /// Takes connections of `pod` on its `listener`-th listener until it is dropped, one task for each. They are judged by
    /// what `policy` holds, again whenever that changes, and never again once its sender is gone: a pod that has left the
    /// mesh keeps what it has.
    pub(crate) async fn serve(
        &self,
        pod: Arc<PodNet>,
        listener: usize,
        policy: watch::Receiver<Arc<WorkloadPolicy>>,
    ) {
        let mut serving = Serving::new(&self.0, &self.0.neighbours, pod.clone(), policy);
        loop {
            match pod.accept(listener).await {
                Ok(accepted) => {
                    self.carry(accepted, &mut serving);
                    if serving.lanes.iter().any(|lane| lane.is_crowded()) {
                        // Under a flood of connections here, those of other pods get their turns between two of these.
                        tokio::task::yield_now().await;
                    }
                }
                Err(error) => {
                    // Out of descriptors or memory, which admission should keep from happening: something has to end first.
                    tracing::warn!(%error, pod = %pod.uid(), "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Takes connections of `pod` whose clients wait until it is known whether their destination answers.
    pub(crate) async fn serve_parked(&self, pod: Arc<PodNet>, policy: watch::Receiver<Arc<WorkloadPolicy>>) {
        let mut serving = Serving::new(&self.0, &self.0.neighbours, pod.clone(), policy);
        loop {
            let accepted = pod.parked().await;
            self.carry(accepted, &mut serving);
            if serving.lanes.iter().any(|lane| lane.is_crowded()) {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Serves what the pod `uid` sends to one resolver, for ever.
    pub(crate) async fn serve_dns(&self, uid: Arc<str>, socket: QuerySocket) {
        self.0.dns.serve(uid, socket).await;
    }

    /// Closes idle connections between agents that are too old, or of pods that are not `local` any more.
    pub(crate) fn sweep(&self, local: impl Fn(&str) -> bool) {
        self.0.pool.sweep(|key: &PoolKey, _| local(&key.pod));
        self.0.bundles.sweep();
        self.0.providers.sweep(local);
    }

    /// Closes idle connections to peers that are not believed any more, whenever roots or revocations change; for ever.
    pub(crate) async fn follow_trust(&self) {
        let Shared { wallet, pool, .. } = &*self.0;
        let mut trust = wallet.subscribe();
        while trust.changed().await.is_ok() {
            pool.sweep(|key, peer| wallet.recheck(&key.own, peer).is_ok());
        }
    }

    /// Holds less, and takes less, while `memory` is short; for ever.
    pub(crate) async fn follow_memory(&self, memory: MemoryUse) {
        self.0.follow_memory(memory).await;
    }

    /// Has tunnels ended once the streams that run on them have: peers are asked to open new ones, which another agent may
    /// take. Connections go on being taken.
    pub(crate) fn drain(&self) {
        self.0.draining.send_replace(true);
        self.0.pool.sweep(|_, _| false);
    }

    /// How many connections and tunnels there are, idle ones that this end has opened not counted.
    pub(crate) fn active(&self) -> usize {
        self.0.active.load(Ordering::Relaxed)
    }

    /// Numbers the connection while it is known in which order it came, and leaves the rest to a task.
    fn carry<D: Dial>(&self, accepted: Accepted, serving: &mut Serving<D>) {
        let (shared, pod) = (self.0.clone(), serving.pod.clone());
        match accepted {
            Accepted::Outbound { client, source, original_dst } => {
                let place = serving
                    .lane(Direction::Outbound)
                    .enter(original_dst.0.ip(), shared.memory.borrow().pressure);
                let routed = outbound::route(
                    &shared.feed.world(),
                    pod.pod.uid(),
                    source,
                    original_dst,
                    &serving.pod.choices,
                    &mut serving.outbound,
                );
                let place = match place {
                    Ok(place) => place,
                    Err(refusal) => {
                        shared.telemetry.refuse(&describe::outbound(&routed, None), &refusal);
                        return waiting::refuse(client, &refusal);
                    }
                };
                let neighbours = serving.neighbours.clone();
                // On the heap: what a connection begins with is big, and what it is later lives long.
                let (routed, placed) = (Box::new(routed), Box::new(Placed { client, place }));
                tokio::spawn(async move {
                    let _active = shared.activity();
                    outbound::carry(&shared, &pod, placed, routed, &neighbours).await;
                });
            }
            Accepted::Inbound { client, source, destination } => {
                let party = party(&shared.feed.world(), source.0.ip());
                let place = serving.lane(Direction::Inbound).enter(party, shared.memory.borrow().pressure);
                let order = serving.inbound.next((source.0.ip(), destination.0.port()));
                let arrivals = serving.arrivals.clone();
                let arrival = Box::new(Arrival { client, source, destination, order, place });
                tokio::spawn(async move {
                    let _active = shared.activity();
                    inbound::carry(&shared, &pod, arrival, &arrivals).await;
                });
            }
            Accepted::Stray { source } => {
                tracing::debug!(%source, pod = %pod.pod.uid(), "a connection that was not captured was reset");
            }
        }
    }
}

/// A client that has come, and its place.
struct Placed {
    client: Client,
    place: Place,
}

/// What is in a box, whose room is free from then on. One that is emptied where it stands keeps its room to the end of its scope.
#[allow(clippy::boxed_local, reason = "the box is what it is about")]
fn unboxed<T>(boxed: Box<T>) -> T {
    *boxed
}

/// One of our pods, as its connections know it.
struct Pod<D> {
    pod: Arc<D>,
    policy: watch::Receiver<Arc<WorkloadPolicy>>,
    /// Its part of the buffers.
    share: Arc<Share>,
    choices: Choices,
}

impl<D> Clone for Pod<D> {
    fn clone(&self) -> Self {
        Self {
            pod: self.pod.clone(),
            policy: self.policy.clone(),
            share: self.share.clone(),
            choices: self.choices.clone(),
        }
    }
}

impl<D> Pod<D> {
    /// Whether a connection may come as things stand, be it that the last word depends on what it carries.
    fn prospect(&self, facts: &Facts<'_>) -> Result<(), Refusal> {
        match policy::outlook(&self.policy.borrow(), facts) {
            Outlook::Same(decision) => allowed(decision),
            Outlook::PerRequest => Ok(()),
        }
    }

    /// Ends once the verdict on a live connection has turned to a refusal, or `also` refuses it. Changes are followed once it has
    /// `settled`.
    async fn until_denied(
        &self,
        settled: &Settled,
        facts: &Facts<'_>,
        meta: &Meta,
        telemetry: &Telemetry,
        also: impl Fn(&WorkloadPolicy) -> Result<(), Refusal>,
    ) -> Refusal {
        let mut follow = self.policy.clone();
        let mut before: Option<Arc<WorkloadPolicy>> = None;
        loop {
            let policy = follow.borrow_and_update().clone();
            if before.is_none_or(|before| !before.rehearses_as(&policy)) {
                rehearse(&policy, facts, meta, telemetry);
            }
            let verdict = allowed(policy::decide(&policy, facts)).and_then(|()| also(&policy));
            if let Err(refusal) = verdict {
                return refusal;
            }
            before = Some(policy);
            settled.reached().await;
            if follow.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            telemetry.policy_wake();
        }
    }

    /// Has policies that decide nothing tried on a connection that was refused for another.
    fn rehearse_refused(&self, refusal: &Refusal, facts: &Facts<'_>, meta: &Meta, telemetry: &Telemetry) {
        if matches!(refusal.reason, Reason::PolicyDenied | Reason::ProviderRefused) {
            let policy = self.policy.borrow().clone();
            rehearse(&policy, facts, meta, telemetry);
        }
    }
}

fn allowed(decision: Decision) -> Result<(), Refusal> {
    match decision {
        Decision::Allow => Ok(()),
        Decision::Deny(refusal) => Err(refusal),
    }
}

/// Whose connection it is, for fairness: of who is no pod, an IPv6 network counts as one client, which can take any of its
/// addresses.
fn party(world: &World, source: IpAddr) -> IpAddr {
    match source {
        IpAddr::V6(v6) if world.mesh.workload_by_ip(source).is_none() => {
            Ipv6Addr::from_bits(v6.to_bits() & (!0 << 64)).into()
        }
        _ => source,
    }
}

/// What a verdict is taken over: a connection from `source` (with identity `peer`, or in plaintext) to `destination`.
fn facts(destination: PodAddr, source: IpAddr, peer: Option<&SpiffeId>) -> Facts<'_> {
    Facts {
        port: destination.0.port(),
        peer,
        source_ip: source,
        destination_ip: destination.0.ip(),
        request: None,
        admitted: false,
        sni: None,
    }
}

/// What one listener keeps count of.
struct Serving<D> {
    pod: Pod<D>,
    /// By direction.
    lanes: [Arc<Lane>; 2],
    arrivals: Arc<Arrivals>,
    /// Those whom it can be joined with.
    neighbours: Arc<Neighbours<D>>,
    /// Itself among them.
    _entered: Arc<Neighbour<D>>,
    outbound: Numbers<PodAddr>,
    inbound: Numbers<(IpAddr, u16)>,
}

impl<D: Dial> Serving<D> {
    fn new(
        shared: &Shared,
        neighbours: &Arc<Neighbours<D>>,
        pod: Arc<D>,
        policy: watch::Receiver<Arc<WorkloadPolicy>>,
    ) -> Self {
        let share = shared.budget.share(pod.uid());
        let lanes = [Direction::Outbound, Direction::Inbound]
            .map(|direction| shared.admission.lane(pod.uid(), direction));
        let mut pod = Pod { pod, policy, share, choices: Choices::default() };
        let entered = neighbours.enter(&pod, &lanes[Direction::Inbound as usize]);
        // All listeners of a pod go by the same experience.
        pod.choices = entered.pod.choices.clone();
        Self {
            pod,
            lanes,
            arrivals: Arc::default(),
            neighbours: neighbours.clone(),
            _entered: entered,
            outbound: Numbers::new(),
            inbound: Numbers::new(),
        }
    }

    fn lane(&self, direction: Direction) -> &Arc<Lane> {
        &self.lanes[direction as usize]
    }
}

/// How a connection that was open has ended before both directions did, and what the peer is still to be told.
#[derive(Debug)]
struct Cut {
    /// What is wrong with it; nothing, if one end has just left.
    refusal: Option<Refusal>,
    /// The peer's agent said so.
    by_peer: bool,
    /// The peer has not ended the stream itself: it is told why.
    tell: bool,
}

impl Cut {
    /// By a decision of this agent.
    fn here(refusal: Refusal) -> Self {
        Self { refusal: Some(refusal), by_peer: false, tell: true }
    }

    /// By one of the two ends.
    fn by_leg(error: LegError) -> Self {
        match error {
            LegError::App(_) => Self::here(Refusal::new(Reason::Reset, error.to_string())),
            LegError::Refused(refusal) | LegError::Reset(refusal) => {
                Self { refusal: Some(refusal), by_peer: true, tell: false }
            }
            LegError::Plain(_) => {
                let refusal = Refusal::new(Reason::Reset, error.to_string());
                Self { refusal: Some(refusal), by_peer: false, tell: false }
            }
            LegError::Here(refusal) => Self::here(refusal),
            LegError::Tunnel(error) => Self { refusal: Some(error.into()), by_peer: false, tell: false },
            LegError::AppLeft | LegError::PeerLeft => Self { refusal: None, by_peer: false, tell: false },
        }
    }

    /// By what the other end has been told, or has found out by itself.
    fn told(refusal: Refusal, by_peer: bool) -> Self {
        Self { refusal: Some(refusal), by_peer, tell: false }
    }

    /// By a relay that has ended early.
    fn by_relay(broken: Broken) -> Self {
        match broken {
            Broken::Leg(error) => Self::by_leg(error),
            Broken::GivenUp(refusal) => Self::here(refusal),
        }
    }

    fn ending(self) -> Ending {
        let Self { refusal: Some(refusal), by_peer, .. } = self else { return Ending::Closed };
        match refusal.reason {
            Reason::Reset => Ending::Reset,
            Reason::PolicyDenied | Reason::ProviderRefused | Reason::MtlsRequired => {
                Ending::Refused { refusal, by_peer }
            }
            _ if by_peer => Ending::Refused { refusal, by_peer },
            _ => Ending::Failed(refusal),
        }
    }

    /// Reports the end; answers what the peer is to be told.
    fn report(self, connection: Connection) -> Option<Refusal> {
        let tell = self.refusal.clone().filter(|_| self.tell);
        connection.finish(&self.ending());
        tell
    }
}

/// A connect to `what` that failed.
fn unconnected(what: &str, addr: SocketAddr, error: &io::Error) -> Refusal {
    let reason = match error.kind() {
        io::ErrorKind::ConnectionRefused => Reason::ConnectionRefused,
        io::ErrorKind::TimedOut => Reason::Timeout,
        io::ErrorKind::QuotaExceeded => Reason::Overloaded,
        _ => Reason::Unreachable,
    };
    Refusal::new(reason, format!("cannot connect to {what} {addr}: {error}"))
}

/// What `connect` brings, or that it took too long.
async fn within<T>(limit: Duration, connect: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(limit, connect).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// A peer that is not believed.
fn distrusted((reason, text): (Reason, String)) -> Refusal {
    Refusal::new(reason, text)
}

/// Counts a task for as long as it lives.
struct Activity<'a>(&'a AtomicUsize);

impl Drop for Activity<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shared {
    fn activity(&self) -> Activity<'_> {
        self.active.fetch_add(1, Ordering::Relaxed);
        Activity(&self.active)
    }

    fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    /// Ends once tunnels are no longer to be kept.
    async fn until_draining(&self) {
        // The sender lives as long as `self`.
        let _ = self.draining.subscribe().wait_for(|draining| *draining).await;
    }
}

#[cfg(test)]
mod tests;
