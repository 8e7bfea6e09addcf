//! The key store: keeps a valid SVID for every workload identity on this node.
//!
//! Makes the keys, asks the issuer when the schedule says so, and swaps new credentials in without a lock on the reader's
//! side. Leaves to others which identities there are, and what a connection does with its credentials.

mod renewal;
mod standing;

use std::{
    collections::{HashMap, HashSet},
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use ambit_core::{
    model::SpiffeId,
    rotation::{Progress, Schedule},
};
use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::{
    sync::{Notify, watch},
    task::AbortHandle,
    time::{Instant, timeout_at},
};

use super::{Clock, IssueError, Issuer, Svid, TrustBundle};
use crate::error::with_causes;

pub(crate) use standing::{IdentityState, IdentityStatus};

/// Attempts under way at a time.
const CONCURRENCY: usize = 8;
/// How long a connection waits for its workload's first certificate.
const WAIT: Duration = Duration::from_secs(5);

/// The credentials of this node's workloads. Clones share one store; it stops asking when the last one is dropped.
#[derive(Clone)]
pub(crate) struct KeyStore(Arc<Handle>);

/// How attempts have ended since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// New certificates taken into use.
    pub(crate) issued: u64,
    /// Attempts that gave none.
    pub(crate) failed: u64,
    /// Those of the failed ones that showed this node's clock and the issuer's to differ.
    pub(crate) skewed: u64,
}

/// Why a connection gets no credentials.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    /// No pod with this identity runs on this node.
    #[error("no pod on this node has the identity {0}")]
    NotOnNode(SpiffeId),
    /// The issuer has given no valid certificate.
    #[error("no valid certificate for {id}")]
    Unavailable {
        /// The identity.
        id: SpiffeId,
        /// The last failure.
        #[source]
        source: Arc<IssueError>,
    },
    /// The certificate has expired.
    #[error("the certificate of {id} has expired and could not be renewed")]
    Expired {
        /// The identity.
        id: SpiffeId,
        /// The last failure.
        #[source]
        source: Option<Arc<IssueError>>,
    },
    /// The issuer has not answered yet.
    #[error("no certificate for {0} yet: the issuer has not answered")]
    Pending(SpiffeId),
}

struct Handle {
    shared: Arc<Shared>,
    driver: AbortHandle,
}

struct Shared {
    issuer: Arc<dyn Issuer>,
    clock: Arc<dyn Clock>,
    ttl: Duration,
    slots: ArcSwap<HashMap<SpiffeId, Arc<Slot>>>,
    schedule: Mutex<Schedule>,
    /// The schedule changed from outside.
    wake: Notify,
    /// Grows when the trust bundle of an identity has changed, or what else peers are judged by.
    trust: watch::Sender<u64>,
    issued: AtomicU64,
    failed: AtomicU64,
    skewed: AtomicU64,
}

struct Slot {
    /// When the identity was asked for.
    since: SystemTime,
    svid: ArcSwapOption<Svid>,
    last_error: ArcSwapOption<IssueError>,
    /// An attempt ended, or the identity was forgotten.
    changed: Notify,
}

impl KeyStore {
    /// A store without identities that asks `issuer` for certificates of lifetime `ttl`. Must be called in a tokio runtime.
    pub(crate) fn new(issuer: Arc<dyn Issuer>, clock: Arc<dyn Clock>, ttl: Duration) -> Self {
        let shared = Arc::new(Shared {
            issuer,
            clock,
            ttl,
            slots: ArcSwap::default(),
            schedule: Mutex::new(Schedule::new(CONCURRENCY)),
            wake: Notify::new(),
            trust: watch::Sender::new(1),
            issued: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            skewed: AtomicU64::new(0),
        });
        let driver = tokio::spawn(renewal::drive(shared.clone())).abort_handle();
        Self(Arc::new(Handle { shared, driver }))
    }

    /// Makes `ids` the identities of pods on this node: begins to fetch new ones, and forgets the keys of all others.
    pub(crate) fn retain(&self, ids: impl IntoIterator<Item = SpiffeId>) {
        let shared = &self.0.shared;
        let wanted: HashSet<SpiffeId> = ids.into_iter().collect();
        let mut schedule = shared.schedule();
        let old = shared.slots.load_full();
        if old.len() == wanted.len() && old.keys().all(|id| wanted.contains(id)) {
            return;
        }
        let now = shared.clock.now();
        schedule.retain(&wanted, now);
        shared.issuer.retain(&wanted);
        let slots = wanted.into_iter().map(|id| {
            let slot = old.get(&id).cloned().unwrap_or_else(|| Arc::new(Slot::new(now)));
            (id, slot)
        });
        let slots: HashMap<_, _> = slots.collect();
        let forgotten = old.iter().filter(|(id, _)| !slots.contains_key(*id)).map(|(_, slot)| slot.clone());
        let forgotten: Vec<_> = forgotten.collect();
        shared.slots.store(Arc::new(slots));
        drop(schedule);
        forgotten.iter().for_each(|slot| slot.changed.notify_waiters());
        shared.wake.notify_one();
    }

    /// The valid credentials of `id`; where there are none yet, waits up to five seconds for the issuer. Fails at once if the
    /// next attempt is further away than that.
    pub(crate) async fn svid(&self, id: &SpiffeId) -> Result<Arc<Svid>, IdentityError> {
        let shared = &self.0.shared;
        if let Some(svid) = self.current(id) {
            return Ok(svid);
        }
        let deadline = Instant::now() + WAIT;
        loop {
            let slot = shared.slot(id).ok_or_else(|| IdentityError::NotOnNode(id.clone()))?;
            let mut changed = pin!(slot.changed.notified());
            changed.as_mut().enable();
            if let Some(svid) = shared.usable(&slot) {
                return Ok(svid);
            }
            let Some(progress) = shared.schedule().demand(id) else {
                return Err(IdentityError::NotOnNode(id.clone()));
            };
            shared.wake.notify_one();
            let left = deadline.saturating_duration_since(Instant::now());
            let hopeless = matches!(progress, Progress::Due(at) if at > shared.clock.now() + left);
            if hopeless || timeout_at(deadline, changed).await.is_err() {
                return shared.usable(&slot).ok_or_else(|| slot.failure(id));
            }
        }
    }

    /// The credentials of `id` if they are there and valid now. Takes no lock and never waits.
    pub(crate) fn current(&self, id: &SpiffeId) -> Option<Arc<Svid>> {
        let shared = &self.0.shared;
        shared.slots.load().get(id).and_then(|slot| shared.usable(slot))
    }

    /// The roots that `id` trusts, also while its own certificate has expired; `None` before its first one.
    pub(crate) fn trust(&self, id: &SpiffeId) -> Option<Arc<TrustBundle>> {
        let slot = self.0.shared.slot(id)?;
        slot.svid.load().as_ref().map(|svid| svid.trust.clone())
    }

    /// A number that grows whenever an identity trusts other roots than before, published after the roots themselves, and by
    /// [`Self::revise`]. It begins with 1.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.0.shared.trust.subscribe()
    }

    /// Tells the same of what else peers are judged by, once it has changed: who follows both, as every connection does, follows one
    /// number.
    pub(crate) fn revise(&self) {
        self.0.shared.trust.send_modify(|generation| *generation += 1);
    }

    /// How attempts have ended since the start.
    pub(crate) fn counts(&self) -> Counts {
        let Shared { issued, failed, skewed, .. } = &*self.0.shared;
        let [issued, failed, skewed] = [issued, failed, skewed].map(|count| count.load(Ordering::Relaxed));
        Counts { issued, failed, skewed }
    }

    /// How every identity stands, in order of their names.
    pub(crate) fn status(&self) -> Vec<IdentityStatus> {
        let shared = &self.0.shared;
        let now = shared.clock.now();
        let slots = shared.slots.load_full();
        let schedule = shared.schedule();
        let mut all: Vec<_> = slots
            .iter()
            .map(|(id, slot)| {
                let svid = slot.svid.load_full();
                IdentityStatus {
                    id: id.clone(),
                    serial: svid.as_ref().map(|svid| svid.serial.clone()),
                    not_before: svid.as_ref().map(|svid| svid.not_before),
                    not_after: svid.as_ref().map(|svid| svid.not_after),
                    next_renewal: match schedule.progress(id) {
                        Some(Progress::Due(at)) => Some(at),
                        Some(Progress::Running) | None => None,
                    },
                    last_error: slot.last_error.load().as_ref().map(|error| with_causes(&**error)),
                    state: match &svid {
                        None => IdentityState::Pending,
                        Some(svid) if svid.is_usable(now) => IdentityState::Valid,
                        Some(_) => IdentityState::Expired,
                    },
                    late: svid.as_ref().is_some_and(|svid| svid.is_late(now)),
                    wanted_since: slot.since,
                    svid,
                }
            })
            .collect();
        drop(schedule);
        all.sort_by(|a, b| a.id.cmp(&b.id));
        all
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Shared {
    fn schedule(&self) -> MutexGuard<'_, Schedule> {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self, id: &SpiffeId) -> Option<Arc<Slot>> {
        self.slots.load().get(id).cloned()
    }

    fn usable(&self, slot: &Slot) -> Option<Arc<Svid>> {
        slot.svid.load_full().filter(|svid| svid.is_usable(self.clock.now()))
    }
}

impl Slot {
    fn new(since: SystemTime) -> Self {
        Self {
            since,
            svid: ArcSwapOption::empty(),
            last_error: ArcSwapOption::empty(),
            changed: Notify::new(),
        }
    }

    fn failure(&self, id: &SpiffeId) -> IdentityError {
        match (self.svid.load().is_some(), self.last_error.load_full()) {
            (true, source) => IdentityError::Expired { id: id.clone(), source },
            (false, Some(source)) => IdentityError::Unavailable { id: id.clone(), source },
            (false, None) => IdentityError::Pending(id.clone()),
        }
    }
}

#[cfg(test)]
mod tests;
