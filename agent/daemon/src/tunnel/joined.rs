//! The leg to an application of the same node, as long as the other one is one, too.
//!
//! As [`Plain`], but that who is at its end counts as an application: it is acknowledged at once when it streams, and looked for
//! when it has ended its direction. Time-outs that the other application has set need no heed: both kernels are this one.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::{
    buffer::Share,
    plain::Plain,
    session::{Leg, LegError, Moved},
};
use crate::capture::{Patience, acknowledge_at_once, answered_probe, probe_when_idle};

/// What an application has said in so many pieces without an answer is a stream (RFC 896).
const STREAM: u32 = 2;

/// Counts what passes at the application that the leg leads to.
pub(crate) trait Count: Unpin {
    /// Bytes from it.
    fn sent(&self, bytes: u64);
    /// Bytes to it.
    fn got(&self, bytes: u64);
}

/// An application's socket as a leg.
#[derive(Debug)]
pub(crate) struct Joined<C> {
    plain: Plain,
    count: C,
    /// It has ended its direction.
    ended: bool,
    /// Times that bytes have come from it since the last went to it.
    unanswered: u32,
}

impl<C: Count> Joined<C> {
    /// Over the application's socket; buffers count for `share`.
    pub(crate) fn new(app: TcpStream, share: Arc<Share>, count: C) -> Self {
        Self { plain: Plain::new(app, share), count, ended: false, unanswered: 0 }
    }
}

impl<C: Count> Leg for Joined<C> {
    fn poll_send_from(&mut self, cx: &mut Context<'_>, app: &TcpStream) -> Poll<Result<Moved, LegError>> {
        let moved = self.plain.poll_send_from(cx, app);
        if let Poll::Ready(Ok(moved)) = &moved {
            self.count.got(moved.bytes as u64);
            self.unanswered = 0;
        }
        moved
    }

    fn poll_deliver_to(&mut self, cx: &mut Context<'_>, app: &TcpStream) -> Poll<Result<Moved, LegError>> {
        let moved = self.plain.poll_deliver_to(cx, app);
        if let Poll::Ready(Ok(moved)) = &moved {
            self.count.sent(moved.bytes as u64);
            self.unanswered = self.unanswered.saturating_add(1);
            if self.unanswered == STREAM {
                acknowledge_at_once(&*self.plain.socket());
            }
            if moved.end {
                self.ended = true;
                probe_when_idle(&*self.plain.socket());
            }
        }
        moved
    }

    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LegError>> {
        self.plain.poll_readable(cx)
    }

    fn app_failed(&mut self) {
        self.plain.app_failed();
    }

    fn socket(&self) -> Arc<TcpStream> {
        self.plain.socket()
    }

    fn failure(&self) -> LegError {
        if self.ended && answered_probe(&*self.plain.socket()) {
            return LegError::PeerLeft;
        }
        self.plain.failure()
    }

    fn set_patience(&mut self, _: &Patience) {}

    fn bound_buffers(&self, bytes: usize) {
        self.plain.bound_buffers(bytes);
    }

    fn is_sending(&self) -> bool {
        self.plain.is_sending()
    }

    fn is_delivering(&self) -> bool {
        self.plain.is_delivering()
    }

    fn end_cleanly(&mut self) {
        self.plain.end_cleanly();
    }
}

impl<C: Count> AsyncRead for Joined<C> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { plain, count, .. } = self.get_mut();
        let before = room.filled().len();
        let read = Pin::new(plain).poll_read(cx, room);
        count.sent((room.filled().len() - before) as u64);
        read
    }
}

impl<C: Count> AsyncWrite for Joined<C> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Self { plain, count, .. } = self.get_mut();
        let written = Pin::new(plain).poll_write(cx, bytes);
        if let Poll::Ready(Ok(written)) = &written {
            count.got(*written as u64);
        }
        written
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().plain).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().plain).poll_shutdown(cx)
    }
}
