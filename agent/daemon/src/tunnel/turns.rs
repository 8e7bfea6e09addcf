//! Turns at the processor for the steps of handshakes, which cost more than whoever asks for them: a few at a time, pod by pod, and
//! client by client within a pod, so that a flood of them waits behind itself.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{sync::oneshot, task::yield_now};

/// Steps under way at a time: enough to keep the workers busy.
const TURNS: usize = 8;

/// All turns of an agent.
#[derive(Debug)]
pub(super) struct Turns(Mutex<Queue>);

#[derive(Debug)]
struct Queue {
    free: usize,
    waiting: Ring<u64, Ring<IpAddr, VecDeque<oneshot::Sender<Turn>>>>,
}

impl Default for Turns {
    fn default() -> Self {
        Self(Mutex::new(Queue { free: TURNS, waiting: Ring::default() }))
    }
}

/// One turn; the next begins when it is dropped.
#[derive(Debug)]
pub(super) struct Turn(Option<Arc<Turns>>);

impl Turns {
    /// The next turn of `pod` for `party`. Lets everyone else who is ready ask for theirs before it begins.
    pub(super) async fn next(self: &Arc<Self>, pod: u64, party: IpAddr) -> Turn {
        let waiting = {
            let mut queue = self.queue();
            if queue.free > 0 {
                queue.free -= 1;
                None
            } else {
                let (turn, waiting) = oneshot::channel();
                queue.waiting.of(pod).of(party).push_back(turn);
                Some(waiting)
            }
        };
        match waiting {
            None => {
                let turn = Turn(Some(self.clone()));
                yield_now().await;
                turn
            }
            // The sender lives in the queue until it is used.
            Some(waiting) => waiting.await.unwrap_or(Turn(None)),
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(turns) = self.0.take() else { return };
        loop {
            let next = {
                let mut queue = turns.queue();
                match queue.waiting.pop() {
                    Some(next) => next,
                    None => {
                        queue.free += 1;
                        return;
                    }
                }
            };
            match next.send(Turn(Some(turns.clone()))) {
                Ok(()) => return,
                // Who waited is gone.
                Err(mut turn) => drop(turn.0.take()),
            }
        }
    }
}

/// Something that things are taken out of, one at a time.
trait Line: Default {
    type Item;

    fn pop(&mut self) -> Option<Self::Item>;
    fn is_empty(&self) -> bool;
}

impl<T> Line for VecDeque<T> {
    type Item = T;

    fn pop(&mut self) -> Option<T> {
        self.pop_front()
    }

    fn is_empty(&self) -> bool {
        self.is_empty()
    }
}

/// Lines that take turns.
#[derive(Debug)]
struct Ring<K, L> {
    order: VecDeque<K>,
    lines: HashMap<K, L>,
}

impl<K, L> Default for Ring<K, L> {
    fn default() -> Self {
        Self { order: VecDeque::new(), lines: HashMap::new() }
    }
}

impl<K: Copy + Eq + Hash, L: Line> Ring<K, L> {
    fn of(&mut self, key: K) -> &mut L {
        self.lines.entry(key).or_insert_with(|| {
            self.order.push_back(key);
            L::default()
        })
    }
}

impl<K: Copy + Eq + Hash, L: Line> Line for Ring<K, L> {
    type Item = L::Item;

    fn pop(&mut self) -> Option<L::Item> {
        let key = self.order.pop_front()?;
        let line = self.lines.get_mut(&key)?;
        let item = line.pop();
        if line.is_empty() {
            self.lines.remove(&key);
        } else {
            self.order.push_back(key);
        }
        item
    }

    fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    fn client(last: u8) -> IpAddr {
        IpAddr::from([198, 18, 1, last])
    }

    /// Which pod and client got each turn, when all of these asked for one at once.
    async fn order(asking: Vec<(u64, u8)>) -> Vec<(u64, u8)> {
        let turns = Arc::new(Turns::default());
        let held: Vec<_> = futures(&turns, TURNS).await;
        let had = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for (pod, last) in asking {
            let (turns, had) = (turns.clone(), had.clone());
            tasks.push(tokio::spawn(async move {
                let _turn = turns.next(pod, client(last)).await;
                had.lock().unwrap().push((pod, last));
            }));
            yield_now().await;
        }
        let mut held = held.into_iter();
        // One turn goes round.
        drop(held.next());
        for task in tasks {
            timeout(Duration::from_secs(5), task).await.expect("in time").unwrap();
        }
        drop(held);
        assert_eq!(turns.queue().free, TURNS, "all turns have come back");
        std::mem::take(&mut *had.lock().unwrap())
    }

    async fn futures(turns: &Arc<Turns>, count: usize) -> Vec<Turn> {
        let mut held = Vec::new();
        for _ in 0..count {
            held.push(turns.next(0, client(0)).await);
        }
        held
    }

    #[tokio::test]
    async fn pods_take_turns_and_so_do_clients_of_a_pod() {
        let mut asking = vec![(1, 1); 6];
        asking.extend([(1, 2), (2, 1), (3, 1)]);
        let had = order(asking).await;
        let expected = [(1, 1), (2, 1), (3, 1), (1, 2), (1, 1), (1, 1), (1, 1), (1, 1), (1, 1)];
        assert_eq!(had, expected);
    }

    #[tokio::test]
    async fn who_gives_up_waiting_costs_nobody_a_turn() {
        let turns = Arc::new(Turns::default());
        let mut held = futures(&turns, TURNS).await;
        for _ in 0..5 {
            let waiting = turns.next(1, client(1));
            assert!(timeout(Duration::from_millis(1), waiting).await.is_err(), "there is none");
        }
        let last = tokio::spawn({
            let turns = turns.clone();
            async move { turns.next(1, client(1)).await }
        });
        yield_now().await;
        held.pop();
        let turn = timeout(Duration::from_secs(5), last).await.expect("in time").unwrap();
        drop((turn, held));
        assert_eq!(turns.queue().free, TURNS);
    }
}
