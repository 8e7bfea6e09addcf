//! Peers that are believed, each once for all of its connections: certificates take more memory than a connection's keys.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, atomic::Ordering},
};

use ambit_core::model::SpiffeId;

use crate::tunnel::tls::PeerIdentity;

/// By who believes, and whom.
#[derive(Debug, Default)]
pub(super) struct Peers(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    by_pair: HashMap<(SpiffeId, SpiffeId), Weak<PeerIdentity>>,
    /// How many there may be before those are looked for that nobody knows any more.
    tidy_at: usize,
    /// Workloads of this node, which are kept in mind between their connections.
    local: HashMap<(SpiffeId, SpiffeId), Arc<PeerIdentity>>,
}

/// Pairs below which it is not tidied.
const FEW: usize = 64;
/// Pairs of this node that are kept in mind.
const LOCAL: usize = 1024;

impl Peers {
    /// `peer` as it is known to `own` already, if it has shown the same certificates. What one of its connections has been found
    /// to be believed under holds for all.
    pub(super) fn one(&self, own: &SpiffeId, peer: PeerIdentity) -> Arc<PeerIdentity> {
        let mut known = self.known();
        let pair = (own.clone(), peer.id.clone());
        if let Some(same) =
            known.by_pair.get(&pair).and_then(Weak::upgrade).filter(|known| known.showed(&peer))
        {
            same.believed.fetch_max(peer.believed.into_inner(), Ordering::Relaxed);
            return same;
        }
        if known.by_pair.len() >= known.tidy_at.max(FEW) {
            known.by_pair.retain(|_, peer| peer.strong_count() > 0);
            known.tidy_at = 2 * known.by_pair.len();
        }
        let peer = Arc::new(peer);
        known.by_pair.insert(pair, Arc::downgrade(&peer));
        peer
    }

    /// The workload `peer` of this node as it was found to be believed by `own`.
    pub(super) fn local(&self, own: &SpiffeId, peer: &SpiffeId) -> Option<Arc<PeerIdentity>> {
        self.known().local.get(&(own.clone(), peer.clone())).cloned()
    }

    /// Keeps it in mind.
    pub(super) fn keep_local(&self, own: &SpiffeId, peer: Arc<PeerIdentity>) {
        let mut known = self.known();
        if known.local.len() >= LOCAL {
            known.local.clear();
        }
        known.local.insert((own.clone(), peer.id.clone()), peer);
    }

    /// Forgets workloads that are not of this node any more.
    pub(super) fn retain_local(&self, keep: impl Fn(&SpiffeId) -> bool) {
        self.known().local.retain(|(own, peer), _| keep(own) && keep(peer));
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Each critical section is a step of a map: a panic cannot leave it half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
