//! Buffers for bytes on their way, counted against a share for each pod and a cap for the agent.
//!
//! Promises that what is over a limit waits until others give back, and that directions which are stuck hold little: full
//! buffers, a batch of records long, are lent to a pod only while it holds few bytes. An idle connection holds none.

use std::{
    cell::RefCell,
    collections::HashMap,
    ops::{Deref, DerefMut},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
};

use super::ambit1::{RECORD_LEN, RECORDS};

/// Bytes of a full buffer: a batch of full records.
pub(super) const FULL: usize = RECORDS * RECORD_LEN;
/// Bytes of a small buffer: the longest record that a peer may send, or one of ours and the control frames that go with it.
pub(super) const SMALL: usize = 19 * 1024;

/// Spare buffers that a thread keeps, full and small. They count for nobody: two megabytes for four threads.
const KEPT: [usize; 2] = [3, 6];

/// How many bytes of buffers there may be.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// In all.
    agent: usize,
    /// For one pod.
    pod: usize,
    /// For one pod while it may still have full ones.
    full: usize,
}

const LIMITS: Limits = Limits { agent: 256 << 20, pod: 64 << 20, full: 8 << 20 };

thread_local! {
    static SPARE: RefCell<[Vec<Box<[u8]>>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
}

/// The buffers of an agent.
#[derive(Debug)]
pub(crate) struct Budget {
    agent: Arc<Agent>,
    limits: Limits,
    pods: Mutex<HashMap<Arc<str>, Weak<Share>>>,
}

impl Default for Budget {
    fn default() -> Self {
        Self { agent: Arc::default(), limits: LIMITS, pods: Mutex::default() }
    }
}

impl Budget {
    /// The share of the pod with this UID.
    pub(crate) fn share(&self, pod: &Arc<str>) -> Arc<Share> {
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = pods.get(pod).and_then(Weak::upgrade) {
            return share;
        }
        pods.retain(|_, share| share.strong_count() > 0);
        let share =
            Arc::new(Share { agent: self.agent.clone(), limits: self.limits, used: AtomicUsize::new(0) });
        pods.insert(pod.clone(), Arc::downgrade(&share));
        share
    }
}

#[derive(Debug, Default)]
struct Agent {
    used: AtomicUsize,
    waiting: AtomicBool,
    waiters: Mutex<Vec<Waker>>,
}

impl Agent {
    fn wait(&self, waker: &Waker) {
        let mut waiters = self.waiters.lock().unwrap_or_else(PoisonError::into_inner);
        if !waiters.iter().any(|other| other.will_wake(waker)) {
            waiters.push(waker.clone());
        }
        self.waiting.store(true, Ordering::SeqCst);
    }

    fn wake(&self) {
        if self.waiting.load(Ordering::SeqCst) && self.waiting.swap(false, Ordering::SeqCst) {
            let waiters = std::mem::take(&mut *self.waiters.lock().unwrap_or_else(PoisonError::into_inner));
            waiters.into_iter().for_each(Waker::wake);
        }
    }
}

/// What one pod may hold.
#[derive(Debug)]
pub(crate) struct Share {
    agent: Arc<Agent>,
    limits: Limits,
    used: AtomicUsize,
}

impl Share {
    /// A buffer, full or small by what the pod holds already; waits while there may be no other.
    pub(super) fn poll_take(self: &Arc<Self>, cx: &Context<'_>) -> Poll<Buffer> {
        if let Some(buffer) = self.try_take() {
            return Poll::Ready(buffer);
        }
        self.agent.wait(cx.waker());
        // One may have come back meanwhile.
        self.try_take().map_or(Poll::Pending, Poll::Ready)
    }

    /// A small buffer beyond the limits, for bytes that have been read already.
    pub(super) fn take_small(self: &Arc<Self>) -> Buffer {
        self.used.fetch_add(SMALL, Ordering::SeqCst);
        self.agent.used.fetch_add(SMALL, Ordering::SeqCst);
        Buffer::new(self.clone(), SMALL)
    }

    /// Whether the pod holds so much that it gets no full buffers.
    pub(super) fn is_short(&self) -> bool {
        self.used.load(Ordering::SeqCst) + FULL > self.limits.full
    }

    fn try_take(self: &Arc<Self>) -> Option<Buffer> {
        let Limits { agent, pod, full } = self.limits;
        if self.reserve(FULL, full, agent / 2) {
            return Some(Buffer::new(self.clone(), FULL));
        }
        self.reserve(SMALL, pod, agent).then(|| Buffer::new(self.clone(), SMALL))
    }

    fn reserve(&self, len: usize, pod: usize, agent: usize) -> bool {
        if !add_within(&self.used, len, pod) {
            return false;
        }
        if !add_within(&self.agent.used, len, agent) {
            self.used.fetch_sub(len, Ordering::SeqCst);
            self.agent.wake();
            return false;
        }
        true
    }
}

fn add_within(used: &AtomicUsize, len: usize, limit: usize) -> bool {
    let more = |used: usize| used.checked_add(len).filter(|sum| *sum <= limit);
    used.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).is_ok()
}

/// A buffer of [`FULL`] or [`SMALL`] bytes with anything in it. Counts until it is dropped.
#[derive(Debug)]
pub(super) struct Buffer {
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
        self.share.used.fetch_sub(len, Ordering::SeqCst);
        self.share.agent.used.fetch_sub(len, Ordering::SeqCst);
        self.share.agent.wake();
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
        Budget::default().share(&Arc::from("u"))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    struct Woken(AtomicBool);

    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    fn budget(agent: usize, pod: usize, full: usize) -> Budget {
        Budget { limits: Limits { agent, pod, full }, ..Budget::default() }
    }

    fn take(share: &Arc<Share>) -> Option<Buffer> {
        match share.poll_take(&Context::from_waker(Waker::noop())) {
            Poll::Ready(buffer) => Some(buffer),
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_pod_that_holds_much_gets_small_buffers_and_then_waits() {
        let budget = budget(100 * FULL, FULL + 2 * SMALL, FULL);
        let share = budget.share(&Arc::from("a"));
        let held: Vec<_> = (0..3).map(|_| take(&share).unwrap()).collect();
        assert_eq!(held.iter().map(|buffer| buffer.len()).collect::<Vec<_>>(), [FULL, SMALL, SMALL]);
        let woken = Arc::new(Woken(AtomicBool::new(false)));
        let waker = Waker::from(woken.clone());
        assert!(share.poll_take(&Context::from_waker(&waker)).is_pending());
        // Another pod has a share of its own.
        assert_eq!(take(&budget.share(&Arc::from("b"))).unwrap().len(), FULL);
        woken.0.store(false, Ordering::SeqCst);
        assert!(share.poll_take(&Context::from_waker(&waker)).is_pending());
        drop(held);
        assert!(woken.0.load(Ordering::SeqCst), "it is told that there is room again");
        assert_eq!(take(&share).unwrap().len(), FULL);
        assert_eq!((share.used(), budget.agent.used.load(Ordering::SeqCst)), (0, 0));
    }

    #[test]
    fn the_agents_cap_holds_for_all_pods_together() {
        let budget = budget(2 * SMALL, 10 * FULL, 0);
        let shares = ["a", "b", "c"].map(|pod| budget.share(&Arc::from(pod)));
        let held: Vec<_> = shares.iter().filter_map(take).collect();
        assert_eq!(held.len(), 2);
        assert!(take(&shares[0]).is_none());
        assert_eq!(shares[2].used(), 0, "what was not given does not count");
    }

    #[test]
    fn a_thousand_stuck_directions_hold_less_than_26_megabytes() {
        let share = Budget::default().share(&Arc::from("a"));
        let _held: Vec<_> = (0..1000).map(|_| take(&share).unwrap()).collect();
        assert!(share.used() < 26 << 20, "{}", share.used());
    }
}
