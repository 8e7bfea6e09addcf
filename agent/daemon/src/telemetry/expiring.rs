//! Counters by labels that come and go: at most so many, those idle for long are dropped, and what finds no room is counted
//! under one set of labels that says so.

use std::{
    collections::HashMap,
    fmt,
    hash::Hash,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter},
};

/// Label sets of one direction.
pub(super) const MOST: usize = 500;
/// How long a counter stays that does not count: many scrapes.
pub(super) const IDLE: Duration = Duration::from_secs(3600);

/// What is counted under labels that were not expected in such numbers.
pub(super) const OTHER: &str = "other";

/// One metric. Peers' words fill their own half only.
#[derive(Debug)]
pub(super) struct Expiring<L> {
    name: &'static str,
    help: &'static str,
    overflow: L,
    halves: [Mutex<HashMap<L, Counted>>; 2],
}

/// Whose word the labels are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    Ours,
    Peers,
}

#[derive(Debug)]
struct Counted {
    count: u64,
    last: Instant,
}

impl<L: Clone + Eq + Hash> Expiring<L> {
    pub(super) fn new(name: &'static str, help: &'static str, overflow: L) -> Self {
        Self { name, help, overflow, halves: Default::default() }
    }

    pub(super) fn inc(&self, word: Word, labels: L, now: Instant) {
        let mut half = self.halves[word as usize].lock().unwrap_or_else(PoisonError::into_inner);
        if half.len() >= MOST && !half.contains_key(&labels) {
            half.retain(|_, counted| now.saturating_duration_since(counted.last) < IDLE);
        }
        let full = half.len() >= MOST && !half.contains_key(&labels);
        let labels = if full { self.overflow.clone() } else { labels };
        let counted = half.entry(labels).or_insert(Counted { count: 0, last: now });
        counted.count += 1;
        counted.last = now;
    }

    /// The counters that are not idle; one that both halves have is one.
    pub(super) fn counts(&self, now: Instant) -> HashMap<L, u64> {
        let mut counts = HashMap::new();
        for half in &self.halves {
            let mut half = half.lock().unwrap_or_else(PoisonError::into_inner);
            half.retain(|_, counted| now.saturating_duration_since(counted.last) < IDLE);
            for (labels, counted) in &*half {
                *counts.entry(labels.clone()).or_default() += counted.count;
            }
        }
        counts
    }
}

impl<L: Clone + Eq + Hash + EncodeLabelSet + fmt::Debug + Send + Sync + 'static> Collector for Expiring<L> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut metric = encoder.encode_descriptor(self.name, self.help, None, MetricType::Counter)?;
        for (labels, count) in self.counts(Instant::now()) {
            ConstCounter::new(count).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_bounded_and_expire() {
        let start = Instant::now();
        let counters = Expiring::new("n", "h", u64::MAX);
        for labels in 0..100_000 {
            counters.inc(Word::Peers, labels, start);
        }
        counters.inc(Word::Ours, 7, start + Duration::from_secs(1));
        counters.inc(Word::Ours, 7, start + Duration::from_secs(1));
        let counts = counters.counts(start);
        assert_eq!(counts.len(), MOST + 1);
        assert_eq!((counts[&7], counts[&u64::MAX]), (3, 100_000 - MOST as u64));
        let later = counters.counts(start + IDLE);
        assert_eq!(later, HashMap::from([(7, 2)]));
        counters.inc(Word::Peers, 1_000_000, start + IDLE);
        assert_eq!(counters.counts(start + IDLE)[&1_000_000], 1, "there is room again");
    }
}
