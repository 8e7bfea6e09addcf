//! What is wrong with the API as a whole and with single resources, told once however many watches meet it.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{Hub, resource::Watch};
use crate::discovery::Origin;

/// Where trouble with the API as a whole stands.
const API: Origin = Origin::Resource("API");

/// Resources in trouble.
#[derive(Debug, Default)]
pub(super) struct Health(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Why resources cannot be read for the API's sake.
    away: BTreeMap<&'static str, String>,
    /// What is told of that: the first reason that was met, or the log would have a line for each.
    told: Option<String>,
}

/// A kind of trouble.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The API does not answer, or cannot.
    Away(String),
    /// The API answers, but not to this question.
    Refused(String),
}

impl Health {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hub {
    /// How a resource stands now.
    pub(super) fn health(&self, watch: &Watch, trouble: Option<Trouble>) {
        let (away, refused) = match trouble {
            Some(Trouble::Away(reason)) => (Some(reason), None),
            Some(Trouble::Refused(reason)) => (None, Some(reason)),
            None => (None, None),
        };
        let told = {
            let mut state = self.health.state();
            match away {
                Some(reason) => state.away.insert(watch.plural, reason),
                None => state.away.remove(watch.plural),
            };
            state.told = match state.told.take() {
                _ if state.away.is_empty() => None,
                Some(told) => Some(told),
                None => state.away.values().next().cloned(),
            };
            state.told.clone()
        };
        let stays = "; what was known before stays in force";
        self.write(|ledger| {
            ledger.trouble(&API, told.map(|reason| format!("cannot be read: {reason}{stays}")));
            ledger.trouble(&watch.place(), refused.map(|reason| format!("{reason}{stays}")));
        });
    }
}
