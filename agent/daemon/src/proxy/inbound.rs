//! From a client to an application in a pod: tunnel or plaintext, verdict, and the way to the application in the
//! client's name.

mod tunnel;

use std::{io, sync::Arc, time::Duration};

use ambit_core::{
    model::{ClientAddr, PodAddr, Workload},
    policy::Facts,
    reason::{Reason, Refusal},
};
use tokio::{net::TcpStream, select};

use super::{
    Pod, Shared,
    admission::Place,
    describe, distrusted, facts,
    order::{Arrivals, Turn},
    requests,
    settled::Settled,
    unboxed, unconnected,
    waiting::{admit, refuse},
    within,
};
use crate::{
    capture::{Client, Dial, bound_buffers, end_cleanly, tune_tunnel},
    discovery::World,
    telemetry::{Connection, Direction, Ending, Meta},
    tunnel::{First, Incoming, Order, Plain, Session, first_bytes, tls::PeerIdentity},
};

/// How long a client that may only come through a tunnel may keep silent.
const MESHED_PATIENCE: Duration = Duration::from_secs(2);
/// How long a client that may not speak plaintext may keep silent before it is refused.
const STRICT_PATIENCE: Duration = Duration::from_secs(1);
/// How long both ends may be silent before the connection counts as plaintext: a tunnel says hello at once.
const BOTH_SILENT: Duration = Duration::from_secs(1);
/// How long the greeting of a server that speaks first is kept from a client whose address nobody knows.
const NEWBORN: Duration = Duration::from_millis(50);
/// How long the application may take to accept.
const CONNECT: Duration = Duration::from_secs(10);

/// What is known of a connection when it comes.
#[derive(Debug)]
pub(super) struct Called {
    pub(super) source: ClientAddr,
    pub(super) destination: PodAddr,
    /// The called pod, unless the address that was called is another's.
    pub(super) workload: Option<Arc<Workload>>,
    /// The pod at the client's address, if there is one.
    pub(super) caller: Option<Arc<Workload>>,
}

impl Called {
    /// What is known at present of one to the pod with that UID.
    pub(super) fn known(world: &World, source: ClientAddr, destination: PodAddr, uid: &str) -> Self {
        Self {
            source,
            destination,
            workload: world.mesh.workload_at(destination.0.ip(), uid).cloned(),
            caller: world.mesh.workload_by_ip(source.0.ip()).cloned(),
        }
    }
}

/// A connection that has come.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) client: Client,
    pub(super) source: ClientAddr,
    pub(super) destination: PodAddr,
    pub(super) order: Order,
    /// Its place, or why it has none.
    pub(super) place: Result<Place, Refusal>,
}

/// Carries one connection, or all streams of one tunnel, to the end.
pub(super) async fn carry<D: Dial>(
    shared: &Shared,
    pod: &Pod<D>,
    arrival: Box<Arrival>,
    arrivals: &Arrivals,
) {
    let Arrival { client, source, destination, order, place } = unboxed(arrival);
    // Plaintext keeps the order of connections; streams of a tunnel have numbers of their own.
    let turn = arrivals.turn(source.0.ip(), destination.0.port(), order);
    let called = Called::known(&shared.feed.world(), source, destination, pod.pod.uid());
    let Some(workload) = &called.workload else {
        let text = "the called pod is not known at the address that was called";
        let refusal = Refusal::new(Reason::NotReady, text);
        shared.telemetry.refuse(&describe::inbound(&called, None, None), &refusal);
        return refuse(client, &refusal);
    };
    let mut place = match place {
        Ok(place) => place,
        Err(refusal) => {
            shared.telemetry.refuse(&describe::inbound(&called, None, None), &refusal);
            return refuse(client, &refusal);
        }
    };
    let call = Call { shared, pod, arrivals, called: &called, workload, buffers: place.buffers() };
    // On the heap while it lasts: a connection lives long, and what it is at first is big.
    match place.begin(Box::pin(call.begin(client, turn))).await {
        Ok(Begun::Tunnel(session)) => call.tunnel(session, &place).await,
        // On the heap by itself: it is big, and a tunnel needs no room for it.
        Ok(Begun::Plaintext(client, app)) => Box::pin(call.plaintext(client, app)).await,
        Ok(Begun::Gone) => {}
        Err(refusal) => call.refuse(&refusal),
    }
}

/// What an inbound connection turned out to be.
enum Recognised {
    Tunnel(TcpStream),
    /// Accepted in plaintext, with the connection to the application.
    Plaintext(TcpStream, TcpStream),
    /// The client left before it said anything.
    Gone,
}

/// The same, with the handshake of a tunnel over.
enum Begun {
    Tunnel(Session),
    Plaintext(TcpStream, TcpStream),
    Gone,
}

pub(super) struct Call<'a, D> {
    pub(super) shared: &'a Shared,
    pub(super) pod: &'a Pod<D>,
    pub(super) arrivals: &'a Arrivals,
    pub(super) called: &'a Called,
    pub(super) workload: &'a Arc<Workload>,
    /// What socket buffers are cut to, if they are.
    pub(super) buffers: Option<usize>,
}

impl<D: Dial> Call<'_, D> {
    async fn begin(&self, client: Client, turn: Turn) -> Result<Begun, Refusal> {
        Ok(match self.recognise(client, turn).await? {
            Recognised::Tunnel(client) => Begun::Tunnel(self.handshake(client).await?),
            Recognised::Plaintext(client, app) => Begun::Plaintext(client, app),
            Recognised::Gone => Begun::Gone,
        })
    }

    /// First bytes decide. Where plaintext is allowed nobody waits for them: the application is connected at once, so
    /// that protocols in which the server speaks first run as without us.
    async fn recognise(&self, client: Client, turn: Turn) -> Result<Recognised, Refusal> {
        let allowed = self.verdict(None);
        if client.is_waiting() && allowed.is_ok() {
            return self.answer(client, turn).await;
        }
        // Who may not come in plaintext may still be a pod of the mesh that nobody has heard of yet.
        let Ok(client) = admit(client).await else { return Ok(Recognised::Gone) };
        bound_buffers(&client, self.buffers);
        let meshed = self.called.caller.as_ref().is_some_and(|caller| caller.enrolled);
        if meshed || allowed.is_err() {
            let patience = if meshed { MESHED_PATIENCE } else { STRICT_PATIENCE };
            match first_bytes(&client, patience).await {
                Ok(First::Tunnel) => return Ok(Recognised::Tunnel(client)),
                Err(_) => return Ok(Recognised::Gone),
                Ok(First::Plaintext | First::Silence | First::Closed) => {}
            }
        }
        allowed?;
        let app = self.deliver(turn, false).await?;
        self.plaintext_or_tunnel(client, app).await
    }

    /// A client that waits is connected once the application is, and else told what the application would have told it.
    async fn answer(&self, client: Client, turn: Turn) -> Result<Recognised, Refusal> {
        let app = match self.deliver(turn, false).await {
            Ok(app) => app,
            Err(refusal) => {
                refuse(client, &refusal);
                return Err(refusal);
            }
        };
        let Ok(client) = admit(client).await else { return Ok(Recognised::Gone) };
        bound_buffers(&client, self.buffers);
        self.plaintext_or_tunnel(client, app).await
    }

    /// The same where the application is connected already.
    async fn plaintext_or_tunnel(&self, client: TcpStream, app: TcpStream) -> Result<Recognised, Refusal> {
        select! {
            biased;
            first = first_bytes(&client, BOTH_SILENT) => match first {
                // A pod that has joined the mesh a moment ago.
                Ok(First::Tunnel) => Ok(Recognised::Tunnel(client)),
                Ok(_) => Ok(Recognised::Plaintext(client, app)),
                Err(_) => Ok(Recognised::Gone),
            },
            _ = app.readable() => {
                // A pod's first connections are here before word of its address is, and its first bytes close behind.
                let newborn = self.called.caller.is_none()
                    && matches!(first_bytes(&client, NEWBORN).await, Ok(First::Tunnel));
                Ok(if newborn { Recognised::Tunnel(client) } else { Recognised::Plaintext(client, app) })
            }
        }
    }

    async fn plaintext(&self, client: TcpStream, app: TcpStream) {
        let connection = self.shared.telemetry.open(describe::inbound(self.called, None, None));
        let leg = Plain::new(client, self.pod.share.clone());
        let (ended, _leg) = self.carried(None, &connection).carry(app, leg).await;
        match ended {
            Ok(()) => connection.finish(&Ending::Closed),
            // A reset is all that this peer can be told.
            Err(cut) => drop(cut.report(connection)),
        }
    }

    async fn handshake(&self, client: TcpStream) -> Result<Session, Refusal> {
        // Frames and alerts say how a tunnel ends; a RST could overtake them.
        end_cleanly(&client);
        // It fails only for what is no socket.
        let _: io::Result<()> = tune_tunnel(&client);
        let Shared { wallet, telemetry, .. } = self.shared;
        let credentials = wallet.credentials(&self.workload.identity).await?;
        // Whoever calls from a known pod's address must be that pod.
        let expected = self.called.caller.as_ref().map(|caller| caller.identity.clone().into());
        let session = Session::accept(client, credentials.server_config(), &self.pod.share, |certificates| {
            wallet.peer(&credentials, certificates, expected.as_ref())
        })
        .await
        .inspect_err(|error| telemetry.tls_failure(Direction::Inbound, error.reason()))?;
        wallet.recheck(&self.workload.identity, &session.facts().peer).map_err(distrusted)?;
        telemetry.handshake(Direction::Inbound, session.facts().resumed);
        Ok(session)
    }

    /// What is carried to the application once both ends stand.
    pub(super) fn carried<'c>(
        &'c self,
        peer: Option<&'c PeerIdentity>,
        connection: &'c Connection,
    ) -> requests::Call<'c, D> {
        let Call { shared, pod, called, workload, .. } = *self;
        requests::Call {
            shared,
            pod,
            workload,
            source: called.source.0,
            facts: self.facts(peer),
            peer,
            connection,
            settled: Settled::default(),
        }
    }

    /// The application, if the client may come to it, which may have spoken already.
    pub(super) async fn admit(
        &self,
        peer: &PeerIdentity,
        incoming: &Incoming,
        has_spoken: bool,
    ) -> Result<TcpStream, Refusal> {
        self.verdict(Some(peer))?;
        let Called { source, destination, .. } = self.called;
        let turn = self.arrivals.turn(source.0.ip(), destination.0.port(), incoming.order);
        self.deliver(turn, has_spoken).await
    }

    /// Ends once the peer of this tunnel is not believed any more.
    pub(super) async fn until_distrusted(&self, peer: &PeerIdentity) -> (Reason, String) {
        self.shared.wallet.until_distrusted(&self.workload.identity, peer).await
    }

    /// Whether it may come, be it that it depends on its requests.
    fn verdict(&self, peer: Option<&PeerIdentity>) -> Result<(), Refusal> {
        self.pod.prospect(&self.facts(peer))
    }

    fn facts<'p>(&self, peer: Option<&'p PeerIdentity>) -> Facts<'p> {
        let Called { source, destination, .. } = self.called;
        facts(*destination, source.0.ip(), peer.map(|peer| &peer.id))
    }

    /// Connects to the application when it is the connection's turn.
    async fn deliver(&self, turn: Turn, has_spoken: bool) -> Result<TcpStream, Refusal> {
        turn.wait().await;
        let Called { source, destination, .. } = *self.called;
        let delivered = self.pod.pod.deliver(source, destination, has_spoken);
        let app = within(CONNECT, delivered).await.map_err(|error| {
            self.pod.pod.unanswered(destination.0);
            unconnected("the application at", destination.0, &error)
        })?;
        self.pod.pod.answered(destination.0);
        bound_buffers(&app, self.buffers);
        Ok(app)
    }

    pub(super) fn refuse(&self, refusal: &Refusal) {
        self.refuse_as(refusal, &describe::inbound(self.called, None, None), None);
    }

    pub(super) fn refuse_as(&self, refusal: &Refusal, meta: &Meta, peer: Option<&PeerIdentity>) {
        let Call { shared, pod, .. } = self;
        pod.rehearse_refused(refusal, &self.facts(peer), meta, &shared.telemetry);
        shared.telemetry.refuse(meta, refusal);
    }
}
