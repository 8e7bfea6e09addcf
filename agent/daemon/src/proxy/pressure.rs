//! How short of memory the agent is. Most of what it could hold is bounded beforehand; what the kernel keeps in its sockets is not
//! known before it is there. So all that this process uses is watched. When it comes close to the limit, socket buffers are cut, of
//! connections that live as well. When that is not enough, no more connections are taken but the few that every pod may have, and
//! the pod whose connections hold most loses some of those that are stuck: the whole agent would go otherwise.

use std::{sync::Arc, time::Duration};

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
    busy::Looks,
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
        let (mut looks, mut asks) = (Looks::new(&self.busy), Asks::new(Instant::now()));
        if let Ok(ended) = timeout_at(asks.next, relay.begin(&mut looks, meter)).await {
            return ended.map_err(Broken::Leg);
        }
        asks.ask(pod, relay);
        settled.set();
        // Those who wait for that have a look of their own.
        yield_now().await;
        let mut memory = self.memory.subscribe();
        memory.mark_changed();
        loop {
            select! {
                biased;
                ended = relay.run(&mut looks, meter) => {
                    Box::pin(relay.end_patience(&ended)).await;
                    return ended.map_err(Broken::Leg);
                }
                // The sender lives as long as `self`.
                _ = memory.changed() => {}
                () = Box::pin(sleep_until(asks.next)) => {
                    asks.ask(pod, relay);
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
        let mut asks = Asks::new(Instant::now());
        loop {
            select! {
                // The sender lives as long as `self`.
                _ = memory.changed() => {}
                () = Box::pin(sleep_until(asks.next)) => {
                    if let Some(patience) = pod.patience(app) {
                        // It fails only for what is no socket.
                        let _ = patience.set_on(client);
                    }
                    asks.asked(0);
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
struct Asks {
    next: Instant,
    pause: Duration,
    moved: u64,
}

/// As soon as an answer that is held goes out.
const FIRST_LOOK: Duration = ANSWER;
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(64)];

impl Asks {
    fn new(now: Instant) -> Self {
        Self { next: now + FIRST_LOOK, pause: PAUSES[0], moved: 0 }
    }

    /// Asks what is to be known of `relay`, and has it rest, whether anything passes or not: big keys are made anew in less time than
    /// a message takes, once a second at most.
    fn ask<L: Leg>(&mut self, pod: &impl Dial, relay: &mut Relay<L>) {
        relay.adopt_patience(pod);
        relay.rest();
        self.asked(relay.moved());
    }

    fn asked(&mut self, moved: u64) {
        self.pause = if moved == self.moved { (self.pause * 2).min(PAUSES[1]) } else { PAUSES[0] };
        self.moved = moved;
        self.next += self.pause;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn where_nothing_passes_looks_are_seldom() {
        let mut asks = Asks::new(Instant::now());
        let pauses = [5, 5, 5, 6, 6].map(|moved| {
            let before = asks.next;
            asks.asked(moved);
            (asks.next - before).as_secs()
        });
        assert_eq!(pauses, [1, 2, 4, 1, 2]);
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
