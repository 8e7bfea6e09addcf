//! How many lines of the access log refusals may take: for each pod and reason a burst, and then so many a second. A flood of
//! refusals at one pod must not crowd the lines of others out of the log. Metrics count every one.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use ambit_core::reason::Reason;

use super::{Direction, Meta};

/// Lines at once.
const BURST: u32 = 200;
/// The time that one more line takes to be allowed.
const EACH: Duration = Duration::from_millis(50);
/// Pods and reasons that are remembered.
const REMEMBERED: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Pace(Mutex<HashMap<Key, Bucket>>);

/// Our pod, if it is known, the direction, and the reason.
type Key = (Option<Arc<str>>, Direction, Reason);

#[derive(Debug)]
struct Bucket {
    left: u32,
    since: Instant,
    unsaid: u64,
}

impl Pace {
    /// Whether a refusal may be logged: then with the number of those before it that were not.
    pub(super) fn line(&self, meta: &Meta, reason: Reason, now: Instant) -> Option<u64> {
        let ours = match meta.direction {
            Direction::Outbound => &meta.source,
            Direction::Inbound => &meta.destination,
        };
        let key = (ours.workload.as_ref().map(|workload| workload.uid.clone()), meta.direction, reason);
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= REMEMBERED && !buckets.contains_key(&key) {
            buckets.retain(|_, bucket| now.saturating_duration_since(bucket.since) < EACH * BURST);
            if buckets.len() >= REMEMBERED {
                buckets.clear();
            }
        }
        let bucket = buckets.entry(key).or_insert(Bucket { left: BURST, since: now, unsaid: 0 });
        let earned = now.saturating_duration_since(bucket.since).as_millis() / EACH.as_millis();
        if earned > 0 {
            let earned = u32::try_from(earned).unwrap_or(BURST).min(BURST);
            bucket.left = (bucket.left + earned).min(BURST);
            bucket.since = now;
        }
        match bucket.left.checked_sub(1) {
            Some(left) => {
                bucket.left = left;
                Some(std::mem::take(&mut bucket.unsaid))
            }
            None => {
                bucket.unsaid += 1;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::tests::web_to_cart;

    #[test]
    fn a_flood_has_a_burst_of_lines_and_then_a_few_a_second() {
        let (pace, start) = (Pace::default(), Instant::now());
        let meta = web_to_cart(Direction::Inbound);
        let lines = |from: u64, to: u64| -> Vec<u64> {
            let moments = (from..to).map(|ms| start + Duration::from_millis(ms));
            moments.filter_map(|now| pace.line(&meta, Reason::Overloaded, now)).collect()
        };
        assert_eq!(lines(0, 200).len(), 200, "a burst");
        // Five seconds of a thousand refusals each.
        let flood = lines(200, 5200);
        assert!((95..=110).contains(&flood.len()), "{}", flood.len());
        assert!(flood.iter().skip(5).all(|unsaid| (40..60).contains(unsaid)), "{flood:?}");
        let other = pace.line(&meta, Reason::PolicyDenied, start + Duration::from_millis(5200));
        assert_eq!(other, Some(0), "of another reason");
        assert_eq!(lines(60_000, 60_200).len(), 200, "after a rest");
    }
}
