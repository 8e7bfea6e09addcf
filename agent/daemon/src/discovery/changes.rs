//! What one reader of the world has not yet been told of a node's pods and of captured destinations.
//!
//! Promises that a reader that has seen a world and takes in every delta has seen the present one, that what waits for it is
//! merged and never grows beyond what differs, and that it is woken for that only.

use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use ambit_core::discovery::Delta;
use tokio::sync::Notify;

use super::{Feed, World};

/// A reader that follows one node. It keeps the feed alive.
#[derive(Debug)]
pub(crate) struct Changes {
    feed: Feed,
    waiting: Arc<Waiting>,
}

/// What waits for one reader.
#[derive(Debug)]
struct Waiting {
    node: Arc<str>,
    delta: Mutex<Delta>,
    news: Notify,
}

/// All readers.
#[derive(Debug, Default)]
pub(super) struct Readers(Vec<Weak<Waiting>>);

impl Changes {
    /// Waits for something to take: the first complete world, or what differs from the one taken last. Nothing is lost where
    /// this is dropped.
    pub(crate) async fn changed(&self) {
        self.waiting.news.notified().await;
    }

    /// The present world, and what differs in it from the one taken last: captured destinations, and pods that are or were on
    /// the node. What led to the first complete world is not told.
    pub(crate) fn take(&mut self) -> (Arc<World>, Delta) {
        // Nothing is published meanwhile.
        let _audience = self.feed.shared.audience();
        (self.feed.world(), mem::take(&mut *self.waiting.delta()))
    }
}

impl Waiting {
    fn delta(&self) -> MutexGuard<'_, Delta> {
        self.delta.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Readers {
    pub(super) fn join(&mut self, feed: Feed, node: &str) -> Changes {
        let waiting = Arc::new(Waiting { node: node.into(), delta: Mutex::default(), news: Notify::new() });
        self.0.push(Arc::downgrade(&waiting));
        Changes { feed, waiting }
    }

    /// Hands out what differs from the world before.
    pub(super) fn publish(&mut self, delta: &Delta) {
        self.tell(|waiting| {
            let delta = delta.on(&waiting.node);
            let news = !delta.is_empty();
            waiting.delta().merge(delta);
            news
        });
    }

    /// Wakes all for the first complete world.
    pub(super) fn begin(&mut self) {
        self.tell(|_| true);
    }

    fn tell(&mut self, news: impl Fn(&Waiting) -> bool) {
        self.0.retain(|reader| {
            let Some(waiting) = reader.upgrade() else { return false };
            if news(&waiting) {
                waiting.news.notify_one();
            }
            true
        });
    }
}

#[cfg(test)]
mod tests;
