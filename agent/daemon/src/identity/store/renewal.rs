//! The work of the key store: attempts when they are due, and what becomes of their outcomes.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use ambit_core::{
    model::SpiffeId,
    rotation::{Next, Schedule},
};
use tokio::{
    sync::watch,
    task::{Id, JoinError, JoinSet},
    time::{sleep, timeout},
};
use tracing::{info, warn};

use super::{Shared, Slot};
use crate::{
    error::with_causes,
    identity::{IssueError, Renewed, Svid, TrustBundle, svid::PendingKey},
};

/// One attempt may take this long.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);
/// The clock is looked at at least this often: it may be set, and a suspended machine's timers stand still.
const MAX_SLEEP: Duration = Duration::from_secs(30);

/// Starts attempts when they are due and records how they end. Dropped with the store, and its attempts with it.
pub(super) async fn drive(shared: Arc<Shared>) {
    let mut attempts: JoinSet<Result<Svid, IssueError>> = JoinSet::new();
    let mut identities: HashMap<Id, SpiffeId> = HashMap::new();
    let (mut trust, renewed) = (shared.issuer.trust(), shared.issuer.renewed());
    loop {
        let now = shared.clock.now();
        let next = shared.schedule().next(now);
        let pause = match next {
            Next::Start(id) => {
                let (worker, identity) = (shared.clone(), id.clone());
                let task = attempts.spawn(async move { worker.attempt(identity).await });
                identities.insert(task.id(), id);
                continue;
            }
            Next::Wait(None) => MAX_SLEEP,
            Next::Wait(Some(at)) => at.duration_since(now).unwrap_or_default().min(MAX_SLEEP),
        };
        tokio::select! {
            () = shared.wake.notified() => {}
            bundle = next_bundle(&mut trust) => shared.publish_trust(&bundle),
            ids = next_renewed(renewed.as_deref()) => shared.fetch(&ids),
            Some(ended) = attempts.join_next_with_id() => {
                let (task, outcome) = match ended {
                    Ok((task, outcome)) => (task, outcome),
                    Err(error) => (JoinError::id(&error), Err(IssueError::Internal)),
                };
                if let Some(id) = identities.remove(&task) {
                    shared.record(&id, outcome);
                }
            }
            () = sleep(pause) => {}
        }
    }
}

impl Shared {
    /// One attempt for `id`, from key to believed certificate.
    async fn attempt(&self, id: SpiffeId) -> Result<Svid, IssueError> {
        let pending = PendingKey::generate(id, self.ttl).map_err(IssueError::Request)?;
        let issued = timeout(ATTEMPT_TIMEOUT, self.issuer.issue(pending.csr.clone()))
            .await
            .unwrap_or(Err(IssueError::Timeout(ATTEMPT_TIMEOUT)))?;
        Svid::accept(pending, issued, self.clock.now())
    }

    fn record(&self, id: &SpiffeId, outcome: Result<Svid, IssueError>) {
        let now = self.clock.now();
        let mut schedule = self.schedule();
        let next = match &outcome {
            Ok(svid) => schedule.issued(id, now, svid.not_after, rand::random()),
            Err(error) => schedule.failed(id, now, error.failure(), rand::random()),
        };
        let (Some(next), Some(slot)) = (next, self.slot(id)) else {
            return;
        };
        let issuer = self.issuer.name();
        let wait = next.duration_since(now).unwrap_or_default().as_secs_f64();
        match outcome {
            Ok(svid) => {
                if self.take_into_use(&mut schedule, &slot, svid) {
                    info!(%id, issuer, renewal_in_s = wait.round(), "certificate issued");
                }
                slot.last_error.store(None);
            }
            Err(error) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                if matches!(error, IssueError::ClockSkew { .. } | IssueError::Expired { .. }) {
                    self.skewed.fetch_add(1, Ordering::Relaxed);
                }
                let valid = slot.svid.load().as_ref().is_some_and(|svid| svid.is_usable(now));
                let text = with_causes(&error);
                warn!(%id, issuer, error = text, retry_in_s = wait, still_valid = valid, "no new certificate");
                slot.last_error.store(Some(Arc::new(error)));
            }
        }
        drop(schedule);
        slot.changed.notify_waiters();
    }

    /// Makes `svid` the credentials of its identity; answers whether its certificate is another one than before.
    fn take_into_use(&self, schedule: &mut Schedule, slot: &Slot, mut svid: Svid) -> bool {
        if let Some(live) = self.issuer.trust().map(|live| live.borrow().clone())
            && live != svid.trust
        {
            // It has changed since the certificate was asked for.
            let now = self.clock.now();
            if !svid.is_trusted_by(&live, now) {
                schedule.expedite(&svid.id, now);
            }
            svid.trust = live;
        }
        let old = slot.svid.load_full();
        let same = old.as_ref().filter(|old| old.chain == svid.chain);
        let trusts_others = old.as_ref().is_some_and(|old| old.trust != svid.trust);
        let renewed = same.is_none();
        match same {
            Some(_) if !trusts_others => {}
            Some(old) => slot.svid.store(Some(Arc::new(old.with_trust(svid.trust)))),
            None => slot.svid.store(Some(Arc::new(svid))),
        }
        if renewed {
            self.issued.fetch_add(1, Ordering::Relaxed);
        }
        if trusts_others {
            self.trust.send_modify(|generation| *generation += 1);
        }
        renewed
    }

    /// Gives all identities the bundle `trust` at once. Those whose own certificate it does not cover are renewed next.
    fn publish_trust(&self, trust: &Arc<TrustBundle>) {
        let now = self.clock.now();
        let mut schedule = self.schedule();
        let mut renewals = 0_usize;
        for (id, slot) in self.slots.load().iter() {
            let Some(old) = slot.svid.load_full().filter(|svid| svid.trust != *trust) else { continue };
            if !old.is_trusted_by(trust, now) {
                schedule.expedite(id, now);
                renewals += 1;
            }
            slot.svid.store(Some(Arc::new(old.with_trust(trust.clone()))));
        }
        drop(schedule);
        info!(roots = trust.roots.len(), renewals, "trust bundle changed");
        self.trust.send_modify(|generation| *generation += 1);
    }

    /// Asks for certificates that the issuer says to have anew, also while a back-off runs.
    fn fetch(&self, ids: &HashSet<SpiffeId>) {
        let now = self.clock.now();
        let mut schedule = self.schedule();
        ids.iter().for_each(|id| schedule.news(id, now));
    }
}

/// The next trust bundle of the issuer; never, if it has none of its own or gives no more.
async fn next_bundle(trust: &mut Option<watch::Receiver<Arc<TrustBundle>>>) -> Arc<TrustBundle> {
    if let Some(bundle) = trust
        && bundle.changed().await.is_ok()
    {
        return bundle.borrow_and_update().clone();
    }
    std::future::pending().await
}

async fn next_renewed(renewed: Option<&Renewed>) -> HashSet<SpiffeId> {
    match renewed {
        Some(renewed) => renewed.take().await,
        None => std::future::pending().await,
    }
}
