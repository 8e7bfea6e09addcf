//! One direction of all streams of a connection: what has been read of it and not yet written, counted for the pod and bounded.
//!
//! The windows of HTTP/2 bound what is read and not taken; what a stream has taken waits in the library until its receiver has room, and
//! a receiver with many streams may have room in each of them and read none.

use std::{
    mem,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
};

use bytes::{Buf, Bytes};

use crate::tunnel::{Hold, Share};

/// How much may wait to be written before streams take no more.
const LIMIT: usize = 64 * 1024;

/// How much of that may be of streams whose receivers may have no room for it: they are not to keep others from taking more.
const UNASKED: usize = LIMIT / 2;

/// One direction.
#[derive(Debug)]
pub(super) struct Flow {
    share: Arc<Share>,
    /// Bytes that wait to be written.
    held: AtomicUsize,
    /// Streams that have something and no room for it.
    waiting: AtomicUsize,
    /// Bytes that have been taken.
    moved: AtomicUsize,
    blocked: Mutex<Vec<Waker>>,
}

impl Flow {
    /// Counted on `share`.
    pub(super) fn new(share: &Arc<Share>) -> Arc<Self> {
        Arc::new(Self {
            share: share.clone(),
            held: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            moved: AtomicUsize::new(0),
            blocked: Mutex::default(),
        })
    }

    /// Waits until a stream may take more.
    pub(super) fn poll_room(&self, cx: &Context<'_>) -> Poll<()> {
        if self.held.load(Ordering::Relaxed) < LIMIT {
            return Poll::Ready(());
        }
        let mut blocked = self.blocked.lock().unwrap_or_else(PoisonError::into_inner);
        if !blocked.iter().any(|waker| waker.will_wake(cx.waker())) {
            blocked.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Whether so many bytes may wait without having asked whether their receiver has room.
    pub(super) fn takes_unasked(&self, len: usize) -> bool {
        self.held.load(Ordering::Relaxed) + len <= UNASKED
    }

    /// Has taken `bytes`, which count until they have been written.
    pub(super) fn piece(self: &Arc<Self>, bytes: Bytes) -> Piece {
        self.held.fetch_add(bytes.len(), Ordering::Relaxed);
        self.moved.fetch_add(bytes.len(), Ordering::Relaxed);
        let counts = Counts { _hold: self.share.hold(bytes.len()), len: bytes.len(), flow: self.clone() };
        Piece { bytes, _counts: Some(counts) }
    }

    /// A stream waits for its receiver until this is dropped.
    pub(super) fn waits(&self) -> Waits<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waits(self)
    }

    /// Whether something waits for a receiver.
    pub(super) fn is_stuck(&self) -> bool {
        self.held.load(Ordering::Relaxed) > 0 || self.waiting.load(Ordering::Relaxed) > 0
    }

    /// How many bytes have been taken so far; wraps around.
    pub(super) fn moved(&self) -> usize {
        self.moved.load(Ordering::Relaxed)
    }

    fn written(&self, len: usize) {
        let before = self.held.fetch_sub(len, Ordering::Relaxed);
        if before >= LIMIT && before - len < LIMIT {
            let blocked = mem::take(&mut *self.blocked.lock().unwrap_or_else(PoisonError::into_inner));
            for waker in blocked {
                waker.wake();
            }
        }
    }
}

/// A stream that waits for its receiver.
pub(super) struct Waits<'a>(&'a Flow);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Bytes of a body on their way.
#[derive(Debug)]
pub(super) struct Piece {
    bytes: Bytes,
    _counts: Option<Counts>,
}

#[derive(Debug)]
struct Counts {
    _hold: Hold,
    len: usize,
    flow: Arc<Flow>,
}

impl Drop for Counts {
    fn drop(&mut self) {
        self.flow.written(self.len);
    }
}

/// Bytes of the agent's own, which are few.
impl From<Bytes> for Piece {
    fn from(bytes: Bytes) -> Self {
        Self { bytes, _counts: None }
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn advance(&mut self, len: usize) {
        self.bytes.advance(len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_counted_and_bounded() {
        let share = Share::alone();
        let flow = Flow::new(&share);
        let cx = Context::from_waker(Waker::noop());
        let mut pieces = Vec::new();
        while flow.poll_room(&cx).is_ready() {
            pieces.push(flow.piece(Bytes::from_static(&[0; 1000])));
        }
        assert_eq!((pieces.len(), share.used()), (LIMIT.div_ceil(1000), pieces.len() * 1000));
        assert!(flow.is_stuck() && !flow.takes_unasked(1));
        pieces.truncate(60);
        assert!(flow.poll_room(&cx).is_ready() && flow.is_stuck());
        pieces.truncate(20);
        assert!(flow.takes_unasked(UNASKED - 20_000) && !flow.takes_unasked(UNASKED - 19_999));
        pieces.clear();
        assert!(!flow.is_stuck() && share.used() == 0);
        let waits = flow.waits();
        assert!(flow.is_stuck());
        drop(waits);
        assert!(!flow.is_stuck());
    }
}
