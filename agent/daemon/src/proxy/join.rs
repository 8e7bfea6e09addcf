//! A connection between two pods of this node that this agent serves: from one application's socket to the other's, without a
//! tunnel, as nothing leaves the node.
//!
//! Promises what a tunnel does: both identities by certificates that the other end believes now and later, the verdict of
//! the called pod, a place in each pod's lane, the order of connections, and what both ends count and log.

use std::sync::Arc;

use ambit_core::{
    discovery::Endpoint,
    model::{ClientAddr, Workload},
    reason::{Reason, Refusal},
};
use tokio::{net::TcpStream, select};

use super::{
    Cut, Placed,
    admission::Place,
    attempts::{Carried, Missed},
    describe, distrusted, inbound,
    inbound::Called,
    neighbours::Neighbour,
    outbound, party, unboxed,
    waiting::{admit, unless_given_up},
};
use crate::{
    capture::{Dial, bound_buffers},
    telemetry::{Connection, Direction, Ending},
    tunnel::{Count, Incoming, Joined, LegError, Order, tls::PeerIdentity},
};

/// Both applications connected, and both ends believed.
struct Met {
    client_app: TcpStream,
    server_app: TcpStream,
    /// The client, as the called pod believes it, and the other way round.
    client: Arc<PeerIdentity>,
    server: Arc<PeerIdentity>,
    /// In the lanes of both pods.
    _places: [Place; 2],
}

/// The called pod's answer.
struct Taken {
    app: TcpStream,
    place: Place,
    client: Arc<PeerIdentity>,
    server: Arc<PeerIdentity>,
}

/// The two ends, as they know each other.
struct Ends<'a, D> {
    near: &'a outbound::Call<'a, D>,
    far: inbound::Call<'a, D>,
    incoming: Incoming,
}

/// Carries one connection from `client` to `endpoint`, which `neighbour` is, to its end.
pub(super) async fn carry<D: Dial>(
    near: &outbound::Call<'_, D>,
    placed: Box<Placed>,
    client: &Workload,
    endpoint: &Endpoint,
    order: Order,
    neighbour: &Neighbour<D>,
) -> Carried {
    let (shared, source) = (near.shared, near.routed.source);
    let (called, place) = {
        let world = shared.feed.world();
        let called = Called::known(&world, ClientAddr(source), endpoint.addr, neighbour.pod.pod.uid());
        let pressure = shared.memory.borrow().pressure;
        (called, neighbour.lane.enter(party(&world, source.ip()), pressure))
    };
    let Placed { client: app, place: near_place } = unboxed(placed);
    let (Some(workload), Ok(far_place)) = (&called.workload, &place) else {
        let text = "the called pod is not known at the address that was called";
        let refusal = place.err().unwrap_or_else(|| Refusal::new(Reason::NotReady, text));
        shared.telemetry.refuse(&describe::inbound(&called, None, None), &refusal);
        return Err(refused_there(near, Placed { client: app, place: near_place }, refusal));
    };
    let far = inbound::Call {
        shared,
        pod: &neighbour.pod,
        arrivals: &neighbour.arrivals,
        called: &called,
        workload,
        buffers: far_place.buffers(),
    };
    let incoming = Incoming {
        original_dst: near.routed.original_dst.0,
        service: None,
        trace: None,
        order,
        waits: true,
        strand: None,
    };
    let ends = Ends { near, far, incoming };
    let Ok(far_place) = place else { return Ok(()) };
    let near_placed = Placed { client: app, place: near_place };
    // On the heap while it lasts: a connection lives long.
    if let Some(met) = Box::pin(ends.meet(near_placed, client, endpoint, far_place)).await? {
        ends.carry(met, client).await;
    }
    Ok(())
}

/// The called pod of this node has refused it.
fn refused_there<D>(near: &outbound::Call<'_, D>, placed: Placed, refusal: Refusal) -> Box<Missed> {
    let met = (describe::joined_outbound(near.routed), Cut::told(refusal.clone(), true));
    Box::new(Missed { placed, refusal, met: Some(met) })
}

impl<D: Dial> Ends<'_, D> {
    /// What a handshake, OPEN and ACCEPT are over a tunnel: only then is the client connected.
    async fn meet(
        &self,
        placed: Placed,
        client: &Workload,
        endpoint: &Endpoint,
        far_place: Place,
    ) -> Result<Option<Met>, Box<Missed>> {
        let Placed { client: mut app, mut place } = placed;
        let has_spoken = app.has_spoken();
        let taken = Box::pin(self.near.patiently(self.answer(client, endpoint, far_place, has_spoken)));
        let taken = match place.begin(unless_given_up(&mut app, taken)).await {
            Ok(Ok(taken)) => taken,
            Ok(Err(refusal)) => {
                return Err(refused_there(self.near, Placed { client: app, place }, refusal));
            }
            Err(refusal) => return Err(Missed::before(Placed { client: app, place }, refusal)),
        };
        let Taken { app: server_app, place: far_place, client, server } = taken;
        match admit(app).await {
            Ok(client_app) => {
                bound_buffers(&client_app, place.buffers());
                Ok(Some(Met { client_app, server_app, client, server, _places: [place, far_place] }))
            }
            Err(refusal) => {
                // What the called pod's agent would be told of a client that has gone.
                self.near.refused(&refusal);
                let meta = describe::joined_inbound(self.far.called, &client.id, &self.incoming);
                let connection = self.near.shared.telemetry.open(meta);
                let _: Option<Refusal> = Cut::by_leg(LegError::Reset(refusal)).report(connection);
                Ok(None)
            }
        }
    }

    /// The called pod's answer: its no stands in the inner result, and the client's own in the outer one.
    async fn answer(
        &self,
        client: &Workload,
        endpoint: &Endpoint,
        mut place: Place,
        has_spoken: bool,
    ) -> Result<Result<Taken, Refusal>, Refusal> {
        let Self { near, far, .. } = self;
        let (wallet, telemetry) = (&near.shared.wallet, &near.shared.telemetry);
        let server =
            wallet.vouch(&client.identity, &endpoint.workload.identity).await.map_err(|refused| {
                telemetry.tls_failure(Direction::Outbound, refused.0);
                distrusted(refused)
            })?;
        let client = match wallet.vouch(&far.workload.identity, &client.identity).await {
            Ok(client) => client,
            Err(refused) => {
                telemetry.tls_failure(Direction::Inbound, refused.0);
                let refusal = distrusted(refused);
                far.refuse(&refusal);
                return Ok(Err(refusal));
            }
        };
        Ok(match place.begin(far.admit(&client, &self.incoming, has_spoken)).await {
            Ok(app) => Ok(Taken { app, place, client, server }),
            Err(refusal) => {
                let meta = describe::joined_inbound(far.called, &client.id, &self.incoming);
                far.refuse_as(&refusal, &meta, Some(&client));
                Err(refusal)
            }
        })
    }

    /// Carries it until both directions have ended, or until one of the two ends may not go on.
    async fn carry(&self, met: Met, client: &Workload) {
        let Self { near, far, incoming } = self;
        let (shared, original_dst) = (near.shared, near.routed.original_dst.0);
        let Met { client_app, server_app, client: peer, server, _places } = met;
        let near_end = Arc::new(shared.telemetry.open(describe::joined_outbound(near.routed)));
        let far_end = shared.telemetry.open(describe::joined_inbound(far.called, &peer.id, incoming));
        let leg = Joined::new(client_app, far.pod.share.clone(), Near(near_end.clone()));
        let ended = {
            let carried = far.carried(Some(&peer), &far_end);
            select! {
                biased;
                (ended, _leg) = carried.carry(server_app, leg) => Ok(ended),
                refused = async {
                    carried.settled.reached().await;
                    shared.wallet.until_distrusted(&client.identity, &server).await
                } => Err(distrusted(refused)),
            }
        };
        // The leg is gone, which counted for it.
        let Some(near_end) = Arc::into_inner(near_end) else { return };
        let (near_cut, far_cut) = match ended {
            Ok(Ok(())) => {
                near_end.finish(&Ending::Closed);
                far_end.finish(&Ending::Closed);
                return near.pod.pod.answered(original_dst);
            }
            Ok(Err(cut)) => {
                let told = match &cut.refusal {
                    // Of a client that has broken off nobody has to be told.
                    Some(refusal) => Cut::told(refusal.clone(), cut.tell),
                    None => Cut::by_leg(LegError::PeerLeft),
                };
                (told, cut)
            }
            Err(refusal) => (Cut::here(refusal.clone()), Cut::told(refusal, false)),
        };
        let _: [Option<Refusal>; 2] = [near_cut.report(near_end), far_cut.report(far_end)];
        near.pod.pod.unanswered(original_dst);
    }
}

/// Counts for the client's end. The server's counts by itself.
struct Near(Arc<Connection>);

impl Count for Near {
    fn sent(&self, bytes: u64) {
        self.0.client_to_server(bytes);
    }

    fn got(&self, bytes: u64) {
        self.0.server_to_client(bytes);
    }
}
