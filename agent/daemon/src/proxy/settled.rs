//! The first moments of a connection. Most connections are over by the first look at them, and to follow all that may cut one costs as
//! much as many of them do. So what a connection goes by is looked at when it begins, and followed from that first look on, when
//! whatever has changed meanwhile is noticed.

use std::{
    future::poll_fn,
    sync::atomic::{AtomicBool, Ordering},
    task::Poll,
};

/// Whether a connection has had its first look. Belongs to one task.
#[derive(Debug, Default)]
pub(super) struct Settled(AtomicBool);

impl Settled {
    /// It has. The task that calls this has to go on by itself to whatever waits for it.
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Waits until it has; is woken by nobody.
    pub(super) async fn reached(&self) {
        poll_fn(|_| if self.0.load(Ordering::Relaxed) { Poll::Ready(()) } else { Poll::Pending }).await;
    }
}
