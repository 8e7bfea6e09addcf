//! The connection of a bundle at work.

use std::{
    future::poll_fn,
    io, mem,
    pin::Pin,
    task::{Context, Poll, Waker, ready},
    time::{Duration, SystemTime},
};

use ambit_core::frame::parcel;
use tokio::{
    io::{AsyncRead as _, AsyncWrite as _, ReadBuf},
    time::{Interval, interval},
};

use super::{Bundle, Stand, lock};
use crate::{
    telemetry::BundleCounts,
    tunnel::{LegError, Stream, TunnelError},
};

/// Bytes that are read at a time, one parcel at least.
const READ: usize = 32 << 10;
/// Reads in a row before others have a turn.
const READS: usize = 8;
/// How often it is looked whether the connection is still of use.
const REVIEW: Duration = Duration::from_secs(5);

/// Carries what the streams of `bundle` say over `stream` until either end has had enough: this one when nothing has passed for `idle`, or no
/// further stream should begin on its connection. When this is dropped early, or it fails, what was on its way is lost.
pub(crate) async fn carry(
    bundle: &Bundle,
    stream: &mut Stream,
    idle: Duration,
    counts: &BundleCounts,
) -> Result<(), LegError> {
    counts.open.inc();
    let mut carrier = Carrier {
        bundle,
        counts,
        round: bundle.attach(),
        cleanly: false,
        stream,
        input: Vec::new(),
        filled: 0,
        output: Vec::new(),
        written: 0,
        waited: false,
        said_all: false,
        heard_all: false,
        review: interval(REVIEW),
        idle: idle.div_duration_f32(REVIEW) as u32,
        unmoved: 0,
        wakers: Vec::new(),
    };
    poll_fn(|cx| carrier.poll(cx)).await?;
    carrier.cleanly = true;
    Ok(())
}

struct Carrier<'a> {
    bundle: &'a Bundle,
    counts: &'a BundleCounts,
    round: u32,
    cleanly: bool,
    stream: &'a mut Stream,
    /// `input[..filled]` has come and is no whole parcel yet.
    input: Vec<u8>,
    filled: usize,
    /// What goes out, and how much of it has gone.
    output: Vec<u8>,
    written: usize,
    /// Those that were ready have had their turns to say something.
    waited: bool,
    said_all: bool,
    heard_all: bool,
    review: Interval,
    /// After how many reviews in a row without anything that has passed it ends, and how many these are by now.
    idle: u32,
    unmoved: u32,
    wakers: Vec<Waker>,
}

impl Drop for Carrier<'_> {
    fn drop(&mut self) {
        self.counts.open.dec();
        self.bundle.detach(self.round, self.cleanly);
    }
}

impl Carrier<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LegError>> {
        self.review(cx);
        self.read(cx)?;
        loop {
            if self.output.is_empty() && !self.takes(cx) {
                break;
            }
            ready!(self.poll_write(cx))?;
        }
        if self.said_all {
            ready!(Pin::new(&mut *self.stream).poll_shutdown(cx)).map_err(failed)?;
            if self.heard_all {
                return Poll::Ready(Ok(()));
            }
        }
        Poll::Pending
    }

    /// Ends what is not used, or should not be any more.
    fn review(&mut self, cx: &mut Context<'_>) {
        while self.review.poll_tick(cx).is_ready() {
            self.unmoved += 1;
            if self.unmoved > self.idle || !self.stream.is_valid(SystemTime::now()) {
                self.bundle.end();
            }
            if self.unmoved > 1 && self.filled == 0 {
                self.input = Vec::new();
                self.output = Vec::new();
            }
        }
    }

    /// Reads what is there, and hands it to its streams.
    fn read(&mut self, cx: &mut Context<'_>) -> Result<(), LegError> {
        for _ in 0..READS {
            if self.heard_all {
                return Ok(());
            }
            self.input.resize(READ, 0);
            let mut room = ReadBuf::new(&mut self.input[self.filled..]);
            let Poll::Ready(read) = Pin::new(&mut *self.stream).poll_read(cx, &mut room) else {
                return Ok(());
            };
            read.map_err(failed)?;
            let len = room.filled().len();
            self.filled += len;
            if len == 0 {
                self.heard_all = true;
                self.bundle.end();
                return if self.filled == 0 { Ok(()) } else { Err(TunnelError::Closed.into()) };
            }
            self.hand_out()?;
        }
        // There may be more, after others have had their turns.
        cx.waker().wake_by_ref();
        Ok(())
    }

    fn hand_out(&mut self) -> Result<(), LegError> {
        let mut input = &self.input[..self.filled];
        let handed = hand_out(self.bundle, &mut input, &mut self.wakers);
        let left = input.len();
        self.input.copy_within(self.filled - left..self.filled, 0);
        self.filled = left;
        self.unmoved = 0;
        // Also those of whom the rest is nothing that can be taken: nobody else wakes them.
        self.wakers.drain(..).for_each(Waker::wake);
        Ok(handed?)
    }

    /// Takes what is to go out, once those that were ready have said it; `false` if there is nothing yet.
    fn takes(&mut self, cx: &mut Context<'_>) -> bool {
        let mut state = lock(&self.bundle.state);
        if state.round != self.round {
            // Another connection has taken this one's place.
            self.said_all = true;
            return false;
        }
        if !state.out.is_empty() && !mem::replace(&mut self.waited, true) {
            drop(state);
            cx.waker().wake_by_ref();
            return false;
        }
        self.waited = false;
        state.woken = false;
        if state.out.is_empty() {
            self.said_all = state.stand == Stand::Ending;
            match &mut state.carrier {
                Some(carrier) => carrier.clone_from(cx.waker()),
                none => *none = Some(cx.waker().clone()),
            }
            return false;
        }
        mem::swap(&mut state.out, &mut self.output);
        self.counts.messages.inc_by(mem::take(&mut state.parcels));
        self.counts.batches.inc();
        self.unmoved = 0;
        true
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LegError>> {
        while self.written < self.output.len() {
            let bytes = &self.output[self.written..];
            self.written += ready!(Pin::new(&mut *self.stream).poll_write(cx, bytes)).map_err(failed)?;
        }
        ready!(Pin::new(&mut *self.stream).poll_flush(cx)).map_err(failed)?;
        self.output.clear();
        self.written = 0;
        Poll::Ready(Ok(()))
    }
}

/// Hands the parcels in `input` to their streams, whose wakers are to be woken whatever comes of it.
fn hand_out(bundle: &Bundle, input: &mut &[u8], wakers: &mut Vec<Waker>) -> Result<(), TunnelError> {
    let state = lock(&bundle.state);
    while let Some((head, bytes)) = parcel::next(input)? {
        // What comes for a stream that was cut a moment ago is for nobody.
        if let Some(inbox) = state.inboxes.get(&head.strand) {
            wakers.extend(inbox.put(head, bytes)?);
        }
    }
    Ok(())
}

fn failed(error: io::Error) -> LegError {
    TunnelError::Io(error).into()
}
