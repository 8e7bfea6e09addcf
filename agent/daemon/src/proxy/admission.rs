//! How many connections there may be: of the node, of one pod in one direction, and of one client of a pod.
//!
//! Promises that a flood costs whoever makes it. A connection is unfinished until its other end is reached: of too many, the one
//! that has waited longest of the party that has most makes room, and the newcomer is let in. Of finished ones a pod may have as
//! many as are still free, and a client as many as are then left to the pod: whoever comes late finds room. A connection takes its
//! own pod's lock and no other, unless the whole node is crowded.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use ambit_core::{
    crowd::{Crowd, Ticket},
    reason::{Reason, Refusal},
};
use tokio::{select, sync::Notify};

use super::pressure::Pressure;
use crate::{instance::Capacity, telemetry::Direction};

/// Unfinished connections of a node, where there are descriptors for so many.
const UNFINISHED: usize = 8192;
/// Finished connections that every lane may have, whatever others hold.
const RESERVE: usize = 8;
/// Memory of one finished connection: the agent's, the kernel's for its two sockets, and some of what is stuck in them.
const CONNECTION_MEMORY: u64 = 32 * 1024;
/// Connections of a lane whose socket buffers the kernel may grow as it likes.
const FREE_BUFFERS: usize = 64;
/// What the socket buffers of further ones are cut to at the least and at the most. The kernel takes twice as much.
pub(super) const SMALLEST_BUFFER: usize = 8 * 1024;
const LARGEST_BUFFER: usize = 128 * 1024;

/// How many connections there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limits {
    /// Unfinished ones of the node.
    unfinished: usize,
    /// Unfinished ones of a lane.
    lane_unfinished: usize,
    /// Finished ones of the node, beside the reserve of each lane.
    finished: usize,
    /// Bytes that the socket buffers of a lane's connections are cut to, once it has many: divided by their number.
    lane_buffers: usize,
}

impl Limits {
    /// What a process with this capacity can hold. A connection takes two descriptors, and for moments a third; a sixteenth is left
    /// for listeners, files and idle tunnels. Half of the memory is for connections, a quarter for [buffers](crate::tunnel::Budget),
    /// the rest for the agent itself and what the kernel keeps in sockets.
    fn of(capacity: Capacity) -> Self {
        let files = usize::try_from(capacity.files).unwrap_or(usize::MAX);
        let unfinished = UNFINISHED.min(files / 8);
        let by_files = (files - files / 16 - 2 * unfinished) / 2;
        let by_memory = usize::try_from(capacity.memory / 2 / CONNECTION_MEMORY).unwrap_or(usize::MAX);
        let finished = by_files.min(by_memory);
        let lane_buffers = usize::try_from(capacity.memory / 128).unwrap_or(usize::MAX);
        Self { unfinished, lane_unfinished: unfinished / 2, finished: finished - finished / 16, lane_buffers }
    }

    /// The size that the socket buffers of one more connection are cut to in a lane that has `count`.
    fn buffers(&self, count: usize) -> Option<usize> {
        let each = || (self.lane_buffers / count).clamp(SMALLEST_BUFFER, LARGEST_BUFFER);
        (count >= FREE_BUFFERS).then(each)
    }
}

/// The connections of a node.
#[derive(Debug)]
pub(super) struct Admission(Arc<Node>);

#[derive(Debug)]
struct Node {
    limits: Limits,
    unfinished: AtomicUsize,
    finished: AtomicUsize,
    lanes: Mutex<Lanes>,
}

/// By the pod's UID.
type Lanes = HashMap<(Arc<str>, Direction), Weak<Lane>>;

/// The connections of one pod in one direction.
#[derive(Debug)]
pub(super) struct Lane {
    node: Arc<Node>,
    direction: Direction,
    /// As many as are in the crowd.
    unfinished: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    unfinished: Crowd<IpAddr, Arc<Notify>>,
    finished: usize,
    by_party: HashMap<IpAddr, usize>,
}

impl Admission {
    pub(super) fn new(capacity: Capacity) -> Self {
        Self::limited(Limits::of(capacity))
    }

    fn limited(limits: Limits) -> Self {
        Self(Arc::new(Node {
            limits,
            unfinished: AtomicUsize::new(0),
            finished: AtomicUsize::new(0),
            lanes: Mutex::default(),
        }))
    }

    /// The lane of the pod with this UID.
    pub(super) fn lane(&self, pod: &Arc<str>, direction: Direction) -> Arc<Lane> {
        let mut lanes = self.0.lanes();
        if let Some(lane) = lanes.get(&(pod.clone(), direction)).and_then(Weak::upgrade) {
            return lane;
        }
        lanes.retain(|_, lane| lane.strong_count() > 0);
        let lane = Arc::new(Lane {
            node: self.0.clone(),
            direction,
            unfinished: AtomicUsize::new(0),
            state: Mutex::default(),
        });
        lanes.insert((pod.clone(), direction), Arc::downgrade(&lane));
        lane
    }
}

impl Node {
    fn lanes(&self) -> MutexGuard<'_, Lanes> {
        // Each critical section is a step of the map: a panic cannot leave it half changed. So with the lanes' own.
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lane with the most unfinished connections loses one.
    fn relieve(&self) {
        let lanes = self.lanes();
        let heaviest = lanes
            .values()
            .filter_map(Weak::upgrade)
            .max_by_key(|lane| lane.unfinished.load(Ordering::Relaxed));
        drop(lanes);
        if let Some(lane) = heaviest {
            lane.evict(&mut lane.state());
        }
    }
}

impl Lane {
    /// A place for a connection of `party` that has just come: the client's address, or of a connection of our own client's, the
    /// one that it goes to.
    pub(super) fn enter(self: &Arc<Self>, party: IpAddr, pressure: Pressure) -> Result<Place, Refusal> {
        let state = self.state();
        self.room(&state, party)?;
        if pressure == Pressure::Scarce && state.finished + state.unfinished.len() >= RESERVE {
            return Err(Refusal::new(Reason::Overloaded, "the agent has hardly any memory left"));
        }
        let buffers = match pressure {
            Pressure::None => self.node.limits.buffers(state.finished + state.unfinished.len()),
            Pressure::Short | Pressure::Scarce => Some(SMALLEST_BUFFER),
        };
        drop(state);
        Ok(Place { lane: self.clone(), party, buffers, stands: Stands::Unfinished(self.wait(party)) })
    }

    /// Whether it has so many unfinished connections that it had better let others go first.
    pub(super) fn is_crowded(&self) -> bool {
        self.unfinished.load(Ordering::Relaxed) > self.node.limits.lane_unfinished / 2
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn room(&self, state: &State, party: IpAddr) -> Result<(), Refusal> {
        let free = self.node.limits.finished.saturating_sub(self.node.finished.load(Ordering::Relaxed));
        if state.finished >= RESERVE.max(free) {
            let text = "the pod has as many connections as it may have while others need some too";
            return Err(Refusal::new(Reason::Overloaded, text));
        }
        let left = free.saturating_sub(state.finished);
        let of_party = state.by_party.get(&party).copied().unwrap_or(0);
        if self.direction == Direction::Inbound && of_party >= left.max(RESERVE / 2) {
            let text =
                "the client has as many connections to the pod as it may have while others need some too";
            return Err(Refusal::new(Reason::Overloaded, text));
        }
        Ok(())
    }

    /// Joins the unfinished, and has somebody leave if those are too many.
    fn wait(self: &Arc<Self>, party: IpAddr) -> Unfinished {
        let Limits { unfinished, lane_unfinished, .. } = self.node.limits;
        let evicted = Arc::new(Notify::new());
        let mut state = self.state();
        let ticket = state.unfinished.insert(party, evicted.clone());
        self.unfinished.fetch_add(1, Ordering::Relaxed);
        let all = self.node.unfinished.fetch_add(1, Ordering::Relaxed) + 1;
        let full = state.unfinished.len() > lane_unfinished;
        if full {
            self.evict(&mut state);
        }
        drop(state);
        if !full && all > unfinished {
            self.node.relieve();
        }
        Unfinished { lane: self.clone(), ticket, evicted }
    }

    fn evict(&self, state: &mut State) {
        if let Some(evicted) = state.unfinished.evict() {
            self.left();
            evicted.notify_one();
        }
    }

    fn left(&self) {
        self.unfinished.fetch_sub(1, Ordering::Relaxed);
        self.node.unfinished.fetch_sub(1, Ordering::Relaxed);
    }

    fn finish(&self, party: IpAddr) -> Result<(), Refusal> {
        let mut state = self.state();
        self.room(&state, party)?;
        state.finished += 1;
        *state.by_party.entry(party).or_default() += 1;
        self.node.finished.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn end(&self, party: IpAddr) {
        let mut state = self.state();
        state.finished -= 1;
        if let Some(of_party) = state.by_party.get_mut(&party) {
            *of_party -= 1;
            if *of_party == 0 {
                state.by_party.remove(&party);
            }
        }
        self.node.finished.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The place of one connection, from when it comes to its end.
#[derive(Debug)]
pub(super) struct Place {
    lane: Arc<Lane>,
    party: IpAddr,
    buffers: Option<usize>,
    stands: Stands,
}

#[derive(Debug)]
enum Stands {
    Unfinished(Unfinished),
    Finished,
}

impl Place {
    /// What the buffers of the connection's sockets are to be cut to, in bytes.
    pub(super) fn buffers(&self) -> Option<usize> {
        self.buffers
    }

    /// Does what a connection begins with; it is finished after that. An error if there are too many.
    pub(super) async fn begin<T>(
        &mut self,
        work: impl Future<Output = Result<T, Refusal>>,
    ) -> Result<T, Refusal> {
        let done = match &self.stands {
            Stands::Unfinished(unfinished) => unfinished.run(work).await?,
            Stands::Finished => return work.await,
        };
        self.lane.finish(self.party)?;
        self.stands = Stands::Finished;
        Ok(done)
    }

    /// Does what a further stream on it begins with, under the same bounds.
    pub(super) async fn begin_stream<T>(
        &self,
        work: impl Future<Output = Result<T, Refusal>>,
    ) -> Result<T, Refusal> {
        self.lane.wait(self.party).run(work).await
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Stands::Finished = self.stands {
            self.lane.end(self.party);
        }
    }
}

/// One of the unfinished.
#[derive(Debug)]
struct Unfinished {
    lane: Arc<Lane>,
    ticket: Ticket<IpAddr>,
    evicted: Arc<Notify>,
}

impl Unfinished {
    async fn run<T>(&self, work: impl Future<Output = Result<T, Refusal>>) -> Result<T, Refusal> {
        select! {
            biased;
            done = work => done,
            () = self.evicted.notified() => {
                let text = "too many connections of the pod are unfinished, and of the party that has most, this one has waited longest";
                Err(Refusal::new(Reason::Overloaded, text))
            }
        }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if self.lane.state().unfinished.remove(self.ticket).is_some() {
            self.lane.left();
        }
    }
}

#[cfg(test)]
mod tests;
