//! The leg to an end that speaks plaintext: a socket, and what is on its way each way.

use std::{
    io, mem,
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
    session::{Leg, LegError, Moved},
    socket::{self, Manner},
    splice::Piped,
};
use crate::capture::{bound_buffers, failure};

/// A plaintext connection as a leg.
#[derive(Debug)]
pub(crate) struct Plain {
    tcp: Arc<TcpStream>,
    share: Arc<Share>,
    /// Read from the application and not yet written here.
    sending: Held,
    /// Read here and not yet written to the application.
    delivering: Held,
    /// A socket has failed: what looks like its end is none.
    app_failed: bool,
    tcp_failed: bool,
}

/// Bytes between a read and a write.
#[derive(Debug, Default)]
struct Held {
    /// Nothing has been read, and nothing written, by which tokio would have come to know the sockets.
    begun: bool,
    written: bool,
    bytes: Option<(Buffer, Range<usize>)>,
    /// What the source has behind them.
    behind: Behind,
    /// In place of these, while there is much to move.
    piped: Option<Box<Piped>>,
    /// Reads in a row that have brought much.
    bulky: u8,
    waiting: Waiting,
}

/// What follows the bytes that are held.
#[derive(Debug, Default)]
enum Behind {
    /// A read will tell.
    #[default]
    Unknown,
    /// Nothing: the source has ended its direction.
    End,
    /// An error, which the kernel tells once.
    Failure(io::Error),
}

/// What counts as much, and how many such reads there are before bytes go by a pipe: of small ones a copy costs less.
const MUCH: usize = 32 * 1024;
const BULKY: u8 = 2;

/// Which socket failed.
enum Failed {
    Source(io::Error),
    Sink(io::Error),
}

impl Plain {
    /// Over `tcp`; buffers count for `share`.
    pub(crate) fn new(tcp: TcpStream, share: Arc<Share>) -> Self {
        let (sending, delivering) = (Held::default(), Held::default());
        Self { tcp: Arc::new(tcp), share, sending, delivering, app_failed: false, tcp_failed: false }
    }
}

impl Held {
    /// Moves one buffer's worth, or the end, which is none if `failed`.
    fn poll_move(
        &mut self,
        cx: &mut Context<'_>,
        source: &TcpStream,
        failed: bool,
        sink: &TcpStream,
        share: &Arc<Share>,
    ) -> Poll<Result<Moved, Failed>> {
        if self.piped.is_some() {
            return self.poll_piped(cx, sink);
        }
        if self.bytes.is_none() && !mem::replace(&mut self.begun, true) {
            self.read_new(source, share).map_err(Failed::Source)?;
        }
        if self.bytes.is_none() && matches!(self.behind, Behind::Unknown) {
            // An idle connection holds no buffer.
            ready!(source.poll_read_ready(cx)).map_err(Failed::Source)?;
            if self.bulky >= BULKY
                && let Some(piped) = Piped::take(source, share).map_err(Failed::Source)?
            {
                if piped.len() < MUCH {
                    self.bulky = 0;
                }
                self.piped = Some(Box::new(piped));
                return self.poll_piped(cx, sink);
            }
            let mut buffer = ready!(share.poll_take(cx, &mut self.waiting));
            let closed = socket::is_read_closed(cx, source);
            let read = socket::poll_read_urgent(cx, source, &mut buffer, closed);
            let read = ready!(read).map_err(Failed::Source)?;
            if read > 0 {
                self.bulky = if read < MUCH { 0 } else { self.bulky.saturating_add(1) };
                let behind =
                    if closed && !failed { self.look_behind(source, &mut buffer[read..]) } else { 0 };
                let read = read + behind;
                self.bytes = Some((buffer, 0..read));
            } else if failed {
                return Poll::Ready(Err(Failed::Source(io::ErrorKind::ConnectionReset.into())));
            }
        }
        let Some((buffer, range)) = &self.bytes else {
            if let Behind::Failure(error) = mem::take(&mut self.behind) {
                return Poll::Ready(Err(Failed::Source(error)));
            }
            socket::shut(sink).map_err(Failed::Sink)?;
            return Poll::Ready(Ok(Moved { bytes: 0, end: true }));
        };
        let more = matches!(self.behind, Behind::End);
        let manner = Manner { new: !mem::replace(&mut self.written, true), more };
        let written = socket::poll_write_as(cx, sink, &buffer[range.clone()], manner);
        let bytes = ready!(written).map_err(Failed::Sink)?;
        self.pass(bytes);
        Poll::Ready(Ok(Moved { bytes, end: false }))
    }

    /// Of a source that has ended reads what it has behind what was read, so that its end can go out with that.
    fn look_behind(&mut self, source: &TcpStream, room: &mut [u8]) -> usize {
        if room.is_empty() {
            return 0;
        }
        match source.try_read(room) {
            Ok(0) => self.behind = Behind::End,
            Ok(read) => return read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => self.behind = Behind::Failure(error),
        }
        0
    }

    /// Takes what `source` has at this moment, if that is anything but its end.
    fn read_new(&mut self, source: &TcpStream, share: &Arc<Share>) -> io::Result<()> {
        let Some(mut buffer) = share.try_take() else { return Ok(()) };
        match socket::read_new(source, &mut buffer) {
            Ok(0) => {}
            Ok(read) => self.bytes = Some((buffer, 0..read)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn poll_piped(&mut self, cx: &mut Context<'_>, sink: &TcpStream) -> Poll<Result<Moved, Failed>> {
        let Some(piped) = &mut self.piped else { return Poll::Ready(Ok(Moved { bytes: 0, end: false })) };
        let bytes = ready!(piped.poll_write_to(cx, sink)).map_err(Failed::Sink)?;
        if piped.len() == 0 {
            self.piped = None;
        }
        Poll::Ready(Ok(Moved { bytes, end: false }))
    }

    /// Writes all that is held.
    fn poll_flush(&mut self, cx: &mut Context<'_>, sink: &TcpStream) -> Poll<io::Result<()>> {
        while let Some(piped) = &mut self.piped {
            ready!(piped.poll_write_to(cx, sink))?;
            if piped.len() == 0 {
                self.piped = None;
            }
        }
        while let Some((buffer, range)) = &self.bytes {
            let written = ready!(socket::poll_write(cx, sink, &buffer[range.clone()]))?;
            self.pass(written);
        }
        Poll::Ready(Ok(()))
    }

    fn is_stuck(&self) -> bool {
        self.bytes.is_some() || self.piped.is_some() || self.waiting.is_some()
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
    fn poll_send_from(&mut self, cx: &mut Context<'_>, app: &TcpStream) -> Poll<Result<Moved, LegError>> {
        let moved = self.sending.poll_move(cx, app, self.app_failed, &self.tcp, &self.share);
        moved.map_err(|failed| match failed {
            Failed::Source(error) => LegError::App(error),
            Failed::Sink(error) => {
                self.tcp_failed = true;
                LegError::Plain(error)
            }
        })
    }

    fn poll_deliver_to(&mut self, cx: &mut Context<'_>, app: &TcpStream) -> Poll<Result<Moved, LegError>> {
        let moved = self.delivering.poll_move(cx, &self.tcp, self.tcp_failed, app, &self.share);
        moved.map_err(|failed| match failed {
            Failed::Source(error) => LegError::Plain(error),
            Failed::Sink(error) => LegError::App(error),
        })
    }

    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LegError>> {
        if self.delivering.bytes.is_some() || self.delivering.piped.is_some() {
            return Poll::Ready(Ok(()));
        }
        self.tcp.poll_read_ready(cx).map_err(LegError::Plain)
    }

    fn app_failed(&mut self) {
        self.app_failed = true;
    }

    fn socket(&self) -> Arc<TcpStream> {
        self.tcp.clone()
    }

    fn failure(&self) -> LegError {
        LegError::Plain(failure(&self.tcp))
    }

    fn bound_buffers(&self, bytes: usize) {
        bound_buffers(&*self.tcp, Some(bytes));
    }

    fn is_sending(&self) -> bool {
        self.sending.is_stuck()
    }

    fn is_delivering(&self) -> bool {
        self.delivering.is_stuck()
    }

    fn end_cleanly(&mut self) {
        // It fails only for what is no socket.
        let _: io::Result<()> = SockRef::from(&*self.tcp).set_linger(None);
    }
}

impl AsyncRead for Plain {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        room: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.delivering.piped.is_some() {
            return Poll::Ready(Err(io::Error::other("bytes for the application are on their way to it")));
        }
        let Some((buffer, range)) = &self.delivering.bytes else {
            let read = ready!(socket::poll_read(cx, &self.tcp, room.initialize_unfilled()))?;
            room.advance(read);
            return Poll::Ready(Ok(()));
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
        socket::poll_write(cx, &self.tcp, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { tcp, sending, .. } = self.get_mut();
        sending.poll_flush(cx, tcp)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(cx))?;
        Poll::Ready(socket::shut(&self.tcp))
    }
}
