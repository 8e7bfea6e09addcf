//! The table of live connections. Spread over several locks, each held for one insertion, removal or copy at a time.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Instant, SystemTime},
};

use super::{LiveConnection, Meta, request::Parsed, traffic::Series};

const SHARDS: u64 = 16;

/// One open connection, shared by its owner and the table.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) id: u64,
    pub(super) meta: Meta,
    pub(super) series: Arc<Series>,
    pub(super) client_to_server: AtomicU64,
    pub(super) server_to_client: AtomicU64,
    /// What it keeps of the requests on it, once there is one.
    pub(super) parsed: OnceLock<Box<Parsed>>,
    pub(super) opened: SystemTime,
    /// The same moment on the clock that never steps, for the duration.
    pub(super) since: Instant,
}

impl Live {
    pub(super) fn new(id: u64, meta: Meta, series: Arc<Series>) -> Self {
        Self {
            id,
            meta,
            series,
            client_to_server: AtomicU64::new(0),
            server_to_client: AtomicU64::new(0),
            parsed: OnceLock::new(),
            opened: SystemTime::now(),
            since: Instant::now(),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct LiveTable {
    next: AtomicU64,
    shards: [Mutex<HashMap<u64, Arc<Live>>>; SHARDS as usize],
}

impl LiveTable {
    pub(super) fn insert(&self, new: impl FnOnce(u64) -> Live) -> Arc<Live> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let live = Arc::new(new(id));
        self.shard(id).insert(id, live.clone());
        live
    }

    pub(super) fn remove(&self, id: u64) {
        self.shard(id).remove(&id);
    }

    /// A copy of what is open, in the order of opening.
    pub(super) fn snapshot(&self) -> Vec<LiveConnection> {
        let mut all: Vec<Arc<Live>> =
            (0..SHARDS).flat_map(|n| self.shard(n).values().cloned().collect::<Vec<_>>()).collect();
        all.sort_unstable_by_key(|live| live.id);
        all.iter()
            .map(|live| LiveConnection {
                meta: live.meta.clone(),
                client_to_server: live.client_to_server.load(Ordering::Relaxed),
                server_to_client: live.server_to_client.load(Ordering::Relaxed),
                opened: live.opened,
            })
            .collect()
    }

    fn shard(&self, id: u64) -> MutexGuard<'_, HashMap<u64, Arc<Live>>> {
        let shard = &self.shards[(id % SHARDS) as usize];
        // Each critical section is one map operation: a panic elsewhere cannot leave it half done.
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
