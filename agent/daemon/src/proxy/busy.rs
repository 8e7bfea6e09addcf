//! Busy polling: who has just passed on a message looks for what comes next, for some microseconds, before its thread sleeps. Waking
//! a thread whose processor has gone to sleep takes several times as long as the message does.
//!
//! Promises that one task of the agent at most looks at a time, that its processor is offered to others before each look, and that a
//! task whose looks bring nothing seldom looks: what looking costs is bounded by what it spares.

use std::{
    pin::pin,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    task::{Context, Poll},
    thread,
    time::{Duration, Instant},
};

use tokio::task::yield_now;

/// What is longer is no message but part of a stream. Its next part comes soon, and nobody waits for it.
const MESSAGE: u64 = 32 << 10;

/// What has passed the same way so many times in a row is a stream, however little it was each time.
const STREAM: u8 = 3;

/// After how many messages a task looks for the first time: who carries one request and its answer never does.
const FIRST: u16 = 4;

/// How many messages at most pass between two looks that bring nothing.
const SELDOM: u16 = 255;

/// How many messages of others between two of its own keep a task from looking: threads are awake then.
const COMPANY: u32 = 8;

/// How many messages pass before the next look where others compute.
const CROWDED: u16 = 1023;

/// For how long another thread takes it for granted that somebody looks.
const BEAT: Duration = Duration::from_millis(2);

/// What the tasks of an agent share.
#[derive(Debug, Default)]
pub(crate) struct BusyPoll {
    /// How long it is looked; zero is never.
    window: Duration,
    /// A task looks.
    taken: AtomicBool,
    /// Looks so far.
    looks: AtomicU32,
    /// Messages so far, of all tasks.
    messages: AtomicU32,
    /// Threads that stand aside.
    aside: Mutex<u32>,
    ended: Condvar,
}

impl BusyPoll {
    /// Each time for `window`, or never if that is zero.
    pub(crate) fn new(window: Duration) -> Arc<Self> {
        Arc::new(Self { window, ..Self::default() })
    }

    /// Keeps a thread of the runtime that has nothing to do from sleeping in its own way as long as a task on another thread looks:
    /// it would wait for the sockets' events in that one's place, and tokio would have it woken after each look, to see whether there
    /// is more to do. Whatever comes meanwhile, the thread of the task that looks does. To be called before a thread parks.
    pub(crate) fn stand_aside(&self) {
        if !self.taken.load(Ordering::Acquire) {
            return;
        }
        let mut aside = self.aside.lock().unwrap_or_else(PoisonError::into_inner);
        *aside += 1;
        while self.taken.load(Ordering::Acquire) {
            let looks = self.looks.load(Ordering::Relaxed);
            let waited = self.ended.wait_timeout(aside, BEAT);
            aside = waited.unwrap_or_else(PoisonError::into_inner).0;
            if self.looks.load(Ordering::Relaxed) == looks {
                // It does something that takes long. There may be more to do.
                break;
            }
        }
        *aside -= 1;
    }
}

/// One task's part in it.
#[derive(Debug)]
pub(super) struct Looks<'a> {
    busy: &'a BusyPoll,
    turn: Option<Turn<'a>>,
    /// Which way the last message went, and how many before it went the same way in a row.
    way: usize,
    row: u8,
    /// How many messages of all tasks there were with its last one.
    seen: u32,
    /// Messages to let pass.
    pass: u16,
    /// How many these were after the last look that brought nothing.
    pause: u16,
}

/// It looks. Another may when this is dropped.
#[derive(Debug)]
struct Turn<'a> {
    busy: &'a BusyPoll,
    since: Instant,
    looks: u32,
    /// How many messages there had been when it began.
    messages: u32,
}

impl<'a> Looks<'a> {
    pub(super) fn new(busy: &'a BusyPoll) -> Self {
        Self { busy, turn: None, way: 0, row: 0, seen: 0, pass: FIRST, pause: 0 }
    }

    /// Polls `work`, which has moved so many bytes each way by now as `moved` says. If it waits, it may be polled again as soon as the runtime
    /// has looked for events.
    pub(super) fn poll<W, T>(
        &mut self,
        cx: &mut Context<'_>,
        work: &mut W,
        moved: impl Fn(&W) -> [u64; 2],
        poll: impl FnOnce(&mut W, &mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let before = moved(work);
        let polled = poll(work, cx);
        if polled.is_pending() && !self.busy.window.is_zero() {
            let after = moved(work);
            let moved = [0, 1].map(|way| after[way] - before[way]);
            let looks = if moved == [0, 0] { self.goes_on() } else { self.begins(moved) };
            if looks {
                // Polled once, it has the task woken when the runtime has looked for events without waiting for any.
                let _: Poll<()> = pin!(yield_now()).poll(cx);
            } else {
                self.turn = None;
            }
        } else {
            self.turn = None;
        }
        polled
    }

    /// Whether to look for what comes after a message of so many bytes, one way or both.
    fn begins(&mut self, bytes: [u64; 2]) -> bool {
        let messages = self.busy.messages.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        if let Some(Turn { messages: before, looks, .. }) = self.turn {
            if messages != before.wrapping_add(1) {
                // Others have kept the threads awake.
                self.was_in_vain();
            } else if looks > 0 {
                self.pause /= 2;
            }
        }
        let company = messages.wrapping_sub(self.seen).wrapping_sub(1);
        self.seen = messages;
        let way = usize::from(bytes[1] > 0);
        let both = bytes[0] > 0 && bytes[1] > 0;
        self.row = if way == self.way && !both { self.row.saturating_add(1) } else { 0 };
        self.way = way;
        if self.row >= STREAM || bytes[0] + bytes[1] > MESSAGE {
            return false;
        }
        if self.pass > 0 {
            self.pass -= 1;
            return false;
        }
        if company >= COMPANY {
            return false;
        }
        match &mut self.turn {
            Some(turn) => (turn.since, turn.looks, turn.messages) = (Instant::now(), 0, messages),
            None if self.busy.taken.swap(true, Ordering::Acquire) => return false,
            turn => *turn = Some(Turn { busy: self.busy, since: Instant::now(), looks: 0, messages }),
        }
        true
    }

    /// Whether to look once more, as nothing has come.
    fn goes_on(&mut self) -> bool {
        let Some(turn) = &mut self.turn else { return false };
        turn.looks += 1;
        self.busy.looks.fetch_add(1, Ordering::Relaxed);
        // What others pass on keeps threads awake without that.
        if self.busy.messages.load(Ordering::Relaxed) == turn.messages {
            // Whoever has what this waits for may want its processor.
            let offered = turn.since.elapsed();
            thread::yield_now();
            let elapsed = turn.since.elapsed();
            if elapsed < self.busy.window {
                return true;
            }
            if elapsed - offered > self.busy.window / 2 {
                // Somebody computes. Who sleeps is woken before that is over, who offers it is not.
                (self.pause, self.pass) = (SELDOM, CROWDED);
                return false;
            }
        }
        self.was_in_vain();
        false
    }

    fn was_in_vain(&mut self) {
        self.pause = (self.pause * 2 + 1).min(SELDOM);
        self.pass = self.pause;
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let busy = self.busy;
        busy.taken.store(false, Ordering::SeqCst);
        if *busy.aside.lock().unwrap_or_else(PoisonError::into_inner) > 0 {
            busy.ended.notify_all();
        }
    }
}

#[cfg(test)]
mod tests;
