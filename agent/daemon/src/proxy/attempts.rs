//! Further endpoints of a service, where the first does not answer.
//!
//! Promises that another endpoint is tried only while nothing of the application's was said to anybody, never after a no that somebody
//! decided on, and only so often and for so long. What the application is told in the end is what the last endpoint had to say.

use std::{
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use ambit_core::{
    discovery::Route,
    model::Workload,
    reason::{Reason, Refusal},
};
use tokio::time::timeout;

use super::{
    Cut, Placed, Pod, Shared, egress,
    outbound::{Call, Routed, Way},
};
use crate::{
    capture::{Client, Dial},
    telemetry::Meta,
    tunnel::Order,
};

/// Endpoints that one connection is tried with.
const MOST: usize = 4;
/// How long after the first attempt began the last one may begin.
const PERIOD: Duration = Duration::from_secs(6);
/// How long an endpoint may be silent while there is another: long enough for a SYN that was lost once.
const SILENCE: Duration = Duration::from_secs(3);
/// How long a client has to have waited that gives up, for its endpoint to be the reason.
const IMPATIENCE: Duration = Duration::from_millis(900);

/// What one connection was tried with.
#[derive(Debug)]
pub(super) struct Tried {
    began: Instant,
    endpoints: Vec<SocketAddr>,
}

impl Tried {
    pub(super) fn nothing() -> Self {
        Self { began: Instant::now(), endpoints: Vec::new() }
    }
}

/// A connection that has come to nothing, and of which no byte was said to anybody: it can go another way.
pub(super) struct Missed {
    pub(super) placed: Placed,
    pub(super) refusal: Refusal,
    /// As what it is told of, where the other end was reached.
    pub(super) met: Option<(Meta, Cut)>,
}

/// What has become of an attempt: carried to its end, or given up for a reason that everybody was told.
pub(super) type Carried = Result<(), Box<Missed>>;

impl Missed {
    /// Before the other end was reached.
    pub(super) fn before(placed: Placed, refusal: Refusal) -> Box<Self> {
        Box::new(Self { placed, refusal, met: None })
    }

    /// Whether the way is to blame, and not a decision of anybody's.
    fn is_of_the_way(&self) -> bool {
        let by_peer = self.met.as_ref().is_some_and(|(_, cut)| cut.by_peer);
        match self.refusal.reason {
            Reason::Unreachable
            | Reason::ConnectionRefused
            | Reason::Timeout
            | Reason::Draining
            | Reason::Reset => true,
            Reason::NotReady => by_peer,
            _ => false,
        }
    }
}

/// The next way of a connection that has missed one endpoint, if there is another.
pub(super) async fn another<D: Dial>(
    shared: &Shared,
    pod: &Pod<D>,
    routed: &Routed,
    tried: &mut Tried,
    missed: &mut Missed,
) -> Option<Routed> {
    let (Way::Tunnel(_, endpoint, _) | Way::Plain(endpoint)) = &routed.way else { return None };
    let at = endpoint.addr.0;
    if !missed.is_of_the_way() {
        return None;
    }
    if missed.placed.client.has_given_up() {
        if tried.began.elapsed() >= IMPATIENCE && tried.endpoints.is_empty() {
            pod.choices.failed(at);
        }
        return None;
    }
    let service = endpoint.service.as_ref()?;
    pod.choices.failed(at);
    tried.endpoints.push(at);
    if tried.endpoints.len() >= MOST || tried.began.elapsed() >= PERIOD {
        return None;
    }
    let next = next(shared, pod, routed, tried, &mut missed.placed.client).await?;
    tracing::info!(
        service = %service.host,
        endpoint = %at,
        reason = missed.refusal.reason.label(),
        why = %missed.refusal,
        "an endpoint does not answer; another is tried"
    );
    Some(next)
}

async fn next<D: Dial>(
    shared: &Shared,
    pod: &Pod<D>,
    routed: &Routed,
    tried: &Tried,
    app: &mut Client,
) -> Option<Routed> {
    let (world, client) = (shared.feed.world(), routed.client.as_ref()?);
    let route = pod.choices.route(&world, client, routed.original_dst, &tried.endpoints);
    let named = matches!(route, Route::Resolve(_));
    let mut next = Routed { way: way(route, client)?, client: Some(client.clone()), ..*routed };
    if named {
        next = Box::pin(egress::resolve(shared, pod, app, next, &tried.endpoints)).await;
    }
    match &next.way {
        Way::Tunnel(_, endpoint, _) | Way::Plain(endpoint) if !tried.endpoints.contains(&endpoint.addr.0) => {
            Some(next)
        }
        _ => None,
    }
}

fn way(route: Route, client: &Arc<Workload>) -> Option<Way> {
    match route {
        // Connections that are not numbered where they were made come in no order.
        Route::Tunnel(endpoint) => {
            Some(Way::Tunnel(client.clone(), endpoint, Order { epoch: rand::random(), number: 0 }))
        }
        Route::Plain(endpoint) => Some(Way::Plain(endpoint)),
        Route::Resolve(named) => Some(Way::Resolve(named)),
        Route::Passthrough | Route::Refuse(_) => None,
    }
}

impl<D: Dial> Call<'_, D> {
    /// What `work` brings, unless that takes so long that another endpoint had better be tried.
    pub(super) async fn patiently<T, E: From<Refusal>>(
        &self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let mut work = pin!(work);
        match timeout(SILENCE, &mut work).await {
            Ok(done) => done,
            Err(_) if self.has_another() => {
                Err(Refusal::new(Reason::Timeout, "the endpoint has been silent for 3 s").into())
            }
            Err(_) => work.await,
        }
    }

    /// Whether the connection could go to another endpoint.
    fn has_another(&self) -> bool {
        let (Way::Tunnel(_, endpoint, _) | Way::Plain(endpoint)) = &self.routed.way else { return false };
        let (Some(client), Some(_)) = (&self.routed.client, &endpoint.service) else { return false };
        let mut tried = self.tried.endpoints.clone();
        tried.push(endpoint.addr.0);
        if tried.len() >= MOST || self.tried.began.elapsed() >= PERIOD {
            return false;
        }
        let world = self.shared.feed.world();
        match self.pod.choices.peek(&world, client, self.routed.original_dst, &tried) {
            Route::Tunnel(other) | Route::Plain(other) => !tried.contains(&other.addr.0),
            Route::Resolve(named) => !named.first_only,
            Route::Passthrough | Route::Refuse(_) => false,
        }
    }
}
