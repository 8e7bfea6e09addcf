//! What a connection to one of our applications carries, once both of its ends stand: bytes that nobody looks at where policy is sure
//! of them, requests that are judged one by one where it is not, and what is neither by the rules for other protocols.

use std::{future::poll_fn, io, net::SocketAddr};

use ambit_core::{
    discovery::PortProtocol,
    model::Workload,
    policy::{self, Decision, Facts, Outlook, WorkloadPolicy},
    reason::{Reason, Refusal},
};
use http::request::Parts;
use tokio::{net::TcpStream, select};

use super::{
    Cut, Pod, Shared, allowed, distrusted, external,
    pressure::Broken,
    relay::{Meter, Relay},
    settled::Settled,
};
use crate::{
    authz::Subject,
    capture::{Dial, end_cleanly},
    http::{Ask, Asking, Carries, Gate, Stuck, carry, recognise, rehearse, server_name},
    telemetry::Connection,
    tunnel::{Leg, poll_write, tls::PeerIdentity},
};

/// A connection to the application of one of our pods.
pub(super) struct Call<'a, D> {
    pub(super) shared: &'a Shared,
    pub(super) pod: &'a Pod<D>,
    pub(super) workload: &'a Workload,
    pub(super) source: SocketAddr,
    /// What is known of it without a look at what it carries.
    pub(super) facts: Facts<'a>,
    /// The client, if it has proved its identity.
    pub(super) peer: Option<&'a PeerIdentity>,
    pub(super) connection: &'a Connection,
    pub(super) settled: Settled,
}

impl<D: Dial> Call<'_, D> {
    /// Carries it to its end, or until policy refuses what it carries.
    pub(super) async fn carry<L: Leg>(&self, app: TcpStream, mut leg: L) -> (Result<(), Cut>, L) {
        let policy = self.pod.policy.borrow().clone();
        match policy::outlook(&policy, &self.facts) {
            Outlook::Same(Decision::Deny(refusal)) => (Err(Cut::here(refusal)), leg),
            Outlook::Same(Decision::Allow) if !self.wants_requests() => {
                self.relay(app, leg, self.facts, Looked::Not).await
            }
            _ => {
                // What it goes by is followed from its beginning on.
                self.settled.set();
                match Box::pin(self.looked_at(&app, &mut leg)).await {
                    Ok(Looked::Requests) => (Ok(()), leg),
                    Ok(looked @ (Looked::Other { .. } | Looked::Not)) => {
                        let sni = looked.server_name().map(str::to_owned);
                        let facts = Facts { sni: sni.as_deref(), admitted: looked.admitted(), ..self.facts };
                        self.relay(app, leg, facts, looked).await
                    }
                    Err(cut) => (Err(cut), leg),
                }
            }
        }
    }

    /// Looks at what comes, and carries it if it is requests.
    async fn looked_at<L: Leg>(&self, app: &TcpStream, leg: &mut L) -> Result<Looked, Cut> {
        let protocol = {
            let world = self.shared.feed.world();
            world.mesh.port_protocol(self.workload, self.facts.port)
        };
        let expected = matches!(protocol, PortProtocol::Http(_));
        let share = &self.pod.share;
        let mut begun = select! {
            biased;
            refusal = self.until_all_denied() => return Err(Cut::here(refusal)),
            begun = recognise(leg, app, share, expected) => begun.map_err(cut_by_leg)?,
        };
        if begun.carries == Carries::Other || matches!(protocol, PortProtocol::Other(_)) {
            let server_name = select! {
                biased;
                refusal = self.until_all_denied() => return Err(Cut::here(refusal)),
                name = server_name(leg, &mut begun, share) => name.map_err(cut_by_leg)?,
            };
            let server_name = server_name.unwrap_or_default();
            let admitted = self.judge_other(&server_name).await.map_err(Cut::here)?;
            write_first(app, begun.first()).await.map_err(|error| Cut::here(reset(&error)))?;
            self.connection.client_to_server(begun.first().len() as u64);
            return Ok(Looked::Other { server_name, admitted });
        }
        let asks = Asks(self);
        let gate = Gate {
            policy: self.pod.policy.clone(),
            facts: self.facts,
            tokens: &self.shared.tokens,
            external: &asks,
            trusted_proxies: self.shared.trusted_proxies,
            connection: self.connection,
            telemetry: &self.shared.telemetry,
        };
        let stuck = Stuck::default();
        let socket = leg.socket();
        let carried = select! {
            biased;
            refusal = self.until_all_denied() => return Err(Cut::here(refusal)),
            refusal = self.shared.until_given_up(&*self.pod.pod, app, &socket, &stuck) => {
                return Err(Cut::here(refusal));
            }
            carried = carry(leg, app, &gate, share, &stuck, begun) => carried.map_err(cut_by_leg)?,
        };
        if !carried {
            // All has been said, and the client does not leave.
            return Err(Cut { refusal: None, by_peer: false, tell: false });
        }
        end_cleanly(app);
        leg.end_cleanly();
        Ok(Looked::Requests)
    }

    /// Whether telemetry is to know requests of which policy needs nothing.
    fn wants_requests(&self) -> bool {
        let protocol = || self.shared.feed.world().mesh.port_protocol(self.workload, self.facts.port);
        self.workload.http_telemetry && !matches!(protocol(), PortProtocol::Other(_))
    }

    /// The verdict on what is not HTTP; whether a provider has let it in.
    async fn judge_other(&self, server_name: &str) -> Result<bool, Refusal> {
        let mut facts = Facts { sni: Some(server_name), ..self.facts };
        let Self { shared, pod, workload, source, .. } = *self;
        let admitted = external::admitted(shared, pod, workload, source, &facts).await;
        let policy = pod.policy.borrow().clone();
        facts.admitted = *admitted.as_ref().unwrap_or(&false);
        let verdict = match admitted {
            Ok(_) => allowed(policy::decide(&policy, &facts)),
            Err(refusal) => Err(refusal),
        };
        if verdict.is_err() {
            rehearse(&policy, &facts, self.connection.meta(), &shared.telemetry);
        }
        verdict.map(|()| facts.admitted)
    }

    /// Relays bytes. Of a connection at which nobody has looked, requests cannot be told from each other once they have to be.
    async fn relay<L: Leg>(
        &self,
        app: TcpStream,
        leg: L,
        facts: Facts<'_>,
        looked: Looked,
    ) -> (Result<(), Cut>, L) {
        let Self { shared, pod, connection, settled, .. } = self;
        let mut relay = Relay::new(app, leg);
        let meter = ToApplication(connection);
        let ended = select! {
            biased;
            refusal = pod.until_denied(settled, facts, connection.meta(), &shared.telemetry, |policy| match looked {
                Looked::Not => self.counts_requests(policy),
                Looked::Requests | Looked::Other { .. } => Ok(()),
            }) => Err(Cut::here(refusal)),
            refusal = async {
                settled.reached().await;
                self.until_distrusted().await
            } => Err(Cut::here(refusal)),
            ended = shared.relay(&*pod.pod, &mut relay, &meter, settled) => ended.map_err(cut),
        };
        (ended, relay.into_leg())
    }

    /// Ends once nothing that the connection may carry is let in.
    async fn until_all_denied(&self) -> Refusal {
        let denied = async {
            let mut follow = self.pod.policy.clone();
            loop {
                let outlook = policy::outlook(&follow.borrow_and_update(), &self.facts);
                if let Outlook::Same(Decision::Deny(refusal)) = outlook {
                    return refusal;
                }
                if follow.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        select! {
            biased;
            refusal = denied => refusal,
            refusal = self.until_distrusted() => refusal,
        }
    }

    /// Ends once the client is not believed any more.
    async fn until_distrusted(&self) -> Refusal {
        match self.peer {
            Some(peer) => {
                distrusted(self.shared.wallet.until_distrusted(&self.workload.identity, peer).await)
            }
            None => std::future::pending().await,
        }
    }

    /// Refuses a connection at which nobody has looked once it matters what requests it carries.
    fn counts_requests(&self, policy: &WorkloadPolicy) -> Result<(), Refusal> {
        let counts = policy::outlook(policy, &self.facts) == Outlook::PerRequest
            && !matches!(
                self.shared.feed.world().mesh.port_protocol(self.workload, self.facts.port),
                PortProtocol::Other(_)
            );
        if !counts {
            return Ok(());
        }
        let text =
            "requests are judged from now on, and this connection was open before: a new one is needed";
        Err(Refusal::new(Reason::PolicyDenied, text))
    }
}

/// What has been seen of a connection.
enum Looked {
    /// Nothing: it does not matter.
    Not,
    /// Requests, which have been carried.
    Requests,
    /// Something else.
    Other {
        /// Of the application's own TLS.
        server_name: String,
        /// A provider has let it in.
        admitted: bool,
    },
}

impl Looked {
    fn server_name(&self) -> Option<&str> {
        match self {
            Self::Other { server_name, .. } => Some(server_name),
            Self::Not | Self::Requests => None,
        }
    }

    fn admitted(&self) -> bool {
        matches!(self, Self::Other { admitted: true, .. })
    }
}

/// Asks providers in the name of the pod that is called.
struct Asks<'a, D>(&'a Call<'a, D>);

impl<D: Dial> Ask for Asks<'_, D> {
    fn wants_body(&self, provider: &str) -> usize {
        self.0.shared.providers.wants_body(provider)
    }

    fn ask<'a>(&'a self, provider: &'a str, head: &'a Parts, body: Option<(&'a [u8], bool)>) -> Asking<'a> {
        let Call { shared, pod, workload, source, facts, .. } = *self.0;
        Box::pin(async move {
            let subject = Subject {
                source,
                peer: facts.peer,
                destination: SocketAddr::new(facts.destination_ip, facts.port),
                own: &workload.identity,
                request: Some(head),
                body,
            };
            external::ask(shared, pod, workload, provider, &subject).await
        })
    }
}

/// Passes on what was read to see what it is. Nothing else is in the socket yet.
async fn write_first(app: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = poll_fn(|cx| poll_write(cx, app, bytes)).await?;
        bytes = &bytes[written..];
    }
    Ok(())
}

fn reset(error: &io::Error) -> Refusal {
    Refusal::new(Reason::Reset, format!("the application reset the connection: {error}"))
}

/// Why a relay to one of our applications has ended early. A client cannot refuse: it breaks off.
fn cut(broken: Broken) -> Cut {
    let mut cut = Cut::by_relay(broken);
    cut.by_peer = false;
    cut
}

fn cut_by_leg(error: crate::tunnel::LegError) -> Cut {
    cut(Broken::Leg(error))
}

/// The application is the server.
struct ToApplication<'a>(&'a Connection);

impl Meter for ToApplication<'_> {
    fn app_sent(&self, bytes: u64) {
        self.0.server_to_client(bytes);
    }

    fn app_got(&self, bytes: u64) {
        self.0.client_to_server(bytes);
    }
}
