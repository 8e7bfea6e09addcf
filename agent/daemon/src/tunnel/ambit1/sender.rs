//! The sending direction of a connection: what goes into records together, and what the socket has not yet taken.

use std::{
    io, mem,
    ops::Range,
    sync::Arc,
    task::{Context, Poll, ready},
};

use ambit_core::frame::{self, Control, FrameType, MARK_LEN, parcel};
use tokio::net::TcpStream;

use super::record::{self, Batch, ContentType, HEADER_LEN, REKEY_AFTER, Sealer, TRAILER_LEN};
use crate::tunnel::{
    TunnelError,
    buffer::{Buffer, Share, Waiting},
    bundle::Strand,
    kernel::{Offload, Outgoing},
    session::{LegError, Moved},
    socket,
};

/// What is to be sent, and who seals it.
#[derive(Debug)]
pub(super) struct Sender {
    sealing: Sealing,
    /// A frame that goes out in front of whatever is sent next.
    held: Vec<u8>,
    /// A batch as the socket takes it, and what of it that has not taken.
    batch: Option<(Buffer, Range<usize>)>,
    /// Control records behind the batch, and how many bytes of them have gone.
    control: Vec<u8>,
    control_sent: usize,
    /// Behind these, for the kernel: a record that is no data.
    record: Option<(ContentType, Vec<u8>)>,
    /// Nothing may follow what is sent: it has to be more than accepted.
    last: bool,
    /// Bytes of the stream, and perhaps its end, that are in `batch`.
    moved: Option<Moved>,
    /// Bytes of all streams that have been sealed.
    data: u64,
    waiting: Waiting,
    source: Source,
}

/// Who seals records.
#[derive(Debug)]
enum Sealing {
    Here(Sealer),
    Kernel(Box<Outgoing>),
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
            sealing: Sealing::Here(sealer),
            held: Vec::new(),
            batch: None,
            control: Vec::new(),
            control_sent: 0,
            record: None,
            last: false,
            moved: None,
            data: 0,
            waiting: Waiting::default(),
            source: Source::Sound,
        }
    }

    /// Has the kernel seal what is sent, if it will. Nothing may wait to be sent.
    pub(super) fn hand_over(&mut self, tcp: &TcpStream, offload: &Offload) {
        if let Sealing::Here(sealer) = &self.sealing {
            let (sequence, secret) = sealer.secret();
            if let Some(outgoing) = offload.send(tcp, sequence, secret) {
                self.sealing = Sealing::Kernel(Box::new(outgoing));
            }
        }
    }

    /// Records under the keys in force.
    fn sealed(&self) -> u64 {
        match &self.sealing {
            Sealing::Here(sealer) => sealer.sealed(),
            Sealing::Kernel(outgoing) => outgoing.sealed(),
        }
    }

    /// Whether the peer has to be told new keys before more is sent.
    pub(super) fn is_worn(&self) -> bool {
        self.sealed() >= REKEY_AFTER
    }

    /// Whether no further stream should begin, as keys are half worn that cannot be renewed.
    pub(super) fn wears_out(&self) -> bool {
        matches!(&self.sealing, Sealing::Kernel(outgoing) if !outgoing.renews())
            && self.sealed() >= REKEY_AFTER / 2
    }

    /// Tells the peer new keys by `message`, and goes on with them.
    pub(super) fn renew(&mut self, message: &[u8]) -> Result<(), TunnelError> {
        self.push(message, ContentType::Handshake)?;
        match &mut self.sealing {
            Sealing::Here(sealer) => sealer.renew(),
            Sealing::Kernel(outgoing) => {
                outgoing.renew();
                Ok(())
            }
        }
    }

    /// Keeps no more than it needs while nothing is sent.
    pub(super) fn rest(&mut self) {
        if let Sealing::Here(sealer) = &mut self.sealing {
            sealer.rest();
        }
    }

    /// The application's socket has failed: what can still be read of it goes out, and no end.
    pub(super) fn source_failed(&mut self) {
        self.source = Source::Failed;
    }

    /// Has one control frame go out in front of whatever is sent next: a record, a packet and the peer's waking less.
    pub(super) fn hold(&mut self, control: &Control) {
        debug_assert!(self.held.is_empty(), "one frame is held at a time");
        self.last |= matches!(control, Control::Fin);
        self.held = control.encode();
    }

    /// Whether a frame still waits for company.
    pub(super) fn holds(&self) -> bool {
        !self.held.is_empty()
    }

    /// Bytes of all streams that have been sealed.
    pub(super) fn data(&self) -> u64 {
        self.data
    }

    /// Has the peer told of parcels that have gone over the bundle, in front of whatever is sent next.
    pub(super) fn mark(&mut self, strand: &mut Strand) {
        if !self.holds()
            && let Some(mark) = strand.take_mark()
        {
            self.hold(&Control::Mark(mark));
        }
    }

    /// Whether the socket has not taken all of a batch, or none can be had.
    pub(super) fn is_stuck(&self) -> bool {
        let drains = matches!(&self.sealing, Sealing::Kernel(outgoing) if outgoing.drains());
        self.batch.is_some() || self.waiting.is_some() || drains
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

    /// Puts one record behind all that waits.
    pub(super) fn push(&mut self, plain: &[u8], content: ContentType) -> Result<(), TunnelError> {
        self.last |= content == ContentType::Alert;
        match &mut self.sealing {
            Sealing::Here(sealer) => {
                let start = self.control.len();
                self.control.resize(start + HEADER_LEN + plain.len() + TRAILER_LEN, 0);
                let record = &mut self.control[start..];
                record[HEADER_LEN..HEADER_LEN + plain.len()].copy_from_slice(plain);
                sealer.seal(record, plain.len(), content)?;
            }
            Sealing::Kernel(_) if content == ContentType::Data => self.control.extend_from_slice(plain),
            // New keys and the end come by themselves, and nothing comes behind them at once.
            Sealing::Kernel(_) => self.record = Some((content, plain.to_vec())),
        }
        Ok(())
    }

    /// Writes all that is ready; answers what of a stream was in it.
    pub(super) fn poll_flush(
        &mut self,
        cx: &mut Context<'_>,
        tcp: &TcpStream,
    ) -> Poll<Result<Option<Moved>, TunnelError>> {
        if let Some((buffer, range)) = &mut self.batch {
            while range.start < range.end {
                let written = ready!(socket::poll_write(cx, tcp, &buffer[range.clone()]))?;
                range.start += written;
                self.sealing.wrote(written);
            }
            self.batch = None;
        }
        while self.control_sent < self.control.len() {
            let written = ready!(socket::poll_write(cx, tcp, &self.control[self.control_sent..]))?;
            self.control_sent += written;
            self.sealing.wrote(written);
        }
        // Given back: an idle connection keeps nothing.
        self.control = Vec::new();
        self.control_sent = 0;
        if let Sealing::Kernel(outgoing) = &mut self.sealing {
            if let Some((content, bytes)) = &self.record {
                ready!(outgoing.poll_send_record(cx, tcp, *content as u8, bytes))?;
                self.record = None;
                outgoing.renewed(tcp)?;
            }
            if self.last {
                ready!(outgoing.poll_drained(cx, tcp))?;
                self.last = false;
            }
        }
        Poll::Ready(Ok(self.moved.take()))
    }

    /// Has ready what `source` has, up to a batch of records, with FIN behind it if `source` has ended. All that was ready before
    /// must have been flushed. A small message goes by the bundle of `strand` if that takes it: then nothing is left to flush.
    pub(super) fn poll_read_from(
        &mut self,
        cx: &mut Context<'_>,
        source: &TcpStream,
        share: &Arc<Share>,
        strand: Option<&mut Strand>,
    ) -> Poll<Result<(), LegError>> {
        if let Source::Failing(_) = self.source
            && let Source::Failing(error) = mem::replace(&mut self.source, Source::Failed)
        {
            return Poll::Ready(Err(LegError::App(error)));
        }
        // An idle connection holds no buffer.
        ready!(source.poll_read_ready(cx)).map_err(LegError::App)?;
        let closed = socket::is_read_closed(cx, source);
        let mut buffer = ready!(share.poll_take(cx, &mut self.waiting));
        let free = !self.holds();
        let marks = free && strand.as_ref().is_some_and(|strand| strand.is_unmarked());
        let front = if marks { MARK_LEN } else { self.held.len() };
        let mut batch = self.batch(&mut buffer, front);
        let mut bytes =
            ready!(socket::poll_read_urgent(cx, source, batch.first(), closed)).map_err(LegError::App)?;
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
        let moved = Moved { bytes, end };
        if let Some(strand) = strand {
            if free && !end && bytes <= parcel::MAX && strand.offer(&batch.first()[..bytes], self.data) {
                self.moved = Some(moved);
                return Poll::Ready(Ok(()));
            }
            self.mark(strand);
            if end {
                strand.end();
            }
        }
        Poll::Ready(self.seal(buffer, moved).map_err(LegError::Tunnel))
    }

    /// The same with what `source` has at this moment, or else only with what is held; or with nothing, if `patient`, which it
    /// answers with `false`.
    pub(super) fn read_now(
        &mut self,
        source: &TcpStream,
        share: &Arc<Share>,
        patient: bool,
    ) -> Result<bool, LegError> {
        let Some(mut buffer) = share.try_take() else {
            return self.release().map(|()| true).map_err(LegError::Tunnel);
        };
        let mut batch = self.batch(&mut buffer, self.held.len());
        let read = self.at_once(socket::read_new(source, batch.first()));
        if patient && read.is_none() && matches!(self.source, Source::Sound) {
            return Ok(false);
        }
        let moved = Moved { bytes: read.unwrap_or(0), end: read == Some(0) };
        self.seal(buffer, moved).map(|()| true).map_err(LegError::Tunnel)
    }

    /// The same with the front of `bytes`; answers how many that is.
    pub(super) fn poll_read_bytes(
        &mut self,
        cx: &Context<'_>,
        bytes: &[u8],
        share: &Arc<Share>,
    ) -> Poll<Result<usize, TunnelError>> {
        let mut buffer = ready!(share.poll_take(cx, &mut self.waiting));
        let mut batch = self.batch(&mut buffer, self.held.len());
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

    /// Room in `buffer` behind a frame of `front` bytes, if any.
    fn batch<'b>(&self, buffer: &'b mut [u8], front: usize) -> Batch<'b> {
        match &self.sealing {
            Sealing::Here(_) if front > 0 => Batch::Records(&mut buffer[HEADER_LEN + front + TRAILER_LEN..]),
            Sealing::Here(_) => Batch::Records(buffer),
            Sealing::Kernel(_) => Batch::Frame(&mut buffer[front..]),
        }
    }

    /// Has ready what is held, then the payload that stands behind the room for that, then FIN if it is the end.
    fn seal(&mut self, mut buffer: Buffer, moved: Moved) -> Result<(), TunnelError> {
        debug_assert!(self.batch.is_none() && self.control.is_empty(), "one batch at a time");
        let mut wire = self.seal_held(&mut buffer)?;
        wire += self.sealing.seal(&mut buffer[wire..], moved.bytes)?;
        if moved.end {
            self.hold(&Control::Fin);
            wire += self.seal_held(&mut buffer[wire..])?;
        }
        self.batch = Some((buffer, 0..wire));
        self.data += moved.bytes as u64;
        self.moved = Some(moved);
        Ok(())
    }

    /// Puts what is held, if anything is, at the front of `buffer`; returns how long it is there.
    fn seal_held(&mut self, buffer: &mut [u8]) -> Result<usize, TunnelError> {
        let held = mem::take(&mut self.held);
        if held.is_empty() {
            return Ok(0);
        }
        match &mut self.sealing {
            Sealing::Here(sealer) => {
                buffer[HEADER_LEN..HEADER_LEN + held.len()].copy_from_slice(&held);
                sealer.seal(buffer, held.len(), ContentType::Data)
            }
            Sealing::Kernel(_) => {
                buffer[..held.len()].copy_from_slice(&held);
                Ok(held.len())
            }
        }
    }
}

impl Sealing {
    /// Has `len` bytes of payload ready for the socket, which stand in `buffer` as [`Batch`] lays them out; returns how many bytes
    /// of `buffer` that takes.
    fn seal(&mut self, buffer: &mut [u8], len: usize) -> Result<usize, TunnelError> {
        match self {
            Self::Here(sealer) => record::seal_batch(buffer, sealer, len),
            Self::Kernel(_) if len == 0 => Ok(0),
            Self::Kernel(_) => {
                buffer[..frame::HEADER_LEN].copy_from_slice(&frame::header(FrameType::Data, len));
                Ok(frame::HEADER_LEN + len)
            }
        }
    }

    /// Counts what the socket has taken in one call.
    fn wrote(&mut self, bytes: usize) {
        if let Self::Kernel(outgoing) = self {
            outgoing.wrote(bytes);
        }
    }
}
