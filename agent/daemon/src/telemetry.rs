//! Live connections, metrics and the access log. Watches, never decides.
//!
//! The data plane opens a [`Connection`] and adds bytes to it: two atomic additions, no lock. What it adds is in the
//! metrics at once. Everything here is synchronous and bounded; nothing waits for a reader.

mod access;
mod bundles;
mod checks;
mod dns;
mod expiring;
mod grpc;
mod kernel_tls;
mod live;
mod logging;
mod metrics;
mod observed;
mod pace;
mod policy_metrics;
mod process;
mod request;
mod requests;
mod traces;
mod traffic;

#[cfg(test)]
mod tests;

use std::{
    fmt,
    net::SocketAddr,
    ops::Range,
    sync::{Arc, OnceLock, atomic::Ordering},
    time::{Duration, Instant, SystemTime},
};

use ambit_core::{
    model::{ObjectName, ServiceName, SpiffeId, Workload},
    reason::{Reason, Refusal, Rehearsed},
};

pub(crate) use bundles::BundleCounts;
pub(crate) use checks::CheckResult;
pub(crate) use dns::DnsResult;
pub(crate) use grpc::GrpcMessages;
pub(crate) use kernel_tls::KernelTlsCounts;
pub(crate) use logging::{LogFormat, LoggingError, init_logging, parse_filter};
pub(crate) use metrics::{IssuerKeys, OpenTunnel, RemoteCluster};
pub(crate) use observed::{
    DenialDetail, DenialKey, Flow, FlowSource, Observations, Operations, Outcome, OutsideKey, Place,
    RehearsalDetail, RehearsalKey, Sighting, Who,
};

pub(crate) use request::{Request, RequestEnd};
pub(crate) use requests::ResponseFlag;
pub(crate) use traces::TraceSettings;

use live::{Live, LiveTable};
use metrics::Metrics;
use observed::Observed;
use pace::Pace;
use traces::Traces;
use traffic::Flag;

/// The cluster name in metrics and the access log: Istio's default, without which Kiali drops the series.
pub(crate) const CLUSTER: &str = "Kubernetes";

/// What this cluster is called, once that is known.
static OWN_CLUSTER: OnceLock<Box<str>> = OnceLock::new();

/// This cluster has that name from now on, in this process; has an effect once.
pub(crate) fn name_cluster(name: &str) {
    OWN_CLUSTER.get_or_init(|| name.into());
}

/// The cluster of a pod.
fn cluster_of(pod: &ObjectName) -> &str {
    pod.cluster.as_deref().unwrap_or_else(|| OWN_CLUSTER.get().map_or(CLUSTER, |name| name))
}

/// On which side of a connection the pod of this node is; the `reporter` label follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Direction {
    /// The client is ours: reporter `source`.
    Outbound,
    /// The server is ours: reporter `destination`.
    Inbound,
}

impl Direction {
    /// The `reporter` label of Istio's standard metrics.
    pub(crate) fn reporter(self) -> &'static str {
        match self {
            Self::Outbound => "source",
            Self::Inbound => "destination",
        }
    }
}

/// One end of a connection, as far as it is known.
#[derive(Clone, Debug, Default)]
pub(crate) struct Party {
    /// The pod.
    pub(crate) workload: Option<Arc<Workload>>,
    /// The identity that this end proved (the peer) or holds (our own pod); `None` in plaintext.
    pub(crate) identity: Option<SpiffeId>,
}

/// How a connection is protected between the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Security {
    /// TLS with certificates at both ends.
    MutualTls {
        /// The key exchange group, such as `X25519MLKEM768`.
        group: &'static str,
        /// The tunnel was there already: no handshake for this connection.
        reused: bool,
    },
    /// Both ends are pods of this node, each with an identity that the other believes. The bytes do not leave the node.
    LocalIdentity,
    /// TLS that the agent speaks for its pod, to a server outside the mesh.
    Tls,
    /// Not at all.
    Plaintext,
}

impl Security {
    /// Whether both ends are who they say, as the mesh knows it.
    pub(crate) fn is_proven(self) -> bool {
        matches!(self, Self::MutualTls { .. } | Self::LocalIdentity)
    }

    /// What logs call it, and metrics where it is not plaintext.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::MutualTls { .. } => "mutual_tls",
            Self::LocalIdentity => "local_identity",
            Self::Tls => "tls",
            Self::Plaintext => "plaintext",
        }
    }
}

/// What is known of a connection when it is opened or refused.
#[derive(Clone, Debug)]
pub(crate) struct Meta {
    /// Which end is ours.
    pub(crate) direction: Direction,
    /// The client.
    pub(crate) source: Party,
    /// The server.
    pub(crate) destination: Party,
    /// The client's address.
    pub(crate) source_addr: SocketAddr,
    /// The server's address as it is on the wire: pod IP and target port.
    pub(crate) destination_addr: SocketAddr,
    /// What the client dialled, where known.
    pub(crate) original_dst: Option<SocketAddr>,
    /// The service that was addressed.
    pub(crate) service: Option<ServiceName>,
    /// The protection between the nodes.
    pub(crate) security: Security,
    /// What both agents of a tunnel call the connection, where it has got that far.
    pub(crate) id: Option<ConnectionId>,
}

/// What both agents of a tunnel call one connection among those to the same destination. It is the client agent's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConnectionId {
    /// A random number for the place and time of numbering.
    pub(crate) epoch: u64,
    /// 0, 1, 2, …
    pub(crate) number: u64,
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{}", self.epoch, self.number)
    }
}

/// How a connection came to its end.
#[derive(Clone, Debug)]
pub(crate) enum Ending {
    /// Both directions ended cleanly.
    Closed,
    /// The application at one end reset it.
    Reset,
    /// It was refused after all, or cut by a policy that came into force.
    Refused {
        /// The answer. A peer's text may hold anything; the log escapes it.
        refusal: Refusal,
        /// The peer's agent refused, not this one.
        by_peer: bool,
    },
    /// It broke.
    Failed(Refusal),
    /// The agent let go of it: it is stopping, or the task died.
    Aborted,
}

/// One live connection as `ambit status` shows it.
#[derive(Clone, Debug)]
pub(crate) struct LiveConnection {
    /// What was known when it was opened.
    pub(crate) meta: Meta,
    /// Payload bytes from client to server so far.
    pub(crate) client_to_server: u64,
    /// Payload bytes from server to client so far.
    pub(crate) server_to_client: u64,
    /// When it was opened.
    pub(crate) opened: SystemTime,
}

/// The handle that rooms report to. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Telemetry(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    metrics: Metrics,
    live: LiveTable,
    pace: Pace,
    observed: Observed,
    /// Where spans go; nowhere unless it is set.
    traces: OnceLock<Traces>,
}

impl Telemetry {
    /// Starts with everything at zero.
    pub(crate) fn new() -> Self {
        Self(Arc::new(Shared {
            metrics: Metrics::new(),
            live: LiveTable::default(),
            pace: Pace::default(),
            observed: Observed::new(SystemTime::now()),
            traces: OnceLock::new(),
        }))
    }

    /// From now on requests of sampled traces are told of. Must be called in a tokio runtime, and has an effect once.
    pub(crate) fn export_traces(&self, settings: TraceSettings) {
        let spans = self.0.metrics.spans.clone();
        self.0.traces.get_or_init(|| Traces::start(settings, spans));
    }

    /// Counts a connection as open until the value returned is finished or dropped.
    pub(crate) fn open(&self, meta: Meta) -> Connection {
        let metrics = &self.0.metrics;
        let series = metrics.traffic.series_of(&meta);
        series.opened.fetch_add(1, Ordering::Relaxed);
        metrics.sockets_open(meta.direction).inc();
        if meta.direction == Direction::Inbound && meta.security == Security::Plaintext {
            metrics.policy.plaintext(&meta, Instant::now());
        }
        self.0.observed.opened(&meta, SystemTime::now());
        access::opened(&meta);
        let live = self.0.live.insert(|id| Live::new(id, meta, series));
        Connection { live, telemetry: self.clone(), finished: false }
    }

    /// Counts a connection that this agent refused before it was opened, and logs it unless there are too many of its kind.
    pub(crate) fn refuse(&self, meta: &Meta, refusal: &Refusal) {
        let metrics = &self.0.metrics;
        metrics.traffic.series_of(meta).fail(Flag::of(refusal.reason));
        metrics.refused(meta, refusal.reason);
        self.denied(meta, refusal, false);
        if let Some(unsaid) = self.0.pace.line(meta, refusal.reason, Instant::now()) {
            access::refused(meta, refusal, unsaid);
        }
    }

    /// Tells what a policy that decides nothing would have made of a connection; `action` is its `spec.action`.
    pub(crate) fn rehearsed(
        &self,
        meta: &Meta,
        policy: &ObjectName,
        action: &'static str,
        rehearsed: Rehearsed,
    ) {
        self.0.metrics.policy.rehearsed(policy, action, rehearsed, Instant::now());
        self.0.observed.rehearsed(meta, policy, action, rehearsed, SystemTime::now());
    }

    /// Remembers a connection that is let in and would not be, if the policies were in force that decide nothing.
    pub(crate) fn would_be_refused(&self, meta: &Meta, refusal: &Refusal) {
        self.0.observed.would_be_refused(meta, refusal, SystemTime::now());
    }

    /// Remembers and logs a connection of a pod to what is outside, with the name that the application's TLS has.
    pub(crate) fn outside(&self, meta: &Meta, name: Option<&str>) {
        self.0.observed.outside(meta, name, SystemTime::now());
        access::outside(meta, name);
    }

    fn denied(&self, meta: &Meta, refusal: &Refusal, by_peer: bool) {
        if refusal.reason.is_denial() {
            self.0.metrics.policy.denied(meta.direction, refusal, by_peer, Instant::now());
            self.0.observed.refused(meta, refusal, by_peer, SystemTime::now());
        }
    }

    /// Counts a TLS handshake that failed; what becomes of the connection is reported apart.
    pub(crate) fn tls_failure(&self, direction: Direction, reason: Reason) {
        self.0.metrics.tls_failed(direction, reason);
    }

    /// Counts a TLS handshake that succeeded.
    pub(crate) fn handshake(&self, direction: Direction, resumed: bool) {
        self.0.metrics.handshake(direction, resumed);
    }

    /// Counts a tunnel as open until the value returned is dropped.
    pub(crate) fn tunnel(&self) -> OpenTunnel {
        self.0.metrics.tunnel()
    }

    /// Counts a connection that found a tunnel open and needed no handshake.
    pub(crate) fn tunnel_reused(&self) {
        self.0.metrics.tunnel_reuse.inc();
    }

    /// Counts a tunnel that rested and led nowhere when it was wanted again.
    pub(crate) fn tunnel_given_up(&self) {
        self.0.metrics.tunnels_given_up.inc();
    }

    /// Counts of the directions of tunnels whose records the kernel has taken.
    pub(crate) fn kernel_tls(&self) -> KernelTlsCounts {
        self.0.metrics.kernel_tls.clone()
    }

    /// Counts of small messages that share packets.
    pub(crate) fn bundles(&self) -> BundleCounts {
        self.0.metrics.bundles.clone()
    }

    /// Counts a query by DNS, or what came as an answer.
    pub(crate) fn dns(&self, result: DnsResult) {
        self.0.metrics.dns.count(result);
    }

    /// Counts a live connection that was judged again because its pod's policy changed.
    pub(crate) fn policy_wake(&self) {
        self.0.metrics.policy_wakes.inc();
    }

    /// Counts a request of the CNI plugin.
    pub(crate) fn cni_request(&self, command: &'static str, result: &'static str) {
        self.0.metrics.cni_request(command, result);
    }

    /// Counts what had to be put in order of the CNI plugin's installation: `binary` or `network`.
    pub(crate) fn cni_repaired(&self, what: &'static str) {
        self.0.metrics.cni_repaired(what);
    }

    /// Sets whether the CNI plugin, which is to be, is installed and chained.
    pub(crate) fn cni_installed(&self, installed: bool) {
        self.0.metrics.cni_installed(installed);
    }

    /// Counts a question to an external authorization provider; it took no time if it was not asked.
    pub(crate) fn checked(&self, provider: &str, result: CheckResult, took: Duration) {
        self.0.metrics.checks.ended(provider, result, took);
    }

    /// Sets how many pods are enrolled on this node.
    pub(crate) fn enrolled_pods(&self, pods: usize) {
        self.0.metrics.enrolled_pods.set(i64::try_from(pods).unwrap_or(i64::MAX));
    }

    /// Sets how many of the kubelet's probes were let through to each pod of this node.
    pub(crate) fn probes<'a>(&self, pods: impl Iterator<Item = (&'a ObjectName, u64)>) {
        self.0.metrics.probes(pods);
    }

    /// Sets how many system calls each map of the programs has taken.
    pub(crate) fn map_operations(&self, maps: impl Iterator<Item = (&'static str, u64)>) {
        self.0.metrics.map_operations(maps);
    }

    /// Sets when the certificate of `identity` ends; `None` once the agent holds none for it.
    pub(crate) fn certificate(&self, identity: &SpiffeId, not_after: Option<SystemTime>) {
        self.0.metrics.certificates.certificate(identity, not_after);
    }

    /// Sets when a root ends and how long it lives in all, and how many certificates lead to it; `None` once no identity trusts
    /// it.
    pub(crate) fn root(&self, fingerprint: &str, life: Option<(Range<SystemTime>, usize)>) {
        self.0.metrics.certificates.root(fingerprint, life);
    }

    /// Sets how attempts to get certificates have ended since the start; those that showed a clock to be off have failed too.
    pub(crate) fn renewals(&self, issued: u64, failed: u64, skewed: u64) {
        self.0.metrics.certificates.renewals(issued, failed, skewed);
    }

    /// Whether all that enrolled pods dial is captured for want of room, and how many pods are kept out for the same reason.
    pub(crate) fn capture_fullness(&self, everything: bool, kept_out: usize) {
        self.0.metrics.capture_everything.set(i64::from(everything));
        self.0.metrics.pods_kept_out.set(i64::try_from(kept_out).unwrap_or(i64::MAX));
    }

    /// Sets how many certificates are past 90 % of their life, or expired, and not renewed.
    pub(crate) fn late_certificates(&self, late: usize) {
        self.0.metrics.certificates.late.set(i64::try_from(late).unwrap_or(i64::MAX));
    }

    /// Sets how many identities of this node's pods have no certificate, and cannot be had at this moment.
    pub(crate) fn missing_certificates(&self, missing: usize) {
        self.0.metrics.certificates.missing.set(i64::try_from(missing).unwrap_or(i64::MAX));
    }

    /// Sets how many pods that opt in could not be enrolled.
    pub(crate) fn failed_pods(&self, pods: usize) {
        self.0.metrics.failed_pods.set(i64::try_from(pods).unwrap_or(i64::MAX));
    }

    /// Sets what the agent waits for before it is ready.
    pub(crate) fn pending(&self, gates: &[&'static str]) {
        self.0.metrics.pending(gates);
    }

    /// Sets the revocation lists in force: issuer and next update.
    pub(crate) fn revocation_lists(&self, lists: &[(String, Option<SystemTime>)]) {
        self.0.metrics.certificates.revocation_lists(lists);
    }

    /// Counts a request that was refused for its token; `clock_skew` if a clock may be to blame.
    pub(crate) fn token_refused(&self, reason: &'static str, clock_skew: bool) {
        self.0.metrics.tokens.refused(reason, clock_skew);
    }

    /// Counts an attempt to fetch an issuer's keys.
    pub(crate) fn keys_fetched(&self, good: bool) {
        self.0.metrics.tokens.fetched(good);
    }

    /// Sets how one issuer's keys are.
    pub(crate) fn issuer(&self, issuer: IssuerKeys<'_>) {
        self.0.metrics.tokens.issuer(issuer);
    }

    /// Sets how the keys of all issuers are that are followed.
    pub(crate) fn issuers<'a>(&self, all: impl Iterator<Item = IssuerKeys<'a>>) {
        self.0.metrics.tokens.issuers(all);
    }

    /// Sets how other clusters are.
    pub(crate) fn remote_clusters<'a>(&self, all: impl Iterator<Item = RemoteCluster<'a>>, now: SystemTime) {
        self.0.metrics.clusters.set(all, now);
    }

    /// The connections that are open, oldest first.
    pub(crate) fn live(&self) -> Vec<LiveConnection> {
        self.0.live.snapshot()
    }

    /// The refusals that were seen last, newest first.
    pub(crate) fn denials(&self, most: usize) -> Vec<(DenialKey, Sighting<DenialDetail>)> {
        self.0.observed.denials(most, SystemTime::now())
    }

    /// What is remembered of connections for those who write policies.
    pub(crate) fn observations(&self) -> Observations {
        self.0.observed.snapshot(&self.live(), SystemTime::now())
    }

    /// All metrics as OpenMetrics text, ending in `# EOF`.
    pub(crate) fn encode(&self) -> String {
        self.0.metrics.encode()
    }
}

/// One open connection. Dropped without [`finish`](Self::finish) it counts as [`Ending::Aborted`].
#[derive(Debug)]
pub(crate) struct Connection {
    live: Arc<Live>,
    telemetry: Telemetry,
    finished: bool,
}

impl Connection {
    /// What was known when it was opened.
    pub(crate) fn meta(&self) -> &Meta {
        &self.live.meta
    }

    /// Adds payload bytes that went from client to server.
    pub(crate) fn client_to_server(&self, bytes: u64) {
        self.live.client_to_server.fetch_add(bytes, Ordering::Relaxed);
        self.live.series.received.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Adds payload bytes that went from server to client.
    pub(crate) fn server_to_client(&self, bytes: u64) {
        self.live.server_to_client.fetch_add(bytes, Ordering::Relaxed);
        self.live.series.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Payload bytes so far, to the server and to the client.
    pub(crate) fn moved(&self) -> [u64; 2] {
        let Live { client_to_server, server_to_client, .. } = &*self.live;
        [client_to_server, server_to_client].map(|bytes| bytes.load(Ordering::Relaxed))
    }

    /// Counts and logs the end.
    pub(crate) fn finish(mut self, ending: &Ending) {
        self.end(ending);
    }

    fn end(&mut self, ending: &Ending) {
        if std::mem::replace(&mut self.finished, true) {
            return;
        }
        let Shared { metrics, live, pace, .. } = &*self.telemetry.0;
        let direction = self.live.meta.direction;
        self.live.series.closed.fetch_add(1, Ordering::Relaxed);
        self.live.series.touch(Instant::now());
        metrics.sockets_open(direction).dec();
        match ending {
            Ending::Closed | Ending::Reset => {}
            Ending::Refused { refusal, by_peer } => {
                self.live.series.fail(Flag::of(refusal.reason));
                metrics.refused(&self.live.meta, refusal.reason);
                self.telemetry.denied(&self.live.meta, refusal, *by_peer);
            }
            Ending::Failed(refusal) => {
                self.live.series.fail(Flag::of(refusal.reason));
                metrics.failed(direction, refusal.reason);
                self.telemetry.denied(&self.live.meta, refusal, false);
            }
            Ending::Aborted => self.live.series.fail(Flag::None),
        }
        live.remove(self.live.id);
        let unsaid = match ending {
            Ending::Refused { refusal, .. } | Ending::Failed(refusal) => {
                pace.line(&self.live.meta, refusal.reason, Instant::now())
            }
            Ending::Closed | Ending::Reset | Ending::Aborted => Some(0),
        };
        if let Some(unsaid) = unsaid {
            access::ended(&self.live, ending, unsaid);
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.end(&Ending::Aborted);
    }
}
