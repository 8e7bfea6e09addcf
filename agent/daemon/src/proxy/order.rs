//! Keeps the connections of one client to one server in the order in which the client made them, as the network would:
//! iperf3 gives its connections their parts by the order in which they come, and without this fails on a busy machine (two runs
//! of six; of `load::iperf3_runs_clean_every_way`). Connections are numbered where they are accepted; where they are delivered,
//! each waits a moment for the ones before it.

use std::{
    collections::HashMap,
    hash::Hash,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, task::yield_now, time::timeout};

use crate::tunnel::Order;

/// How long a connection waits for those before it. What takes longer is not in a hurry.
const PATIENCE: Duration = Duration::from_millis(25);
/// How often those who are ready get their turns before one that has to wait sets a timer, which may wake a thread: mostly those
/// before it are among them.
const YIELDS: u32 = 4;
/// Pairs of client and server that are kept in order at a time.
const PAIRS: usize = 8192;
/// Numbers up to which an unknown pair is taken to begin at 0: its first connections may arrive in disorder.
const FIRST: u64 = 64;

/// Numbers connections per destination, in one place.
#[derive(Debug)]
pub(super) struct Numbers<K> {
    epoch: u64,
    next: HashMap<K, u64>,
}

impl<K: Eq + Hash> Numbers<K> {
    pub(super) fn new() -> Self {
        Self { epoch: rand::random(), next: HashMap::new() }
    }

    /// The place of one more connection to `key`.
    pub(super) fn next(&mut self, key: K) -> Order {
        if self.next.len() >= PAIRS {
            *self = Self::new();
        }
        let next = self.next.entry(key).or_default();
        let number = *next;
        *next += 1;
        Order { epoch: self.epoch, number }
    }
}

/// The connections that arrive for one pod.
#[derive(Debug, Default)]
pub(super) struct Arrivals(Mutex<HashMap<Pair, watch::Sender<u64>>>);

/// A client, by where its connections were numbered, and a port of the pod.
type Pair = (IpAddr, u64, u16);

impl Arrivals {
    /// The place in the row of one connection from `client` to `port`.
    pub(super) fn turn(&self, client: IpAddr, port: u16, order: Order) -> Turn {
        // A panic cannot leave the map half changed.
        let mut pairs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if pairs.len() >= PAIRS {
            pairs.retain(|_, next| next.sender_count() > 1);
            if pairs.len() >= PAIRS {
                pairs.clear();
            }
        }
        let next = pairs
            .entry((client, order.epoch, port))
            .or_insert_with(|| watch::Sender::new(if order.number <= FIRST { 0 } else { order.number }));
        Turn { next: next.clone(), number: order.number }
    }
}

/// A place in the row. Dropping it lets the next one pass.
#[derive(Debug)]
pub(super) struct Turn {
    next: watch::Sender<u64>,
    number: u64,
}

impl Turn {
    /// Waits until all before it have had theirs, but not for long.
    pub(super) async fn wait(&self) {
        for _ in 0..YIELDS {
            if self.has_come() {
                return;
            }
            yield_now().await;
        }
        if !self.has_come() {
            let mut next = self.next.subscribe();
            // Too late, or all senders gone: either way there is nothing to wait for any more.
            let _ = timeout(PATIENCE, next.wait_for(|next| *next >= self.number)).await;
        }
    }

    fn has_come(&self) -> bool {
        *self.next.borrow() >= self.number
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.next.send_if_modified(|next| {
            let passed = *next <= self.number;
            if passed {
                *next = self.number + 1;
            }
            passed
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::time::Instant;

    use super::*;

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 18, 1, 2));

    #[tokio::test(start_paused = true)]
    async fn connections_pass_in_the_order_of_their_numbers() {
        let arrivals = Arrivals::default();
        let passed = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for number in [3, 0, 2, 1, 4] {
            let turn = arrivals.turn(CLIENT, 80, Order { epoch: 7, number });
            let passed = passed.clone();
            tasks.push(tokio::spawn(async move {
                turn.wait().await;
                passed.lock().unwrap().push(number);
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*passed.lock().unwrap(), [0, 1, 2, 3, 4]);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_long_for_one_that_never_comes() {
        let arrivals = Arrivals::default();
        let started = Instant::now();
        let turn = arrivals.turn(CLIENT, 80, Order { epoch: 7, number: 5 });
        turn.wait().await;
        assert_eq!(started.elapsed(), PATIENCE);
        drop(turn);
        // What comes late, and what comes next, passes at once.
        for number in [2, 6] {
            arrivals.turn(CLIENT, 80, Order { epoch: 7, number }).wait().await;
        }
        assert_eq!(started.elapsed(), PATIENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn other_pairs_and_later_numbers_of_unknown_ones_do_not_wait() {
        let arrivals = Arrivals::default();
        let started = Instant::now();
        let _waits = arrivals.turn(CLIENT, 80, Order { epoch: 7, number: 0 });
        arrivals.turn(CLIENT, 81, Order { epoch: 7, number: 0 }).wait().await;
        arrivals.turn(CLIENT, 80, Order { epoch: 8, number: 1000 }).wait().await;
        assert_eq!(started.elapsed(), Duration::ZERO);
    }

    #[test]
    fn numbers_count_per_destination() {
        let mut numbers = Numbers::new();
        let order: Vec<u64> = ["a", "a", "b", "a"].map(|key| numbers.next(key).number).to_vec();
        assert_eq!(order, [0, 1, 0, 2]);
    }
}
