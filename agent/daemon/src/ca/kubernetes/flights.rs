//! Questions to the API server that are under way: whoever asks the same meanwhile gets the same answer, so that many who come at
//! once cost no more than one.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::OnceCell;

use crate::ca::refusal::Refusal;

type Answer<V> = Arc<OnceCell<Result<V, Refusal>>>;

/// What is asked now, by key.
#[derive(Debug)]
pub(super) struct Flights<K: Clone + Eq + Hash, V>(Mutex<HashMap<K, Answer<V>>>);

impl<K: Clone + Eq + Hash, V> Default for Flights<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Clone + Eq + Hash, V: Clone> Flights<K, V> {
    /// The answer to the question about `key`, and whether it was `ask` that brought it: another's may have been asked before
    /// this call.
    pub(super) async fn join<F>(&self, key: &K, ask: impl FnOnce() -> F) -> (Result<V, Refusal>, bool)
    where
        F: Future<Output = Result<V, Refusal>>,
    {
        let answer = self.under_way().entry(key.clone()).or_default().clone();
        let joined = Joined { flights: self, key, answer };
        let own = AtomicBool::new(false);
        let begin = || {
            own.store(true, Ordering::Relaxed);
            ask()
        };
        let answer = joined.answer.get_or_init(begin).await.clone();
        (answer, own.load(Ordering::Relaxed))
    }

    fn under_way(&self) -> MutexGuard<'_, HashMap<K, Answer<V>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One who waits for an answer.
struct Joined<'a, K: Clone + Eq + Hash, V: Clone> {
    flights: &'a Flights<K, V>,
    key: &'a K,
    answer: Answer<V>,
}

impl<K: Clone + Eq + Hash, V: Clone> Drop for Joined<'_, K, V> {
    fn drop(&mut self) {
        let mut under_way = self.flights.under_way();
        let same = under_way.get(self.key).is_some_and(|answer| Arc::ptr_eq(answer, &self.answer));
        // With the answer there, or with nobody left to wait for it, the next who asks begins anew.
        if same && (self.answer.initialized() || Arc::strong_count(&self.answer) <= 2) {
            under_way.remove(self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::atomic::AtomicUsize, time::Duration};

    use tokio::{task::JoinSet, time::sleep};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn those_who_come_meanwhile_get_the_same_answer_good_or_bad() {
        let (flights, asked) = (Arc::new(Flights::<u8, u8>::default()), Arc::new(AtomicUsize::new(0)));
        for (key, expected) in [(1, Ok(7)), (2, Err(Refusal::Rate))] {
            let mut waiting = JoinSet::new();
            for _ in 0..50 {
                let (flights, asked, expected) = (flights.clone(), asked.clone(), expected.clone());
                waiting.spawn(async move {
                    let ask = || async {
                        asked.fetch_add(1, Ordering::Relaxed);
                        sleep(Duration::from_secs(1)).await;
                        expected
                    };
                    flights.join(&key, ask).await
                });
            }
            let answers = waiting.join_all().await;
            assert!(answers.iter().all(|(answer, _)| *answer == expected));
            assert_eq!(answers.iter().filter(|(_, own)| *own).count(), 1);
        }
        assert_eq!(asked.load(Ordering::Relaxed), 2);
        assert_eq!(flights.join(&1, || async { Ok(8) }).await, (Ok(8), true), "an answer is not kept");
    }

    #[tokio::test(start_paused = true)]
    async fn one_who_gives_up_takes_nobody_with_him_and_leaves_nothing() {
        let flights = Arc::new(Flights::<u8, u8>::default());
        let slow = {
            let flights = flights.clone();
            tokio::spawn(async move { flights.join(&1, std::future::pending).await })
        };
        sleep(Duration::from_millis(1)).await;
        let other = {
            let flights = flights.clone();
            tokio::spawn(async move { flights.join(&1, || async { Ok(5) }).await })
        };
        sleep(Duration::from_millis(1)).await;
        slow.abort();
        assert_eq!(other.await.unwrap(), (Ok(5), true));
        let gone = tokio::time::timeout(Duration::from_secs(1), flights.join(&2, std::future::pending)).await;
        assert!(gone.is_err() && flights.under_way().is_empty());
    }
}
