//! Which parts of a task have been woken, so that only those are polled, and a part that wakes another while the task runs costs no
//! further run of it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::task::AtomicWaker;

/// Parts, as bits.
pub(super) const CLIENT: u8 = 1;
pub(super) const STREAMS: u8 = 2;
pub(super) const APP: u8 = 4;
/// The task runs and looks again before it rests.
const BUSY: u8 = 0x80;

/// How often parts may wake each other before others have their turn.
const ROUNDS: usize = 64;

/// The wakers of the parts of one task.
pub(super) struct Bell {
    rung: Arc<Rung>,
    wakers: [Waker; 3],
}

#[derive(Default)]
struct Rung {
    parts: AtomicU8,
    task: AtomicWaker,
}

struct Rope {
    rung: Arc<Rung>,
    part: u8,
}

impl Wake for Rope {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.rung.parts.fetch_or(self.part, Ordering::SeqCst) & BUSY == 0 {
            self.rung.task.wake();
        }
    }
}

impl Bell {
    /// Of which all parts have something to do.
    pub(super) fn new() -> Self {
        let rung = Arc::new(Rung::default());
        rung.parts.store(CLIENT | STREAMS | APP, Ordering::SeqCst);
        let wakers =
            [CLIENT, STREAMS, APP].map(|part| Waker::from(Arc::new(Rope { rung: rung.clone(), part })));
        Self { rung, wakers }
    }

    /// What wakes `part`.
    pub(super) fn context(&self, part: u8) -> Context<'_> {
        Context::from_waker(&self.wakers[part.trailing_zeros() as usize])
    }

    /// Has `part` polled in the next round.
    pub(super) fn ring(&self, part: u8) {
        self.rung.parts.fetch_or(part, Ordering::SeqCst);
    }

    /// Polls the parts that were woken, by `round`, until none is or it is done.
    pub(super) fn poll<T>(&self, cx: &mut Context<'_>, mut round: impl FnMut(u8) -> Poll<T>) -> Poll<T> {
        let parts = &self.rung.parts;
        self.rung.task.register(cx.waker());
        parts.fetch_or(BUSY, Ordering::SeqCst);
        for _ in 0..ROUNDS {
            let woken = parts.swap(BUSY, Ordering::SeqCst) & !BUSY;
            if woken == 0 {
                if parts.compare_exchange(BUSY, 0, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                    return Poll::Pending;
                }
                continue;
            }
            if let Poll::Ready(done) = round(woken) {
                return Poll::Ready(done);
            }
        }
        parts.fetch_and(!BUSY, Ordering::SeqCst);
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    struct Runs(AtomicUsize);

    impl Wake for Runs {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn only_who_was_woken_is_polled_and_the_task_is_woken_once() {
        let (bell, runs) = (Bell::new(), Arc::new(Runs::default()));
        let waker = Waker::from(runs.clone());
        let mut task = Context::from_waker(&waker);
        let mut rounds = Vec::new();
        let pending = bell.poll(&mut task, |parts| {
            // In the first round the streams have something for the application.
            if rounds.is_empty() {
                bell.context(APP).waker().wake_by_ref();
            }
            rounds.push(parts);
            Poll::<()>::Pending
        });
        assert!(pending.is_pending());
        assert_eq!((&rounds[..], runs.0.load(Ordering::SeqCst)), (&[CLIENT | STREAMS | APP, APP][..], 0));
        bell.context(CLIENT).waker().wake_by_ref();
        assert_eq!(runs.0.load(Ordering::SeqCst), 1);
        assert_eq!(bell.poll(&mut task, Poll::Ready), Poll::Ready(CLIENT));
    }

    #[test]
    fn parts_that_wake_each_other_for_ever_give_way() {
        let (bell, runs) = (Bell::new(), Arc::new(Runs::default()));
        let waker = Waker::from(runs.clone());
        let pending = bell.poll(&mut Context::from_waker(&waker), |_| {
            bell.ring(CLIENT);
            Poll::<()>::Pending
        });
        assert!(pending.is_pending());
        assert_eq!(runs.0.load(Ordering::SeqCst), 1);
    }
}
