//! How often one caller may ask, or one source connect: a token bucket for each, in a table of bounded size.
//!
//! Time is an argument. Leaves to others who a caller is.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, PoisonError},
    time::Instant,
};

/// Callers known at a time. Beyond it those are forgotten that have asked least.
const MAX_CALLERS: usize = 16 * 1024;
/// So many seconds' worth of requests may come at once: an agent that starts asks for all its pods.
const BURST_SECONDS: u32 = 10;

/// Buckets by key.
#[derive(Debug)]
pub(crate) struct Limits<K> {
    /// Requests a second.
    rate: f64,
    /// The most that a bucket holds.
    burst: f64,
    buckets: Mutex<HashMap<K, Bucket>>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl<K: Clone + Eq + Hash> Limits<K> {
    /// Buckets that fill at `rate` requests a second.
    pub(crate) fn new(rate: u32) -> Self {
        let burst = rate.saturating_mul(BURST_SECONDS);
        Self { rate: rate.into(), burst: burst.into(), buckets: Mutex::default() }
    }

    /// Gives back what was taken for a request that does not count.
    pub(crate) fn give_back(&self, key: &K) {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = buckets.get_mut(key) {
            bucket.tokens = (bucket.tokens + 1.0).min(self.burst);
        }
    }

    /// Takes one request from the bucket of `key`; false if it is empty.
    pub(crate) fn take(&self, key: &K, now: Instant) -> bool {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if !buckets.contains_key(key) && buckets.len() >= MAX_CALLERS {
            self.make_room(&mut buckets, now);
        }
        let bucket = buckets.entry(key.clone()).or_insert(Bucket { tokens: self.burst, at: now });
        bucket.tokens = self.filled(*bucket, now);
        bucket.at = bucket.at.max(now);
        let allowed = bucket.tokens >= 1.0;
        if allowed {
            bucket.tokens -= 1.0;
        }
        allowed
    }

    /// Forgets the fuller half: those lose least, and an empty bucket stays empty.
    fn make_room(&self, buckets: &mut HashMap<K, Bucket>, now: Instant) {
        let mut levels: Vec<f64> = buckets.values().map(|bucket| self.filled(*bucket, now)).collect();
        levels.sort_by(f64::total_cmp);
        let (middle, mut excess) = (levels[levels.len() / 2], levels.len() / 2);
        buckets.retain(|_, bucket| {
            let forget = excess > 0 && self.filled(*bucket, now) >= middle;
            excess -= usize::from(forget);
            !forget
        });
    }

    fn filled(&self, bucket: Bucket, now: Instant) -> f64 {
        let seconds = now.saturating_duration_since(bucket.at).as_secs_f64();
        (bucket.tokens + seconds * self.rate).min(self.burst)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_then_the_rate() {
        let (limits, start) = (Limits::new(2), Instant::now());
        assert_eq!((0..100).filter(|_| limits.take(&"a", start)).count(), 20);
        assert!(!limits.take(&"a", start));
        limits.give_back(&"a");
        assert_eq!((0..100).filter(|_| limits.take(&"a", start)).count(), 1, "what was given back");
        assert!(limits.take(&"b", start), "each has a bucket of its own");
        let later = start + Duration::from_secs(3);
        assert_eq!((0..100).filter(|_| limits.take(&"a", later)).count(), 6);
        assert_eq!((0..100).filter(|_| limits.take(&"a", start)).count(), 0, "time does not run back");
        let much_later = start + Duration::from_secs(3600);
        assert_eq!((0..100).filter(|_| limits.take(&"a", much_later)).count(), 20);
    }

    #[test]
    fn a_crowd_does_not_refill_the_bucket_of_one_who_asked_too_often() {
        let (limits, now) = (Limits::new(1), Instant::now());
        while limits.take(&usize::MAX, now) {}
        for caller in 0..3 * MAX_CALLERS {
            assert!(limits.take(&caller, now));
        }
        assert!(!limits.take(&usize::MAX, now));
        assert!(limits.buckets.lock().unwrap().len() <= MAX_CALLERS);
    }
}
