//! From an application in a pod to wherever it wants to go: route, then a tunnel to a meshed pod or a plain connection.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use ambit_core::{
    discovery::{Endpoint, Named, Route, RouteError},
    model::{OriginalDst, PodAddr, Workload},
    policy::Facts,
    reason::{Reason, Refusal},
};
use tokio::net::TcpStream;

use super::{
    Placed, Pod, Shared,
    admission::Place,
    attempts::{Carried, Missed, Tried, another},
    choices::Choices,
    describe, egress, facts, join,
    neighbours::Neighbours,
    order::Numbers,
    pressure::Broken,
    relay::{Meter, Relay},
    requests,
    settled::Settled,
    unboxed, unconnected,
    waiting::{admit, refuse, unless_given_up},
    within,
};
use crate::{
    capture::{Client, Dial, bound_buffers},
    discovery::World,
    telemetry::{Connection, Ending},
    tunnel::{LegError, Order, Plain},
};

/// How long a connect to another pod may take.
pub(super) const CONNECT: Duration = Duration::from_secs(10);

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
    choices: &Choices,
    numbers: &mut Numbers<PodAddr>,
) -> Routed {
    let client = world.mesh.workload_at(source.ip(), uid);
    let way = match client {
        Some(client) => match choices.route(world, client, original_dst, &[]) {
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
        RouteError::NoEndpoint { .. }
        | RouteError::Contested { .. }
        | RouteError::Unjudged { .. }
        | RouteError::Unread { .. } => Reason::NoEndpoint,
        RouteError::NotRegistered { .. } => Reason::EgressDenied,
        RouteError::SourceRange { .. } => Reason::SourceRange,
    };
    Refusal::new(reason, error.to_string())
}

pub(super) fn unknown_client() -> Refusal {
    Refusal::new(Reason::NotReady, "the calling pod is not known at the address that it calls from")
}

/// Carries one connection to its end, by one of the endpoints that it may go to.
pub(super) async fn carry<D: Dial>(
    shared: &Arc<Shared>,
    pod: &Pod<D>,
    mut placed: Box<Placed>,
    mut routed: Box<Routed>,
    neighbours: &Neighbours<D>,
) {
    if matches!(routed.way, Way::Resolve(_)) {
        *routed = Box::pin(egress::resolve(shared, pod, &mut placed.client, *routed, &[])).await;
    }
    let mut tried = Tried::nothing();
    loop {
        let call = Call { shared, pod, routed: &routed, tried: &tried };
        let Err(mut missed) = Box::pin(call.attempt(placed, neighbours)).await else { return };
        let next = Box::pin(another(shared, pod, &routed, &mut tried, &mut missed)).await;
        match next {
            Some(next) => *routed = next,
            None => return Call { shared, pod, routed: &routed, tried: &tried }.give_up(*missed),
        }
        placed = Box::new(missed.placed);
    }
}

/// Whether a pod dials itself: namespace, name and UID together tell pods apart.
pub(super) fn is_itself(client: &Workload, destination: &Workload) -> bool {
    client.name == destination.name && client.uid == destination.uid
}

pub(super) struct Call<'a, D> {
    pub(super) shared: &'a Arc<Shared>,
    pub(super) pod: &'a Pod<D>,
    pub(super) routed: &'a Routed,
    pub(super) tried: &'a Tried,
}

impl<D: Dial> Call<'_, D> {
    /// One attempt; to one of the `neighbours` without a tunnel, if the way leads there.
    async fn attempt(&self, placed: Box<Placed>, neighbours: &Neighbours<D>) -> Carried {
        if self.asks_for_names() {
            return Box::pin(self.names(placed)).await;
        }
        if let Way::Tunnel(client, endpoint, order) = &self.routed.way
            && endpoint.rule.is_none()
            && !is_itself(client, &endpoint.workload)
        {
            // An agent that is about to end leaves joining to the one that serves its pods by now.
            let neighbour = neighbours.find(&endpoint.workload.uid).filter(|_| !self.shared.is_draining());
            return match neighbour {
                Some(neighbour) => {
                    Box::pin(join::carry(self, placed, client, endpoint, *order, &neighbour)).await
                }
                None => Box::pin(self.tunnel(placed, client, endpoint, *order)).await,
            };
        }
        Box::pin(self.elsewhere(placed)).await
    }

    /// All ways but that of most connections in the mesh.
    async fn elsewhere(&self, placed: Box<Placed>) -> Carried {
        let routed = self.routed;
        match &routed.way {
            Way::Tunnel(client, endpoint, order) if let Some(rule) = &endpoint.rule => {
                return self.tunnel_by_rule(placed, client, endpoint, *order, rule).await;
            }
            Way::Tunnel(client, endpoint, _) if is_itself(client, &endpoint.workload) => {
                return self.to_itself(unboxed(placed), client, endpoint).await;
            }
            Way::Tunnel(client, endpoint, order) => {
                return self.tunnel(placed, client, endpoint, *order).await;
            }
            Way::Plain(endpoint) if let Some(rule) = &endpoint.rule => {
                return Box::pin(self.governed(unboxed(placed), endpoint, rule)).await;
            }
            Way::Plain(endpoint) => {
                return self.plain(unboxed(placed), "the destination", endpoint.addr.0, None).await;
            }
            Way::Passthrough => {
                return self.plain(unboxed(placed), "the destination", routed.original_dst.0, None).await;
            }
            Way::Observed => return Box::pin(self.observed(unboxed(placed))).await,
            Way::ByName(refusal) => {
                let Placed { client, place } = unboxed(placed);
                Box::pin(self.by_name(client, refusal, place)).await;
            }
            Way::Resolve(_) => self.refuse(placed.client, &unknown_client()),
            Way::Refused(refusal) => self.refuse(placed.client, refusal),
        }
        Ok(())
    }

    /// No endpoint has answered, or none may be tried any more: everybody is told.
    fn give_up(&self, missed: Missed) {
        let Missed { placed, refusal, met } = missed;
        self.pod.pod.unanswered(self.routed.original_dst.0);
        match met {
            Some((meta, cut)) => {
                refuse(placed.client, &refusal);
                let _: Option<Refusal> = cut.report(self.shared.telemetry.open(meta));
            }
            None => self.refuse(placed.client, &refusal),
        }
    }

    /// A pod that calls its own service does not pass its own inbound side: its policy applies here, with itself as the
    /// source.
    pub(super) async fn to_itself(&self, placed: Placed, client: &Workload, endpoint: &Endpoint) -> Carried {
        let addr = endpoint.addr;
        let facts = facts(addr, addr.0.ip(), Some(&client.identity));
        match self.pod.prospect(&facts) {
            Ok(()) => self.plain(placed, "the application at", addr.0, Some((facts, client))).await,
            Err(refusal) => {
                let meta = describe::outbound(self.routed, None);
                self.pod.rehearse_refused(&refusal, &facts, &meta, &self.shared.telemetry);
                self.refuse(placed.client, &refusal);
                Ok(())
            }
        }
    }

    /// To where no agent is: a plain connection from the pod's own address. One that is judged by `facts` is judged again
    /// whenever the pod's policy changes.
    async fn plain(
        &self,
        placed: Placed,
        what: &str,
        destination: SocketAddr,
        judged: Option<(Facts<'_>, &Workload)>,
    ) -> Carried {
        let dial = async {
            let dial = self.pod.pod.dial_plain(self.routed.source.ip(), destination);
            within(CONNECT, dial).await.map_err(|error| unconnected(what, destination, &error))
        };
        let Some((app, place, server)) = self.reached(placed, dial).await? else { return Ok(()) };
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
                settled: Settled::default(),
            };
            let (ended, _client) =
                Box::pin(call.carry(server, Plain::new(app, self.pod.share.clone()))).await;
            match ended {
                Ok(()) => connection.finish(&Ending::Closed),
                Err(cut) => drop(cut.report(connection)),
            }
            return Ok(());
        }
        let mut relay = Relay::new(app, Plain::new(server, self.pod.share.clone()));
        let meter = Outbound(&connection);
        let ended = self.shared.relay(&*self.pod.pod, &mut relay, &meter, &Settled::default()).await;
        let ending = match ended {
            Ok(()) | Err(Broken::Leg(LegError::AppLeft)) => Ending::Closed,
            Err(Broken::Leg(_)) => Ending::Reset,
            Err(Broken::GivenUp(refusal)) => Ending::Refused { refusal, by_peer: false },
        };
        connection.finish(&ending);
        Ok(())
    }

    /// The application, its place and what `way` leads to, once that is there and the application still wants it; `None` if it does
    /// not, of which everybody has been told.
    pub(super) async fn reached<T>(
        &self,
        placed: Placed,
        way: impl Future<Output = Result<T, Refusal>>,
    ) -> Result<Option<(TcpStream, Place, T)>, Box<Missed>> {
        let Placed { client: mut app, mut place } = placed;
        let way = Box::pin(self.patiently(way));
        let reached = match place.begin(unless_given_up(&mut app, way)).await {
            Ok(reached) => reached,
            Err(refusal) => return Err(Missed::before(Placed { client: app, place }, refusal)),
        };
        match admit(app).await {
            Ok(app) => {
                self.pod.pod.answered(self.routed.original_dst.0);
                bound_buffers(&app, place.buffers());
                Ok(Some((app, place, reached)))
            }
            Err(refusal) => {
                self.refused(&refusal);
                Ok(None)
            }
        }
    }

    pub(super) fn refuse(&self, app: Client, refusal: &Refusal) {
        self.refused(refusal);
        refuse(app, refusal);
    }

    pub(super) fn refused(&self, refusal: &Refusal) {
        self.shared.telemetry.refuse(&describe::outbound(self.routed, None), refusal);
    }
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
