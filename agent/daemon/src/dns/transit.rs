//! Queries on their way to a resolver, and its answers back: for each socket of a client's one of ours, inside the pod, as a NAT
//! has it.
//!
//! Promises that no byte is changed, and that only the resolver's answers to a client's queries come to it.

use std::{
    cell::RefCell,
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use socket2::SockRef;
use tokio::{net::UdpSocket, time::timeout};

use super::{
    LONGEST, Place, Responder,
    pending::{PATIENCE, Pending},
};
use crate::{capture::QuerySocket, telemetry::DnsResult};

/// Sockets of a pod's clients with queries on their way to one resolver, at the most.
const MOST_CLIENTS: usize = 1_024;
/// A client that has asked so often is likely to ask again from the same socket, and finds ours still there for a while.
const REGULAR: u64 = 4;
const LINGER: Duration = Duration::from_secs(2);

type Flows = Arc<Mutex<HashMap<SocketAddr, Arc<Flow>>>>;

/// What is on its way to one resolver.
pub(super) struct Transit {
    uid: Arc<str>,
    clients: Arc<UdpSocket>,
    flows: Flows,
}

/// One client's socket.
struct Flow {
    upstream: UdpSocket,
    state: Mutex<State>,
    _place: Place,
}

#[derive(Default)]
struct State {
    pending: Pending,
    asked: u64,
}

impl Transit {
    pub(super) fn new(uid: &Arc<str>, socket: &QuerySocket) -> Self {
        Self { uid: uid.clone(), clients: socket.socket().clone(), flows: Flows::default() }
    }

    /// Has a query of a client's go to the resolver.
    pub(super) fn pass(
        &mut self,
        responder: &Responder,
        socket: &QuerySocket,
        client: SocketAddr,
        query: &[u8],
    ) {
        let sent = self.flow(responder, socket, client, query).and_then(|flow| {
            // What is reported first is that an earlier one was not taken.
            let upstream = SockRef::from(&flow.upstream);
            let sent = upstream.send(query).or_else(|_| upstream.send(query));
            sent.map_err(|error| format!("the resolver cannot be asked: {error}"))
        });
        match sent {
            Ok(_) => responder.0.telemetry.dns(DnsResult::Passed),
            Err(why) => responder.refused(&self.uid, DnsResult::Refused, &why),
        }
    }

    /// The client's flow, which is there until the query, which it waits for from now on, is answered or given up.
    fn flow(
        &self,
        responder: &Responder,
        socket: &QuerySocket,
        client: SocketAddr,
        query: &[u8],
    ) -> Result<Arc<Flow>, String> {
        let mut flows = self.flows.lock().unwrap_or_else(PoisonError::into_inner);
        let known = flows.get(&client).cloned();
        let is_new = known.is_none();
        let flow = match known {
            Some(flow) => flow,
            None if flows.len() >= MOST_CLIENTS => {
                return Err(format!("{MOST_CLIENTS} clients of the pod wait for answers of one resolver"));
            }
            None => Arc::new(Flow::open(responder, socket)?),
        };
        let mut state = flow.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.asked += 1;
        if !state.pending.sent(query, Instant::now()) {
            return Err("a client has too many queries on their way, or what it sends is no DNS".to_owned());
        }
        drop(state);
        if is_new {
            flows.insert(client, flow.clone());
            let (uid, clients) = (self.uid.clone(), self.clients.clone());
            let (responder, flows, flow) = (responder.clone(), self.flows.clone(), flow.clone());
            tokio::spawn(Back { uid, responder, clients, client, flows, flow }.run());
        }
        Ok(flow)
    }
}

impl Flow {
    fn open(responder: &Responder, socket: &QuerySocket) -> Result<Self, String> {
        let place = responder.flow().ok_or("too many clients on this node wait for answers")?;
        let resolver = socket.resolver().ok_or("it is not known which resolver was asked")?;
        let upstream =
            socket.upstream(resolver).map_err(|error| format!("{resolver} cannot be asked: {error}"))?;
        Ok(Self { upstream, state: Mutex::default(), _place: place })
    }
}

/// The way back to one client.
struct Back {
    uid: Arc<str>,
    responder: Responder,
    clients: Arc<UdpSocket>,
    client: SocketAddr,
    flows: Flows,
    flow: Arc<Flow>,
}

impl Back {
    async fn run(self) {
        loop {
            match timeout(self.patience(), self.flow.upstream.readable()).await {
                Ok(Ok(())) => self.take(),
                // It can only fail as a whole.
                Ok(Err(_)) => break,
                Err(_) if self.end(true) => return,
                Err(_) => {}
            }
            if self.end(false) {
                return;
            }
        }
        self.flows.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.client);
    }

    fn patience(&self) -> Duration {
        let state = self.flow.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.pending.is_empty() { LINGER } else { PATIENCE }
    }

    /// Hands over what has come.
    fn take(&self) {
        thread_local! {
            static BUFFER: RefCell<Vec<u8>> = RefCell::new(Vec::with_capacity(LONGEST));
        }
        BUFFER.with_borrow_mut(|buffer| {
            loop {
                buffer.clear();
                match self.flow.upstream.try_recv_buf(buffer) {
                    Ok(_) => self.hand_over(buffer),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                    // Nothing listens there, or the network is gone: as with a wire that is cut, the client waits.
                    Err(_) => {}
                }
            }
        });
    }

    fn hand_over(&self, answer: &[u8]) {
        let mut state = self.flow.state.lock().unwrap_or_else(PoisonError::into_inner);
        let expected = state.pending.received(answer);
        drop(state);
        if !expected {
            let why = "what came from a resolver is the answer to no query";
            return self.responder.refused(&self.uid, DnsResult::Dropped, why);
        }
        // It can only fail where the client has gone, or does not read.
        let _: io::Result<usize> = SockRef::from(&*self.clients).send_to(answer, &self.client.into());
    }

    /// Whether the client waits for nothing any more; then a query that comes next finds no flow. One that asks often is given time
    /// unless it has had it.
    fn end(&self, rested: bool) -> bool {
        let mut flows = self.flows.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.flow.state.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = if rested { state.pending.forget(Instant::now()) } else { !state.pending.is_empty() };
        let over = !waits && (rested || state.asked < REGULAR);
        if over {
            flows.remove(&self.client);
        }
        over
    }
}
