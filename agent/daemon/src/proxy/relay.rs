//! Moves bytes between an application and a leg, each direction until its own end: half-close and reset stay what they are.
//!
//! All state is in [`Relay`] and the leg: a relay that stops between two steps has lost nothing, and could go on elsewhere.

use std::{
    future::poll_fn,
    pin::pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{net::TcpStream, time::sleep};

use crate::{
    capture::{bound_buffers, end_cleanly},
    tunnel::{Leg, LegError, Moved},
};

/// How long the word that a connection stands waits for the application's first bytes, to go out with them. The client's
/// agent only learns from it that there will be no refusal.
const ANSWER: Duration = Duration::from_millis(5);

/// Counts bytes as they pass.
pub(super) trait Meter {
    /// Bytes from the application's socket.
    fn app_sent(&self, bytes: u64);
    /// Bytes to the application's socket.
    fn app_got(&self, bytes: u64);
}

/// An application's socket and the leg to the other end of its connection.
#[derive(Debug)]
pub(super) struct Relay<L> {
    app: TcpStream,
    leg: L,
    /// From the application.
    up: Direction,
    /// To the application.
    down: Direction,
}

/// One direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Direction {
    /// Bytes so far.
    pub(super) bytes: u64,
    /// The receiver has been told that nothing more comes.
    pub(super) ended: bool,
}

impl Direction {
    fn add(&mut self, moved: Moved) -> u64 {
        self.bytes += moved.bytes as u64;
        self.ended |= moved.end;
        moved.bytes as u64
    }
}

impl<L: Leg> Relay<L> {
    pub(super) fn new(app: TcpStream, leg: L) -> Self {
        Self { app, leg, up: Direction::default(), down: Direction::default() }
    }

    /// Cuts the buffers of both sockets.
    pub(super) fn bound_buffers(&self, bytes: usize) {
        bound_buffers(&self.app, Some(bytes));
        self.leg.bound_buffers(bytes);
    }

    /// Whether it holds bytes that their receiver has not taken.
    pub(super) fn is_stuck(&self) -> bool {
        self.leg.is_stuck()
    }

    /// The leg, for what is to be said at the end.
    pub(super) fn into_leg(self) -> L {
        self.leg
    }

    /// From the application and to it.
    #[cfg(test)]
    pub(super) fn directions(&self) -> (Direction, Direction) {
        (self.up, self.down)
    }

    /// Relays until both directions have ended. Cancel safe: it can be called again.
    pub(super) async fn run(&mut self, meter: &impl Meter) -> Result<(), LegError> {
        if self.leg.holds_answer() && self.run_until_answer(meter).await?.is_ready() {
            return Ok(());
        }
        poll_fn(|cx| self.poll(cx, meter)).await
    }

    /// The same for as long as the answer is held, but not for long.
    async fn run_until_answer(&mut self, meter: &impl Meter) -> Result<Poll<()>, LegError> {
        let mut late = pin!(sleep(ANSWER));
        poll_fn(|cx| {
            if let Poll::Ready(ended) = self.poll(cx, meter) {
                return Poll::Ready(ended.map(Poll::Ready));
            }
            if self.leg.holds_answer() {
                if late.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                self.leg.answer()?;
            }
            Poll::Ready(Ok(Poll::Pending))
        })
        .await
    }

    /// A step of each direction in turn, so that neither has all of the task's time, until both wait.
    fn poll(&mut self, cx: &mut Context<'_>, meter: &impl Meter) -> Poll<Result<(), LegError>> {
        let (mut up, mut down) = (!self.up.ended, !self.down.ended);
        while up || down {
            if up {
                up = match self.leg.poll_send_from(cx, &mut self.app) {
                    Poll::Ready(step) => {
                        meter.app_sent(self.up.add(step?));
                        !self.up.ended
                    }
                    Poll::Pending => false,
                };
            }
            if down {
                down = match self.leg.poll_deliver_to(cx, &mut self.app) {
                    Poll::Ready(step) => {
                        meter.app_got(self.down.add(step?));
                        // What is left to wait for is the other direction's affair: it is asked again.
                        up |= self.down.ended && !self.up.ended;
                        !self.down.ended
                    }
                    Poll::Pending => false,
                };
            }
        }
        if !self.up.ended || !self.down.ended {
            return Poll::Pending;
        }
        end_cleanly(&self.app);
        self.leg.end_cleanly();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests;
