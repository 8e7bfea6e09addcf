//! How often what may be written: a wait for each subject, a budget for all, and one warning while writing fails.

use std::{borrow::Borrow, collections::HashMap, hash::Hash, time::Duration};

use tokio::time::Instant;
use tracing::{info, warn};

use super::Outcome;

/// After a write, until the watch must have shown it.
const SETTLE: Duration = Duration::from_secs(15);
/// After the first failure; it doubles with each that follows.
const FIRST_WAIT: Duration = Duration::from_secs(5);
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// Subjects remembered.
const MAX_SUBJECTS: usize = 10_000;

/// Waits by subject.
#[derive(Debug)]
pub(super) struct Pace<K> {
    /// What is written, for the log.
    what: &'static str,
    waits: HashMap<K, Wait>,
    failing: bool,
}

#[derive(Clone, Copy, Debug)]
struct Wait {
    until: Instant,
    failures: u32,
}

impl<K: Hash + Eq> Pace<K> {
    pub(super) fn new(what: &'static str) -> Self {
        Self { what, waits: HashMap::new(), failing: false }
    }

    /// Whether the subject's turn has come. One that is not known waits for `delay` first.
    pub(super) fn due<Q>(&mut self, subject: &Q, delay: Duration, now: Instant) -> bool
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        match self.waits.get(subject) {
            Some(wait) => wait.until <= now,
            None if self.waits.len() >= MAX_SUBJECTS => false,
            None => {
                self.waits.insert(subject.to_owned(), Wait { until: now + delay, failures: 0 });
                delay.is_zero()
            }
        }
    }

    /// Takes note of what became of a write. The first failure in a row is logged.
    pub(super) fn done<Q>(&mut self, subject: &Q, outcome: &Outcome, now: Instant)
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let wait = self.waits.entry(subject.to_owned()).or_insert(Wait { until: now, failures: 0 });
        match outcome {
            Outcome::Written | Outcome::Moot => *wait = Wait { until: now + SETTLE, failures: 0 },
            Outcome::Failed(_) => {
                wait.until =
                    now + (FIRST_WAIT * 2_u32.saturating_pow(wait.failures.min(16))).min(LONGEST_WAIT);
                wait.failures += 1;
            }
        }
        match outcome {
            Outcome::Failed(error) if !self.failing => {
                self.failing = true;
                warn!(error, "cannot write {} to the Kubernetes API; traffic is not concerned", self.what);
            }
            Outcome::Written if self.failing => {
                self.failing = false;
                info!("{} can be written again", self.what);
            }
            _ => {}
        }
    }

    /// Forgets every other subject.
    pub(super) fn retain(&mut self, keep: impl Fn(&K) -> bool) {
        self.waits.retain(|subject, _| keep(subject));
    }
}
