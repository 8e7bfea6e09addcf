//! What the agent still waits for. Each part of it holds a gate until its first work is done.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The gate of an agent that does not serve its node yet, as another one does.
pub(crate) const TAKEOVER: &str = "takeover";
/// The gate of an agent from which another one has taken over.
pub(crate) const REPLACED: &str = "replaced";

/// The set of gates that are not yet passed. Cheap to clone; with no gate the agent is ready.
#[derive(Clone, Debug, Default)]
pub(crate) struct Readiness(Arc<Mutex<BTreeMap<&'static str, usize>>>);

impl Readiness {
    /// Keeps the agent from being ready, for the reason `name`, until the gate is dropped.
    pub(crate) fn gate(&self, name: &'static str) -> Gate {
        *self.pending_gates().entry(name).or_default() += 1;
        Gate { readiness: self.clone(), name }
    }

    /// The gates that are not yet passed, in alphabetical order.
    pub(crate) fn pending(&self) -> Vec<&'static str> {
        self.pending_gates().keys().copied().collect()
    }

    fn pending_gates(&self) -> MutexGuard<'_, BTreeMap<&'static str, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One thing to wait for. Dropping it says that it is done, unless a panic drops it: what panicked is not ready.
#[derive(Debug)]
#[must_use = "a gate that is dropped is passed"]
pub(crate) struct Gate {
    readiness: Readiness,
    name: &'static str,
}

impl Drop for Gate {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let mut pending = self.readiness.pending_gates();
        if let Some(count) = pending.get_mut(self.name) {
            *count -= 1;
            if *count == 0 {
                pending.remove(self.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_the_last_gate_is_gone() {
        let readiness = Readiness::default();
        assert!(readiness.pending().is_empty());
        let manifests = readiness.gate("manifests");
        let (first, second) = (readiness.gate("certificates"), readiness.gate("certificates"));
        assert_eq!(readiness.pending(), ["certificates", "manifests"]);
        drop(first);
        assert_eq!(readiness.pending(), ["certificates", "manifests"]);
        drop(second);
        drop(manifests);
        assert!(readiness.pending().is_empty());
    }

    #[test]
    fn a_panic_passes_no_gate() {
        let readiness = Readiness::default();
        let gate = readiness.gate("capture");
        let died = std::thread::spawn(move || {
            let _gate = gate;
            panic!("capture died");
        });
        assert!(died.join().is_err());
        assert_eq!(readiness.pending(), ["capture"]);
    }
}
