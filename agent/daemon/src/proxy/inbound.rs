//! From a client to an application in a pod: tunnel or plaintext, verdict, and the way to the application in the
//! client's name.

use std::{io, sync::Arc, time::Duration};

use ambit_core::{
    frame::{Control, Open, Order},
    model::{ClientAddr, PodAddr, SpiffeId, Workload},
    reason::Reason,
};
use tokio::{net::TcpStream, select, time::timeout};

use super::{
    Failure, Shared, meta,
    order::{Arrivals, Turn},
    relay::{self, Meter, RelayError},
    verdict,
};
use crate::{
    capture::{PodNet, end_cleanly},
    telemetry::{Connection, Direction, Ending, Meta, Party, Security},
    tunnel::{self, First, Link, first_bytes, tls::PeerIdentity},
};

/// How long a client that may only come through a tunnel may keep silent.
const MESHED_PATIENCE: Duration = Duration::from_secs(2);
/// How long a client that may not speak plaintext may keep silent before it is refused.
const STRICT_PATIENCE: Duration = Duration::from_secs(1);
/// How long both ends may be silent before the connection counts as plaintext: a tunnel says hello at once.
const BOTH_SILENT: Duration = Duration::from_secs(1);
/// How long the greeting of a server that speaks first is kept from a client whose address nobody knows.
const NEWBORN: Duration = Duration::from_millis(50);
/// How long a tunnel may rest. Longer than clients keep theirs, so that none is closed under their hands.
const TUNNEL_IDLE: Duration = Duration::from_secs(90);
/// How long a client may take to begin a stream that has crossed our GOAWAY.
const LAST_OPEN: Duration = Duration::from_secs(1);
/// How long the application may take to accept.
const CONNECT: Duration = Duration::from_secs(10);

/// Carries one connection, or all streams of one tunnel, to the end.
pub(super) async fn carry(
    shared: &Shared,
    pod: &PodNet,
    client: TcpStream,
    (source, destination): (ClientAddr, PodAddr),
    (arrivals, order): (&Arrivals, Order),
) {
    // Plaintext keeps the order of connections; streams of a tunnel have numbers of their own.
    let turn = arrivals.turn(source.0.ip(), destination.0.port(), order);
    let world = shared.feed.world();
    let Some(workload) =
        world.mesh.workload_by_ip(destination.0.ip()).filter(|workload| workload.uid == *pod.uid()).cloned()
    else {
        let text = "the called pod is not known at the address that was called";
        let meta = meta(
            Direction::Inbound,
            (Party::default(), source.0),
            (Party::default(), destination.0),
            Security::Plaintext,
        );
        return shared.telemetry.refuse(&meta, &Failure::new(Reason::NotReady, text).refusal());
    };
    let caller = world.mesh.workload_by_ip(source.0.ip()).cloned();
    let mut call = Call { shared, pod, arrivals, source, destination, workload, caller };
    let Ok(pending) = shared.pending.try_acquire() else {
        let text = "too many connections wait to be recognised as tunnel or plaintext";
        let meta = call.meta(None, Security::Plaintext);
        return shared.telemetry.refuse(&meta, &Failure::new(Reason::Overloaded, text).refusal());
    };
    match call.recognise(client, turn).await {
        Ok(Recognised::Tunnel(client)) => call.tunnel(client, pending).await,
        Ok(Recognised::Plaintext(client, app)) => {
            drop(pending);
            call.plaintext(client, app).await;
        }
        Ok(Recognised::Gone) => {}
        Err(failure) => {
            shared.telemetry.refuse(&call.meta(None, Security::Plaintext), &failure.refusal());
        }
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

struct Call<'a> {
    shared: &'a Shared,
    pod: &'a PodNet,
    arrivals: &'a Arrivals,
    source: ClientAddr,
    destination: PodAddr,
    workload: Arc<Workload>,
    caller: Option<Arc<Workload>>,
}

impl Call<'_> {
    /// First bytes decide. Where plaintext is allowed nobody waits for them: the application is connected at once, so
    /// that protocols in which the server speaks first run as without us.
    async fn recognise(&self, client: TcpStream, turn: Turn) -> Result<Recognised, Failure> {
        let meshed = self.caller.as_ref().is_some_and(|caller| caller.enrolled);
        let allowed = self.verdict(None);
        if meshed || allowed.is_err() {
            let patience = if meshed { MESHED_PATIENCE } else { STRICT_PATIENCE };
            match first_bytes(&client, patience).await {
                Ok(First::Tunnel) => return Ok(Recognised::Tunnel(client)),
                Err(_) => return Ok(Recognised::Gone),
                Ok(First::Plaintext | First::Silence | First::Closed) => {}
            }
        }
        allowed?;
        let app = self.deliver(turn).await?;
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
                let newborn = self.caller.is_none()
                    && matches!(first_bytes(&client, NEWBORN).await, Ok(First::Tunnel));
                Ok(if newborn { Recognised::Tunnel(client) } else { Recognised::Plaintext(client, app) })
            }
        }
    }

    async fn plaintext(&self, mut client: TcpStream, mut app: TcpStream) {
        let connection = self.shared.telemetry.open(self.meta(None, Security::Plaintext));
        let meter = Inbound(&connection);
        let ended = select! {
            ended = relay::plain(&mut app, &mut client, &meter) => {
                ended.map_err(|error| Failure::new(Reason::Reset, error.to_string()))
            }
            failure = self.shared.until_denied(self.destination, self.source.0.ip(), None) => Err(failure),
        };
        match ended {
            Ok(()) => connection.finish(&Ending::Closed),
            Err(failure) => {
                connection.finish(&failure.ending());
            }
        }
    }

    async fn tunnel(&mut self, client: TcpStream, pending: tokio::sync::SemaphorePermit<'_>) {
        let link = self.handshake(client).await;
        drop(pending);
        let mut link = match link {
            Ok(link) => link,
            Err(failure) => {
                return self
                    .shared
                    .telemetry
                    .refuse(&self.meta(None, Security::Plaintext), &failure.refusal());
            }
        };
        let _open = self.shared.telemetry.tunnel();
        let mut reused = false;
        let mut patience = TUNNEL_IDLE;
        let last = loop {
            let peer = link.peer().clone();
            let next = select! {
                biased;
                () = self.pod.until_released() => break None,
                (reason, _) = self.until_distrusted(&peer) => break Some(Control::Reset(reason)),
                next = link.next_open(patience) => next,
                () = self.shared.until_draining(), if patience == TUNNEL_IDLE => {
                    patience = LAST_OPEN;
                    match link.go_away().await {
                        Ok(()) => continue,
                        Err(_) => break None,
                    }
                }
            };
            match next {
                Ok(Some(open)) => {
                    if let Err(last) = self.stream(&mut link, open, reused).await {
                        break last;
                    }
                    reused = true;
                }
                Ok(None) => break None,
                Err(error) => {
                    let failure = Failure::from(error);
                    let last = Control::Reset(failure.reason);
                    let meta = self.meta(Some(&link), Security::MutualTls { group: link.group(), reused });
                    self.shared.telemetry.refuse(&meta, &failure.refusal());
                    break Some(last);
                }
            }
        };
        link.close_with(last).await;
    }

    async fn handshake(&self, client: TcpStream) -> Result<Link, Failure> {
        // Frames and alerts say how a tunnel ends; a RST could overtake them.
        end_cleanly(&client);
        let wallet = &self.shared.wallet;
        let credentials = wallet.credentials(&self.workload.identity).await?;
        // Whoever calls from a known pod's address must be that pod.
        let expected = self.caller.as_ref().map(|caller| &caller.identity);
        let link = tunnel::accept(client, credentials.server_config(), |certificates| {
            wallet.peer(&credentials, certificates, expected)
        })
        .await
        .inspect_err(|error| self.shared.telemetry.tls_failure(Direction::Inbound, error.reason()))?;
        wallet
            .recheck(&self.workload.identity, link.peer())
            .map_err(|(reason, text)| Failure::new(reason, text))?;
        self.shared.telemetry.handshake(Direction::Inbound, link.is_resumed());
        Ok(link)
    }

    /// One stream of a tunnel. An error is the last frame before the tunnel is closed.
    async fn stream(&mut self, link: &mut Link, open: Open, reused: bool) -> Result<(), Option<Control>> {
        let security = Security::MutualTls { group: link.group(), reused };
        let peer = link.peer().clone();
        let mut meta = self.meta(Some(link), security);
        meta.original_dst = Some(open.original_dst);
        let delivered = match self.verdict(Some(&peer.id)) {
            Ok(()) => {
                let turn = self.arrivals.turn(self.source.0.ip(), self.destination.0.port(), open.order);
                self.deliver(turn).await
            }
            Err(failure) => Err(failure),
        };
        let mut app = match delivered {
            Ok(app) => app,
            Err(failure) => {
                let deny = failure.deny_frame();
                self.shared.telemetry.refuse(&meta, &failure.refusal());
                return Err(Some(Control::Deny(deny)));
            }
        };
        let connection = self.shared.telemetry.open(meta);
        let meter = Inbound(&connection);
        let ended = select! {
            ended = relay::stream(&mut app, link, &Control::Accept, &meter) => ended.map_err(failed),
            failure = self.shared.until_denied(self.destination, self.source.0.ip(), Some(&peer.id)) => {
                let last = Control::Reset(failure.reason);
                Err((failure, Some(last)))
            }
            (reason, text) = self.until_distrusted(&peer) => {
                Err((Failure::new(reason, text), Some(Control::Reset(reason))))
            }
        };
        match ended {
            Ok(()) => {
                connection.finish(&Ending::Closed);
                Ok(())
            }
            Err((failure, last)) => {
                connection.finish(&failure.ending());
                Err(last)
            }
        }
    }

    /// Ends once the peer of this tunnel is not believed any more.
    async fn until_distrusted(&self, peer: &PeerIdentity) -> (Reason, String) {
        self.shared.wallet.until_distrusted(&self.workload.identity, peer).await
    }

    /// The verdict under the policies of this moment.
    fn verdict(&self, peer: Option<&SpiffeId>) -> Result<(), Failure> {
        let world = self.shared.feed.world();
        let workload = world.mesh.workload_by_ip(self.destination.0.ip()).unwrap_or(&self.workload);
        verdict(&world, workload, self.destination.0.port(), self.source.0.ip(), peer)
    }

    /// Connects to the application when it is the connection's turn.
    async fn deliver(&self, turn: Turn) -> Result<TcpStream, Failure> {
        turn.wait().await;
        timeout(CONNECT, self.pod.deliver(self.source, self.destination))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|error| Failure::connect("the application at", self.destination.0, &error))
    }

    fn meta(&self, link: Option<&Link>, security: Security) -> Meta {
        let source =
            Party { workload: self.caller.clone(), identity: link.map(|link| link.peer().id.clone()) };
        let destination = Party {
            workload: Some(self.workload.clone()),
            identity: link.map(|_| self.workload.identity.clone()),
        };
        meta(Direction::Inbound, (source, self.source.0), (destination, self.destination.0), security)
    }
}

/// The cause for us, and the last word to the peer.
fn failed(error: RelayError) -> (Failure, Option<Control>) {
    match error {
        RelayError::App(error) => (
            Failure::new(Reason::Reset, format!("the application reset the connection: {error}")),
            Some(Control::Reset(Reason::Reset)),
        ),
        RelayError::Reset(reason) => (Failure::new(reason, "the client reset the connection"), None),
        RelayError::Denied(_) => (Failure::new(Reason::ProtocolError, "the client sent DENY"), None),
        RelayError::Tunnel(error) => (error.into(), None),
    }
}

/// The application is the server.
struct Inbound<'a>(&'a Connection);

impl Meter for Inbound<'_> {
    fn app_sent(&self, bytes: u64) {
        self.0.server_to_client(bytes);
    }

    fn app_got(&self, bytes: u64) {
        self.0.client_to_server(bytes);
    }
}
