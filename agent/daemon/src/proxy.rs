//! The two directions of a connection and the relay between their two sockets. Asks discovery where to, policy whether,
//! and the tunnel for a connection; knows no TLS library and no maps.

mod inbound;
mod order;
mod outbound;
mod relay;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use ambit_core::{
    model::{ObjectName, PodAddr, Workload},
    policy::{self, Decision, Facts},
    reason::{self, Reason},
};
use tokio::sync::{Semaphore, watch};

use self::order::{Arrivals, Numbers};
use crate::{
    capture::{Accepted, PodNet},
    discovery::{Feed, World},
    telemetry::{Direction, Ending, Meta, Party, Refusal, Security, Telemetry},
    tunnel::{Pool, PoolKey, TunnelError, Wallet},
};

/// Inbound connections that are not yet known to be a tunnel or plaintext, in all.
const PENDING: usize = 8192;

/// Both directions for all pods of the node. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Proxy(Arc<Shared>);

struct Shared {
    feed: Feed,
    wallet: Wallet,
    telemetry: Telemetry,
    pool: Pool,
    pending: Semaphore,
    /// Tunnels are not kept for further streams any more.
    draining: watch::Sender<bool>,
    /// Tasks that carry connections and tunnels.
    active: AtomicUsize,
}

impl Proxy {
    /// Over the snapshots and keys of this node.
    pub(crate) fn new(feed: Feed, wallet: Wallet, telemetry: Telemetry) -> Self {
        let pool = Pool::default();
        Self(Arc::new(Shared {
            feed,
            wallet,
            telemetry,
            pool,
            pending: Semaphore::new(PENDING),
            draining: watch::Sender::new(false),
            active: AtomicUsize::new(0),
        }))
    }

    /// Takes connections of `pod` on its `listener`-th listener until it is dropped. One task per connection.
    pub(crate) async fn serve(&self, pod: Arc<PodNet>, listener: usize) {
        let mut numbers =
            Serving { arrivals: Arc::default(), outbound: Numbers::new(), inbound: Numbers::new() };
        loop {
            match pod.accept(listener).await {
                Ok(accepted) => self.carry(&pod, accepted, &mut numbers),
                Err(error) => {
                    // Out of descriptors or memory: what is open has to end before more is taken.
                    tracing::warn!(%error, pod = %pod.uid(), "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Closes idle connections between agents that are too old, or of pods that are not `local` any more.
    pub(crate) fn sweep(&self, local: impl Fn(&str) -> bool) {
        self.0.pool.sweep(|key: &PoolKey, _| local(&key.pod));
    }

    /// Closes idle connections to peers that are not believed any more, whenever roots or revocations change; for ever.
    pub(crate) async fn follow_trust(&self) {
        let Shared { wallet, pool, .. } = &*self.0;
        let mut trust = wallet.subscribe();
        loop {
            trust.changed().await;
            pool.sweep(|key, peer| wallet.recheck(&key.own, peer).is_ok());
        }
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
    fn carry(&self, pod: &Arc<PodNet>, accepted: Accepted, serving: &mut Serving) {
        let (shared, pod) = (self.0.clone(), pod.clone());
        match accepted {
            Accepted::Outbound { stream, source, original_dst } => {
                let routed = outbound::route(&shared, &pod, source, original_dst, &mut serving.outbound);
                tokio::spawn(async move {
                    let _active = shared.activity();
                    outbound::carry(&shared, &pod, stream, routed).await;
                });
            }
            Accepted::Inbound { stream, source, destination } => {
                let order = serving.inbound.next((source.0.ip(), destination.0.port()));
                let arrivals = serving.arrivals.clone();
                tokio::spawn(async move {
                    let _active = shared.activity();
                    inbound::carry(&shared, &pod, stream, (source, destination), (&arrivals, order)).await;
                });
            }
            Accepted::Stray { source } => {
                tracing::debug!(%source, pod = %pod.uid(), "a connection to the agent's own port was reset");
            }
        }
    }
}

/// What one listener keeps count of.
struct Serving {
    arrivals: Arc<Arrivals>,
    outbound: Numbers<PodAddr>,
    inbound: Numbers<(IpAddr, u16)>,
}

/// Why a connection ended before its time, for everybody who wants to know.
#[derive(Debug)]
struct Failure {
    reason: Reason,
    policy: Option<ObjectName>,
    text: String,
    /// The peer's agent said so.
    by_peer: bool,
}

impl Failure {
    fn new(reason: Reason, text: impl Into<String>) -> Self {
        Self { reason, policy: None, text: text.into(), by_peer: false }
    }

    fn denied_by_peer(refusal: &reason::Refusal) -> Self {
        Self { by_peer: true, ..Self::denial(refusal) }
    }

    fn denial(refusal: &reason::Refusal) -> Self {
        let policy = refusal.policy.as_deref().and_then(|policy| policy.split_once('/'));
        Self {
            reason: refusal.reason,
            policy: policy.map(|(namespace, name)| ObjectName::new(namespace, name)),
            text: refusal.text.to_string(),
            by_peer: false,
        }
    }

    /// A failed connect to `what`.
    fn connect(what: &str, addr: SocketAddr, error: &io::Error) -> Self {
        let reason = match error.kind() {
            io::ErrorKind::ConnectionRefused => Reason::ConnectionRefused,
            io::ErrorKind::TimedOut => Reason::Timeout,
            _ => Reason::Unreachable,
        };
        Self::new(reason, format!("cannot connect to {what} {addr}: {error}"))
    }

    fn deny_frame(&self) -> reason::Refusal {
        reason::Refusal {
            policy: self.policy.as_ref().map(|policy| policy.to_string().into()),
            ..reason::Refusal::new(self.reason, self.text.as_str())
        }
    }

    fn refusal(self) -> Refusal {
        Refusal { reason: self.reason, policy: self.policy, text: self.text, by_peer: self.by_peer }
    }

    fn ending(self) -> Ending {
        match self.reason {
            Reason::Reset => Ending::Reset,
            Reason::PolicyDenied | Reason::MtlsRequired => Ending::Refused(self.refusal()),
            reason => Ending::Failed { reason, text: self.text },
        }
    }
}

impl From<TunnelError> for Failure {
    fn from(error: TunnelError) -> Self {
        Self::new(error.reason(), error.to_string())
    }
}

/// The verdict on a connection from `source` (with identity `peer`, or in plaintext) to `port` of `destination`.
fn verdict(
    world: &World,
    destination: &Workload,
    port: u16,
    source: IpAddr,
    peer: Option<&ambit_core::model::SpiffeId>,
) -> Result<(), Failure> {
    let facts = Facts { port, peer, source_ip: source };
    match policy::decide(&world.policies.compile(destination), &facts) {
        Decision::Allow => Ok(()),
        Decision::Deny(refusal) => Err(Failure::denial(&refusal)),
    }
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

    /// Ends once the verdict on a live connection has turned to a refusal.
    async fn until_denied(
        &self,
        destination: PodAddr,
        source: IpAddr,
        peer: Option<&ambit_core::model::SpiffeId>,
    ) -> Failure {
        let mut revisions = self.feed.subscribe();
        loop {
            let world = self.feed.world();
            // A pod that has left the mesh keeps what it has.
            if let Some(workload) = world.mesh.workload_by_ip(destination.0.ip())
                && workload.enrolled
                && let Err(failure) = verdict(&world, workload, destination.0.port(), source, peer)
            {
                return failure;
            }
            if revisions.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// What telemetry is told of a connection.
fn meta(
    direction: Direction,
    (source, source_addr): (Party, SocketAddr),
    (destination, destination_addr): (Party, SocketAddr),
    security: Security,
) -> Meta {
    Meta {
        direction,
        source,
        destination,
        source_addr,
        destination_addr,
        original_dst: None,
        service: None,
        security,
    }
}
