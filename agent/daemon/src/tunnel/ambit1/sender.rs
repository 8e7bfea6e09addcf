//! The sending direction of a connection: what goes into records together, and what the socket has not yet taken.

use std::{
    io::{self, Read as _},
    mem,
    ops::Range,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use ambit_core::frame::Control;
use socket2::SockRef;
use tokio::{io::Interest, net::TcpStream};

use super::record::{self, Batch, ContentType, HEADER_LEN, Sealer, TRAILER_LEN};
use crate::tunnel::{
    TunnelError,
    buffer::{Buffer, Share, Waiting},
    session::{LegError, Moved},
    socket,
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
    source: Source,
}

/// What is known of the application's socket beyond what can be read of it.
#[derive(Debug, Default)]
enum Source {
    #[default]
    Sound,
    /// A read has met an error behind bytes that go first.
    Failing(io::Error),
    /// Another call has got the error, which the kernel tells once: what looks like the end is none.
    Failed,
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
            source: Source::Sound,
        }
    }

    /// The application's socket has failed: what can still be read of it goes out, and no end.
    pub(super) fn source_failed(&mut self) {
        self.source = Source::Failed;
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

    /// Whether the socket has not taken all of a batch.
    pub(super) fn is_clogged(&self) -> bool {
        self.batch.is_some()
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
        tcp: &TcpStream,
    ) -> Poll<Result<Option<Moved>, TunnelError>> {
        if let Some((buffer, range)) = &mut self.batch {
            while range.start < range.end {
                range.start += ready!(socket::poll_write(cx, tcp, &buffer[range.clone()]))?;
            }
            self.batch = None;
        }
        while self.control_sent < self.control.len() {
            self.control_sent += ready!(socket::poll_write(cx, tcp, &self.control[self.control_sent..]))?;
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
        source: &TcpStream,
        share: &Arc<Share>,
    ) -> Poll<Result<(), LegError>> {
        if let Source::Failing(_) = self.source
            && let Source::Failing(error) = mem::replace(&mut self.source, Source::Failed)
        {
            return Poll::Ready(Err(LegError::App(error)));
        }
        // An idle connection holds no buffer.
        ready!(source.poll_read_ready(cx)).map_err(LegError::App)?;
        let closed = is_read_closed(cx, source);
        let mut buffer = ready!(share.poll_take(cx, &mut self.waiting));
        let mut batch = Batch(&mut buffer[self.held_len()..]);
        let mut bytes = ready!(socket::poll_read_urgent(cx, source, batch.first())).map_err(LegError::App)?;
        let mut end = bytes == 0;
        if end && let Source::Failed = self.source {
            return Poll::Ready(Err(LegError::App(io::ErrorKind::ConnectionReset.into())));
        }
        if batch.goes_on_after(bytes) {
            bytes += self.at_once(source.try_read_vectored(&mut batch.rest())).unwrap_or(0);
        } else if !end && closed && bytes < batch.first().len() {
            let more = self.at_once(source.try_read(&mut batch.first()[bytes..]));
            end = more == Some(0) && matches!(self.source, Source::Sound);
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
        let read = self.at_once((&*SockRef::from(source)).read(batch.first()));
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
        let len = batch.fill(bytes);
        self.seal(buffer, Moved { bytes: len, end: false })?;
        Poll::Ready(Ok(len))
    }

    /// What a read that does not wait has brought; `None` if nothing is there. An error waits until what is in front of it
    /// has gone.
    fn at_once(&mut self, read: io::Result<usize>) -> Option<usize> {
        match read {
            Ok(read) => Some(read),
            Err(error) => {
                if error.kind() != io::ErrorKind::WouldBlock {
                    self.source = Source::Failing(error);
                }
                None
            }
        }
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
