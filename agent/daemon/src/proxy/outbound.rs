//! From an application in a pod to wherever it wants to go: route, then a tunnel to a meshed pod or a plain connection.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use ambit_core::{
    discovery::{Affinity, Endpoint, Named, Route, RouteError},
    model::{OriginalDst, PodAddr, Workload},
    policy::Facts,
    reason::{Reason, Refusal},
};
use tokio::{net::TcpStream, select, time::timeout};

use super::{
    Cut, Placed, Pod, Shared,
    admission::Place,
    describe, distrusted, egress, facts, join,
    neighbours::Neighbours,
    order::Numbers,
    pressure::Broken,
    relay::{Meter, Relay},
    requests, unconnected,
    waiting::{admit, refuse, unless_given_up},
    within,
};
use crate::{
    capture::{Client, Dial, bound_buffers},
    discovery::World,
    telemetry::{Connection, Direction, Ending},
    tunnel::{
        ANSWERED_WITHIN, Incoming, LegError, Order, Plain, PoolKey, Session, Stream, tls::PeerIdentity,
    },
};

/// How long a connect to another pod may take.
pub(super) const CONNECT: Duration = Duration::from_secs(10);
/// How long a tunnel that rests is believed to lead to its peer. After that nothing of the application's is said on it before
/// the peer has answered, so that it can still go another way.
const PROVEN: Duration = Duration::from_secs(1);

/// What was found out about one connection before anything is dialled.
#[derive(Debug)]
pub(super) struct Routed {
    /// The calling pod, if it is known at the address it calls from.
    pub(super) client: Option<Arc<Workload>>,
    pub(super) source: SocketAddr,
    pub(super) original_dst: OriginalDst,
    pub(super) way: Way,
}

/// What is to become of it.
#[derive(Debug)]
pub(super) enum Way {
    /// From this pod to one in the mesh, and the connection's number among those that go there.
    Tunnel(Arc<Workload>, Endpoint, Order),
    /// To a pod that is not in the mesh.
    Plain(Endpoint),
    /// To where names lead.
    Resolve(Named),
    /// To where no pod is known.
    Passthrough,
    /// The same, counted and logged.
    Observed,
    /// Nowhere, unless the name in the application's TLS is of a ServiceEntry.
    ByName(Refusal),
    /// Nowhere.
    Refused(Refusal),
}

/// Where a connection of the pod `uid` goes, and its number among those that go there.
pub(super) fn route(
    world: &World,
    uid: &str,
    source: SocketAddr,
    original_dst: OriginalDst,
    kept: &mut Affinity,
    numbers: &mut Numbers<PodAddr>,
) -> Routed {
    let client = world.mesh.workload_at(source.ip(), uid);
    let way = match client {
        Some(client) => match chosen(world, client, original_dst, kept) {
            Route::Tunnel(endpoint) => {
                let order = numbers.next(endpoint.addr);
                Way::Tunnel(client.clone(), endpoint, order)
            }
            Route::Plain(endpoint) => Way::Plain(endpoint),
            Route::Resolve(named) => Way::Resolve(named),
            Route::Passthrough if world.mesh.observes_outbound() => Way::Observed,
            Route::Passthrough => Way::Passthrough,
            Route::Refuse(error @ RouteError::NotRegistered { destination, .. })
                if world.mesh.has_tls_entry(&client.name.namespace, destination.port()) =>
            {
                Way::ByName(unroutable(&error))
            }
            Route::Refuse(error) => Way::Refused(unroutable(&error)),
        },
        None => Way::Refused(unknown_client()),
    };
    Routed { client: client.cloned(), source, original_dst, way }
}

/// Why there is no way to a destination that is known.
pub(super) fn unroutable(error: &RouteError) -> Refusal {
    let reason = match error {
        RouteError::UnknownPort { .. } => Reason::UnknownPort,
        RouteError::NoEndpoint { .. } | RouteError::Contested { .. } => Reason::NoEndpoint,
        RouteError::NotRegistered { .. } => Reason::EgressDenied,
    };
    Refusal::new(reason, error.to_string())
}

pub(super) fn unknown_client() -> Refusal {
    Refusal::new(Reason::NotReady, "the calling pod is not known at the address that it calls from")
}

/// Where it goes; to which endpoint of its service is noted, where the client is to keep to it.
fn chosen(world: &World, client: &Workload, original_dst: OriginalDst, kept: &mut Affinity) -> Route {
    let now = Instant::now();
    let route = world.mesh.route(client, original_dst, rand::random(), |service| kept.endpoint(service, now));
    if let Route::Tunnel(endpoint) | Route::Plain(endpoint) = &route
        && let (Some(service), Some(timeout)) = (&endpoint.service, endpoint.kept_for)
    {
        kept.keep(&service.name, endpoint.addr.0.ip(), timeout, now);
    }
    route
}

/// Carries one connection to its end; to one of the `neighbours` without a tunnel, if the way leads there.
pub(super) async fn carry<D: Dial>(
    shared: &Shared,
    pod: &Pod<D>,
    mut placed: Box<Placed>,
    mut routed: Box<Routed>,
    neighbours: &Neighbours<D>,
) {
    if matches!(routed.way, Way::Resolve(_)) {
        *routed = Box::pin(egress::resolve(shared, pod, &mut placed.client, *routed)).await;
    }
    let call = Call { shared, pod, routed: &routed };
    if let Way::Tunnel(client, endpoint, order) = &routed.way
        && endpoint.rule.is_none()
        && !is_itself(client, &endpoint.workload)
    {
        // An agent that is about to end leaves joining to the one that serves its pods by now.
        let neighbour = neighbours.find(&endpoint.workload.uid).filter(|_| !shared.is_draining());
        return match neighbour {
            Some(neighbour) => {
                Box::pin(join::carry(&call, placed, client, endpoint, *order, &neighbour)).await;
            }
            None => Box::pin(call.tunnel(placed, client, endpoint, *order)).await,
        };
    }
    Box::pin(call.elsewhere(*placed)).await;
}

/// Whether a pod dials itself: namespace, name and UID together tell pods apart.
pub(super) fn is_itself(client: &Workload, destination: &Workload) -> bool {
    client.name == destination.name && client.uid == destination.uid
}

pub(super) struct Call<'a, D> {
    pub(super) shared: &'a Shared,
    pub(super) pod: &'a Pod<D>,
    pub(super) routed: &'a Routed,
}

/// A connection that the other end has taken, or may still refuse where nobody waits to know.
struct Opened {
    app: TcpStream,
    place: Place,
    stream: Stream,
    peer: Arc<PeerIdentity>,
    connection: Connection,
}

impl<D: Dial> Call<'_, D> {
    /// All ways but that of most connections in the mesh.
    async fn elsewhere(&self, placed: Placed) {
        let Placed { client: app, place } = placed;
        let routed = self.routed;
        match &routed.way {
            Way::Tunnel(client, endpoint, order) if let Some(rule) = &endpoint.rule => {
                self.tunnel_by_rule(app, client, endpoint, *order, rule, place).await;
            }
            Way::Tunnel(client, endpoint, _) if is_itself(client, &endpoint.workload) => {
                self.to_itself(app, client, endpoint, place).await;
            }
            Way::Tunnel(client, endpoint, order) => {
                self.tunnel(Box::new(Placed { client: app, place }), client, endpoint, *order).await;
            }
            Way::Plain(endpoint) if let Some(rule) = &endpoint.rule => {
                Box::pin(self.governed(app, endpoint, rule, place)).await;
            }
            Way::Plain(endpoint) => self.plain(app, "the destination", endpoint.addr.0, place, None).await,
            Way::Passthrough => {
                self.plain(app, "the destination", routed.original_dst.0, place, None).await;
            }
            Way::Observed => Box::pin(self.observed(app, place)).await,
            Way::ByName(refusal) => Box::pin(self.by_name(app, refusal, place)).await,
            Way::Resolve(_) => self.refuse(app, &unknown_client()),
            Way::Refused(refusal) => self.refuse(app, refusal),
        }
    }

    pub(super) async fn tunnel(
        &self,
        placed: Box<Placed>,
        client: &Workload,
        endpoint: &Endpoint,
        order: Order,
    ) {
        // On the heap while it lasts: a connection lives long, and dialling and the handshake are big.
        let opened = Box::pin(self.opened(*placed, client, endpoint, order)).await;
        let Some(Opened { app, place: _place, stream, peer, connection }) = opened else { return };
        let mut relay = Relay::new(app, stream);
        let meter = Outbound(&connection);
        let ended = select! {
            ended = self.shared.relay(&*self.pod.pod, &mut relay, &meter) => ended.map_err(Cut::by_relay),
            refused = self.shared.wallet.until_distrusted(&client.identity, &peer) => {
                Err(Cut::here(distrusted(refused)))
            }
        };
        match ended {
            Ok(()) => {
                connection.finish(&Ending::Closed);
                self.pod.pod.answered(self.routed.original_dst.0);
                let session = relay.into_leg().into_session();
                if self.shared.is_draining() {
                    tokio::spawn(session.close(None));
                } else {
                    self.shared.pool.put(self.key(client, endpoint), session);
                }
            }
            Err(cut) => {
                self.pod.pod.unanswered(self.routed.original_dst.0);
                let tell = cut.report(connection);
                tokio::spawn(relay.into_leg().close(tell));
            }
        }
    }

    /// Both ends connected; `None` if that has come to nothing, of which all are told.
    async fn opened(
        &self,
        placed: Placed,
        client: &Workload,
        endpoint: &Endpoint,
        order: Order,
    ) -> Option<Opened> {
        let Placed { client: mut app, mut place } = placed;
        let (connection, peer, stream) = loop {
            // On the heap by itself: everyone who passes on a future has room for it twice.
            let session = Box::pin(self.session(client, endpoint, place.buffers()));
            let (session, rested) = match place.begin(unless_given_up(&mut app, session)).await {
                Ok(found) => found,
                Err(refusal) => {
                    self.refuse(app, &refusal);
                    return None;
                }
            };
            let reused = rested.is_some();
            let waits = app.is_waiting() || rested.is_some_and(|rested| rested >= PROVEN);
            let facts = session.facts().clone();
            let mut stream = session.open(Incoming {
                original_dst: self.routed.original_dst.0,
                service: endpoint.service.as_ref().map(|service| service.host.to_string()),
                trace: None,
                order,
                waits,
            });
            let confirmed = if waits { self.confirmed(&mut app, &mut stream, reused).await } else { Ok(()) };
            // One that has rested may have ended, and its end was on the way, or it leads nowhere any more. Then those that have
            // rested longer do not either.
            if reused && matches!(confirmed, Err(LegError::Tunnel(_))) {
                self.shared.telemetry.tunnel_given_up();
                self.shared.pool.forget(&self.key(client, endpoint));
                stream.abort();
                continue;
            }
            let meta = describe::outbound(self.routed, Some((&facts, reused)));
            let connection = self.shared.telemetry.open(meta);
            if let Err(error) = confirmed {
                self.unconfirmed(app, stream, connection, Cut::by_leg(error));
                return None;
            }
            break (connection, facts.peer, stream);
        };
        let app = match admit(app).await {
            Ok(app) => app,
            Err(refusal) => {
                let tell = Cut::here(refusal).report(connection);
                tokio::spawn(stream.close(tell));
                return None;
            }
        };
        bound_buffers(&app, place.buffers());
        Some(Opened { app, place, stream, peer, connection })
    }

    /// Waits until the other end has taken the stream.
    async fn confirmed(&self, app: &mut Client, stream: &mut Stream, reused: bool) -> Result<(), LegError> {
        let answer = async {
            let late = || {
                Refusal::new(Reason::Timeout, "the other agent does not say whether its application answers")
            };
            timeout(ANSWERED_WITHIN, stream.confirmed(reused))
                .await
                .unwrap_or_else(|_| Err(LegError::Here(late())))
        };
        unless_given_up(app, answer).await
    }

    /// The other end has not taken it.
    fn unconfirmed(&self, app: Client, stream: Stream, connection: Connection, cut: Cut) {
        self.pod.pod.unanswered(self.routed.original_dst.0);
        if let Some(refusal) = &cut.refusal {
            refuse(app, refusal);
        }
        let tell = cut.report(connection);
        tokio::spawn(stream.close(tell));
    }

    /// A session that has waited in the pool, and for how long, or a new one. One from before our certificate was renewed serves
    /// only where no new one can be made.
    async fn session(
        &self,
        client: &Workload,
        endpoint: &Endpoint,
        buffers: Option<usize>,
    ) -> Result<(Session, Option<Duration>), Refusal> {
        let key = self.key(client, endpoint);
        let Shared { wallet, telemetry, pool, .. } = self.shared;
        let mut outdated = None;
        while let Some((session, rested)) = pool.take(&key) {
            if wallet.recheck(&client.identity, &session.facts().peer).is_err() {
                continue;
            }
            if !wallet.renewed_since(&client.identity, session.since()) {
                telemetry.tunnel_reused();
                return Ok((session, Some(rested)));
            }
            outdated = Some((session, rested));
        }
        match (self.dialled(client, endpoint, buffers).await, outdated) {
            (Ok(session), outdated) => {
                outdated.map(|(outdated, _)| tokio::spawn(outdated.close(None)));
                Ok((session, None))
            }
            (Err(_), Some((outdated, rested))) => {
                telemetry.tunnel_reused();
                Ok((outdated, Some(rested)))
            }
            (Err(refusal), None) => Err(refusal),
        }
    }

    /// What sessions for it have in common.
    fn key(&self, client: &Workload, endpoint: &Endpoint) -> PoolKey {
        PoolKey {
            pod: client.uid.clone(),
            source: self.routed.source.ip(),
            destination: endpoint.addr,
            peer: endpoint.workload.uid.clone(),
            own: client.identity.clone(),
            expected: endpoint.workload.identity.clone(),
        }
    }

    /// A new session.
    pub(super) async fn dialled(
        &self,
        client: &Workload,
        endpoint: &Endpoint,
        buffers: Option<usize>,
    ) -> Result<Session, Refusal> {
        new_session(self.shared, self.pod, self.routed.source.ip(), client, endpoint, buffers).await
    }

    /// A pod that calls its own service does not pass its own inbound side: its policy applies here, with itself as the
    /// source.
    pub(super) async fn to_itself(&self, app: Client, client: &Workload, endpoint: &Endpoint, place: Place) {
        let addr = endpoint.addr;
        let facts = facts(addr, addr.0.ip(), Some(&client.identity));
        match self.pod.prospect(&facts) {
            Ok(()) => self.plain(app, "the application at", addr.0, place, Some((facts, client))).await,
            Err(refusal) => {
                let meta = describe::outbound(self.routed, None);
                self.pod.rehearse_refused(&refusal, &facts, &meta, &self.shared.telemetry);
                self.refuse(app, &refusal);
            }
        }
    }

    /// To where no agent is: a plain connection from the pod's own address. One that is judged by `facts` is judged again
    /// whenever the pod's policy changes.
    async fn plain(
        &self,
        app: Client,
        what: &str,
        destination: SocketAddr,
        mut place: Place,
        judged: Option<(Facts<'_>, &Workload)>,
    ) {
        let dial = async {
            let dial = self.pod.pod.dial_plain(self.routed.source.ip(), destination);
            within(CONNECT, dial).await.map_err(|error| unconnected(what, destination, &error))
        };
        let Some((app, server)) = self.reached(app, &mut place, dial).await else { return };
        bound_buffers(&server, place.buffers());
        let connection = self.shared.telemetry.open(describe::outbound(self.routed, None));
        if let Some((facts, workload)) = judged {
            // The same as if it had passed the pod's own inbound side.
            let call = requests::Call {
                shared: self.shared,
                pod: self.pod,
                workload,
                source: self.routed.source,
                facts,
                peer: None,
                connection: &connection,
            };
            let (ended, _client) =
                Box::pin(call.carry(server, Plain::new(app, self.pod.share.clone()))).await;
            match ended {
                Ok(()) => connection.finish(&Ending::Closed),
                Err(cut) => drop(cut.report(connection)),
            }
            return;
        }
        let mut relay = Relay::new(app, Plain::new(server, self.pod.share.clone()));
        let ended = self.shared.relay(&*self.pod.pod, &mut relay, &Outbound(&connection)).await;
        let ending = match ended {
            Ok(()) | Err(Broken::Leg(LegError::AppLeft)) => Ending::Closed,
            Err(Broken::Leg(_)) => Ending::Reset,
            Err(Broken::GivenUp(refusal)) => Ending::Refused { refusal, by_peer: false },
        };
        connection.finish(&ending);
    }

    /// The application and what `way` leads to, once that is there and the application still wants it. Where not, everybody has
    /// been told.
    pub(super) async fn reached<T>(
        &self,
        mut app: Client,
        place: &mut Place,
        way: impl Future<Output = Result<T, Refusal>>,
    ) -> Option<(TcpStream, T)> {
        let way = Box::pin(way);
        let reached = match place.begin(unless_given_up(&mut app, way)).await {
            Ok(reached) => reached,
            Err(refusal) => {
                self.pod.pod.unanswered(self.routed.original_dst.0);
                self.refuse(app, &refusal);
                return None;
            }
        };
        match admit(app).await {
            Ok(app) => {
                self.pod.pod.answered(self.routed.original_dst.0);
                bound_buffers(&app, place.buffers());
                Some((app, reached))
            }
            Err(refusal) => {
                self.refused(&refusal);
                None
            }
        }
    }

    pub(super) fn refuse(&self, app: Client, refusal: &Refusal) {
        self.refused(refusal);
        refuse(app, refusal);
    }

    /// The called pod of this node has refused it.
    pub(super) fn refused_there(&self, app: Client, refusal: Refusal) {
        self.pod.pod.unanswered(self.routed.original_dst.0);
        refuse(app, &refusal);
        let connection = self.shared.telemetry.open(describe::joined_outbound(self.routed));
        let _: Option<Refusal> = Cut::told(refusal, true).report(connection);
    }

    pub(super) fn refused(&self, refusal: &Refusal) {
        self.shared.telemetry.refuse(&describe::outbound(self.routed, None), refusal);
    }
}

/// A new session from `source`, an address of the pod `client`.
pub(super) async fn new_session<D: Dial>(
    shared: &Shared,
    pod: &Pod<D>,
    source: IpAddr,
    client: &Workload,
    endpoint: &Endpoint,
    buffers: Option<usize>,
) -> Result<Session, Refusal> {
    let expected = &endpoint.workload.identity;
    let Shared { wallet, telemetry, .. } = shared;
    let credentials = wallet.credentials(&client.identity).await?;
    let destination = endpoint.addr;
    let limit = endpoint.rule.as_ref().and_then(|rule| rule.settings.pool.connect_timeout);
    let tcp = within(limit.unwrap_or(CONNECT), pod.pod.dial_tunnel(source, destination))
        .await
        .map_err(|error| unconnected("the peer's agent at", destination.0, &error))?;
    bound_buffers(&tcp, buffers);
    // Tickets are kept by address: the agents of two nodes cannot read each other's.
    let (config, _) = credentials.client_config(expected);
    let name = destination.0.ip().into();
    let session = Session::connect(tcp, config, name, &pod.share, |certificates| {
        wallet.peer(&credentials, certificates, Some(expected))
    })
    .await
    .inspect_err(|error| telemetry.tls_failure(Direction::Outbound, error.reason()))?;
    wallet.recheck(&client.identity, &session.facts().peer).map_err(distrusted)?;
    telemetry.handshake(Direction::Outbound, session.facts().resumed);
    Ok(session)
}

/// The application is the client.
pub(super) struct Outbound<'a>(pub(super) &'a Connection);

impl Meter for Outbound<'_> {
    fn app_sent(&self, bytes: u64) {
        self.0.client_to_server(bytes);
    }

    fn app_got(&self, bytes: u64) {
        self.0.server_to_client(bytes);
    }
}
