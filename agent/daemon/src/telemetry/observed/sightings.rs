//! Different things that were seen, each kept once, with how often and when. At most so many: of too many, the party that has
//! the most loses the one that has not been seen for longest, so that a flood at one pod costs no other pod what it has.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    sync::Arc,
    time::{Duration, SystemTime},
};

use ambit_core::crowd::{Crowd, Ticket};

/// How long a thing is kept that is not seen again.
pub(super) const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

#[derive(Debug)]
pub(super) struct Sightings<K, D> {
    most: usize,
    seen: HashMap<Arc<K>, Entry<D>>,
    /// From the one not seen for longest on.
    order: Crowd<u64, Arc<K>>,
    losers: HashSet<u64>,
    /// There have been more losers than are remembered.
    all_may_have_lost: bool,
}

#[derive(Debug)]
struct Entry<D> {
    ticket: Ticket<u64>,
    sighting: Sighting<D>,
}

/// How often a thing was seen, and when.
#[derive(Clone, Debug)]
pub(crate) struct Sighting<D> {
    pub(crate) count: u64,
    pub(crate) first: SystemTime,
    pub(crate) last: SystemTime,
    /// What is known of it.
    pub(crate) detail: D,
}

impl<K: Eq + Hash, D> Sightings<K, D> {
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            seen: HashMap::new(),
            order: Crowd::default(),
            losers: HashSet::new(),
            all_may_have_lost: false,
        }
    }

    /// Counts one more; `detail` makes of what was known of it what is known by now.
    pub(super) fn see(&mut self, party: u64, key: K, now: SystemTime, detail: impl FnOnce(Option<D>) -> D) {
        let (key, before) = match self.seen.remove_entry(&key) {
            Some((key, entry)) => {
                self.order.remove(entry.ticket);
                (key, Some(entry.sighting))
            }
            None => (Arc::new(key), None),
        };
        if self.seen.len() >= self.most {
            self.evict();
        }
        let ticket = self.order.insert(party, key.clone());
        let (count, first) = before.as_ref().map_or((0, now), |before| (before.count, before.first));
        let detail = detail(before.map(|before| before.detail));
        let sighting = Sighting { count: count + 1, first, last: now, detail };
        self.seen.insert(key, Entry { ticket, sighting });
    }

    /// All of them, but for those not seen for long, which are forgotten.
    pub(super) fn recent(&mut self, now: SystemTime) -> impl Iterator<Item = (&K, &Sighting<D>)> {
        let order = &mut self.order;
        self.seen.retain(|_, entry| {
            let expired = now.duration_since(entry.sighting.last).is_ok_and(|idle| idle > KEPT);
            if expired {
                order.remove(entry.ticket);
            }
            !expired
        });
        self.seen.iter().map(|(key, entry)| (&**key, &entry.sighting))
    }

    /// Whether things of this party may have been pushed out by others.
    pub(super) fn has_lost(&self, party: u64) -> bool {
        self.all_may_have_lost || self.losers.contains(&party)
    }

    fn evict(&mut self) {
        let Some((key, party)) = self.order.evict_of() else { return };
        self.seen.remove(&key);
        if self.losers.len() < self.most {
            self.losers.insert(party);
        } else {
            self.all_may_have_lost = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn start() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000)
    }

    #[test]
    fn a_thing_is_kept_once_with_its_count() {
        let mut sightings = Sightings::new(10);
        for step in 0..3 {
            sightings.see(0, "a", start() + SECOND * step, |before| before.unwrap_or(0) + 1);
        }
        sightings.see(0, "b", start(), |_| 7);
        let mut all: Vec<_> = sightings.recent(start()).map(|(key, seen)| (*key, seen.clone())).collect();
        all.sort_by_key(|(key, _)| *key);
        let [(_, a), (_, b)] = &all[..] else { panic!("{all:?}") };
        assert_eq!((a.count, a.first, a.last, a.detail), (3, start(), start() + SECOND * 2, 3));
        assert_eq!((b.count, b.detail), (1, 7));
    }

    /// A million different things take no more room than the most that is kept, and only the party that they are of loses.
    #[test]
    fn a_flood_is_bounded_and_costs_no_other_party() {
        let mut sightings = Sightings::new(100);
        for quiet in 0..10_u64 {
            sightings.see(1, quiet, start(), |_| ());
        }
        for loud in 0..1_000_000 {
            sightings.see(2, 1000 + loud, start() + SECOND, |_| ());
        }
        assert_eq!((sightings.seen.len(), sightings.order.len()), (100, 100));
        assert!(sightings.seen.capacity() < 400, "{}", sightings.seen.capacity());
        let quiet = sightings.recent(start()).filter(|(key, _)| **key < 1000).count();
        assert_eq!(quiet, 10);
        assert_eq!([1, 2].map(|party| sightings.has_lost(party)), [false, true]);
    }

    #[test]
    fn what_is_seen_again_stays_and_what_is_not_expires() {
        let mut sightings = Sightings::new(2);
        for key in ["a", "b", "a", "c"] {
            sightings.see(0, key, start(), |_| ());
        }
        let mut keys: Vec<_> = sightings.recent(start()).map(|(key, _)| *key).collect();
        keys.sort_unstable();
        assert_eq!(keys, ["a", "c"]);
        sightings.see(0, "c", start() + KEPT, |_| ());
        let later: Vec<_> = sightings.recent(start() + KEPT + SECOND).map(|(key, _)| *key).collect();
        assert_eq!((later, sightings.order.len()), (vec!["c"], 1));
    }
}
