//! From an application in a pod to wherever it wants to go: route, then a tunnel to a meshed pod or a plain connection.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use ambit_core::{
    discovery::{Endpoint, Route, RouteError},
    frame::{Control, Open, Order},
    model::{OriginalDst, PodAddr, Workload},
    reason::Reason,
};
use tokio::{net::TcpStream, select, time::timeout};

use super::{
    Failure, Shared, meta,
    order::Numbers,
    relay::{self, Meter, RelayError},
    verdict,
};
use crate::{
    capture::PodNet,
    telemetry::{Connection, Direction, Ending, Meta, Party, Security},
    tunnel::{self, Link, PoolKey},
};

/// How long a connect to another pod may take (spec/wire.md §1.1).
const CONNECT: Duration = Duration::from_secs(10);

/// What is to become of one connection.
pub(super) enum Routed {
    /// To a pod in the mesh.
    Tunnel(Box<Call>),
    /// To where no agent is.
    Plain(Meta),
    /// Nowhere.
    Refused(Meta, Failure),
}

/// A call from an enrolled pod to another.
pub(super) struct Call {
    client: Arc<Workload>,
    source: SocketAddr,
    original_dst: OriginalDst,
    endpoint: Endpoint,
    order: Order,
}

/// Where a connection goes, and its number among those that go there.
pub(super) fn route(
    shared: &Shared,
    pod: &PodNet,
    source: SocketAddr,
    original_dst: OriginalDst,
    numbers: &mut Numbers<PodAddr>,
) -> Routed {
    let world = shared.feed.world();
    let Some(client) = world.mesh.workload_by_ip(source.ip()).filter(|client| client.uid == *pod.uid())
    else {
        let text = "the calling pod is not known at the address that it calls from";
        let meta = unrouted(Party::default(), source, original_dst);
        return Routed::Refused(meta, Failure::new(Reason::NotReady, text));
    };
    match world.mesh.route(client, original_dst, rand::random()) {
        Route::Tunnel(endpoint) => {
            let order = numbers.next(endpoint.addr);
            Routed::Tunnel(Box::new(Call { client: client.clone(), source, original_dst, endpoint, order }))
        }
        Route::Plain(endpoint) => {
            let mut meta = unrouted(party(client), source, original_dst);
            meta.destination = party(&endpoint.workload);
            meta.destination_addr = endpoint.addr.0;
            meta.service = endpoint.service;
            Routed::Plain(meta)
        }
        Route::Passthrough => Routed::Plain(unrouted(party(client), source, original_dst)),
        Route::Refuse(error) => {
            let reason = match error {
                RouteError::UnknownPort { .. } => Reason::UnknownPort,
                RouteError::NoEndpoint { .. } => Reason::NoEndpoint,
            };
            let meta = unrouted(party(client), source, original_dst);
            Routed::Refused(meta, Failure::new(reason, error.to_string()))
        }
    }
}

/// Carries one connection to its end.
pub(super) async fn carry(shared: &Shared, pod: &PodNet, mut app: TcpStream, routed: Routed) {
    match routed {
        Routed::Tunnel(call) => Calling { shared, pod, call: *call }.tunnel(&mut app).await,
        Routed::Plain(meta) => plain(shared, pod, &mut app, meta).await,
        Routed::Refused(meta, failure) => {
            shared.telemetry.refuse(&meta, &failure.refusal());
        }
    }
}

struct Calling<'a> {
    shared: &'a Shared,
    pod: &'a PodNet,
    call: Call,
}

impl Calling<'_> {
    async fn tunnel(&self, app: &mut TcpStream) {
        if self.call.endpoint.workload.uid == self.call.client.uid {
            return self.to_itself(app).await;
        }
        let (key, mut link, reused) = match self.link().await {
            Ok(found) => found,
            Err(failure) => {
                let meta = self.meta(Security::Plaintext);
                return self.shared.telemetry.refuse(&meta, &failure.refusal());
            }
        };
        let security = Security::MutualTls { group: link.group(), reused };
        let connection = self.shared.telemetry.open(self.meta(security));
        let open = Control::Open(Open {
            original_dst: self.call.original_dst.0,
            service: self.call.endpoint.service.as_ref().map(|service| service.host.to_string()),
            trace: None,
            order: self.call.order,
        });
        let peer = link.peer().clone();
        let meter = Outbound(&connection);
        let ended = select! {
            ended = relay::stream(app, &mut link, &open, &meter) => ended.map_err(failed),
            (reason, text) = self.shared.wallet.until_distrusted(&self.call.client.identity, &peer) => {
                Err((Failure::new(reason, text), Some(Control::Reset(reason))))
            }
        };
        match ended {
            Ok(()) => {
                connection.finish(&Ending::Closed);
                if self.shared.is_draining() {
                    tokio::spawn(link.close_with(None));
                } else {
                    self.shared.pool.put(key, link);
                }
            }
            Err((failure, last)) => {
                connection.finish(&if failure.by_peer && failure.reason != Reason::Reset {
                    Ending::Refused(failure.refusal())
                } else {
                    failure.ending()
                });
                tokio::spawn(link.close_with(last));
            }
        }
    }

    /// A connection that has waited in the pool, or a new one.
    async fn link(&self) -> Result<(PoolKey, Link, bool), Failure> {
        let expected = &self.call.endpoint.workload.identity;
        let key = PoolKey {
            pod: self.call.client.uid.clone(),
            source: self.call.source.ip(),
            destination: self.call.endpoint.addr,
            peer: self.call.endpoint.workload.uid.clone(),
            own: self.call.client.identity.clone(),
            expected: expected.clone(),
        };
        let wallet = &self.shared.wallet;
        while let Some(link) = self.shared.pool.take(&key) {
            if wallet.recheck(&self.call.client.identity, link.peer()).is_ok() {
                self.shared.telemetry.tunnel_reused();
                return Ok((key, link, true));
            }
        }
        let credentials = wallet.credentials(&self.call.client.identity).await?;
        let destination = self.call.endpoint.addr;
        let tcp = timeout(CONNECT, self.pod.dial_tunnel(self.call.source.ip(), destination))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|error| Failure::connect("the peer's agent at", destination.0, &error))?;
        // Tickets are kept by address: the agents of two nodes cannot read each other's.
        let (config, _) = credentials.client_config(expected);
        let link = tunnel::connect(tcp, (config, destination.0.ip().into()), |certificates| {
            wallet.peer(&credentials, certificates, Some(expected))
        })
        .await
        .inspect_err(|error| self.shared.telemetry.tls_failure(Direction::Outbound, error.reason()))?;
        wallet
            .recheck(&self.call.client.identity, link.peer())
            .map_err(|(reason, text)| Failure::new(reason, text))?;
        self.shared.telemetry.handshake(Direction::Outbound, link.is_resumed());
        Ok((key, link, false))
    }

    /// A pod that calls its own service: its own policy applies, with itself as the source (spec/policy.md §12.46).
    async fn to_itself(&self, app: &mut TcpStream) {
        let addr = self.call.endpoint.addr.0;
        let world = self.shared.feed.world();
        let allowed =
            verdict(&world, &self.call.client, addr.port(), addr.ip(), Some(&self.call.client.identity));
        let dialled = match allowed {
            Ok(()) => self
                .pod
                .dial_plain(self.call.source.ip(), addr)
                .await
                .map_err(|error| Failure::connect("the application at", addr, &error)),
            Err(failure) => Err(failure),
        };
        let meta = self.meta(Security::Plaintext);
        match dialled {
            Ok(mut server) => relay_plain(self.shared, app, &mut server, meta).await,
            Err(failure) => {
                self.shared.telemetry.refuse(&meta, &failure.refusal());
            }
        }
    }

    fn meta(&self, security: Security) -> Meta {
        let proven = |workload: &Arc<Workload>| Party {
            workload: Some(workload.clone()),
            identity: matches!(security, Security::MutualTls { .. }).then(|| workload.identity.clone()),
        };
        let (client, server) = (proven(&self.call.client), proven(&self.call.endpoint.workload));
        let mut meta = meta(
            Direction::Outbound,
            (client, self.call.source),
            (server, self.call.endpoint.addr.0),
            security,
        );
        meta.original_dst = Some(self.call.original_dst.0);
        meta.service.clone_from(&self.call.endpoint.service);
        meta
    }
}

/// To where no agent is: a plain connection from the pod's own address.
async fn plain(shared: &Shared, pod: &PodNet, app: &mut TcpStream, meta: Meta) {
    let destination = meta.destination_addr;
    let dialled = timeout(CONNECT, pod.dial_plain(meta.source_addr.ip(), destination))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    match dialled {
        Ok(mut server) => relay_plain(shared, app, &mut server, meta).await,
        Err(error) => {
            let failure = Failure::connect("the destination", destination, &error);
            shared.telemetry.refuse(&meta, &failure.refusal());
        }
    }
}

async fn relay_plain(shared: &Shared, app: &mut TcpStream, server: &mut TcpStream, meta: Meta) {
    let connection = shared.telemetry.open(meta);
    match relay::plain(app, server, &Outbound(&connection)).await {
        Ok(()) => connection.finish(&Ending::Closed),
        Err(_) => {
            connection.finish(&Ending::Reset);
        }
    }
}

/// The cause for us, and the last word to the peer.
fn failed(error: RelayError) -> (Failure, Option<Control>) {
    match error {
        RelayError::App(error) => (
            Failure::new(Reason::Reset, format!("the application reset the connection: {error}")),
            Some(Control::Reset(Reason::Reset)),
        ),
        RelayError::Reset(reason) => {
            let mut failure = Failure::new(reason, "the other end reset the connection");
            failure.by_peer = true;
            (failure, None)
        }
        RelayError::Denied(deny) => (Failure::denied_by_peer(&deny), None),
        RelayError::Tunnel(error) => (error.into(), None),
    }
}

/// What is known before there is an endpoint.
fn unrouted(client: Party, source: SocketAddr, original_dst: OriginalDst) -> Meta {
    let mut meta =
        meta(Direction::Outbound, (client, source), (Party::default(), original_dst.0), Security::Plaintext);
    meta.original_dst = Some(original_dst.0);
    meta
}

/// A pod without a proof of who it is.
fn party(workload: &Arc<Workload>) -> Party {
    Party { workload: Some(workload.clone()), identity: None }
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
