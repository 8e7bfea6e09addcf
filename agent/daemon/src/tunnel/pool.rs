//! Sessions that have carried a stream to its clean end and wait for the next one.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use ambit_core::model::{PodAddr, SpiffeId};

use super::{
    Session,
    tls::{Expected, PeerIdentity},
};

/// How long a connection may wait. Servers wait longer, so that they never close under a client's hands.
const IDLE: Duration = Duration::from_secs(60);
/// How long those do that a key has beyond a few: a crowd has gone, or is back within seconds.
const SURPLUS_IDLE: Duration = Duration::from_secs(4);
const FEW: usize = 16;
/// Connections that wait for one key at most, and in all where there are descriptors for so many.
const PER_KEY: usize = 256;
const IN_ALL: usize = 4096;
/// Connections that wait for one pod, whatever others keep.
const RESERVE: usize = 8;

/// Connections are shared only between streams for which all of this is the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PoolKey {
    /// UID of the pod that connects, and the address that it connects from.
    pub(crate) pod: Arc<str>,
    /// Its address.
    pub(crate) source: IpAddr,
    /// The pod and port on the wire.
    pub(crate) destination: PodAddr,
    /// UID of that pod: another may have its address within a second, and then knows nothing of this one's connections.
    pub(crate) peer: Arc<str>,
    /// Our identity on the connection.
    pub(crate) own: SpiffeId,
    /// Who the peer must be.
    pub(crate) expected: Expected,
}

/// The idle connections of an agent. A pod keeps as many as there is still room for.
#[derive(Debug)]
pub(crate) struct Pool {
    limit: usize,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    idle: HashMap<PoolKey, Vec<Idle>>,
    len: usize,
    by_pod: HashMap<Arc<str>, usize>,
}

#[derive(Debug)]
struct Idle {
    session: Session,
    since: Instant,
}

impl Kept {
    fn has_room(&self, pod: &str, limit: usize) -> bool {
        let of_pod = self.by_pod.get(pod).copied().unwrap_or(0);
        of_pod < RESERVE.max(limit.saturating_sub(self.len))
    }

    fn added(&mut self, pod: &Arc<str>) {
        self.len += 1;
        *self.by_pod.entry(pod.clone()).or_default() += 1;
    }

    fn removed(&mut self, pod: &str, count: usize) {
        self.len -= count;
        if let Some(of_pod) = self.by_pod.get_mut(pod) {
            *of_pod -= count;
            if *of_pod == 0 {
                self.by_pod.remove(pod);
            }
        }
    }
}

impl Pool {
    /// For an agent that may have so many files open.
    pub(crate) fn new(files: u64) -> Self {
        let limit = usize::try_from(files / 32).map_or(IN_ALL, |files| files.min(IN_ALL));
        Self { limit, kept: Mutex::default() }
    }

    /// A connection that can carry another stream at once, the one used last first, and how long it has rested.
    pub(crate) fn take(&self, key: &PoolKey) -> Option<(Session, Duration)> {
        loop {
            let idle = {
                let mut kept = self.lock();
                let sessions = kept.idle.get_mut(key)?;
                let idle = sessions.pop()?;
                if sessions.is_empty() {
                    kept.idle.remove(key);
                }
                kept.removed(&key.pod, 1);
                idle
            };
            let Idle { mut session, since } = idle;
            let rested = since.elapsed();
            if rested < IDLE && session.is_valid(SystemTime::now()) && session.is_fresh() {
                return Some((session, rested));
            }
        }
    }

    /// Keeps a connection whose last stream has ended cleanly; it is closed if there are enough, or if no stream may follow.
    pub(crate) fn put(&self, key: PoolKey, session: Session) {
        if !session.is_valid(SystemTime::now()) {
            tokio::spawn(session.close(None));
            return;
        }
        let mut kept = self.lock();
        let waiting = kept.idle.get(&key).map_or(0, Vec::len);
        if waiting < PER_KEY && kept.has_room(&key.pod, self.limit) {
            kept.added(&key.pod);
            kept.idle.entry(key).or_default().push(Idle { session, since: Instant::now() });
        }
    }

    /// Gives up all connections of `key`: one that was used later than they leads nowhere any more.
    pub(crate) fn forget(&self, key: &PoolKey) {
        let mut kept = self.lock();
        let Some(sessions) = kept.idle.remove(key) else { return };
        kept.removed(&key.pod, sessions.len());
        drop(kept);
        for idle in sessions {
            tokio::spawn(idle.session.close(None));
        }
    }

    /// Closes what has waited too long, and all that `keep` does not keep.
    pub(crate) fn sweep(&self, keep: impl Fn(&PoolKey, &PeerIdentity) -> bool) {
        let mut closed = Vec::new();
        let mut kept = self.lock();
        let mut gone = Vec::new();
        kept.idle.retain(|key, sessions| {
            let before = closed.len();
            // The last in line are used first.
            let mut surplus = sessions.len().saturating_sub(FEW);
            closed.extend(sessions.extract_if(.., |idle| {
                let patience = if surplus > 0 { SURPLUS_IDLE } else { IDLE };
                surplus = surplus.saturating_sub(1);
                idle.since.elapsed() >= patience || !keep(key, &idle.session.facts().peer)
            }));
            gone.push((key.pod.clone(), closed.len() - before));
            !sessions.is_empty()
        });
        gone.iter().for_each(|(pod, count)| kept.removed(pod, *count));
        drop(kept);
        for idle in closed {
            tokio::spawn(idle.session.close(None));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // A panic cannot leave it half changed: nothing in the critical sections panics between two steps.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
impl Default for Pool {
    fn default() -> Self {
        Self::new(1 << 20)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_pod_leaves_room_for_the_next() {
        let mut kept = Kept::default();
        let pods: [Arc<str>; 3] = ["a", "b", "c"].map(Arc::from);
        let mut held = Vec::new();
        for pod in &pods {
            while kept.has_room(pod, 100) {
                kept.added(pod);
            }
            held.push(kept.by_pod[pod]);
        }
        assert_eq!(held, [50, 25, 13]);
        kept.removed("a", 50);
        assert_eq!((kept.len, kept.by_pod.contains_key("a")), (38, false));
        assert!(kept.has_room("c", 100));
    }
}
