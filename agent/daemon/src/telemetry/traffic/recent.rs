//! The series of the pairs of workloads that connected last: a connection's labels are twenty strings, and mostly those of one before it.

use std::{
    ptr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use ambit_core::model::{ServiceName, SpiffeId, Workload};

use super::Series;
use crate::telemetry::{Direction, Meta, OWN_CLUSTER, Party};

/// Pairs that are remembered, each in a place of its own or another's.
const PLACES: usize = 64;

/// Pairs and their series; holds neither.
#[derive(Debug)]
pub(super) struct Recent([Mutex<Option<Known>>; PLACES]);

#[derive(Debug)]
struct Known {
    direction: Direction,
    source: End,
    destination: End,
    service: Option<ServiceName>,
    security: &'static str,
    /// Whether this cluster's name was known.
    named: bool,
    series: Weak<Series>,
}

#[derive(Debug)]
struct End {
    /// Its memory is not used for another while this is kept.
    workload: Option<Weak<Workload>>,
    identity: Option<SpiffeId>,
}

impl Default for Recent {
    fn default() -> Self {
        Self([const { Mutex::new(None) }; PLACES])
    }
}

impl Recent {
    /// The series of connections such as `meta` tells of.
    pub(super) fn series(&self, meta: &Meta) -> Option<Arc<Series>> {
        let place = self.place(meta);
        let known = place.as_ref().filter(|known| known.is_of(meta))?;
        known.series.upgrade()
    }

    /// It is this.
    pub(super) fn remember(&self, meta: &Meta, series: &Arc<Series>) {
        *self.place(meta) = Some(Known {
            direction: meta.direction,
            source: End::of(&meta.source),
            destination: End::of(&meta.destination),
            service: meta.service.clone(),
            security: meta.security.label(),
            named: OWN_CLUSTER.get().is_some(),
            series: Arc::downgrade(series),
        });
    }

    fn place(&self, meta: &Meta) -> MutexGuard<'_, Option<Known>> {
        let number =
            |party: &Party| party.workload.as_ref().map_or(0, |workload| Arc::as_ptr(workload).addr());
        // Of what is aligned so the last bits say nothing.
        let mixed = (number(&meta.source) >> 4).wrapping_mul(31) ^ (number(&meta.destination) >> 4);
        let at = (mixed ^ (mixed >> 8)).wrapping_add(meta.direction as usize) % PLACES;
        // What is put in is whole: a panic cannot leave it half changed.
        self.0[at].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn is_of(&self, meta: &Meta) -> bool {
        self.direction == meta.direction
            && self.source.is(&meta.source)
            && self.destination.is(&meta.destination)
            && self.security == meta.security.label()
            && self.service == meta.service
            && self.named == OWN_CLUSTER.get().is_some()
    }
}

impl End {
    fn of(party: &Party) -> Self {
        Self { workload: party.workload.as_ref().map(Arc::downgrade), identity: party.identity.clone() }
    }

    fn is(&self, party: &Party) -> bool {
        let same = match (&self.workload, &party.workload) {
            (Some(known), Some(workload)) => ptr::eq(known.as_ptr(), Arc::as_ptr(workload)),
            (None, None) => true,
            _ => false,
        };
        same && self.identity == party.identity
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::telemetry::{Security, tests::web_to_cart};

    #[test]
    fn what_differs_in_any_label_has_another_series() {
        let recent = Recent::default();
        let meta = web_to_cart(Direction::Inbound);
        let series = Arc::new(Series::new(Instant::now()));
        assert!(recent.series(&meta).is_none());
        recent.remember(&meta, &series);
        let known = |meta: &Meta| recent.series(meta).is_some_and(|known| Arc::ptr_eq(&known, &series));
        assert!(known(&meta) && known(&meta.clone()));
        let source = |source| Meta { source, ..meta.clone() };
        let others = [
            Meta { direction: Direction::Outbound, ..meta.clone() },
            Meta { service: None, ..meta.clone() },
            Meta { security: Security::LocalIdentity, ..meta.clone() },
            source(Party { identity: None, ..meta.source.clone() }),
            source(Party { workload: None, ..meta.source.clone() }),
            // The same by name, but looked at anew.
            source(web_to_cart(Direction::Inbound).source),
        ];
        for other in others {
            assert!(!known(&other), "{other:?}");
        }
        drop(series);
        assert!(recent.series(&meta).is_none(), "it holds no series");
    }
}
