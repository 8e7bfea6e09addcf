//! A bundle: one connection that carries the small messages of many streams between the same two pods, while each stream keeps a
//! connection of its own for all else. Where many speak at a time, their messages are one record and one packet, and one thread is woken
//! for them; each by itself costs all of that.
//!
//! Promises that bytes come in the order in which they were said, whichever way they took (see [`frame::parcel`]); that a slow application
//! holds up nobody but its own stream, as at most [`WINDOW`] messages wait for it here, and what is more takes the stream's own
//! connection; and that a bundle that breaks off breaks no stream but those whose messages may have been lost with it.
//!
//! [`frame::parcel`]: ambit_core::frame::parcel

mod carrier;
mod density;
mod strand;

use std::{
    collections::HashMap,
    mem,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Instant,
};

pub(crate) use ambit_core::frame::Strand as StrandId;
use ambit_core::{
    frame::parcel::{Head, MAX},
    model::SpiffeId,
};

pub(super) use self::strand::Next;
pub(crate) use self::{carrier::carry, strand::Strand};
use self::{density::Density, strand::Inbox};
use super::PoolKey;

/// How many streams there have to be between two pods before a bundle is made for them.
const MANY: usize = 8;
/// Bytes that wait for the bundle's socket at most; what is more takes the streams' own connections.
const ROOM: usize = 64 << 10;
/// Bundles in each direction at most. Streams beyond have none.
const BUNDLES: usize = 8192;

/// Whether small messages are bundled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Bundling {
    /// Never.
    Off,
    /// Where many streams between two pods speak at a time.
    #[default]
    Auto,
    /// From the second stream on, however seldom they speak; for tests.
    Force,
}

/// The bundles of an agent.
#[derive(Debug, Default)]
pub(crate) struct Bundles {
    bundling: Bundling,
    /// Those that this end has made, or will.
    dialled: Mutex<HashMap<PoolKey, Arc<Bundle>>>,
    /// Those that peers have named.
    served: Mutex<HashMap<(Served, u64), Arc<Bundle>>>,
}

/// Whose bundle it is that a peer has named. Streams and their bundle have all of this in common, so that nobody gets a word into streams of
/// others.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Served {
    /// UID of the called pod.
    pub(crate) pod: Arc<str>,
    /// The client's address.
    pub(crate) source: IpAddr,
    /// Who the client has proved to be.
    pub(crate) peer: SpiffeId,
}

impl Bundles {
    pub(crate) fn new(bundling: Bundling) -> Self {
        Self { bundling, ..Self::default() }
    }

    /// The strand of a stream that this end opens; `None` where nothing is bundled.
    pub(crate) fn join(&self, key: &PoolKey) -> Option<Strand> {
        if self.bundling == Bundling::Off {
            return None;
        }
        let mut dialled = lock(&self.dialled);
        let bundle = match dialled.get(key) {
            Some(bundle) => bundle.clone(),
            None => {
                make_room(&mut dialled)?;
                let bundle = Arc::new(Bundle::new(rand::random(), self.bundling));
                dialled.entry(key.clone()).or_insert(bundle).clone()
            }
        };
        drop(dialled);
        bundle.next()
    }

    /// The strand of a stream that a peer has opened; `None` where nothing is bundled, or the name is taken.
    pub(crate) fn enter(&self, served: &Served, id: StrandId) -> Option<Strand> {
        self.serve(served, id)?.named(id.number)
    }

    /// The bundle that a peer has named.
    pub(crate) fn serve(&self, served: &Served, id: StrandId) -> Option<Arc<Bundle>> {
        if self.bundling == Bundling::Off {
            return None;
        }
        let mut bundles = lock(&self.served);
        let key = (served.clone(), id.bundle);
        if let Some(bundle) = bundles.get(&key) {
            return Some(bundle.clone());
        }
        make_room(&mut bundles)?;
        let bundle = Arc::new(Bundle::new(id.bundle, self.bundling));
        Some(bundles.entry(key).or_insert(bundle).clone())
    }

    /// Forgets those that nobody has a part in.
    pub(crate) fn sweep(&self) {
        lock(&self.dialled).retain(is_used);
        lock(&self.served).retain(is_used);
    }
}

/// Has room for another one; `None` if there is none.
fn make_room<K>(bundles: &mut HashMap<K, Arc<Bundle>>) -> Option<()> {
    if bundles.len() >= BUNDLES {
        bundles.retain(is_used);
    }
    (bundles.len() < BUNDLES).then_some(())
}

/// Whether somebody else has a part in it.
fn is_used<K>(_: &K, bundle: &mut Arc<Bundle>) -> bool {
    Arc::strong_count(bundle) > 1
}

/// The streams between two pods, and what they share.
#[derive(Debug)]
pub(crate) struct Bundle {
    id: u64,
    forced: bool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    inboxes: HashMap<u32, Arc<Inbox>>,
    /// The number that was given last.
    last: u32,
    density: Density,
    stand: Stand,
    /// Connections so far: who carries an earlier one has no say any more.
    round: u32,
    /// Parcels that the connection has not taken.
    out: Vec<u8>,
    /// How many these are.
    parcels: u64,
    /// Who takes them, or makes the connection.
    carrier: Option<Waker>,
    /// It has been woken, and has not come yet.
    woken: bool,
    /// Somebody makes the connection when it is wanted.
    kept: bool,
}

/// Whether there is a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stand {
    Down,
    Up,
    /// It takes nothing more.
    Ending,
}

impl Bundle {
    fn new(id: u64, bundling: Bundling) -> Self {
        let state = State {
            inboxes: HashMap::new(),
            last: 0,
            density: Density::default(),
            stand: Stand::Down,
            round: 0,
            out: Vec::new(),
            parcels: 0,
            carrier: None,
            woken: false,
            kept: false,
        };
        Self { id, forced: bundling == Bundling::Force, state: Mutex::new(state) }
    }

    /// What the connection itself is called.
    pub(crate) fn name(&self) -> StrandId {
        StrandId { bundle: self.id, number: 0 }
    }

    /// A strand with a number that no other has.
    fn next(self: &Arc<Self>) -> Option<Strand> {
        let mut state = lock(&self.state);
        loop {
            state.last = state.last.wrapping_add(1).max(1);
            if !state.inboxes.contains_key(&state.last) {
                break;
            }
        }
        let number = state.last;
        drop(state);
        self.named(number)
    }

    fn named(self: &Arc<Self>, number: u32) -> Option<Strand> {
        let mut state = lock(&self.state);
        if number == 0 || state.inboxes.contains_key(&number) {
            return None;
        }
        let inbox = Arc::new(Inbox::default());
        state.inboxes.insert(number, inbox.clone());
        Some(Strand::new(self.clone(), number, inbox))
    }

    fn leave(&self, number: u32) {
        let mut state = lock(&self.state);
        state.inboxes.remove(&number);
        // Who keeps it may have nothing left to do.
        let carrier = if state.inboxes.is_empty() { state.carrier.take() } else { None };
        drop(state);
        carrier.into_iter().for_each(Waker::wake);
    }

    /// Takes one message of a stream, if it goes by the bundle.
    fn offer(&self, head: Head, bytes: &[u8]) -> bool {
        debug_assert!(bytes.len() <= MAX, "small messages are bundled");
        let mut state = lock(&self.state);
        let dense = state.density.count(head.strand, Instant::now) || self.forced;
        let (taken, tells) = match state.stand {
            Stand::Up if dense && state.out.len() < ROOM => {
                state.out.extend_from_slice(&head.encode());
                state.out.extend_from_slice(bytes);
                state.parcels += 1;
                (true, true)
            }
            // Somebody may make the connection.
            Stand::Down => (false, dense && state.kept),
            Stand::Up | Stand::Ending => (false, false),
        };
        let carrier =
            if tells && !mem::replace(&mut state.woken, true) { state.carrier.take() } else { None };
        drop(state);
        carrier.into_iter().for_each(Waker::wake);
        taken
    }

    /// Whether the caller is to make the connection when it is wanted: the first who asks once there are many streams.
    pub(crate) fn is_to_be_kept(&self) -> bool {
        let mut state = lock(&self.state);
        let many = if self.forced { 2 } else { MANY };
        state.inboxes.len() >= many && !mem::replace(&mut state.kept, true)
    }

    /// Waits until a connection would be used; `false` once there are no streams.
    pub(crate) fn poll_wanted(&self, cx: &mut Context<'_>) -> Poll<bool> {
        let mut state = lock(&self.state);
        if state.inboxes.is_empty() {
            return Poll::Ready(false);
        }
        if mem::take(&mut state.woken) {
            return Poll::Ready(true);
        }
        state.carrier = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Nobody makes the connection any more.
    pub(crate) fn give_up(&self) {
        lock(&self.state).kept = false;
    }

    /// Has the connection end once all has gone that was said.
    pub(crate) fn end(&self) {
        let mut state = lock(&self.state);
        if state.stand == Stand::Up {
            state.stand = Stand::Ending;
        }
        let carrier = state.carrier.take();
        drop(state);
        carrier.into_iter().for_each(Waker::wake);
    }

    /// A connection stands. One before it that has not ended has broken off.
    fn attach(&self) -> u32 {
        let mut state = lock(&self.state);
        let lost = if state.stand == Stand::Down { Vec::new() } else { state.broken() };
        (state.out, state.parcels) = (Vec::new(), 0);
        state.stand = Stand::Up;
        state.round = state.round.wrapping_add(1);
        let round = state.round;
        drop(state);
        lost.into_iter().for_each(Waker::wake);
        round
    }

    /// The connection is over; unless it has ended `cleanly`, what was on its way is lost.
    fn detach(&self, round: u32, cleanly: bool) {
        let mut state = lock(&self.state);
        if state.round != round {
            return;
        }
        let lost = if cleanly { Vec::new() } else { state.broken() };
        state.stand = Stand::Down;
        state.woken = false;
        (state.out, state.parcels) = (Vec::new(), 0);
        drop(state);
        lost.into_iter().for_each(Waker::wake);
    }
}

impl State {
    /// All strands are told that what they have said may be lost.
    fn broken(&self) -> Vec<Waker> {
        self.inboxes.values().filter_map(|inbox| inbox.break_off()).collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic cannot leave anything half changed: nothing in the critical sections panics between two steps.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
