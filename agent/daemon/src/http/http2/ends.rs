//! The two ends of a connection that carries HTTP/2, as its library reads and writes them.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::pace::Pace;
use crate::{
    http::window::Window,
    telemetry::Connection,
    tunnel::{self, Leg, shut},
};

/// The client's end: what it has said already, and then its leg.
pub(super) struct FromClient<'a, L> {
    pub(super) leg: &'a mut L,
    pub(super) first: Window,
    /// It has ended its side.
    pub(super) ended: bool,
    pub(super) connection: &'a Connection,
    pub(super) pace: Pace,
    /// A frame of it was not whole in time.
    pub(super) late: bool,
}

impl<L: Leg> AsyncRead for FromClient<'_, L> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        room: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = room.filled().len();
        if self.first.is_empty() {
            if Pin::new(&mut *self.leg).poll_read(cx, room)?.is_pending() {
                ready!(self.pace.poll_late(cx));
                self.late = true;
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        } else {
            let len = self.first.bytes().len().min(room.remaining());
            room.put_slice(&self.first.bytes()[..len]);
            self.first.consume(len);
            if self.first.is_empty() {
                // Gives its buffer back.
                self.first = Window::default();
            }
        }
        let read = room.filled().len() - before;
        self.ended |= read == 0 && room.remaining() > 0;
        self.pace.see(&room.filled()[before..]);
        self.connection.client_to_server(read as u64);
        Poll::Ready(Ok(()))
    }
}

impl<L: Leg> AsyncWrite for FromClient<'_, L> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut *self.leg).poll_write(cx, bytes);
        if let Poll::Ready(Ok(written)) = written {
            self.connection.server_to_client(written as u64);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.leg).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.leg).poll_shutdown(cx)
    }
}

/// Bytes of the least and of the largest read. The room for one is cleared before it, and stays in memory.
const READS: [usize; 2] = [2 * 1024, 64 * 1024];

/// The application's end.
pub(super) struct ToApp<'a> {
    app: &'a TcpStream,
    /// How much is read at once: more while reads are filled.
    at_once: usize,
}

impl<'a> ToApp<'a> {
    pub(super) fn new(app: &'a TcpStream) -> Self {
        Self { app, at_once: READS[0] }
    }
}

impl AsyncRead for ToApp<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        room: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.app.poll_read_ready(cx))?;
        let wanted = self.at_once.min(room.remaining());
        let read = ready!(tunnel::poll_read(cx, self.app, room.initialize_unfilled_to(wanted)))?;
        room.advance(read);
        self.at_once = if read == wanted { (2 * wanted).min(READS[1]) } else { READS[0].max(read) };
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ToApp<'_> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        tunnel::poll_write(cx, self.app, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(shut(self.app))
    }
}
