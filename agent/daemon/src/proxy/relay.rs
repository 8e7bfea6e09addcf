//! Moves bytes between an application and a leg, each direction until its own end: half-close and reset stay what they are.
//!
//! Both sockets are watched all the time, also by nobody reading: who breaks off is noticed while the other end takes nothing.
//! What was said before is passed on as far as it is taken at once. All state is in [`Relay`] and the leg: a relay that stops
//! between two steps has lost nothing, and could go on elsewhere.

use std::{
    future::poll_fn,
    io,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{Interest, Ready},
    net::TcpStream,
    task::yield_now,
    time::{Instant, Sleep, sleep, sleep_until, timeout_at},
};

use super::busy::Looks;
use crate::{
    capture::{
        Dial, Patience, acknowledge_at_once, answered_probe, bound_buffers, end_cleanly, failure,
        fall_silent, probe_when_idle, widen,
    },
    tunnel::{ANSWERED_WITHIN, Leg, LegError, Moved, TunnelError},
};

/// How long the word that a connection stands waits for the application's first bytes, to go out with them. The client's
/// agent only learns from it that there will be no refusal. As long as the agent sleeps at most, so that it wakes no thread.
pub(super) const ANSWER: Duration = Duration::from_millis(50);

/// How long an application that has ended its direction is left alone before it is asked whether there is anything left of it.
/// Most connections are over by then, and the asking costs as much as a packet. Shorter than any pause between two looks.
const HALF_CLOSED: Duration = Duration::from_millis(500);

/// What an application has said in so many pieces without an answer is a stream. Its kernel may keep small pieces back until
/// those before are acknowledged (RFC 896), and segments are long on the way to us.
const STREAM: u32 = 2;

/// What has filled most of a buffer so many times is bulk, and gets so much room in the kernel.
const MUCH: usize = 64 << 10;
const BULK: u8 = 4;
const BULK_ROOM: usize = 1 << 20;

/// How often others have a turn before the other end is told of a connection whose application has not said anything: most clients speak at
/// once, and then that word and theirs are one packet.
const WORDS: u32 = 2;

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
    state: State,
    begun: Instant,
    /// How long the application waits for the other end, if it has said so.
    patience: Option<Box<Patience>>,
}

/// How far a relay has come.
#[derive(Debug, Default)]
struct State {
    /// From the application.
    up: Direction,
    /// To the application.
    down: Direction,
    /// Times that bytes have come from the application since the last went to it.
    unanswered: u32,
    /// Times that much has come from the application at once.
    much: u8,
    /// An application that has ended its direction is asked now and then whether there is anything left of it.
    probed: bool,
    /// What one of the two sockets has failed of, while the last words from it are passed on.
    failed: Option<Box<LegError>>,
}

impl State {
    /// Whether anything may still come from the application.
    fn sends(&self) -> bool {
        !self.up.ended && matches!(self.failed.as_deref(), None | Some(LegError::App(_)))
    }

    /// Whether anything may still come for the application.
    fn delivers(&self) -> bool {
        !self.down.ended && !matches!(self.failed.as_deref(), Some(LegError::App(_)))
    }

    /// Bytes have come from `app`, which may be a stream, or a great deal of one.
    fn came_from(&mut self, app: &TcpStream, bytes: usize) {
        self.unanswered = self.unanswered.saturating_add(1);
        if self.unanswered == STREAM {
            acknowledge_at_once(app);
        }
        if bytes >= MUCH && self.much < BULK {
            self.much += 1;
            if self.much == BULK {
                widen(app, BULK_ROOM);
            }
        }
    }

    /// Sending has met `error`. An error unless what has come the other way can still be delivered.
    fn leg_failed(&mut self, error: LegError) -> Result<(), LegError> {
        let broken_off = matches!(error, LegError::Plain(_) | LegError::Tunnel(TunnelError::Io(_)));
        self.failed_first(error, broken_off && self.delivers())
    }

    /// Delivering has met `error`. An error unless what the application has said can still be sent.
    fn app_failed(&mut self, error: LegError) -> Result<(), LegError> {
        let broken_off = matches!(error, LegError::App(_));
        self.failed_first(error, broken_off && self.sends())
    }

    fn failed_first(&mut self, error: LegError, goes_on: bool) -> Result<(), LegError> {
        match self.failed.take() {
            None if goes_on => {
                self.failed = Some(Box::new(error));
                Ok(())
            }
            // The reason that a peer gives says more than that it has broken off.
            Some(first) if !matches!(error, LegError::Refused(_) | LegError::Reset(_)) => Err(*first),
            _ => Err(error),
        }
    }
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
        Self { app, leg, state: State::default(), begun: Instant::now(), patience: None }
    }

    /// Cuts the buffers of both sockets.
    pub(super) fn bound_buffers(&self, bytes: usize) {
        bound_buffers(&self.app, Some(bytes));
        self.leg.bound_buffers(bytes);
    }

    /// Keeps no more than it needs while nothing passes.
    pub(super) fn rest(&mut self) {
        self.leg.rest();
    }

    /// Whether it holds bytes that their receiver has not taken.
    pub(super) fn is_stuck(&self) -> bool {
        self.leg.is_sending() || self.leg.is_delivering()
    }

    /// Bytes that have passed, both ways.
    pub(super) fn moved(&self) -> u64 {
        self.state.up.bytes + self.state.down.bytes
    }

    /// Waits for the other end as long as the application at this one does.
    pub(super) fn adopt_patience(&mut self, pod: &impl Dial) {
        let patience = pod.patience(&self.app);
        if let Some(patience) = patience
            && self.patience.as_deref() != Some(&patience)
        {
            self.leg.set_patience(&patience);
            self.patience = Some(Box::new(patience));
        }
    }

    /// Is as patient as at first when another connection may follow. An application that is about to find out by itself that
    /// nobody answers is left to that, and meets silence.
    pub(super) async fn end_patience(&mut self, ended: &Result<(), LegError>) {
        let Some(patience) = self.patience.as_deref() else { return };
        match ended {
            Ok(()) => self.leg.set_patience(&Patience::default()),
            Err(LegError::Tunnel(TunnelError::Io(error)) | LegError::Plain(error))
                if error.kind() == io::ErrorKind::TimedOut
                    && let Some(limit) = patience.until_noticed()
                    && fall_silent(&self.app).is_ok() =>
            {
                sleep(limit).await;
            }
            Err(_) => {}
        }
    }

    /// Closes the application's socket; the leg is for what is to be said at the end.
    pub(super) fn into_leg(self) -> L {
        self.leg
    }

    /// From the application and to it.
    #[cfg(test)]
    pub(super) fn directions(&self) -> (Direction, Direction) {
        (self.state.up, self.state.down)
    }

    /// Relays until both directions have ended. Cancel safe: it can be called again.
    /// Between messages it `looks` for the next.
    pub(super) async fn run(&mut self, looks: &mut Looks<'_>, meter: &impl Meter) -> Result<(), LegError> {
        let ended = self.run_steps(looks, meter, false).await;
        self.end(ended)
    }

    /// The same without an eye on the clock, for who stops it after [`ANSWER`] at the latest and goes on with [`Self::run`].
    pub(super) async fn begin(&mut self, looks: &mut Looks<'_>, meter: &impl Meter) -> Result<(), LegError> {
        let ended = self.run_steps(looks, meter, true).await;
        self.end(ended)
    }

    fn end(&mut self, ended: Result<(), LegError>) -> Result<(), LegError> {
        if matches!(ended, Ok(()) | Err(LegError::AppLeft | LegError::PeerLeft)) {
            // Who is left keeps its end, and is told nothing but that there is no other if it writes.
            end_cleanly(&self.app);
            self.leg.end_cleanly();
        }
        ended
    }

    async fn run_steps(
        &mut self,
        looks: &mut Looks<'_>,
        meter: &impl Meter,
        brief: bool,
    ) -> Result<(), LegError> {
        let Self { app, leg, state, begun, .. } = self;
        let (app, socket) = (&*app, leg.socket());
        for _ in 0..WORDS {
            if !leg.awaits_words(app)? {
                break;
            }
            yield_now().await;
        }
        let mut steps = Steps {
            app,
            leg,
            state,
            leg_socket: &socket,
            app_fails: None,
            leg_fails: None,
            half_closed: None,
            brief,
        };
        let holds_answer = !brief && steps.leg.holds_answer();
        if holds_answer && Box::pin(steps.run_until_answer(meter, *begun)).await?.is_ready() {
            return Ok(());
        }
        if !brief
            && steps.leg.awaits_answer()
            && Box::pin(steps.run_until_answered(meter, *begun)).await?.is_ready()
        {
            return Ok(());
        }
        let moved = |steps: &Steps<'_, L>| [steps.state.up.bytes, steps.state.down.bytes];
        poll_fn(|cx| looks.poll(cx, &mut steps, moved, |steps, cx| steps.poll(cx, meter))).await
    }
}

/// A relay at work: what it moves, and who tells of sockets that fail.
struct Steps<'a, L> {
    app: &'a TcpStream,
    leg: &'a mut L,
    state: &'a mut State,
    leg_socket: &'a TcpStream,
    /// Made when nobody reads the socket, which most connections never come to.
    app_fails: Option<Fails<'a>>,
    leg_fails: Option<Fails<'a>>,
    /// When the application is asked whether there is anything left of it.
    half_closed: Option<Pin<Box<Sleep>>>,
    /// Whoever runs it stops it soon.
    brief: bool,
}

type Fails<'a> = Pin<Box<dyn Future<Output = io::Result<Ready>> + Send + 'a>>;

/// Waits until `socket` fails, be there anything to read or not.
fn poll_fails<'a>(
    fails: &mut Option<Fails<'a>>,
    cx: &mut Context<'_>,
    socket: &'a TcpStream,
) -> Poll<io::Result<Ready>> {
    fails.get_or_insert_with(|| Box::pin(socket.ready(Interest::ERROR))).as_mut().poll(cx)
}

impl<L: Leg> Steps<'_, L> {
    /// Relays for as long as the answer is held, but not for long.
    async fn run_until_answer(&mut self, meter: &impl Meter, begun: Instant) -> Result<Poll<()>, LegError> {
        let mut late = pin!(sleep_until(begun + ANSWER));
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

    /// Relays until the other end has said that the connection stands, which it must say in time.
    async fn run_until_answered(&mut self, meter: &impl Meter, begun: Instant) -> Result<Poll<()>, LegError> {
        let answered = poll_fn(|cx| match self.poll(cx, meter) {
            Poll::Ready(ended) => Poll::Ready(ended.map(Poll::Ready)),
            Poll::Pending if self.leg.awaits_answer() => Poll::Pending,
            Poll::Pending => Poll::Ready(Ok(Poll::Pending)),
        });
        let answered = timeout_at(begun + ANSWERED_WITHIN, answered).await;
        answered.unwrap_or(Err(TunnelError::Timeout("answer").into()))
    }

    /// A step of each direction in turn, so that neither has all of the task's time, until both wait.
    fn poll(&mut self, cx: &mut Context<'_>, meter: &impl Meter) -> Poll<Result<(), LegError>> {
        let (mut up, mut down) = (self.state.sends(), self.state.delivers());
        while up || down {
            if up {
                up = match self.leg.poll_send_from(cx, self.app) {
                    Poll::Ready(Ok(step)) => {
                        meter.app_sent(self.state.up.add(step));
                        self.state.came_from(self.app, step.bytes);
                        !step.end
                    }
                    Poll::Ready(Err(error)) => {
                        self.state.leg_failed(error)?;
                        // What has come from there may still be delivered.
                        down = true;
                        false
                    }
                    Poll::Pending => false,
                };
            }
            if down {
                down = match self.leg.poll_deliver_to(cx, self.app) {
                    Poll::Ready(Ok(step)) => {
                        meter.app_got(self.state.down.add(step));
                        self.state.unanswered = 0;
                        // What is left to wait for is the other direction's affair: it is asked again.
                        up |= step.end && self.state.sends();
                        !step.end
                    }
                    Poll::Ready(Err(error)) => {
                        self.state.app_failed(error)?;
                        self.leg.app_failed();
                        // What has come from there may still be sent.
                        up = true;
                        false
                    }
                    Poll::Pending => false,
                };
            }
        }
        if self.state.up.ended && self.state.down.ended {
            return Poll::Ready(Ok(()));
        }
        if self.state.up.ended && !self.state.probed && !self.brief {
            let half_closed = self.half_closed.get_or_insert_with(|| Box::pin(sleep(HALF_CLOSED)));
            if half_closed.as_mut().poll(cx).is_ready() {
                probe_when_idle(self.app);
                self.state.probed = true;
            }
        }
        self.poll_failures(cx)
    }

    /// Whether one end has broken off, where no read would tell, or its last words are not taken at once.
    fn poll_failures(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LegError>> {
        let (sends, delivers) = (self.state.sends(), self.state.delivers());
        if self.state.failed.is_some()
            && (!sends || self.leg.is_sending())
            && (!delivers || self.leg.is_delivering())
            && let Some(failed) = self.state.failed.take()
        {
            return Poll::Ready(Err(*failed));
        }
        if self.brief {
            return Poll::Pending;
        }
        if (!sends || self.leg.is_sending()) && poll_fails(&mut self.app_fails, cx, self.app).is_ready() {
            if self.state.up.ended && answered_probe(self.app) {
                return Poll::Ready(Err(LegError::AppLeft));
            }
            return Poll::Ready(Err(LegError::App(failure(self.app))));
        }
        if (!delivers || self.leg.is_delivering())
            && poll_fails(&mut self.leg_fails, cx, self.leg_socket).is_ready()
        {
            return Poll::Ready(Err(self.leg.failure()));
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests;
