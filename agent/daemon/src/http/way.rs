//! One direction of a connection: bytes that have been read, those of them that may go on, and how far a body has come.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::{io::ReadBuf, net::TcpStream};

use super::{
    body::{Body, Malformed},
    window::{Source, Window},
};
use crate::tunnel::{self, Leg, LegError, Share};

/// What a head and as much of the body as comes with it may have to be copied for, to go out in one piece.
const TOGETHER: usize = 4 * 1024;

/// What bytes go to.
pub(super) trait Sink {
    /// Writes some of `bytes`.
    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize, LegError>>;

    /// Has all that was written go out.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LegError>>;
}

/// Why nothing more passes.
#[derive(Debug)]
pub(super) enum Fault {
    /// One end has failed.
    Leg(LegError),
    /// What was read is no message.
    Malformed(Malformed),
}

impl From<LegError> for Fault {
    fn from(error: LegError) -> Self {
        Self::Leg(error)
    }
}

impl From<Malformed> for Fault {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

/// How far a body has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passed {
    /// All of it.
    Whole,
    /// The source has ended.
    Ended,
}

/// One direction.
#[derive(Debug, Default)]
pub(super) struct Way {
    pub(super) window: Window,
    /// What goes out in front of the window's bytes.
    front: Vec<u8>,
    /// Bytes of `front` that have gone out.
    gone: usize,
    /// Bytes of the window that may go on.
    cleared: usize,
    /// Something has been written since the last flush.
    unflushed: bool,
    /// Bytes that have passed.
    pub(super) moved: u64,
    /// Bytes of the heads among them, or that will be.
    pub(super) heads: u64,
}

impl Way {
    /// Of which that has been read.
    pub(super) fn of(window: Window) -> Self {
        Self { window, ..Self::default() }
    }

    /// The window begins with a head of `len` bytes, which may go on, or `rewritten` in its place; and so may what has come of the body
    /// behind it.
    pub(super) fn admit(
        &mut self,
        len: usize,
        rewritten: Option<Vec<u8>>,
        body: &mut Body,
    ) -> Result<(), Malformed> {
        let of_body = body.advance(&self.window.bytes()[len..])?;
        self.heads += rewritten.as_ref().map_or(len, Vec::len) as u64;
        match rewritten {
            None => self.cleared = len + of_body,
            Some(front) => {
                self.window.consume(len);
                self.front = front;
                if of_body <= TOGETHER {
                    self.front.extend_from_slice(&self.window.bytes()[..of_body]);
                    self.window.consume(of_body);
                } else {
                    self.cleared = of_body;
                }
            }
        }
        Ok(())
    }

    /// Has `bytes` go out behind all that may go on already.
    pub(super) fn say(&mut self, bytes: Vec<u8>) {
        debug_assert!(self.cleared == 0 && self.front.is_empty(), "one message at a time");
        self.front = bytes;
    }

    /// Something was written to the sink by somebody else.
    pub(super) fn wants_flush(&mut self) {
        self.unflushed = true;
    }

    /// Whether something waits for the sink.
    pub(super) fn is_stuck(&self) -> bool {
        self.cleared > 0 || !self.front.is_empty()
    }

    /// Writes all that may go on.
    pub(super) fn poll_out(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut impl Sink,
    ) -> Poll<Result<(), LegError>> {
        while self.gone < self.front.len() {
            self.gone += self.moved(ready!(sink.poll_write(cx, &self.front[self.gone..]))?);
        }
        if self.gone > 0 {
            (self.front, self.gone) = (Vec::new(), 0);
        }
        while self.cleared > 0 {
            let written = self.moved(ready!(sink.poll_write(cx, &self.window.bytes()[..self.cleared]))?);
            self.cleared -= written;
            self.window.consume(written);
        }
        if self.unflushed {
            ready!(sink.poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Passes `body` on, until it or its source ends.
    pub(super) fn poll_pass(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut impl Source,
        sink: &mut impl Sink,
        share: &Arc<Share>,
        body: &mut Body,
    ) -> Poll<Result<Passed, Fault>> {
        loop {
            ready!(self.poll_out(cx, sink))?;
            if body.is_done() {
                return Poll::Ready(Ok(Passed::Whole));
            }
            self.cleared = body.advance(self.window.bytes())?;
            if self.cleared == 0 && ready!(self.window.poll_fill(cx, source, share))? == 0 {
                return Poll::Ready(Ok(Passed::Ended));
            }
        }
    }

    fn moved(&mut self, bytes: usize) -> usize {
        self.unflushed = true;
        self.moved += bytes as u64;
        bytes
    }
}

/// The application's end.
#[derive(Clone, Copy, Debug)]
pub(super) struct App<'a>(pub(super) &'a TcpStream);

impl Source for App<'_> {
    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LegError>> {
        self.0.poll_read_ready(cx).map_err(LegError::App)
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, room: &mut [u8]) -> Poll<Result<usize, LegError>> {
        tunnel::poll_read(cx, self.0, room).map_err(LegError::App)
    }
}

impl Sink for App<'_> {
    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize, LegError>> {
        tunnel::poll_write(cx, self.0, bytes).map_err(LegError::App)
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<Result<(), LegError>> {
        Poll::Ready(Ok(()))
    }
}

/// The client's end.
#[derive(Debug)]
pub(super) struct Client<'a, L>(pub(super) &'a mut L);

impl<L: Leg> Source for Client<'_, L> {
    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LegError>> {
        self.0.poll_readable(cx)
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, room: &mut [u8]) -> Poll<Result<usize, LegError>> {
        let mut room = ReadBuf::new(room);
        ready!(std::pin::Pin::new(&mut *self.0).poll_read(cx, &mut room)).map_err(leg_error)?;
        Poll::Ready(Ok(room.filled().len()))
    }
}

impl<L: Leg> Sink for Client<'_, L> {
    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize, LegError>> {
        std::pin::Pin::new(&mut *self.0).poll_write(cx, bytes).map_err(leg_error)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LegError>> {
        std::pin::Pin::new(&mut *self.0).poll_flush(cx).map_err(leg_error)
    }
}

/// What a leg has told as an error of input and output.
pub(super) fn leg_error(error: std::io::Error) -> LegError {
    error.downcast().unwrap_or_else(LegError::Plain)
}

/// Whether bytes wait for a receiver who does not take them, for who watches memory.
#[derive(Debug, Default)]
pub(crate) struct Stuck(AtomicBool);

impl Stuck {
    pub(super) fn set(&self, stuck: bool) {
        self.0.store(stuck, Ordering::Relaxed);
    }

    /// At this moment.
    pub(crate) fn is(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
