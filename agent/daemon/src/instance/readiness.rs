//! What the agent still waits for. Each part of it holds a gate until its first work is done, or while something is amiss.

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
pub(crate) struct Readiness(Arc<Mutex<Gates>>);

#[derive(Debug, Default)]
struct Gates {
    closed: BTreeMap<u64, Closed>,
    next: u64,
}

#[derive(Debug)]
struct Closed {
    name: &'static str,
    why: Option<String>,
}

impl Readiness {
    /// Keeps the agent from being ready, for the reason `name`, until the gate is dropped.
    pub(crate) fn gate(&self, name: &'static str) -> Gate {
        self.close(name, None)
    }

    /// The same for something amiss: `why` says what it is, and what to do about it.
    pub(crate) fn gate_because(&self, name: &'static str, why: String) -> Gate {
        self.close(name, Some(why))
    }

    /// The names of the gates that are not yet passed, in alphabetical order.
    pub(crate) fn pending(&self) -> Vec<&'static str> {
        let mut names: Vec<_> = self.gates().closed.values().map(|closed| closed.name).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// What is amiss, with the names of the gates that it holds.
    pub(crate) fn amiss(&self) -> Vec<(&'static str, String)> {
        let gates = self.gates();
        gates.closed.values().filter_map(|closed| Some((closed.name, closed.why.clone()?))).collect()
    }

    fn close(&self, name: &'static str, why: Option<String>) -> Gate {
        let mut gates = self.gates();
        let id = gates.next;
        gates.next += 1;
        gates.closed.insert(id, Closed { name, why });
        Gate { readiness: self.clone(), id }
    }

    fn gates(&self) -> MutexGuard<'_, Gates> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One thing to wait for. Dropping it says that it is done, unless a panic drops it: what panicked is not ready.
#[derive(Debug)]
#[must_use = "a gate that is dropped is passed"]
pub(crate) struct Gate {
    readiness: Readiness,
    id: u64,
}

impl Drop for Gate {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.readiness.gates().closed.remove(&self.id);
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
    fn what_is_amiss_is_told_as_long_as_it_is() {
        let readiness = Readiness::default();
        let _waiting = readiness.gate("pods");
        let full = readiness.gate_because("capture", "a map is full".into());
        assert_eq!(readiness.pending(), ["capture", "pods"]);
        assert_eq!(readiness.amiss(), [("capture", "a map is full".to_owned())]);
        drop(full);
        assert!(readiness.amiss().is_empty());
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
