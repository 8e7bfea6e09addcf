//! How short of memory the agent is. Most of what it could hold is bounded beforehand; what the kernel keeps in its sockets is not
//! known before it is there. So all that this process uses is watched. When it comes close to the limit, socket buffers are cut, of
//! connections that live as well. When that is not enough, no more connections are taken but the few that every pod may have, and
//! the pod whose connections hold most loses some of those that are stuck: the whole agent would go otherwise.

use std::{mem, sync::Arc, time::Duration};

use ambit_core::reason::{Reason, Refusal};
use tokio::{
    net::TcpStream,
    select,
    task::yield_now,
    time::{Instant, sleep, sleep_until, timeout_at},
};

use super::{
    Shared,
    admission::SMALLEST_BUFFER,
    relay::{ANSWER, Meter, Relay},
    settled::Settled,
};
use crate::{
    capture::{Dial, bound_buffers},
    http::Stuck,
    instance::MemoryUse,
    tunnel::{Leg, LegError},
};

/// How often it is looked: the agent can fill a few dozen megabytes in that time.
const EACH: Duration = Duration::from_millis(50);
/// Percent of the limit from which memory is short, or scarce, and below which it is neither.
const SHORT: u64 = 70;
const SCARCE: u64 = 85;
const ENOUGH: u64 = 60;

/// Of how many connections that are stuck one is given up at a time.
const ONE_OF: u32 = 4;

/// What is to be done about memory.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    pub(super) pressure: Pressure,
    /// The pod that is to hold less, whenever it is said anew.
    heaviest: Option<Arc<str>>,
}

/// How much memory is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Pressure {
    /// Enough.
    #[default]
    None,
    /// Little: socket buffers are cut.
    Short,
    /// Very little: connections are refused.
    Scarce,
}

impl Pressure {
    /// What it is with so many percent used.
    fn after(self, percent: u64) -> Self {
        match percent {
            SCARCE.. => Self::Scarce,
            SHORT.. => Self::Short,
            ENOUGH.. => self.min(Self::Short),
            _ => Self::None,
        }
    }
}

/// Why a relay has ended early.
#[derive(Debug)]
pub(super) enum Broken {
    /// One of its ends failed.
    Leg(LegError),
    /// It held memory that the agent needs.
    GivenUp(Refusal),
}

impl Shared {
    /// Follows what `memory` is used, for ever.
    pub(super) async fn follow_memory(&self, memory: MemoryUse) {
        loop {
            let before = self.memory.borrow().pressure;
            let now = memory.percent().map_or(before, |percent| before.after(percent));
            if now != before {
                match now {
                    Pressure::None => tracing::info!("there is enough memory again"),
                    Pressure::Short => {
                        tracing::warn!("memory is short: socket buffers are cut; consider a higher limit");
                    }
                    Pressure::Scarce => {
                        tracing::warn!("memory is scarce: connections are refused, and stuck ones given up");
                    }
                }
            }
            if now != before || now == Pressure::Scarce {
                let heaviest = (now == Pressure::Scarce).then(|| self.budget.heaviest()).flatten();
                self.memory.send_replace(State { pressure: now, heaviest });
            }
            sleep(EACH).await;
        }
    }

    /// Relays for `pod` until both directions have ended, with as little memory as there is, and waiting for the other end as
    /// long as the application does. With the first look at it the connection has `settled`.
    pub(super) async fn relay<L: Leg>(
        &self,
        pod: &impl Dial,
        relay: &mut Relay<L>,
        meter: &impl Meter,
        settled: &Settled,
    ) -> Result<(), Broken> {
        // What it was born with is known already.
        let mut cut = self.memory.borrow().pressure > Pressure::None;
        let mut looks = Looks::new(Instant::now());
        if let Ok(ended) = timeout_at(looks.next, relay.begin(meter)).await {
            return ended.map_err(Broken::Leg);
        }
        looks.look(pod, relay);
        settled.set();
        // Those who wait for that have a look of their own.
        yield_now().await;
        let mut memory = self.memory.subscribe();
        memory.mark_changed();
        loop {
            select! {
                biased;
                ended = relay.run(meter) => {
                    Box::pin(relay.end_patience(&ended)).await;
                    return ended.map_err(Broken::Leg);
                }
                // The sender lives as long as `self`.
                _ = memory.changed() => {}
                () = Box::pin(sleep_until(looks.next)) => {
                    looks.look(pod, relay);
                    continue;
                }
            }
            let State { pressure, heaviest } = memory.borrow_and_update().clone();
            if pressure > Pressure::None && !cut {
                relay.bound_buffers(SMALLEST_BUFFER);
                cut = true;
            }
            if heaviest.is_some_and(|heaviest| heaviest == *pod.uid())
                && relay.is_stuck()
                && rand::random_ratio(1, ONE_OF)
            {
                let text = "the agent has hardly any memory left, and this connection is stuck";
                return Err(Broken::GivenUp(Refusal::new(Reason::Overloaded, text)));
            }
        }
    }
    /// Cuts the buffers of a connection whose requests are parsed while memory is short, and waits for the client as long as the
    /// application does. Ends when it has to be given up.
    pub(super) async fn until_given_up(
        &self,
        pod: &impl Dial,
        app: &TcpStream,
        client: &TcpStream,
        stuck: &Stuck,
    ) -> Refusal {
        let mut memory = self.memory.subscribe();
        let mut cut = memory.borrow_and_update().pressure > Pressure::None;
        let mut looks = Looks::new(Instant::now());
        loop {
            select! {
                // The sender lives as long as `self`.
                _ = memory.changed() => {}
                () = Box::pin(sleep_until(looks.next)) => {
                    if let Some(patience) = pod.patience(app) {
                        // It fails only for what is no socket.
                        let _ = patience.set_on(client);
                    }
                    looks.looked(0);
                    continue;
                }
            }
            let State { pressure, heaviest } = memory.borrow_and_update().clone();
            if pressure > Pressure::None && !cut {
                bound_buffers(app, Some(SMALLEST_BUFFER));
                bound_buffers(client, Some(SMALLEST_BUFFER));
                cut = true;
            }
            if heaviest.is_some_and(|heaviest| heaviest == *pod.uid())
                && stuck.is()
                && rand::random_ratio(1, ONE_OF)
            {
                let text = "the agent has hardly any memory left, and this connection is stuck";
                return Refusal::new(Reason::Overloaded, text);
            }
        }
    }
}

/// When it is looked next how long an application waits for the other end: soon after the connection stands, as such things are
/// set then, and the more seldom the longer nothing passes.
struct Looks {
    next: Instant,
    pause: Duration,
    moved: u64,
    first: bool,
}

/// As soon as an answer that is held goes out.
const FIRST_LOOK: Duration = ANSWER;
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(64)];

impl Looks {
    fn new(now: Instant) -> Self {
        Self { next: now + FIRST_LOOK, pause: PAUSES[0], moved: 0, first: true }
    }

    /// Has a look at `relay`.
    fn look<L: Leg>(&mut self, pod: &impl Dial, relay: &mut Relay<L>) {
        relay.adopt_patience(pod);
        if self.looked(relay.moved()) {
            relay.rest();
        }
    }

    /// Answers whether it is to rest: nothing has passed since the look before, or this is the first. What is big and was needed
    /// to begin should not lie about for longer between what stays, and having it made once more costs less than a message.
    fn looked(&mut self, moved: u64) -> bool {
        let rests = moved == self.moved;
        self.pause = if rests { (self.pause * 2).min(PAUSES[1]) } else { PAUSES[0] };
        self.moved = moved;
        self.next += self.pause;
        rests | mem::take(&mut self.first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_nothing_passes_through_rests() {
        let mut looks = Looks::new(Instant::now());
        assert_eq!([5, 5, 5, 6, 6].map(|moved| looks.looked(moved)), [true, true, true, false, true]);
    }

    #[test]
    fn it_does_not_flap() {
        let steps =
            [(10, Pressure::None), (69, Pressure::None), (70, Pressure::Short), (65, Pressure::Short)];
        let more =
            [(85, Pressure::Scarce), (84, Pressure::Short), (60, Pressure::Short), (59, Pressure::None)];
        let mut pressure = Pressure::None;
        for (percent, expected) in steps.into_iter().chain(more) {
            pressure = pressure.after(percent);
            assert_eq!(pressure, expected, "{percent} percent");
        }
    }
}
