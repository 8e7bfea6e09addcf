//! Those who wait, by the party that they belong to. Finds whom to send away when there are too many: the one that has
//! waited longest of the party that has the most, so that a flood pays for itself. Every step takes logarithmic time.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::Hash,
};

/// The waiting, each with a value of the caller's.
#[derive(Clone, Debug)]
pub struct Crowd<K, T> {
    parties: HashMap<K, BTreeMap<u64, T>>,
    by_weight: BTreeSet<Weight<K>>,
    next: u64,
    len: usize,
}

/// How a party stands: the last in order goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Weight<K> {
    waiting: usize,
    oldest: Reverse<u64>,
    party: K,
}

/// A place in the crowd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket<K> {
    party: K,
    number: u64,
}

impl<K, T> Default for Crowd<K, T> {
    fn default() -> Self {
        Self { parties: HashMap::new(), by_weight: BTreeSet::new(), next: 0, len: 0 }
    }
}

impl<K: Copy + Ord + Hash, T> Crowd<K, T> {
    /// Adds one of `party`.
    pub fn insert(&mut self, party: K, value: T) -> Ticket<K> {
        let number = self.next;
        self.next += 1;
        self.change(party, |waiting| waiting.insert(number, value));
        self.len += 1;
        Ticket { party, number }
    }

    /// Takes it out; `None` if it has been evicted.
    pub fn remove(&mut self, ticket: Ticket<K>) -> Option<T> {
        let removed = self.change(ticket.party, |waiting| waiting.remove(&ticket.number))?;
        self.len -= 1;
        Some(removed)
    }

    /// Takes out the one that has waited longest of the party that has the most; of parties that have equally many, of the
    /// one whose first has waited longest.
    pub fn evict(&mut self) -> Option<T> {
        self.evict_of().map(|(value, _)| value)
    }

    /// As [`evict`](Self::evict), with the party.
    pub fn evict_of(&mut self) -> Option<(T, K)> {
        let Weight { party, oldest: Reverse(number), .. } = *self.by_weight.last()?;
        Some((self.remove(Ticket { party, number })?, party))
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn change<R>(&mut self, party: K, step: impl FnOnce(&mut BTreeMap<u64, T>) -> R) -> R {
        let waiting = self.parties.entry(party).or_default();
        if let Some(weight) = Weight::of(party, waiting) {
            self.by_weight.remove(&weight);
        }
        let result = step(waiting);
        match Weight::of(party, waiting) {
            Some(weight) => {
                self.by_weight.insert(weight);
            }
            None => {
                self.parties.remove(&party);
            }
        }
        result
    }
}

impl<K> Weight<K> {
    fn of<T>(party: K, waiting: &BTreeMap<u64, T>) -> Option<Self> {
        let (oldest, _) = waiting.first_key_value()?;
        Some(Self { waiting: waiting.len(), oldest: Reverse(*oldest), party })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_heaviest_party_loses_its_oldest() {
        let mut crowd = Crowd::default();
        for (party, value) in [("a", 1), ("b", 2), ("b", 3), ("c", 4), ("b", 5), ("a", 6)] {
            crowd.insert(party, value);
        }
        let evicted: Vec<_> = std::iter::from_fn(|| crowd.evict()).collect();
        // b has three, then a and b two each, and a has the one that has waited longest.
        assert_eq!(evicted, [2, 1, 3, 4, 5, 6]);
        assert!(crowd.is_empty());
    }

    #[test]
    fn a_flood_of_one_never_costs_another() {
        let mut crowd = Crowd::default();
        let quiet: Vec<_> = (0..3).map(|n| crowd.insert("quiet", n)).collect();
        for n in 0..10_000 {
            crowd.insert("loud", n);
            if crowd.len() > 100 {
                assert!(crowd.evict().is_some());
            }
        }
        assert_eq!(crowd.len(), 100);
        let kept: Vec<_> = quiet.into_iter().filter_map(|ticket| crowd.remove(ticket)).collect();
        assert_eq!(kept, [0, 1, 2]);
    }

    #[test]
    fn many_parties_of_one_each_lose_the_one_that_has_waited_longest() {
        let mut crowd = Crowd::default();
        let first = crowd.insert(0, 0);
        for party in 1..10 {
            crowd.insert(party, party);
        }
        assert_eq!(crowd.evict(), Some(0));
        assert_eq!(crowd.remove(first), None, "it is gone already");
        assert_eq!((crowd.evict(), crowd.len()), (Some(1), 8));
    }

    #[test]
    fn what_left_by_itself_leaves_nothing_behind() {
        let mut crowd = Crowd::default();
        for n in 0..1000_u32 {
            let ticket = crowd.insert(n, n);
            assert_eq!(crowd.remove(ticket), Some(n));
        }
        assert!(crowd.is_empty() && crowd.parties.is_empty() && crowd.by_weight.is_empty());
        assert_eq!(crowd.evict(), None);
    }
}
