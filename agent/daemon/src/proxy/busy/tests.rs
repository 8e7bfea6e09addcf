use std::{
    sync::atomic::AtomicU32,
    task::{Wake, Waker},
    thread,
};

use super::*;

/// Never over in a test, and always.
const LONG: Duration = Duration::from_secs(3600);
const NONE: Duration = Duration::from_nanos(1);

#[derive(Default)]
struct Woken(AtomicU32);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Has `looks` told that so many bytes have moved, both ways; answers whether the task is polled again by itself.
fn moved(looks: &mut Looks<'_>, bytes: u64) -> bool {
    moved_so(looks, [bytes.min(1), bytes.saturating_sub(1)])
}

fn moved_so(looks: &mut Looks<'_>, bytes: [u64; 2]) -> bool {
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(woken.clone());
    let wait = |total: &mut [u64; 2], _: &mut Context<'_>| {
        *total = bytes;
        Poll::<()>::Pending
    };
    let polled = looks.poll(&mut Context::from_waker(&waker), &mut [0; 2], |total| *total, wait);
    assert!(polled.is_pending());
    woken.0.load(Ordering::Relaxed) > 0
}

fn ended(looks: &mut Looks<'_>) {
    let ended = looks.poll(
        &mut Context::from_waker(Waker::noop()),
        &mut [0; 2],
        |total| *total,
        |_, _| Poll::Ready(()),
    );
    assert!(ended.is_ready());
}

/// With those messages passed that nobody looks behind.
fn warm(busy: &BusyPoll) -> Looks<'_> {
    let mut looks = Looks::new(busy);
    for _ in 0..FIRST {
        assert!(!moved(&mut looks, 100));
    }
    looks
}

#[test]
fn who_has_passed_on_a_message_looks_until_there_is_another() {
    let busy = BusyPoll::new(LONG);
    let mut looks = warm(&busy);
    for _ in 0..100 {
        assert!(moved(&mut looks, 100), "behind a message");
        assert!((0..10).all(|_| moved(&mut looks, 0)), "nothing has come yet");
    }
    assert!(!moved(&mut looks, MESSAGE + 1), "behind part of a stream");
    assert!(!moved(&mut looks, 0));
}

#[test]
fn who_looks_in_vain_seldom_looks() {
    let busy = BusyPoll::new(LONG);
    let mut looks = warm(&busy);
    let mut pauses = Vec::new();
    for _ in 0..11 {
        let mut passed = 0;
        while !moved(&mut looks, 100) {
            passed += 1;
        }
        looks.was_in_vain();
        looks.turn = None;
        pauses.push(passed);
    }
    assert_eq!(pauses, [0, 1, 3, 7, 15, 31, 63, 127, 255, 255, 255]);
}

#[test]
fn who_finds_the_next_message_always_looks_and_who_has_company_seldom() {
    let busy = BusyPoll::new(LONG);
    let (mut one, mut other) = (warm(&busy), warm(&busy));
    assert!((0..1000).all(|_| moved(&mut one, 100)), "there at the first look, each time");
    let looked = (0..1000).filter(|_| moved(&mut one, 100) | moved(&mut other, 100)).count();
    assert!(looked < 40, "{looked} of 1000");
}

#[test]
fn nobody_looks_behind_pieces_that_all_go_the_same_way() {
    let busy = BusyPoll::new(LONG);
    let mut looks = warm(&busy);
    let pieces: Vec<bool> = (0..6).map(|_| moved_so(&mut looks, [100, 0])).collect();
    assert_eq!(pieces, [true, true, true, false, false, false]);
    assert!(moved_so(&mut looks, [0, 100]), "an answer");
    assert!(moved_so(&mut looks, [100, 0]), "and the next request");
}

#[test]
fn one_looks_at_a_time() {
    let busy = BusyPoll::new(LONG);
    let (mut one, mut other) = (warm(&busy), warm(&busy));
    assert!(moved(&mut one, 100));
    assert!(!moved(&mut other, 100));
    ended(&mut one);
    assert!(moved(&mut other, 100));
    drop(other);
    assert!(!busy.taken.load(Ordering::Relaxed));
}

#[test]
fn who_is_not_alone_looks_no_more() {
    let busy = BusyPoll::new(LONG);
    let (mut one, mut other) = (warm(&busy), warm(&busy));
    assert!(moved(&mut one, 100) && moved(&mut one, 0));
    assert!(!moved(&mut other, 100), "the turn is taken");
    assert!(!moved(&mut one, 0), "somebody else has something to do");
}

#[test]
fn who_has_given_its_time_to_somebody_else_lets_many_pass() {
    let busy = BusyPoll::new(NONE);
    let mut looks = warm(&busy);
    assert!(moved(&mut looks, 100));
    assert!(!moved(&mut looks, 0), "all of the time went by while others had the processor");
    assert!((0..CROWDED).all(|_| !moved(&mut looks, 100)));
    assert!(moved(&mut looks, 100));
}

#[test]
fn nobody_looks_where_that_is_off() {
    let busy = BusyPoll::default();
    let mut looks = warm(&busy);
    assert!((0..100).all(|_| !moved(&mut looks, 100)));
}

#[test]
fn other_threads_stand_aside_until_nobody_looks() {
    let busy = BusyPoll::new(LONG);
    // Nobody looks: it comes back.
    busy.stand_aside();
    let mut looks = warm(&busy);
    assert!(moved(&mut looks, 100));
    // Somebody has, and does something else now: it comes back.
    busy.stand_aside();
    let parked = busy.clone();
    let other = thread::spawn(move || {
        let mut times = 0;
        while parked.taken.load(Ordering::Relaxed) {
            parked.stand_aside();
            times += 1;
        }
        times
    });
    let begun = Instant::now();
    while begun.elapsed() < 20 * BEAT {
        assert!(moved(&mut looks, 0));
    }
    ended(&mut looks);
    // It has waited for a beat at least whenever it came back, as it does where the one that looks is kept from it.
    let (times, longest) = (other.join().unwrap(), begun.elapsed().as_millis() / BEAT.as_millis() + 2);
    assert!(times <= longest, "{times} times");
    assert_eq!(*busy.aside.lock().unwrap(), 0);
}
