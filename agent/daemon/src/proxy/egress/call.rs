//! Connections that a DestinationRule speaks of, and those whose destination has only a name, from the dial to the end.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ambit_core::{
    discovery::{ClientRule, ConnectionPool, Endpoint, Named, Route},
    model::Workload,
    reason::{Reason, Refusal},
};
use tokio::{select, time::sleep};

use super::Slot;
use crate::{
    capture::{Client, Dial, bound_buffers, keep_alive},
    proxy::{
        Cut, Placed, Pod, Shared,
        attempts::{Carried, Missed},
        describe,
        outbound::{CONNECT, Call, Outbound, Routed, Way, is_itself, unknown_client, unroutable},
        relay::{Meter, Relay},
        settled::Settled,
        unboxed, unconnected,
        waiting::{admit, unless_given_up},
        within,
    },
    telemetry::{Connection, Ending},
    tunnel::{Incoming, Leg, Order, Originated, Outside, PeerFacts, Plain, Stream},
};

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// The leg to a server.
enum Server {
    Plain(Plain),
    Tls(Box<Originated<Plain>>),
}

/// Finds out where a name leads, beside what was `tried`, and what then becomes of the connection.
pub(in crate::proxy) async fn resolve<D: Dial>(
    shared: &Shared,
    pod: &Pod<D>,
    app: &mut Client,
    routed: Routed,
    tried: &[SocketAddr],
) -> Routed {
    let Routed { client: Some(client), way: Way::Resolve(named), source, original_dst } = routed else {
        return routed;
    };
    let find = shared.egress.names.resolve(&named, source.ip(), rand::random(), tried);
    let way = match unless_given_up(app, find).await {
        Err(refusal) => {
            pod.pod.unanswered(original_dst.0);
            Way::Refused(refusal)
        }
        Ok(to) => match shared.feed.world().mesh.route_named(&client, &named, to, rand::random()) {
            // Connections that are not numbered where they were made come in no order.
            Route::Tunnel(endpoint) => {
                Way::Tunnel(client.clone(), endpoint, Order { epoch: rand::random(), number: 0 })
            }
            Route::Plain(endpoint) => Way::Plain(endpoint),
            Route::Refuse(error) => Way::Refused(unroutable(&error)),
            Route::Passthrough | Route::Resolve(_) => Way::Refused(unknown(&named)),
        },
    };
    Routed { client: Some(client), source, original_dst, way }
}

fn unknown(named: &Named) -> Refusal {
    Refusal::new(Reason::NoEndpoint, format!("{} leads to no endpoint", named.service.host))
}

impl<D: Dial> Call<'_, D> {
    /// To an endpoint outside the mesh, as a rule wants it.
    pub(in crate::proxy) async fn governed(
        &self,
        placed: Placed,
        endpoint: &Endpoint,
        rule: &ClientRule,
    ) -> Carried {
        let begun = self.begin(endpoint, rule);
        let Some((app, _place, (server, slot))) = self.reached(placed, begun).await? else { return Ok(()) };
        let meta = describe::outbound(self.routed, None);
        match server {
            Server::Plain(leg) => {
                let connection = self.shared.telemetry.open(meta);
                self.carried(Relay::new(app, leg), connection, rule, slot).await;
            }
            Server::Tls(leg) => {
                let connection = self.shared.telemetry.open(describe::under_tls(meta));
                self.carried(Relay::new(app, *leg), connection, rule, slot).await;
            }
        }
        Ok(())
    }

    /// To an endpoint in the mesh, of which a rule speaks too: mutual TLS of the mesh in any case, and the rule's TLS inside it.
    pub(in crate::proxy) async fn tunnel_by_rule(
        &self,
        placed: Box<Placed>,
        client: &Arc<Workload>,
        endpoint: &Endpoint,
        order: Order,
        rule: &ClientRule,
    ) -> Carried {
        let egress = &self.shared.egress;
        let world = self.shared.feed.world();
        let permitted = async {
            let outside = egress.outside(&world, client, rule, true).await?;
            let slot = egress.slot(self.pod.pod.uid(), rule, self.routed.original_dst.0.port())?;
            Ok::<_, Refusal>((outside, slot))
        };
        match permitted.await {
            Ok((None, _slot)) if is_itself(client, &endpoint.workload) => {
                self.to_itself(unboxed(placed), client, endpoint).await
            }
            Ok((None, _slot)) => self.tunnel(placed, client, endpoint, order).await,
            Ok((Some(outside), _slot)) => {
                Box::pin(self.governed_tunnel(unboxed(placed), client, endpoint, &outside)).await
            }
            Err(refusal) => {
                self.refuse(placed.client, &refusal);
                Ok(())
            }
        }
    }

    /// To an endpoint in the mesh with TLS of its own inside the tunnel.
    async fn governed_tunnel(
        &self,
        placed: Placed,
        client: &Workload,
        endpoint: &Endpoint,
        outside: &Outside,
    ) -> Carried {
        let Placed { client: mut app, mut place } = placed;
        let session = self.begin_tunnel(client, endpoint, outside, place.buffers());
        let begun = Box::pin(unless_given_up(&mut app, self.patiently(session)));
        let (leg, facts) = match place.begin(begun).await {
            Ok(begun) => begun,
            Err(refusal) => return Err(Missed::before(Placed { client: app, place }, refusal)),
        };
        let meta = describe::outbound(self.routed, Some((&facts, false)));
        let connection = self.shared.telemetry.open(meta);
        let app = match admit(app).await {
            Ok(app) => app,
            Err(refusal) => {
                let tell = Cut::here(refusal).report(connection);
                tokio::spawn(leg.into_inner().close(tell));
                return Ok(());
            }
        };
        bound_buffers(&app, place.buffers());
        let mut relay = Relay::new(app, leg);
        let meter = Outbound(&connection);
        let settled = Settled::default();
        let ended = select! {
            ended = self.shared.relay(&*self.pod.pod, &mut relay, &meter, &settled) => {
                ended.map_err(Cut::by_relay)
            }
            refused = self.shared.wallet.until_distrusted(&client.identity, &facts.peer) => {
                Err(Cut::here(crate::proxy::distrusted(refused)))
            }
        };
        let tell = match ended {
            Ok(()) => {
                connection.finish(&Ending::Closed);
                self.pod.pod.answered(self.routed.original_dst.0);
                None
            }
            Err(cut) => {
                self.pod.pod.unanswered(self.routed.original_dst.0);
                cut.report(connection)
            }
        };
        tokio::spawn(relay.into_leg().into_inner().close(tell));
        Ok(())
    }

    async fn begin(&self, endpoint: &Endpoint, rule: &ClientRule) -> Result<(Server, Option<Slot>), Refusal> {
        let (egress, pool) = (&self.shared.egress, &rule.settings.pool);
        let Some(client) = &self.routed.client else { return Err(unknown_client()) };
        let world = self.shared.feed.world();
        let outside = egress.outside(&world, client, rule, false).await?;
        let slot = egress.slot(self.pod.pod.uid(), rule, self.routed.original_dst.0.port())?;
        let to = endpoint.addr.0;
        let dial = self.pod.pod.dial_plain(self.routed.source.ip(), to);
        let tcp = within(pool.connect_timeout.unwrap_or(CONNECT), dial)
            .await
            .map_err(|error| unconnected("the destination", to, &error))?;
        if let Some(keepalive) = pool.keepalive {
            keep_alive(&tcp, keepalive.time, keepalive.interval, keepalive.probes);
        }
        let plain = Plain::new(tcp, self.pod.share.clone());
        let Some(outside) = outside else { return Ok((Server::Plain(plain), slot)) };
        let tls = Originated::connect(plain, &outside, self.pod.share.clone(), HANDSHAKE).await;
        let tls = tls.map_err(|error| at(&error.into(), rule, &to.to_string()))?;
        Ok((Server::Tls(Box::new(tls)), slot))
    }

    async fn begin_tunnel(
        &self,
        client: &Workload,
        endpoint: &Endpoint,
        outside: &Outside,
        buffers: Option<usize>,
    ) -> Result<(Originated<Stream>, PeerFacts), Refusal> {
        let session = self.dialled(client, endpoint, buffers).await?;
        let facts = session.facts().clone();
        let mut stream = session.open(
            Incoming {
                original_dst: self.routed.original_dst.0,
                service: endpoint.service.as_ref().map(|service| service.host.to_string()),
                trace: None,
                order: Order { epoch: rand::random(), number: 0 },
                waits: true,
                strand: None,
            },
            None,
        );
        stream.confirmed(false).await.map_err(|error| {
            let text = error.to_string();
            Cut::by_leg(error).refusal.unwrap_or_else(|| Refusal::new(Reason::Reset, text))
        })?;
        let tls = Originated::connect(stream, outside, self.pod.share.clone(), HANDSHAKE).await;
        let tls = tls.map_err(|error| match &endpoint.rule {
            Some(rule) => at(&error.into(), rule, &endpoint.addr.0.to_string()),
            None => error.into(),
        })?;
        Ok((tls, facts))
    }

    /// Relays to the end, or as long as the rule allows.
    async fn carried<L: Leg>(
        &self,
        mut relay: Relay<L>,
        connection: Connection,
        rule: &ClientRule,
        slot: Option<Slot>,
    ) {
        let meter = Bounded { inner: Outbound(&connection), moved: AtomicU64::new(0) };
        let settled = Settled::default();
        let ending = select! {
            biased;
            ended = self.shared.relay(&*self.pod.pod, &mut relay, &meter, &settled) => match ended {
                Ok(()) => Ending::Closed,
                Err(broken) => Cut::by_relay(broken).ending(),
            },
            () = meter.until_over(&rule.settings.pool) => Ending::Closed,
        };
        drop(slot);
        connection.finish(&ending);
    }
}

/// What went wrong with a server, and whose rule wanted it.
fn at(refusal: &Refusal, rule: &ClientRule, server: &str) -> Refusal {
    let text =
        format!("{} at {server}, for DestinationRule {}: {}", rule.host, rule.settings.rule, refusal.text);
    Refusal::new(refusal.reason, text)
}

/// Counts what passes, to tell when nothing does.
struct Bounded<'a> {
    inner: Outbound<'a>,
    moved: AtomicU64,
}

impl Bounded<'_> {
    /// Ends when the connection has rested for too long, or is too old.
    async fn until_over(&self, pool: &ConnectionPool) {
        let idle = async {
            let Some(idle) = pool.idle_timeout else { return std::future::pending().await };
            // Looked at ten times as often, so that it is not over by as much again.
            let (mut seen, mut rested) = (0, Duration::ZERO);
            while rested < idle {
                let step = (idle / 10).max(Duration::from_millis(1)).min(idle - rested);
                sleep(step).await;
                let moved = self.moved.load(Ordering::Relaxed);
                rested = if moved == seen { rested + step } else { Duration::ZERO };
                seen = moved;
            }
        };
        let old = async {
            match pool.max_duration {
                Some(most) => sleep(most).await,
                None => std::future::pending().await,
            }
        };
        select! {
            () = idle => {}
            () = old => {}
        }
    }
}

impl Meter for Bounded<'_> {
    fn app_sent(&self, bytes: u64) {
        self.moved.fetch_add(1, Ordering::Relaxed);
        self.inner.app_sent(bytes);
    }

    fn app_got(&self, bytes: u64) {
        self.moved.fetch_add(1, Ordering::Relaxed);
        self.inner.app_got(bytes);
    }
}
