//! The sending direction of a connection: what goes into records together, and what the socket has not yet taken.

use std::{
    io::{self, Read as _},
    mem,
    ops::Range,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
};

use ambit_core::frame::Control;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead as _, AsyncWrite as _, Interest, ReadBuf},
    net::TcpStream,
};

use super::record::{self, Batch, ContentType, HEADER_LEN, Sealer, TRAILER_LEN};
use crate::tunnel::{
    TunnelError,
    buffer::{Buffer, Share, Waiting},
    session::{LegError, Moved},
};

/// What is to be sent, and the key it is sealed with.
#[derive(Debug)]
pub(super) struct Sender {
    pub(super) sealer: Sealer,
    /// A frame that goes out in front of whatever is sent next.
    held: Vec<u8>,
    /// A sealed batch, and what of it the socket has not taken.
    batch: Option<(Buffer, Range<usize>)>,
    /// Sealed control records behind the batch, and how many bytes of them have gone.
    control: Vec<u8>,
    control_sent: usize,
    /// Bytes of the stream, and perhaps its end, that are in `batch`.
    moved: Option<Moved>,
    waiting: Waiting,
}

impl Sender {
    pub(super) fn new(sealer: Sealer) -> Self {
        Self {
            sealer,
            held: Vec::new(),
            batch: None,
            control: Vec::new(),
            control_sent: 0,
            moved: None,
            waiting: Waiting::default(),
        }
    }

    /// Has one control frame go out in front of whatever is sent next: a record, a packet and the peer's waking less.
    pub(super) fn hold(&mut self, control: &Control) {
        debug_assert!(self.held.is_empty(), "one frame is held at a time");
        self.held = control.encode();
    }

    /// Whether a frame still waits for company.
    pub(super) fn holds(&self) -> bool {
        !self.held.is_empty()
    }

    /// Whether the socket has not taken all of a batch, or none can be had.
    pub(super) fn is_stuck(&self) -> bool {
        self.batch.is_some() || self.waiting.is_some()
    }

    /// Seals what is held, so that it goes out with the next flush.
    pub(super) fn release(&mut self) -> Result<(), TunnelError> {
        let held = mem::take(&mut self.held);
        if held.is_empty() { Ok(()) } else { self.push(&held, ContentType::Data) }
    }

    /// Seals one record behind all that waits.
    pub(super) fn push(&mut self, plain: &[u8], content: ContentType) -> Result<(), TunnelError> {
        let start = self.control.len();
        self.control.resize(start + HEADER_LEN + plain.len() + TRAILER_LEN, 0);
        let record = &mut self.control[start..];
        record[HEADER_LEN..HEADER_LEN + plain.len()].copy_from_slice(plain);
        self.sealer.seal(record, plain.len(), content).map(|_| ())
    }

    /// Writes all that is sealed; answers what of a stream was in it.
    pub(super) fn poll_flush(
        &mut self,
        cx: &mut Context<'_>,
        tcp: &mut TcpStream,
    ) -> Poll<Result<Option<Moved>, TunnelError>> {
        if let Some((buffer, range)) = &mut self.batch {
            while range.start < range.end {
                range.start += ready!(poll_write(cx, tcp, &buffer[range.clone()]))?;
            }
            self.batch = None;
        }
        while self.control_sent < self.control.len() {
            self.control_sent += ready!(poll_write(cx, tcp, &self.control[self.control_sent..]))?;
        }
        // Given back: an idle connection keeps nothing.
        self.control = Vec::new();
        self.control_sent = 0;
        Poll::Ready(Ok(self.moved.take()))
    }

    /// Reads what `source` has, up to a batch of records, and seals it, with FIN behind it if `source` has ended. All that
    /// was sealed before must have been flushed.
    pub(super) fn poll_read_from(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut TcpStream,
        share: &Arc<Share>,
    ) -> Poll<Result<(), LegError>> {
        // An idle connection holds no buffer.
        ready!(source.poll_read_ready(cx)).map_err(LegError::App)?;
        let closed = is_read_closed(cx, source);
        let mut buffer = ready!(share.poll_take(cx, &mut self.waiting));
        let mut batch = Batch(&mut buffer[self.held_len()..]);
        let mut room = ReadBuf::new(batch.first());
        ready!(Pin::new(&mut *source).poll_read(cx, &mut room)).map_err(LegError::App)?;
        let mut bytes = room.filled().len();
        let mut end = bytes == 0;
        if batch.goes_on_after(bytes) {
            bytes += at_once(source.try_read_vectored(&mut batch.rest()))?.unwrap_or(0);
        } else if !end && closed && bytes < batch.first().len() {
            let more = at_once(source.try_read(&mut batch.first()[bytes..]))?;
            end = more == Some(0);
            bytes += more.unwrap_or(0);
        }
        Poll::Ready(self.seal(buffer, Moved { bytes, end }).map_err(LegError::Tunnel))
    }

    /// The same with what `source` has at this moment, or else only with what is held.
    pub(super) fn read_now(&mut self, source: &TcpStream, share: &Arc<Share>) -> Result<(), LegError> {
        let Some(mut buffer) = share.try_take() else {
            return self.release().map_err(LegError::Tunnel);
        };
        let mut batch = Batch(&mut buffer[self.held_len()..]);
        // Not by tokio: of a new socket it knows nothing before it has asked the kernel for events.
        let read = at_once((&*SockRef::from(source)).read(batch.first()))?;
        let moved = Moved { bytes: read.unwrap_or(0), end: read == Some(0) };
        self.seal(buffer, moved).map_err(LegError::Tunnel)
    }

    /// The same with the front of `bytes`; answers how many that is.
    pub(super) fn poll_read_bytes(
        &mut self,
        cx: &Context<'_>,
        bytes: &[u8],
        share: &Arc<Share>,
    ) -> Poll<Result<usize, TunnelError>> {
        let mut buffer = ready!(share.poll_take(cx, &mut self.waiting));
        let mut batch = Batch(&mut buffer[self.held_len()..]);
        let len = bytes.len().min(batch.first().len());
        batch.first()[..len].copy_from_slice(&bytes[..len]);
        self.seal(buffer, Moved { bytes: len, end: false })?;
        Poll::Ready(Ok(len))
    }

    /// Seals what is held, then the payload that stands behind the room for that, then FIN if it is the end.
    fn seal(&mut self, mut buffer: Buffer, moved: Moved) -> Result<(), TunnelError> {
        debug_assert!(self.batch.is_none() && self.control.is_empty(), "one batch at a time");
        let mut wire = self.seal_held(&mut buffer)?;
        wire += record::seal_batch(&mut buffer[wire..], &mut self.sealer, moved.bytes)?;
        if moved.end {
            self.hold(&Control::Fin);
            wire += self.seal_held(&mut buffer[wire..])?;
        }
        self.batch = Some((buffer, 0..wire));
        self.moved = Some(moved);
        Ok(())
    }

    /// Seals what is held, if anything is, at the front of `buffer`; returns the record's length.
    fn seal_held(&mut self, buffer: &mut [u8]) -> Result<usize, TunnelError> {
        let held = mem::take(&mut self.held);
        if held.is_empty() {
            return Ok(0);
        }
        buffer[HEADER_LEN..HEADER_LEN + held.len()].copy_from_slice(&held);
        self.sealer.seal(buffer, held.len(), ContentType::Data)
    }

    /// Bytes of the record that carries what is held; none for nothing.
    fn held_len(&self) -> usize {
        if self.holds() { HEADER_LEN + self.held.len() + TRAILER_LEN } else { 0 }
    }
}

/// Whether it is known that the other end of a readable socket has ended.
fn is_read_closed(cx: &mut Context<'_>, socket: &TcpStream) -> bool {
    // It is ready, so that this leaves no waiter behind.
    match pin!(socket.ready(Interest::READABLE)).poll(cx) {
        Poll::Ready(Ok(ready)) => ready.is_read_closed(),
        _ => false,
    }
}

fn poll_write(cx: &mut Context<'_>, tcp: &mut TcpStream, bytes: &[u8]) -> Poll<io::Result<usize>> {
    match ready!(Pin::new(tcp).poll_write(cx, bytes)) {
        Ok(0) => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
        result => Poll::Ready(result),
    }
}

/// What a read that does not wait has brought; `None` if nothing is there.
fn at_once(read: io::Result<usize>) -> Result<Option<usize>, LegError> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        // The kernel tells an error once; after that the source would seem to have ended well.
        Err(error) => Err(LegError::App(error)),
    }
}
