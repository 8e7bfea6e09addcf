use std::{sync::atomic::AtomicUsize, task::Waker};

use super::*;

#[derive(Default)]
struct Woken(AtomicUsize);

impl std::task::Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A direction that takes buffers, and how often it was woken.
#[derive(Default)]
struct Taker {
    woken: Arc<Woken>,
    waiting: Waiting,
}

impl Taker {
    fn take(&mut self, share: &Arc<Share>) -> Option<Buffer> {
        let waker = Waker::from(self.woken.clone());
        match share.poll_take(&Context::from_waker(&waker), &mut self.waiting) {
            Poll::Ready(buffer) => Some(buffer),
            Poll::Pending => None,
        }
    }

    fn woken(&self) -> usize {
        self.woken.0.load(Ordering::SeqCst)
    }
}

fn budget(agent: usize, pod: usize, full: usize) -> Budget {
    Budget::limited(Limits { agent, pod, full, reserve: 0 })
}

fn all(share: &Arc<Share>) -> Vec<Buffer> {
    std::iter::from_fn(|| share.try_take()).collect()
}

#[test]
fn a_pod_that_holds_much_gets_small_buffers_and_then_waits() {
    let budget = budget(100 * FULL, FULL + 2 * SMALL, FULL);
    let share = budget.share(&Arc::from("a"));
    let held = all(&share);
    assert_eq!(held.iter().map(|buffer| buffer.len()).collect::<Vec<_>>(), [FULL, SMALL, SMALL]);
    let mut waits = Taker::default();
    assert!(waits.take(&share).is_none());
    // Another pod has a share of its own.
    assert_eq!(budget.share(&Arc::from("b")).try_take().unwrap().len(), FULL);
    assert_eq!(waits.woken(), 0, "what another pod does is no news");
    drop(held);
    assert!(waits.woken() > 0, "it is told that there is room again");
    assert_eq!(waits.take(&share).unwrap().len(), FULL);
    assert_eq!((share.used(), budget.agent.used.load(Ordering::SeqCst)), (0, 0));
}

#[test]
fn a_buffer_that_comes_back_wakes_one_of_a_crowd() {
    let budget = budget(100 * SMALL, 10 * SMALL, 0);
    let share = budget.share(&Arc::from("a"));
    let mut held = all(&share);
    assert_eq!(held.len(), 10);
    let mut crowd: Vec<Taker> = (0..1000).map(|_| Taker::default()).collect();
    for taker in &mut crowd {
        assert!(taker.take(&share).is_none());
        assert!(taker.take(&share).is_none(), "asked again, it keeps its place");
    }
    held.pop();
    let woken = |crowd: &[Taker]| crowd.iter().map(Taker::woken).sum::<usize>();
    assert_eq!((woken(&crowd), crowd[0].woken()), (1, 1), "the first in line");
    // It is gone without having taken what it was called for: the next one is called.
    crowd.remove(0);
    assert_eq!((woken(&crowd), crowd[0].woken()), (1, 1));
    held.extend(crowd[0].take(&share));
    assert_eq!(held.len(), 10);
    // Some leave the line before their turn.
    crowd.drain(1..500);
    held.pop();
    assert_eq!((woken(&crowd), crowd[1].woken()), (2, 1));
}

#[test]
fn everybody_of_a_crowd_gets_a_buffer_in_the_end() {
    let budget = budget(100 * SMALL, 4 * SMALL, 0);
    let share = budget.share(&Arc::from("a"));
    let held = all(&share);
    let mut crowd: Vec<Taker> = (0..100).map(|_| Taker::default()).collect();
    assert!(crowd.iter_mut().all(|taker| taker.take(&share).is_none()));
    drop(held);
    for round in 0..100 {
        let called = crowd.iter().position(|taker| taker.woken() > 0);
        let Some(called) = called else { panic!("nobody was called in round {round}") };
        let mut taker = crowd.remove(called);
        drop(taker.take(&share).expect("there is room"));
    }
    assert_eq!(share.used(), 0);
}

#[test]
fn hostile_pods_that_give_nothing_back_leave_room_for_the_next() {
    let budget = Budget::limited(LIMITS);
    let held: Vec<_> = (0..20).map(|pod| all(&budget.share(&format!("hostile-{pod}").into()))).collect();
    let all_used = budget.agent.used.load(Ordering::SeqCst);
    assert!(all_used <= LIMITS.agent + held.len() * LIMITS.reserve, "{all_used}");
    let share = budget.share(&Arc::from("late"));
    let reserve = LIMITS.reserve / SMALL;
    let late: Vec<_> = (0..reserve).map_while(|_| share.try_take()).collect();
    assert_eq!(late.len(), reserve, "whatever others hold");
}

#[test]
fn a_pod_that_waits_for_others_is_called_when_they_give_back() {
    let budget = budget(4 * SMALL, 4 * SMALL, 0);
    let [a, b] = ["a", "b"].map(|pod| budget.share(&Arc::from(pod)));
    let held = (all(&a), all(&b));
    assert_eq!((held.0.len(), held.1.len()), (2, 1), "as much as is free");
    let mut waits = Taker::default();
    assert!(waits.take(&b).is_none());
    drop(held.0);
    assert_eq!(waits.woken(), 1);
    assert!(waits.take(&b).is_some());
}

#[test]
fn a_wait_for_what_cannot_be_had_does_not_spin() {
    let budget = budget(2 * SMALL, 4 * SMALL, 0);
    let [a, b] = ["a", "b"].map(|pod| budget.share(&Arc::from(pod)));
    let _held = (all(&a), all(&b));
    let mut crowd: Vec<Taker> = (0..10).map(|_| Taker::default()).collect();
    assert!(crowd.iter_mut().all(|taker| taker.take(&b).is_none()));
    assert!(crowd.iter_mut().all(|taker| taker.take(&b).is_none()));
    assert_eq!(crowd.iter().map(Taker::woken).sum::<usize>(), 0, "nobody is woken by others that fail");
}

#[test]
fn a_thousand_stuck_directions_hold_less_than_26_megabytes() {
    let share = Share::alone();
    let _held: Vec<_> = (0..1000).map(|_| share.try_take().unwrap()).collect();
    assert!(share.used() < 26 << 20, "{}", share.used());
}

#[test]
fn an_agent_with_little_memory_has_few_buffers() {
    assert_eq!(Limits::within(1 << 30), LIMITS);
    assert_eq!(Limits::within(64 << 30), LIMITS);
    let small = Limits::within(128 << 20);
    assert_eq!((small.agent, small.pod, small.full), (32 << 20, 8 << 20, 5 << 19));
}

#[test]
fn spare_buffers_are_given_back_when_they_are_called_in() {
    let share = Share::alone();
    let spare = || SPARE.with_borrow(|spare| spare.iter().map(Vec::len).sum::<usize>());
    drop(share.try_take().unwrap());
    drop(share.try_take_small().unwrap());
    assert_eq!(spare(), 2);
    call_in_spares();
    give_back_spares();
    assert_eq!(spare(), 0);
}
