//! Which endpoint of a service a connection goes to.
//!
//! Promises kube-proxy's choice: ready endpoints before those that terminate and still serve, those that are meant for the client's node
//! or zone before others, and of a service with session affinity the one that the client has kept to. Beside that, an endpoint that
//! failed lately is left for as long as there is another one, and one that this connection was tried with is not tried again.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{Mesh, ServiceRecord};
use crate::{
    discovery::join::{Backend, Tier},
    model::{ObjectName, Workload},
};

/// What a client knows that decides among endpoints.
#[derive(Clone, Copy)]
pub struct Preferences<'a> {
    /// Picks among equal ones.
    pub random: u64,
    /// The endpoint of a service that the client has kept to.
    pub kept: &'a dyn Fn(&ObjectName) -> Option<IpAddr>,
    /// Whether an endpoint failed lately.
    pub failing: &'a dyn Fn(SocketAddr) -> bool,
    /// The endpoints that this connection was tried with.
    pub tried: &'a [SocketAddr],
}

impl Preferences<'_> {
    /// Of a client that knows nothing.
    pub fn random(random: u64) -> Self {
        Self { random, kept: &|_| None, failing: &|_| false, tried: &[] }
    }

    /// One of so many.
    pub(super) fn one_of(&self, count: usize) -> usize {
        self.random.checked_rem(count as u64).unwrap_or(0) as usize
    }
}

impl fmt::Debug for Preferences<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Preferences")
            .field("random", &self.random)
            .field("tried", &self.tried)
            .finish_non_exhaustive()
    }
}

impl Mesh {
    /// The endpoint behind the service's port of the number in `dst`, of its family; only those `on` a node if one is given, whatever
    /// they are meant for.
    pub(super) fn choose<'a>(
        &'a self,
        client: &Workload,
        record: &'a ServiceRecord,
        dst: SocketAddr,
        on: Option<&Arc<str>>,
        preferences: &Preferences<'_>,
    ) -> Option<&'a Backend> {
        let usable = |backend: &Backend| {
            on.is_none_or(|node| backend.node.as_ref() == Some(node)) && self.stands(backend)
        };
        let zone = self.zones.get(&client.node).map(|zone| &**zone);
        let affine = record.service.session_affinity.is_some();
        for tier in self.backends(record).tiers(dst.port(), dst.is_ipv6()) {
            let near = if on.is_none() { tier.near(&client.node, zone) } else { None };
            let at_first = || first(tier, near, preferences).filter(|backend| usable(backend));
            // Nearly always that one is good, and the others need not be looked at.
            let fresh = |backend: &&Backend| {
                !(preferences.failing)(backend.addr) && !preferences.tried.contains(&backend.addr)
            };
            if !affine && let Some(backend) = at_first().filter(fresh) {
                return Some(backend);
            }
            let ranked = tier.all.iter().enumerate().filter(|(_, backend)| usable(backend));
            let ranked = ranked.map(|(at, backend)| {
                let far = near.is_some_and(|near| near.binary_search(&at).is_err());
                (
                    (preferences.tried.contains(&backend.addr), (preferences.failing)(backend.addr), far),
                    backend,
                )
            });
            let ranked: Vec<_> = ranked.collect();
            let Some(best) = ranked.iter().map(|(rank, _)| *rank).min() else { continue };
            if best.0 {
                return None;
            }
            let best = ranked.into_iter().filter(|(rank, _)| *rank == best).map(|(_, backend)| backend);
            if affine {
                let kept = (preferences.kept)(&record.service.name);
                let weight =
                    |backend: &&Backend| (kept == Some(backend.addr.ip()), affinity(client, backend.addr));
                return best.max_by_key(weight);
            }
            let best: Vec<&Backend> = best.collect();
            return best.get(preferences.one_of(best.len())).copied();
        }
        None
    }
}

/// The one that chance gives.
fn first<'a>(tier: &'a Tier, near: Option<&[usize]>, preferences: &Preferences<'_>) -> Option<&'a Backend> {
    match near {
        Some(near) => tier.all.get(*near.get(preferences.one_of(near.len()))?),
        None => tier.all.get(preferences.one_of(tier.all.len())),
    }
}

/// Which endpoint a client goes to first: the one with the highest weight, so that few clients move when endpoints come and
/// go. FNV-1a, because agents of all versions must agree.
fn affinity(client: &Workload, endpoint: SocketAddr) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut feed = |ip: IpAddr| {
        let (v4, v6);
        let octets: &[u8] = match ip {
            IpAddr::V4(ip) => {
                v4 = ip.octets();
                &v4
            }
            IpAddr::V6(ip) => {
                v6 = ip.octets();
                &v6
            }
        };
        for octet in octets {
            hash = (hash ^ u64::from(*octet)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    client.ips.first().copied().into_iter().for_each(&mut feed);
    feed(endpoint.ip());
    // The last octets alone would hardly reach the high bits that decide.
    (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests;
