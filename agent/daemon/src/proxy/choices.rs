//! Which endpoints a pod's connections go to, as far as that depends on what became of others: those that it keeps to, and those that
//! failed lately. It is the pod's own experience: what one pod does or is kept from changes nothing for another.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ambit_core::{
    discovery::{Affinity, Preferences, Route},
    model::{OriginalDst, Workload},
};

use crate::discovery::World;

/// How long other endpoints go before one that failed.
const AVOIDED: Duration = Duration::from_secs(10);
/// How long after a failure an endpoint has to answer before the application's bytes are entrusted to it.
const DOUBTED: Duration = Duration::from_secs(60);
/// Endpoints whose failures are remembered.
const FAILURES: usize = 256;

/// Shared by all that serve one pod.
#[derive(Clone, Debug, Default)]
pub(super) struct Choices(Arc<Mutex<Memory>>);

#[derive(Debug, Default)]
struct Memory {
    kept: Affinity,
    failures: HashMap<SocketAddr, Instant>,
}

impl Choices {
    /// Where a connection goes that was `tried` with these endpoints already; to which endpoint of its service is noted, where the
    /// client is to keep to it.
    pub(super) fn route(
        &self,
        world: &World,
        client: &Workload,
        original_dst: OriginalDst,
        tried: &[SocketAddr],
    ) -> Route {
        let now = Instant::now();
        let route = self.peek(world, client, original_dst, tried);
        if let Route::Tunnel(endpoint) | Route::Plain(endpoint) = &route
            && let (Some(service), Some(timeout)) = (&endpoint.service, endpoint.kept_for)
        {
            self.lock().kept.keep(&service.name, endpoint.addr.0.ip(), timeout, now);
        }
        route
    }

    /// The same, and nothing is noted.
    pub(super) fn peek(
        &self,
        world: &World,
        client: &Workload,
        original_dst: OriginalDst,
        tried: &[SocketAddr],
    ) -> Route {
        let now = Instant::now();
        let preferences = Preferences {
            kept: &|service| self.lock().kept.endpoint(service, now),
            failing: &|endpoint| self.lock().failed_within(endpoint, AVOIDED, now),
            tried,
            ..Preferences::random(rand::random())
        };
        world.mesh.route_preferring(client, original_dst, &preferences)
    }

    /// The endpoint has not answered.
    pub(super) fn failed(&self, endpoint: SocketAddr) {
        self.lock().fail(endpoint, Instant::now());
    }

    /// Whether it is to answer before anything is entrusted to it.
    pub(super) fn is_doubtful(&self, endpoint: SocketAddr) -> bool {
        self.lock().failed_within(endpoint, DOUBTED, Instant::now())
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        // Each critical section is a step of a map: a panic cannot leave it half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory {
    fn failed_within(&self, endpoint: SocketAddr, time: Duration, now: Instant) -> bool {
        self.failures.get(&endpoint).is_some_and(|at| now.saturating_duration_since(*at) < time)
    }

    /// Where there is no room for another one, the oldest failure is forgotten.
    fn fail(&mut self, endpoint: SocketAddr, now: Instant) {
        if self.failures.len() >= FAILURES && !self.failures.contains_key(&endpoint) {
            let oldest = self.failures.iter().min_by_key(|(_, at)| **at).map(|(endpoint, _)| *endpoint);
            oldest.and_then(|oldest| self.failures.remove(&oldest));
        }
        self.failures.insert(endpoint, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_forgotten_in_time_and_within_bounds() {
        let (mut memory, start) = (Memory::default(), Instant::now());
        let at = |number: u16| SocketAddr::from(([198, 18, 0, 1], number));
        memory.fail(at(1), start);
        let later = start + AVOIDED;
        assert!(memory.failed_within(at(1), AVOIDED, later - Duration::from_millis(1)));
        assert!(!memory.failed_within(at(1), AVOIDED, later));
        assert!(memory.failed_within(at(1), DOUBTED, later));
        assert!(!memory.failed_within(at(2), AVOIDED, start));
        for number in 2..=400 {
            memory.fail(at(number), start + Duration::from_millis(number.into()));
        }
        assert_eq!(memory.failures.len(), FAILURES);
        assert!(!memory.failures.contains_key(&at(1)) && memory.failures.contains_key(&at(400)));
    }
}
