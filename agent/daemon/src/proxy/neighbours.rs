//! The pods of this node that this agent serves, for connections from one of them to another.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use super::{Pod, admission::Lane, order::Arrivals};
use crate::capture::Dial;

/// A pod as connections of this node find it.
pub(super) struct Neighbour<D> {
    pub(super) pod: Pod<D>,
    /// Of what comes to it.
    pub(super) lane: Arc<Lane>,
    pub(super) arrivals: Arc<Arrivals>,
}

/// By UID, for as long as they are served.
pub(super) struct Neighbours<D> {
    /// Otherwise nobody finds anybody, and everything goes over a tunnel.
    join: bool,
    by_uid: Mutex<HashMap<Arc<str>, Weak<Neighbour<D>>>>,
}

impl<D> fmt::Debug for Neighbours<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Neighbours").field("join", &self.join).finish_non_exhaustive()
    }
}

impl<D: Dial> Neighbours<D> {
    /// Whose connections with each other are to be joined, or not.
    pub(super) fn new(join: bool) -> Arc<Self> {
        Arc::new(Self { join, by_uid: Mutex::default() })
    }

    /// Makes a pod known until the last of what this answers is dropped. One that has got another network namespace takes the
    /// place of what it was before.
    pub(super) fn enter(&self, pod: &Pod<D>, lane: &Arc<Lane>) -> Arc<Neighbour<D>> {
        let mut by_uid = self.lock();
        let uid = pod.pod.uid();
        let known = by_uid.get(uid).and_then(Weak::upgrade);
        if let Some(known) = known.filter(|known| Arc::ptr_eq(&known.pod.pod, &pod.pod)) {
            return known;
        }
        by_uid.retain(|_, neighbour| neighbour.strong_count() > 0);
        let neighbour = Neighbour { pod: pod.clone(), lane: lane.clone(), arrivals: Arc::default() };
        let neighbour = Arc::new(neighbour);
        by_uid.insert(uid.clone(), Arc::downgrade(&neighbour));
        neighbour
    }

    /// The pod with this UID, if connections to it are to be joined here.
    pub(super) fn find(&self, uid: &str) -> Option<Arc<Neighbour<D>>> {
        if !self.join {
            return None;
        }
        self.lock().get(uid).and_then(Weak::upgrade)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Weak<Neighbour<D>>>> {
        // Each critical section is a step of the map: a panic cannot leave it half changed.
        self.by_uid.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
