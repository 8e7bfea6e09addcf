//! DNS of pods that opt in. Hosts of ServiceEntries that a pod sees are answered here; everything else goes to the very resolver
//! that the pod asked, from inside the pod and byte for byte, and so do that resolver's answers.
//!
//! Keeps no answers. What is on its way is bounded; what captures it, and where the addresses lead, is left to others.

mod answer;
mod pending;
mod stream;
mod transit;

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use socket2::SockRef;
use tokio::{select, time::MissedTickBehavior};

pub(crate) use stream::splice;

use self::transit::Transit;
use crate::{
    capture::{QuerySocket, RESTED},
    discovery::Feed,
    telemetry::{DnsResult, Telemetry},
};

/// The longest message (RFC 1035 §4.2.2; UDP has a little less).
const LONGEST: usize = u16::MAX as usize;
/// Clients' sockets with queries on their way, of all pods, at the most. Each takes an open file.
const MOST_FLOWS: usize = 16_384;
/// What part of the open files that the agent may have they can take.
const PART_OF_FILES: u64 = 8;
/// Datagrams that are taken from one socket before others get their turn.
const TURN: usize = 64;
/// How often a line of the log may tell of queries that were refused.
const TELLING: Duration = Duration::from_secs(10);

/// Answers pods. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Responder(Arc<Shared>);

struct Shared {
    feed: Feed,
    telemetry: Telemetry,
    flows: AtomicUsize,
    most_flows: usize,
    told: Mutex<Option<Instant>>,
}

/// What a message may be as long as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    /// As long as the client says, 512 bytes where it says nothing.
    Udp,
    /// As long as it gets.
    Tcp,
}

impl Responder {
    /// Over the snapshots of the mesh, within so many open files.
    pub(crate) fn new(feed: Feed, telemetry: Telemetry, files: u64) -> Self {
        let part = usize::try_from(files / PART_OF_FILES).unwrap_or(MOST_FLOWS);
        let (flows, most_flows) = (AtomicUsize::new(0), part.clamp(1, MOST_FLOWS));
        Self(Arc::new(Shared { feed, telemetry, flows, most_flows, told: Mutex::new(None) }))
    }

    /// Serves what the pod `uid` sends to one resolver, for ever.
    pub(crate) async fn serve(&self, uid: Arc<str>, mut socket: QuerySocket) {
        let mut buffer = Vec::with_capacity(LONGEST);
        let mut transit = Transit::new(&uid, &socket);
        let mut asked = Instant::now();
        let mut look = tokio::time::interval(RESTED / 4);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            select! {
                ready = socket.socket().readable() => match ready {
                    Ok(()) => {
                        asked = Instant::now();
                        self.take(&uid, &mut socket, &mut transit, &mut buffer);
                        tokio::task::yield_now().await;
                    }
                    Err(error) => {
                        tracing::warn!(%error, pod = %uid, "queries by DNS cannot be read");
                        tokio::time::sleep(TELLING).await;
                    }
                },
                _ = look.tick() => {
                    if asked.elapsed() >= RESTED && socket.is_wanted() {
                        match socket.let_go() {
                            Ok(()) => transit = Transit::new(&uid, &socket),
                            Err(error) => tracing::debug!(%error, pod = %uid, "a resolver keeps its socket"),
                        }
                    }
                }
            }
        }
    }

    /// Takes what is there, up to a turn.
    fn take(&self, uid: &str, socket: &mut QuerySocket, transit: &mut Transit, buffer: &mut Vec<u8>) {
        for _ in 0..TURN {
            buffer.clear();
            let client = match socket.socket().try_recv_buf_from(buffer) {
                Ok((_, client)) => client,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // An answer that nobody waited for any more comes back as an error.
                Err(_) => continue,
            };
            if !socket.is_inside(client.ip()) {
                self.refused(uid, DnsResult::Dropped, "a query has come from outside the pod");
                continue;
            }
            match self.answer(uid, buffer, Transport::Udp) {
                // It can only fail where the client has gone, or does not read.
                Some(answer) => drop(SockRef::from(&**socket.socket()).send_to(&answer, &client.into())),
                None => transit.pass(self, socket, client, buffer),
            }
        }
    }

    /// What the pod is to be answered by the agent, if it asks for a host of a ServiceEntry that it sees.
    pub(crate) fn answer(&self, uid: &str, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let world = self.0.feed.world();
        let answer = answer::to(query, transport, |host| {
            let pod = world.mesh.pod_by_uid(uid)?;
            let mut addresses = world.mesh.addresses_of_host(&pod.name.namespace, host)?;
            // One that the pod has no address to come from is of no use to it.
            addresses.retain(|ip| pod.ips.iter().any(|own| own.is_ipv4() == ip.is_ipv4()));
            Some(addresses)
        });
        match (&answer, transport) {
            (Some(_), _) => self.0.telemetry.dns(DnsResult::Answered),
            // Its connection carries it on.
            (None, Transport::Tcp) => self.0.telemetry.dns(DnsResult::Passed),
            // Whether it goes on is seen when it is sent.
            (None, Transport::Udp) => {}
        }
        answer
    }

    /// Counts a query, or an answer, that has gone nowhere.
    fn refused(&self, uid: &str, result: DnsResult, why: &str) {
        self.0.telemetry.dns(result);
        let mut told = self.0.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|told| told.elapsed() >= TELLING) {
            *told = Some(Instant::now());
            tracing::warn!(pod = %uid, result = result.label(), "DNS: {why}");
        }
    }

    fn flow(&self) -> Option<Place> {
        let shared = &self.0;
        if shared.flows.fetch_add(1, Ordering::Relaxed) >= shared.most_flows {
            shared.flows.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(Place(self.clone()))
    }
}

/// A place among the flows of the agent. Dropping it frees it.
struct Place(Responder);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.flows.fetch_sub(1, Ordering::Relaxed);
    }
}
