//! Who waits for a buffer, and in which order they are called.
//!
//! Each buffer that comes back calls one direction of its pod and one of a pod that waits for others, never all: a crowd that waits
//! costs nothing while it does. A call that finds its direction gone goes to the next.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Waker},
};

use super::Share;

/// Entries of directions that are gone, below which a line is not tidied.
const FEW: usize = 64;

/// The place in line of one direction; in none while it waits for nothing.
#[derive(Debug, Default)]
pub(crate) struct Waiting(Option<Arc<Waiter>>);

impl Waiting {
    /// Whether it is in line.
    pub(in crate::tunnel) fn is_some(&self) -> bool {
        self.0.is_some()
    }

    /// Has what it waited for.
    pub(super) fn leave(&mut self) {
        if let Some(waiter) = self.0.take() {
            waiter.called.store(false, Ordering::SeqCst);
        }
    }
}

#[derive(Debug)]
struct Waiter {
    share: Arc<Share>,
    waker: Mutex<Waker>,
    /// It has been taken out of the line and woken.
    called: AtomicBool,
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.share.line.waiters.fetch_sub(1, Ordering::SeqCst);
        if *self.called.get_mut() {
            self.share.line.call();
        }
    }
}

/// The directions of one pod that wait.
#[derive(Debug, Default)]
pub(super) struct Line {
    queue: Mutex<VecDeque<Weak<Waiter>>>,
    waiters: AtomicUsize,
    /// It is among the [`Pods`].
    queued: AtomicBool,
}

impl Line {
    /// Puts `waiting` at the end unless it is in line already. Who is called tries to take a buffer and joins again if there is
    /// none.
    pub(super) fn join(&self, share: &Arc<Share>, waiting: &mut Waiting, cx: &Context<'_>) {
        let waiter = match &waiting.0 {
            Some(waiter) => {
                waiter.waker.lock().unwrap_or_else(PoisonError::into_inner).clone_from(cx.waker());
                if !waiter.called.swap(false, Ordering::SeqCst) {
                    return;
                }
                waiter
            }
            None => {
                self.waiters.fetch_add(1, Ordering::SeqCst);
                let waker = Mutex::new(cx.waker().clone());
                let waiter = Waiter { share: share.clone(), waker, called: AtomicBool::new(false) };
                &*waiting.0.insert(Arc::new(waiter))
            }
        };
        let mut queue = self.queue();
        if queue.len() >= FEW + 2 * self.waiters.load(Ordering::SeqCst) {
            queue.retain(|waiter| waiter.strong_count() > 0);
        }
        queue.push_back(Arc::downgrade(waiter));
    }

    /// Wakes the first; whether there was one.
    pub(super) fn call(&self) -> bool {
        while self.waiters.load(Ordering::SeqCst) > 0 {
            let Some(first) = self.queue().pop_front() else { return false };
            if let Some(waiter) = first.upgrade() {
                waiter.called.store(true, Ordering::SeqCst);
                waiter.waker.lock().unwrap_or_else(PoisonError::into_inner).wake_by_ref();
                return true;
            }
        }
        false
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Weak<Waiter>>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Pods that wait for what other pods hold, in turn.
#[derive(Debug, Default)]
pub(super) struct Pods {
    queue: Mutex<VecDeque<Weak<Share>>>,
    any: AtomicBool,
}

impl Pods {
    pub(super) fn join(&self, share: &Arc<Share>) {
        if !share.line.queued.swap(true, Ordering::SeqCst) {
            self.queue().push_back(Arc::downgrade(share));
            self.any.store(true, Ordering::SeqCst);
        }
    }

    /// Wakes the first direction of the first pod, which goes to the end if it has more.
    pub(super) fn call(&self) {
        if !self.any.load(Ordering::SeqCst) {
            return;
        }
        let first = {
            let mut queue = self.queue();
            let first = queue.pop_front();
            self.any.store(!queue.is_empty(), Ordering::SeqCst);
            first
        };
        if let Some(share) = first.and_then(|share| share.upgrade()) {
            share.line.queued.store(false, Ordering::SeqCst);
            if share.line.call() && share.line.waiters.load(Ordering::SeqCst) > 1 {
                self.join(&share);
            }
        }
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Weak<Share>>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
