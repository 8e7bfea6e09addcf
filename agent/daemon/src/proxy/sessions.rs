//! The tunnel that a connection takes: one that waits in the pool or a new one, and whether the application at its other end answers.

use std::{net::IpAddr, sync::Arc, time::Duration};

use ambit_core::{
    discovery::Endpoint,
    model::Workload,
    reason::{Reason, Refusal},
};
use tokio::{net::TcpStream, select, time::timeout};

use super::{
    Cut, Placed, Pod, Shared,
    admission::Place,
    attempts::{Carried, Missed},
    describe, distrusted,
    outbound::{CONNECT, Call, Outbound},
    relay::Relay,
    settled::Settled,
    unboxed, unconnected,
    waiting::{admit, unless_given_up},
    within,
};
use crate::{
    capture::{Client, Dial, bound_buffers},
    telemetry::{Connection, Direction, Ending, Meta},
    tunnel::{
        ANSWERED_WITHIN, Incoming, LegError, Order, PoolKey, Session, Strand, Stream,
        tls::{Expected, PeerIdentity},
    },
};

/// How long a tunnel that rests is believed to lead to its peer. After that nothing of the application's is said on it before
/// the peer has answered, so that it can still go another way.
const PROVEN: Duration = Duration::from_secs(1);

/// A session, and for how long it has waited if it was there already.
type Found = (Session, Option<Duration>);

/// A connection that the other end has taken, or may still refuse where nobody waits to know.
pub(super) struct Opened {
    pub(super) app: TcpStream,
    pub(super) place: Place,
    pub(super) stream: Stream,
    pub(super) peer: Arc<PeerIdentity>,
    pub(super) connection: Connection,
}

impl<D: Dial> Call<'_, D> {
    pub(super) async fn tunnel(
        &self,
        placed: Box<Placed>,
        client: &Arc<Workload>,
        endpoint: &Endpoint,
        order: Order,
    ) -> Carried {
        // On the heap while it lasts: a connection lives long, and dialling and the handshake are big.
        let opened = Box::pin(self.opened(unboxed(placed), client, endpoint, order)).await?;
        let Some(Opened { app, place: _place, stream, peer, connection }) = opened else { return Ok(()) };
        let mut relay = Relay::new(app, stream);
        let meter = Outbound(&connection);
        let settled = Settled::default();
        let ended = select! {
            biased;
            ended = self.shared.relay(&*self.pod.pod, &mut relay, &meter, &settled) => {
                ended.map_err(Cut::by_relay)
            }
            refused = async {
                settled.reached().await;
                self.shared.wallet.until_distrusted(&client.identity, &peer).await
            } => Err(Cut::here(distrusted(refused))),
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
        Ok(())
    }

    /// Both ends connected; `None` if the client has left, of which all are told.
    pub(super) async fn opened(
        &self,
        placed: Placed,
        client: &Arc<Workload>,
        endpoint: &Endpoint,
        order: Order,
    ) -> Result<Option<Opened>, Box<Missed>> {
        let Placed { client: mut app, mut place } = placed;
        let (connection, peer, stream) = loop {
            let found = match self.rested(client, endpoint) {
                Ok(rested) => place.begin(std::future::ready(Ok(rested))).await,
                Err(outdated) => {
                    let session = self.session(client, endpoint, outdated, place.buffers());
                    // On the heap by itself: everyone who passes on a future has room for it twice.
                    place.begin(unless_given_up(&mut app, Box::pin(self.patiently(session)))).await
                }
            };
            let (session, rested) = match found {
                Ok(found) => found,
                Err(refusal) => return Err(Missed::before(Placed { client: app, place }, refusal)),
            };
            let reused = rested.is_some();
            let waits = app.is_waiting()
                || rested.is_some_and(|rested| rested >= PROVEN)
                || self.pod.choices.is_doubtful(endpoint.addr.0);
            let facts = session.facts().clone();
            let strand = self.shared.bundles.join(&self.key(client, endpoint));
            let incoming = Incoming {
                original_dst: self.routed.original_dst.0,
                service: endpoint.service.as_ref().map(|service| service.host.to_string()),
                trace: None,
                order,
                waits,
                strand: strand.as_ref().map(Strand::name),
            };
            if let Some(strand) = &strand {
                self.keep_bundle(strand.bundle(), client, endpoint);
            }
            let mut stream = session.open(incoming, strand);
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
            if let Err(error) = confirmed {
                return Err(unconfirmed(Placed { client: app, place }, stream, meta, error));
            }
            break (self.shared.telemetry.open(meta), facts.peer, stream);
        };
        let app = match admit(app).await {
            Ok(app) => app,
            Err(refusal) => {
                let tell = Cut::here(refusal).report(connection);
                tokio::spawn(stream.close(tell));
                return Ok(None);
            }
        };
        bound_buffers(&app, place.buffers());
        Ok(Some(Opened { app, place, stream, peer, connection }))
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
        unless_given_up(app, self.patiently(answer)).await
    }

    /// A session that has waited in the pool; none, or one from before our certificate was renewed, if there is no better one.
    fn rested(&self, client: &Workload, endpoint: &Endpoint) -> Result<Found, Option<Found>> {
        let key = self.key(client, endpoint);
        let Shared { wallet, telemetry, pool, .. } = &**self.shared;
        let mut outdated = None;
        while let Some((session, rested)) = pool.take(&key) {
            if wallet.recheck(&client.identity, &session.facts().peer).is_err() {
                continue;
            }
            let renewed = wallet.renewed_since(&client.identity, session.since());
            let found = (session, Some(rested));
            if !renewed {
                telemetry.tunnel_reused();
                return Ok(found);
            }
            outdated = Some(found);
        }
        Err(outdated)
    }

    /// A new session, or the outdated one where none can be made.
    async fn session(
        &self,
        client: &Workload,
        endpoint: &Endpoint,
        outdated: Option<Found>,
        buffers: Option<usize>,
    ) -> Result<Found, Refusal> {
        match (self.dialled(client, endpoint, buffers).await, outdated) {
            (Ok(session), outdated) => {
                outdated.map(|(outdated, _)| tokio::spawn(outdated.close(None)));
                Ok((session, None))
            }
            (Err(_), Some(outdated)) => {
                self.shared.telemetry.tunnel_reused();
                Ok(outdated)
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
            expected: expected(endpoint),
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
}

/// The other end has not taken it.
fn unconfirmed(placed: Placed, stream: Stream, meta: Meta, error: LegError) -> Box<Missed> {
    let text = error.to_string();
    let cut = Cut::by_leg(error);
    let refusal = cut.refusal.clone().unwrap_or_else(|| Refusal::new(Reason::Reset, text));
    tokio::spawn(stream.close(cut.refusal.clone().filter(|_| cut.tell)));
    Box::new(Missed { placed, refusal, met: Some((meta, cut)) })
}

/// Who an endpoint's agent has to speak for.
fn expected(endpoint: &Endpoint) -> Expected {
    Expected { identity: endpoint.workload.identity.clone(), instead: endpoint.identities.clone() }
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
    let expected = expected(endpoint);
    let Shared { wallet, telemetry, .. } = shared;
    let credentials = wallet.credentials(&client.identity).await?;
    let destination = endpoint.addr;
    let limit = endpoint.rule.as_ref().and_then(|rule| rule.settings.pool.connect_timeout);
    let tcp = within(limit.unwrap_or(CONNECT), pod.pod.dial_tunnel(source, destination))
        .await
        .map_err(|error| unconnected("the peer's agent at", destination.0, &error))?;
    bound_buffers(&tcp, buffers);
    // Tickets are kept by address: the agents of two nodes cannot read each other's.
    let (config, _) = credentials.client_config(&expected);
    let name = destination.0.ip().into();
    let session = Session::connect(tcp, config, name, &pod.share, |certificates| {
        wallet.peer(&credentials, certificates, Some(&expected))
    })
    .await
    .inspect_err(|error| telemetry.tls_failure(Direction::Outbound, error.reason()))?;
    wallet.recheck(&client.identity, &session.facts().peer).map_err(distrusted)?;
    telemetry.handshake(Direction::Outbound, session.facts().resumed);
    Ok(session)
}
