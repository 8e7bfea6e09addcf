//! Sessions that have carried a stream to its clean end and wait for the next one.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use ambit_core::model::{PodAddr, SpiffeId};

use super::{Session, tls::PeerIdentity};

/// How long a connection may wait. Servers wait longer, so that they never close under a client's hands.
const IDLE: Duration = Duration::from_secs(60);
/// Connections that wait for one key at most, and in all.
const PER_KEY: usize = 256;
const IN_ALL: usize = 4096;

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
    /// The identity that the peer must have.
    pub(crate) expected: SpiffeId,
}

/// The idle connections of an agent.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    idle: Mutex<HashMap<PoolKey, Vec<Idle>>>,
    len: AtomicUsize,
}

#[derive(Debug)]
struct Idle {
    session: Session,
    since: Instant,
}

impl Pool {
    /// A connection that can carry another stream at once, the one used last first.
    pub(crate) fn take(&self, key: &PoolKey) -> Option<Session> {
        loop {
            let idle = {
                let mut all = self.lock();
                let sessions = all.get_mut(key)?;
                let idle = sessions.pop();
                if sessions.is_empty() {
                    all.remove(key);
                }
                idle?
            };
            self.len.fetch_sub(1, Ordering::Relaxed);
            let Idle { mut session, since } = idle;
            if since.elapsed() < IDLE && session.is_valid(SystemTime::now()) && session.is_fresh() {
                return Some(session);
            }
        }
    }

    /// Keeps a connection whose last stream has ended cleanly; it is closed if there are enough, or if no stream may follow.
    pub(crate) fn put(&self, key: PoolKey, session: Session) {
        if !session.is_valid(SystemTime::now()) {
            tokio::spawn(session.close(None));
            return;
        }
        if self.len.load(Ordering::Relaxed) >= IN_ALL {
            return;
        }
        let mut all = self.lock();
        let sessions = all.entry(key).or_default();
        if sessions.len() < PER_KEY {
            sessions.push(Idle { session, since: Instant::now() });
            self.len.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Closes what has waited too long, and all that `keep` does not keep.
    pub(crate) fn sweep(&self, keep: impl Fn(&PoolKey, &PeerIdentity) -> bool) {
        let mut closed = Vec::new();
        let mut all = self.lock();
        all.retain(|key, sessions| {
            closed.extend(sessions.extract_if(.., |idle| {
                idle.since.elapsed() >= IDLE || !keep(key, &idle.session.facts().peer)
            }));
            !sessions.is_empty()
        });
        drop(all);
        self.len.fetch_sub(closed.len(), Ordering::Relaxed);
        for idle in closed {
            tokio::spawn(idle.session.close(None));
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PoolKey, Vec<Idle>>> {
        // A panic cannot leave the map half changed: nothing in the critical sections panics between two steps.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
