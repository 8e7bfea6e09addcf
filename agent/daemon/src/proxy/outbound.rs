//! From an application in a pod to wherever it wants to go: route, then a tunnel to a meshed pod or a plain connection.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use ambit_core::{
    discovery::{Endpoint, Route, RouteError},
    model::{OriginalDst, PodAddr, Workload},
    reason::{Reason, Refusal},
};
use tokio::{net::TcpStream, select};

use super::{
    Cut, Pod, Shared,
    admission::Place,
    describe, distrusted, facts,
    order::Numbers,
    pressure::Broken,
    relay::{Meter, Relay},
    unconnected, within,
};
use crate::{
    capture::{Dial, bound_buffers},
    discovery::World,
    telemetry::{Connection, Direction, Ending},
    tunnel::{Incoming, Order, Plain, PoolKey, Session},
};

/// How long a connect to another pod may take.
const CONNECT: Duration = Duration::from_secs(10);

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
    /// To where no pod is known.
    Passthrough,
    /// Nowhere.
    Refused(Refusal),
}

/// Where a connection of the pod `uid` goes, and its number among those that go there.
pub(super) fn route(
    world: &World,
    uid: &str,
    source: SocketAddr,
    original_dst: OriginalDst,
    numbers: &mut Numbers<PodAddr>,
) -> Routed {
    let client = world.mesh.workload_by_ip(source.ip()).filter(|client| *client.uid == *uid);
    let way = match client {
        Some(client) => match world.mesh.route(client, original_dst, rand::random()) {
            Route::Tunnel(endpoint) => {
                let order = numbers.next(endpoint.addr);
                Way::Tunnel(client.clone(), endpoint, order)
            }
            Route::Plain(endpoint) => Way::Plain(endpoint),
            Route::Passthrough => Way::Passthrough,
            Route::Refuse(error) => {
                let reason = match error {
                    RouteError::UnknownPort { .. } => Reason::UnknownPort,
                    RouteError::NoEndpoint { .. } | RouteError::Contested { .. } => Reason::NoEndpoint,
                };
                Way::Refused(Refusal::new(reason, error.to_string()))
            }
        },
        None => {
            let text = "the calling pod is not known at the address that it calls from";
            Way::Refused(Refusal::new(Reason::NotReady, text))
        }
    };
    Routed { client: client.cloned(), source, original_dst, way }
}

/// Carries one connection to its end.
pub(super) async fn carry<D: Dial>(
    shared: &Shared,
    pod: &Pod<D>,
    app: TcpStream,
    routed: Routed,
    place: Result<Place, Refusal>,
) {
    let place = match place {
        Ok(place) => place,
        Err(refusal) => return shared.telemetry.refuse(&describe::outbound(&routed, None), &refusal),
    };
    bound_buffers(&app, place.buffers());
    let call = Call { shared, pod, routed: &routed };
    match &routed.way {
        Way::Tunnel(client, endpoint, _) if is_itself(client, &endpoint.workload) => {
            call.to_itself(app, client, endpoint, place).await;
        }
        Way::Tunnel(client, endpoint, order) => call.tunnel(app, client, endpoint, *order, place).await,
        Way::Plain(endpoint) => call.plain(app, "the destination", endpoint.addr.0, place).await,
        Way::Passthrough => call.plain(app, "the destination", routed.original_dst.0, place).await,
        Way::Refused(refusal) => call.refuse(refusal),
    }
}

/// Whether a pod dials itself: namespace, name and UID together tell pods apart.
fn is_itself(client: &Workload, destination: &Workload) -> bool {
    client.name == destination.name && client.uid == destination.uid
}

struct Call<'a, D> {
    shared: &'a Shared,
    pod: &'a Pod<D>,
    routed: &'a Routed,
}

impl<D: Dial> Call<'_, D> {
    async fn tunnel(
        &self,
        app: TcpStream,
        client: &Workload,
        endpoint: &Endpoint,
        order: Order,
        mut place: Place,
    ) {
        // On the heap while it lasts: a connection lives long, and dialling and the handshake are big.
        let begun = Box::pin(self.session(client, endpoint, place.buffers()));
        let (key, session, reused) = match place.begin(begun).await {
            Ok(found) => found,
            Err(refusal) => return self.refuse(&refusal),
        };
        let meta = describe::outbound(self.routed, Some((session.facts(), reused)));
        let connection = self.shared.telemetry.open(meta);
        let peer = session.facts().peer.clone();
        let stream = session.open(Incoming {
            original_dst: self.routed.original_dst.0,
            service: endpoint.service.as_ref().map(|service| service.host.to_string()),
            trace: None,
            order,
        });
        let mut relay = Relay::new(app, stream);
        let meter = Outbound(&connection);
        let ended = select! {
            ended = self.shared.relay(self.pod.pod.uid(), &mut relay, &meter) => ended.map_err(Cut::by_relay),
            refused = self.shared.wallet.until_distrusted(&client.identity, &peer) => {
                Err(Cut::here(distrusted(refused)))
            }
        };
        match ended {
            Ok(()) => {
                connection.finish(&Ending::Closed);
                let session = relay.into_leg().into_session();
                if self.shared.is_draining() {
                    tokio::spawn(session.close(None));
                } else {
                    self.shared.pool.put(key, session);
                }
            }
            Err(cut) => {
                let tell = cut.report(connection);
                tokio::spawn(relay.into_leg().close(tell));
            }
        }
    }

    /// A session that has waited in the pool, or a new one. One from before our certificate was renewed serves only where no
    /// new one can be made.
    async fn session(
        &self,
        client: &Workload,
        endpoint: &Endpoint,
        buffers: Option<usize>,
    ) -> Result<(PoolKey, Session, bool), Refusal> {
        let key = PoolKey {
            pod: client.uid.clone(),
            source: self.routed.source.ip(),
            destination: endpoint.addr,
            peer: endpoint.workload.uid.clone(),
            own: client.identity.clone(),
            expected: endpoint.workload.identity.clone(),
        };
        let Shared { wallet, telemetry, pool, .. } = self.shared;
        let mut outdated = None;
        while let Some(session) = pool.take(&key) {
            if wallet.recheck(&client.identity, &session.facts().peer).is_err() {
                continue;
            }
            if !wallet.renewed_since(&client.identity, session.since()) {
                telemetry.tunnel_reused();
                return Ok((key, session, true));
            }
            outdated = Some(session);
        }
        match (self.dialled(client, endpoint, buffers).await, outdated) {
            (Ok(session), outdated) => {
                outdated.map(|outdated| tokio::spawn(outdated.close(None)));
                Ok((key, session, false))
            }
            (Err(_), Some(outdated)) => {
                telemetry.tunnel_reused();
                Ok((key, outdated, true))
            }
            (Err(refusal), None) => Err(refusal),
        }
    }

    /// A new session.
    async fn dialled(
        &self,
        client: &Workload,
        endpoint: &Endpoint,
        buffers: Option<usize>,
    ) -> Result<Session, Refusal> {
        let expected = &endpoint.workload.identity;
        let Shared { wallet, telemetry, .. } = self.shared;
        let credentials = wallet.credentials(&client.identity).await?;
        let destination = endpoint.addr;
        let tcp = within(CONNECT, self.pod.pod.dial_tunnel(self.routed.source.ip(), destination))
            .await
            .map_err(|error| unconnected("the peer's agent at", destination.0, &error))?;
        bound_buffers(&tcp, buffers);
        // Tickets are kept by address: the agents of two nodes cannot read each other's.
        let (config, _) = credentials.client_config(expected);
        let name = destination.0.ip().into();
        let session = Session::connect(tcp, config, name, &self.pod.share, |certificates| {
            wallet.peer(&credentials, certificates, Some(expected))
        })
        .await
        .inspect_err(|error| telemetry.tls_failure(Direction::Outbound, error.reason()))?;
        wallet.recheck(&client.identity, &session.facts().peer).map_err(distrusted)?;
        telemetry.handshake(Direction::Outbound, session.facts().resumed);
        Ok(session)
    }

    /// A pod that calls its own service does not pass its own inbound side: its policy applies here, with itself as the
    /// source.
    async fn to_itself(&self, app: TcpStream, client: &Workload, endpoint: &Endpoint, place: Place) {
        let addr = endpoint.addr;
        match self.pod.verdict(&facts(addr, addr.0.ip(), Some(&client.identity))) {
            Ok(()) => self.plain(app, "the application at", addr.0, place).await,
            Err(refusal) => self.refuse(&refusal),
        }
    }

    /// To where no agent is: a plain connection from the pod's own address.
    async fn plain(&self, app: TcpStream, what: &str, destination: SocketAddr, mut place: Place) {
        let dial = Box::pin(async {
            let dial = self.pod.pod.dial_plain(self.routed.source.ip(), destination);
            within(CONNECT, dial).await.map_err(|error| unconnected(what, destination, &error))
        });
        let server = match place.begin(dial).await {
            Ok(server) => server,
            Err(refusal) => return self.refuse(&refusal),
        };
        bound_buffers(&server, place.buffers());
        let connection = self.shared.telemetry.open(describe::outbound(self.routed, None));
        let mut relay = Relay::new(app, Plain::new(server, self.pod.share.clone()));
        match self.shared.relay(self.pod.pod.uid(), &mut relay, &Outbound(&connection)).await {
            Ok(()) => connection.finish(&Ending::Closed),
            Err(Broken::Leg(_)) => connection.finish(&Ending::Reset),
            Err(Broken::GivenUp(refusal)) => {
                connection.finish(&Ending::Refused { refusal, by_peer: false });
            }
        }
    }

    fn refuse(&self, refusal: &Refusal) {
        self.shared.telemetry.refuse(&describe::outbound(self.routed, None), refusal);
    }
}

/// The application is the client.
struct Outbound<'a>(&'a Connection);

impl Meter for Outbound<'_> {
    fn app_sent(&self, bytes: u64) {
        self.0.client_to_server(bytes);
    }

    fn app_got(&self, bytes: u64) {
        self.0.server_to_client(bytes);
    }
}
