//! What is wrong with the API as a whole and with single resources, reported once however many watches meet it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::Hub;
use crate::discovery::{Origin, kinds::Kind};

/// Resources that cannot be read.
#[derive(Debug, Default)]
pub(super) struct Health(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Why the API could not be asked for them, by resource.
    unavailable: BTreeMap<Kind, String>,
    /// What is reported of that: the first reason that was met, or the log would have a line for each.
    reported: Option<String>,
}

/// Why a resource cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The API does not answer, or cannot.
    Unavailable(String),
    /// The API answers, but not to this question.
    Refused(String),
}

impl Health {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hub {
    /// Whether a resource can be read now.
    pub(super) fn set_health(&self, kind: Kind, failure: Option<Failure>) {
        if let Some(cluster) = self.cluster() {
            return self.set_health_of(cluster, kind, failure);
        }
        let (unavailable, refused) = match failure {
            Some(Failure::Unavailable(reason)) => (Some(reason), None),
            Some(Failure::Refused(reason)) => (None, Some(reason)),
            None => (None, None),
        };
        let reported = {
            let mut state = self.health.state();
            match unavailable {
                Some(reason) => state.unavailable.insert(kind, reason),
                None => state.unavailable.remove(&kind),
            };
            state.reported = match state.reported.take() {
                _ if state.unavailable.is_empty() => None,
                Some(reported) => Some(reported),
                None => state.unavailable.values().next().cloned(),
            };
            state.reported.clone()
        };
        let stays = "; what was known before stays in force";
        self.write(|ledger| {
            let of_api = reported.map(|reason| format!("cannot be read: {reason}{stays}"));
            ledger.set_source_problem(&Origin::Api, of_api);
            let of_resource = refused.map(|reason| format!("{reason}{stays}"));
            ledger.set_source_problem(&Origin::Resource(kind), of_resource);
        });
    }

    /// One more request to the API has failed.
    pub(super) fn count_error(&self) {
        if let (Some(cluster), Some(shared)) = (self.cluster(), self.shared.upgrade()) {
            shared.clusters.send_modify(|clusters| clusters.count_error(cluster));
        }
    }

    /// The same of another cluster.
    fn set_health_of(&self, cluster: &Arc<str>, kind: Kind, failure: Option<Failure>) {
        let Some(shared) = self.shared.upgrade() else { return };
        let reason = failure.map(|failure| match failure {
            Failure::Unavailable(reason) => reason,
            Failure::Refused(reason) => format!("{} {reason}", kind.row().plural),
        });
        let mut why = None;
        shared.clusters.send_modify(|clusters| why = clusters.set_failure(cluster, kind, reason));
        self.write(|ledger| {
            let text = why.map(|why| format!("cannot be read: {why}; what was known before stays in force"));
            ledger.set_source_problem(&Origin::Cluster(Arc::clone(cluster)), text);
        });
    }
}
