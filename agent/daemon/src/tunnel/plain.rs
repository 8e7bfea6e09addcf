//! The leg to an end that speaks plaintext: a socket, and what is on its way each way.

use std::{
    io,
    ops::Range,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::{
    buffer::{Buffer, Share, Waiting},
    session::{Leg, LegError, Moved, shut},
};
use crate::capture::bound_buffers;

/// A plaintext connection as a leg.
#[derive(Debug)]
pub(crate) struct Plain {
    tcp: TcpStream,
    share: Arc<Share>,
    /// Read from the application and not yet written here.
    sending: Held,
    /// Read here and not yet written to the application.
    delivering: Held,
}

/// Bytes between a read and a write.
#[derive(Debug, Default)]
struct Held {
    bytes: Option<(Buffer, Range<usize>)>,
    waiting: Waiting,
}

/// Which socket failed.
enum Failed {
    Source(io::Error),
    Sink(io::Error),
}

impl Plain {
    /// Over `tcp`; buffers count for `share`.
    pub(crate) fn new(tcp: TcpStream, share: Arc<Share>) -> Self {
        Self { tcp, share, sending: Held::default(), delivering: Held::default() }
    }
}

impl Held {
    /// Moves one buffer's worth, or the end.
    fn poll_move(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut TcpStream,
        sink: &mut TcpStream,
        share: &Arc<Share>,
    ) -> Poll<Result<Moved, Failed>> {
        if self.bytes.is_none() {
            // An idle connection holds no buffer.
            ready!(source.poll_read_ready(cx)).map_err(Failed::Source)?;
            let mut buffer = ready!(share.poll_take(cx, &mut self.waiting));
            let mut room = ReadBuf::new(&mut buffer);
            ready!(Pin::new(source).poll_read(cx, &mut room)).map_err(Failed::Source)?;
            let read = room.filled().len();
            if read > 0 {
                self.bytes = Some((buffer, 0..read));
            }
        }
        let Some((buffer, range)) = &self.bytes else {
            ready!(shut(cx, sink)).map_err(Failed::Sink)?;
            return Poll::Ready(Ok(Moved { bytes: 0, end: true }));
        };
        let bytes = ready!(Pin::new(sink).poll_write(cx, &buffer[range.clone()])).map_err(Failed::Sink)?;
        if bytes == 0 {
            return Poll::Ready(Err(Failed::Sink(io::ErrorKind::WriteZero.into())));
        }
        self.pass(bytes);
        Poll::Ready(Ok(Moved { bytes, end: false }))
    }

    /// Writes all that is held.
    fn poll_flush(&mut self, cx: &mut Context<'_>, sink: &mut TcpStream) -> Poll<io::Result<()>> {
        while let Some((buffer, range)) = &self.bytes {
            let written = ready!(Pin::new(&mut *sink).poll_write(cx, &buffer[range.clone()]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.pass(written);
        }
        Poll::Ready(Ok(()))
    }

    fn pass(&mut self, bytes: usize) {
        if let Some((_, range)) = &mut self.bytes {
            range.start += bytes;
            if range.start >= range.end {
                self.bytes = None;
            }
        }
    }
}

impl Leg for Plain {
    fn poll_send_from(&mut self, cx: &mut Context<'_>, app: &mut TcpStream) -> Poll<Result<Moved, LegError>> {
        self.sending.poll_move(cx, app, &mut self.tcp, &self.share).map_err(|failed| match failed {
            Failed::Source(error) => LegError::App(error),
            Failed::Sink(error) => LegError::Plain(error),
        })
    }

    fn poll_deliver_to(
        &mut self,
        cx: &mut Context<'_>,
        app: &mut TcpStream,
    ) -> Poll<Result<Moved, LegError>> {
        self.delivering.poll_move(cx, &mut self.tcp, app, &self.share).map_err(|failed| match failed {
            Failed::Source(error) => LegError::Plain(error),
            Failed::Sink(error) => LegError::App(error),
        })
    }

    fn bound_buffers(&self, bytes: usize) {
        bound_buffers(&self.tcp, Some(bytes));
    }

    fn is_stuck(&self) -> bool {
        [&self.sending, &self.delivering]
            .into_iter()
            .any(|held| held.bytes.is_some() || held.waiting.is_some())
    }

    fn end_cleanly(&mut self) {
        // It fails only for what is no socket.
        let _: io::Result<()> = SockRef::from(&self.tcp).set_linger(None);
    }
}

impl AsyncRead for Plain {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        room: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some((buffer, range)) = &self.delivering.bytes else {
            return Pin::new(&mut self.tcp).poll_read(cx, room);
        };
        let len = range.len().min(room.remaining());
        room.put_slice(&buffer[range.clone()][..len]);
        self.delivering.pass(len);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Plain {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.as_mut().poll_flush(cx))?;
        Pin::new(&mut self.tcp).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { tcp, sending, .. } = self.get_mut();
        sending.poll_flush(cx, tcp)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(cx))?;
        shut(cx, &mut self.tcp)
    }
}
