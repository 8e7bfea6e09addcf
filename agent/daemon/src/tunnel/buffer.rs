//! Buffers for bytes on their way, counted against a share for each pod and a cap for the agent.
//!
//! Promises that what is over a limit waits until others give back, that directions which are stuck hold little, and that no pod
//! waits for another: each may hold as much as is still free, and a small reserve in any case. Full buffers, a batch of records
//! long, are lent to a pod only while it holds few bytes. An idle connection holds none.

mod waiting;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::IpAddr,
    ops::{Deref, DerefMut},
    sync::{
        Arc, Mutex, OnceLock, PoisonError, Weak,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

pub(crate) use self::waiting::Waiting;
use self::waiting::{Line, Pods};
use super::{
    ambit1::{RECORD_LEN, RECORDS},
    kernel::Offload,
    turns::{Turn, Turns},
};

/// Bytes of a full buffer: a batch of full records.
pub(super) const FULL: usize = RECORDS * RECORD_LEN;
/// Bytes of a small buffer: the longest record that a peer may send, or one of ours and the control frames that go with it.
pub(super) const SMALL: usize = 19 * 1024;

/// Spare buffers that a thread keeps, full and small. They count for nobody: two megabytes for four threads.
const KEPT: [usize; 2] = [3, 6];

/// How many bytes of buffers there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limits {
    /// In all, beside the reserve of each pod.
    agent: usize,
    /// For one pod, as long as so much is free.
    pod: usize,
    /// For one pod while it may still have full ones.
    full: usize,
    /// For one pod, whatever others hold.
    reserve: usize,
}

/// Where there is a gigabyte of memory or more. Where there is less, buffers are a quarter of it.
const LIMITS: Limits = Limits { agent: 256 << 20, pod: 64 << 20, full: 5 << 19, reserve: 256 << 10 };

impl Limits {
    fn within(memory: u64) -> Self {
        let agent = usize::try_from(memory / 4).map_or(LIMITS.agent, |quarter| quarter.min(LIMITS.agent));
        Self { agent, pod: agent / 4, full: LIMITS.full.min(agent / 8), ..LIMITS }
    }
}

thread_local! {
    static SPARE: RefCell<[Vec<Box<[u8]>>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
    /// Of the calls below, the last that the thread has heard.
    static HEARD: Cell<u32> = const { Cell::new(0) };
}

/// How many times threads have been called to give their spare buffers back.
static CALLS: AtomicU32 = AtomicU32::new(0);

/// Has each thread give its spare buffers back when it has nothing to do next.
pub(crate) fn call_in_spares() {
    CALLS.fetch_add(1, Ordering::Relaxed);
}

/// Gives this thread's back if they have been called in. To be called before a thread of the runtime parks.
pub(crate) fn give_back_spares() {
    let calls = CALLS.load(Ordering::Relaxed);
    if HEARD.replace(calls) != calls {
        SPARE.with_borrow_mut(|spare| *spare = [Vec::new(), Vec::new()]);
    }
}

/// The buffers of an agent, and its time for handshakes.
#[derive(Debug)]
pub(crate) struct Budget {
    agent: Arc<Agent>,
    limits: Limits,
    pods: Mutex<Shares>,
}

#[derive(Debug, Default)]
struct Shares {
    by_pod: HashMap<Arc<str>, Weak<Share>>,
    next: u64,
}

impl Budget {
    /// Within an agent's `memory`, in bytes.
    pub(crate) fn new(memory: u64) -> Self {
        Self::limited(Limits::within(memory))
    }

    fn limited(limits: Limits) -> Self {
        Self { agent: Arc::default(), limits, pods: Mutex::default() }
    }

    /// Has the kernel seal and open the records of tunnels that are made from now on. Set once.
    pub(crate) fn offload(&self, offload: Offload) {
        // A second one changes nothing.
        let _: Result<(), Offload> = self.agent.offload.set(offload);
    }

    /// The share of the pod with this UID.
    pub(crate) fn share(&self, pod: &Arc<str>) -> Arc<Share> {
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = pods.by_pod.get(pod).and_then(Weak::upgrade) {
            return share;
        }
        pods.by_pod.retain(|_, share| share.strong_count() > 0);
        pods.next += 1;
        let share = Arc::new(Share {
            number: pods.next,
            agent: self.agent.clone(),
            limits: self.limits,
            used: AtomicUsize::new(0),
            line: Line::default(),
        });
        pods.by_pod.insert(pod.clone(), Arc::downgrade(&share));
        share
    }
}

impl Budget {
    /// The UID of the pod that holds most, if one holds anything.
    pub(crate) fn heaviest(&self) -> Option<Arc<str>> {
        let pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        let used = |share: &Weak<Share>| share.upgrade().map_or(0, |share| share.used.load(Ordering::SeqCst));
        let (used, pod) = pods.by_pod.iter().map(|(pod, share)| (used(share), pod)).max()?;
        (used > 0).then(|| pod.clone())
    }
}

#[derive(Debug, Default)]
struct Agent {
    used: AtomicUsize,
    /// Pods with directions that wait for what other pods hold.
    waiting: Pods,
    turns: Arc<Turns>,
    offload: OnceLock<Offload>,
}

/// What one pod may hold.
#[derive(Debug)]
pub(crate) struct Share {
    /// Not that of another pod.
    number: u64,
    agent: Arc<Agent>,
    limits: Limits,
    used: AtomicUsize,
    line: Line,
}

/// What keeps a pod from another buffer.
enum Short {
    /// Its own buffers.
    Pod,
    /// Those of all pods.
    Agent,
}

impl Share {
    /// A buffer, full or small by what the pod holds already; waits while there may be no other.
    pub(crate) fn poll_take(self: &Arc<Self>, cx: &Context<'_>, waiting: &mut Waiting) -> Poll<Buffer> {
        let mut taken = self.reserve();
        if let Err(short) = &taken {
            self.line.join(self, waiting, cx);
            if let Short::Agent = short {
                self.agent.waiting.join(self);
            }
            // One may have come back meanwhile.
            taken = self.reserve();
        }
        match taken {
            Ok(len) => {
                waiting.leave();
                Poll::Ready(Buffer::new(self.clone(), len))
            }
            Err(_) => Poll::Pending,
        }
    }

    /// A small buffer if that is possible at once: for little, and for what is mostly little.
    pub(super) fn try_take_small(self: &Arc<Self>) -> Option<Buffer> {
        self.reserve_small().ok().map(|len| Buffer::new(self.clone(), len))
    }

    /// The same of any size.
    pub(super) fn try_take(self: &Arc<Self>) -> Option<Buffer> {
        self.reserve().ok().map(|len| Buffer::new(self.clone(), len))
    }

    /// What a full buffer counts, for who holds as much elsewhere; nothing where the pod would get a small one.
    pub(super) fn try_hold_full(self: &Arc<Self>) -> Option<Hold> {
        self.try_hold(FULL)
    }

    /// Counts `len` bytes that are held elsewhere, as long as the pod would get a full buffer.
    pub(crate) fn try_hold(self: &Arc<Self>, len: usize) -> Option<Hold> {
        let Limits { agent, full, .. } = self.limits;
        let has_room = self.agent.used.load(Ordering::SeqCst) + len <= agent / 2;
        if !has_room || !add_within(&self.used, len, full) {
            return None;
        }
        self.agent.used.fetch_add(len, Ordering::SeqCst);
        Some(Hold { share: self.clone(), len })
    }

    /// Counts `len` bytes that are held elsewhere, whatever the limits are.
    pub(crate) fn hold(self: &Arc<Self>, len: usize) -> Hold {
        self.used.fetch_add(len, Ordering::SeqCst);
        self.agent.used.fetch_add(len, Ordering::SeqCst);
        Hold { share: self.clone(), len }
    }

    /// A small buffer beyond the limits, for bytes that have been read already.
    pub(super) fn take_small(self: &Arc<Self>) -> Buffer {
        self.used.fetch_add(SMALL, Ordering::SeqCst);
        self.agent.used.fetch_add(SMALL, Ordering::SeqCst);
        Buffer::new(self.clone(), SMALL)
    }

    /// To whom records are handed, if they are.
    pub(super) fn offload(&self) -> Option<&Offload> {
        self.agent.offload.get()
    }

    /// Whether the pod holds so much that it gets no full buffers.
    pub(super) fn is_short(&self) -> bool {
        self.used.load(Ordering::SeqCst) + FULL > self.limits.full
    }

    /// Time for a step of a handshake with `party`.
    pub(super) async fn turn(&self, party: IpAddr) -> Turn {
        self.agent.turns.next(self.number, party).await
    }

    fn reserve(&self) -> Result<usize, Short> {
        let Limits { agent, full, .. } = self.limits;
        let used = self.agent.used.load(Ordering::SeqCst);
        if used + FULL <= agent / 2 && add_within(&self.used, FULL, full) {
            return Ok(self.count(FULL));
        }
        self.reserve_small()
    }

    fn reserve_small(&self) -> Result<usize, Short> {
        let Limits { agent, pod, reserve, .. } = self.limits;
        let free = agent.saturating_sub(self.agent.used.load(Ordering::SeqCst));
        if add_within(&self.used, SMALL, pod.min(free).max(reserve)) {
            return Ok(self.count(SMALL));
        }
        Err(if free < pod { Short::Agent } else { Short::Pod })
    }

    fn count(&self, len: usize) -> usize {
        self.agent.used.fetch_add(len, Ordering::SeqCst);
        len
    }

    /// Takes back `len` bytes, and calls as many of those who wait as that may help.
    fn give_back(&self, len: usize) {
        self.used.fetch_sub(len, Ordering::SeqCst);
        self.agent.used.fetch_sub(len, Ordering::SeqCst);
        for _ in 0..len.div_ceil(SMALL) {
            self.line.call();
            self.agent.waiting.call();
        }
    }
}

fn add_within(used: &AtomicUsize, len: usize, limit: usize) -> bool {
    let more = |used: usize| used.checked_add(len).filter(|sum| *sum <= limit);
    used.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).is_ok()
}

/// A buffer of [`FULL`] or [`SMALL`] bytes with anything in it. Counts until it is dropped.
#[derive(Debug)]
pub(crate) struct Buffer {
    bytes: Box<[u8]>,
    share: Arc<Share>,
}

impl Buffer {
    /// One that was used before, or a new one.
    fn new(share: Arc<Share>, len: usize) -> Self {
        let spare = SPARE.with_borrow_mut(|spare| spare[kind(len)].pop());
        Self { bytes: spare.unwrap_or_else(|| vec![0; len].into_boxed_slice()), share }
    }
}

fn kind(len: usize) -> usize {
    usize::from(len != FULL)
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let len = bytes.len();
        let kind = kind(len);
        SPARE.with_borrow_mut(|spare| {
            if spare[kind].len() < KEPT[kind] {
                spare[kind].push(bytes);
            }
        });
        self.share.give_back(len);
    }
}

/// Bytes that are held elsewhere. They count until it is dropped.
#[derive(Debug)]
pub(crate) struct Hold {
    share: Arc<Share>,
    len: usize,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.share.give_back(self.len);
    }
}

#[cfg(test)]
impl Share {
    /// Bytes that the pod holds.
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::SeqCst)
    }

    /// One by itself.
    pub(crate) fn alone() -> Arc<Self> {
        Budget::limited(LIMITS).share(&Arc::from("u"))
    }
}

#[cfg(test)]
mod tests;
