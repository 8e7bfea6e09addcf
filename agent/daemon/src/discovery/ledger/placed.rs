//! Addresses that this node's CNI gave to pods whose objects have none yet.
//!
//! Promises that such an address is used only as long as the pod's own object is silent about it, and that what is never
//! claimed by an object is forgotten.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use ambit_core::discovery::Pod;

/// How long a pod's object may take to appear.
const PATIENCE: Duration = Duration::from_secs(120);
/// Pods in the making on one node.
const MAX_PLACED: usize = 4_096;

/// The addresses by the pod's UID.
#[derive(Debug, Default)]
pub(super) struct Placed(HashMap<Arc<str>, Addresses>);

#[derive(Debug)]
struct Addresses {
    ips: Vec<IpAddr>,
    at: Instant,
    /// An object of this UID is in force; from then on it decides how long the addresses are kept.
    claimed: bool,
}

impl Placed {
    /// Takes note of a pod's addresses; the oldest that no object claims make room.
    pub(super) fn insert(&mut self, uid: &str, ips: &[IpAddr], now: Instant) {
        self.0.retain(|_, held| held.claimed || now.duration_since(held.at) < PATIENCE);
        if self.0.len() >= MAX_PLACED {
            let oldest = self.0.iter().min_by_key(|(_, held)| (held.claimed, held.at));
            if let Some(uid) = oldest.map(|(uid, _)| Arc::clone(uid)) {
                self.0.remove(&uid);
            }
        }
        let ips = ips.iter().map(IpAddr::to_canonical).collect();
        self.0.insert(uid.into(), Addresses { ips, at: now, claimed: false });
    }

    /// The pod as it is to be in force: with the addresses noted for it if it states none and may have some.
    pub(super) fn complete(&mut self, pod: Arc<Pod>) -> Arc<Pod> {
        let Some(held) = self.0.get_mut(&pod.uid) else { return pod };
        if !pod.ips.is_empty() || pod.terminal || pod.host_network {
            self.0.remove(&pod.uid);
            return pod;
        }
        held.claimed = true;
        Arc::new(Pod { ips: held.ips.clone(), ..(*pod).clone() })
    }

    /// The pod's object is gone.
    pub(super) fn forget(&mut self, uid: &str) {
        self.0.remove(uid);
    }
}
