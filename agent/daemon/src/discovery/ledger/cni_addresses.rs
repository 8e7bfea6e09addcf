//! Addresses that this node's CNI gave to pods whose objects have none yet, or still those of a network namespace before.
//!
//! Promises that such an address is used only until the pod's own object says something new, and that what is never claimed
//! by an object is forgotten.

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
const MAX_PODS: usize = 4_096;

/// The addresses by the pod's UID.
#[derive(Debug, Default)]
pub(super) struct CniAddresses(HashMap<Arc<str>, Addresses>);

#[derive(Debug)]
struct Addresses {
    ips: Vec<IpAddr>,
    /// What the object said when they were given: a pod whose sandbox is made anew bears its old addresses in the API until
    /// the new sandbox is there.
    before: Vec<IpAddr>,
    at: Instant,
    /// An object of this UID is in force; from then on it decides how long the addresses are kept.
    claimed: bool,
}

impl CniAddresses {
    /// Takes note of a pod's addresses, and of those its object has `before`; the oldest that no object claims make room.
    pub(super) fn insert(&mut self, uid: &str, ips: &[IpAddr], before: Vec<IpAddr>, now: Instant) {
        self.0.retain(|_, held| held.claimed || now.duration_since(held.at) < PATIENCE);
        if self.0.len() >= MAX_PODS {
            let oldest = self.0.iter().min_by_key(|(_, held)| (held.claimed, held.at));
            if let Some(uid) = oldest.map(|(uid, _)| Arc::clone(uid)) {
                self.0.remove(&uid);
            }
        }
        let ips = ips.iter().map(IpAddr::to_canonical).collect();
        self.0.insert(uid.into(), Addresses { ips, before, at: now, claimed: false });
    }

    /// The pod as it is to be in force: with the addresses noted for it if it states nothing newer and may have some.
    pub(super) fn fill_in(&mut self, pod: Arc<Pod>) -> Arc<Pod> {
        let Some(held) = self.0.get_mut(&pod.uid) else { return pod };
        let newer = !pod.ips.is_empty() && pod.ips != held.before;
        if newer || pod.ips == held.ips || pod.terminal || pod.host_network {
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
