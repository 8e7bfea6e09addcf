//! The receiving direction of a connection: bytes on their way from records to frames, opened where they were read.

use std::{
    io::{self, IoSlice},
    ops::Range,
    sync::Arc,
    task::{Context, Poll, ready},
};

use ambit_core::{
    frame::{Control, Decoder, Event},
    reason::Reason,
};
use nix::sys::socket::TlsGetRecordType;
use tokio::{io::ReadBuf, net::TcpStream};

use super::{
    link::Keys,
    pieces::{PIECES, Pieces},
    record::{self, ContentType, HEADER_LEN, Opener, REKEY_AFTER},
};
use crate::tunnel::{
    TunnelError,
    buffer::{Buffer, FULL, Share, Waiting},
    kernel::{self, Opening},
    socket::{self, Manner},
    tls,
};

/// `buffer[pieces]` are bytes of the stream, `buffer[plain]` is opened and not yet decoded, and what is between `next` and
/// `filled` are records still sealed.
pub(super) struct Receiver {
    opening: Records,
    /// The kernel is to open them, from the first byte of one on.
    hand_over: bool,
    decoder: Decoder,
    buffer: Option<Buffer>,
    /// End of the received bytes.
    filled: usize,
    /// Start of the next sealed record.
    next: usize,
    plain: Range<usize>,
    pieces: Pieces,
    /// Bytes of all streams that have been delivered.
    data: u64,
    /// On the heap, as it is seldom there.
    control: Option<Box<Control>>,
    closed: bool,
    /// No stream is open.
    rests: bool,
    waiting: Waiting,
}

/// Who opens records.
enum Records {
    Here(Opener),
    Kernel(Opening),
}

impl Receiver {
    /// `early` has been read already. With `hand_over` the kernel is to open what follows.
    pub(super) fn new(opener: Opener, early: &[u8], share: &Arc<Share>, hand_over: bool) -> Self {
        let buffer = (!early.is_empty()).then(|| {
            let mut buffer = share.take_small();
            buffer[..early.len()].copy_from_slice(early);
            buffer
        });
        Self {
            opening: Records::Here(opener),
            hand_over,
            decoder: Decoder::default(),
            buffer,
            filled: early.len(),
            next: 0,
            plain: 0..0,
            pieces: Pieces::default(),
            data: 0,
            control: None,
            closed: false,
            rests: false,
            waiting: Waiting::default(),
        }
    }

    /// Waits until there are bytes of a stream, or a control frame behind all that came before it. `None` is the peer's
    /// orderly or silent end.
    pub(super) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        tcp: &TcpStream,
        keys: &mut Keys,
        share: &Arc<Share>,
    ) -> Poll<Result<Option<Received>, TunnelError>> {
        loop {
            if !self.pieces.is_empty() {
                return Poll::Ready(Ok(Some(Received::Data)));
            }
            if let Some(control) = self.control.take() {
                return Poll::Ready(Ok(Some(Received::Control(*control))));
            }
            let more = self.open(keys)?;
            if !self.pieces.is_empty() || self.control.is_some() {
                continue;
            }
            if self.closed {
                return Poll::Ready(Ok(None));
            }
            if !more && !ready!(self.poll_fill(cx, tcp, keys, share))? {
                return Poll::Ready(Ok(None));
            }
        }
    }

    /// Writes bytes of the stream to `sink`, some of those that are here; answers how many. The end goes with them where that is
    /// here as well, if `sink` is told of it before anything is waited for. Nothing has been written to a `new` one.
    pub(super) fn poll_write_to(
        &mut self,
        cx: &mut Context<'_>,
        sink: &TcpStream,
        new: bool,
    ) -> Poll<io::Result<usize>> {
        let manner = Manner { new, more: matches!(self.control.as_deref(), Some(Control::Fin)) };
        let bytes = self.buffer.as_deref().unwrap_or_default();
        let mut slices = [IoSlice::new(&[]); PIECES];
        let mut count = 0;
        for range in self.pieces.iter() {
            slices[count] = IoSlice::new(&bytes[range]);
            count += 1;
        }
        let written = match &slices[..count] {
            [piece] => ready!(socket::poll_write_as(cx, sink, piece, manner))?,
            pieces => ready!(socket::poll_write_vectored(cx, sink, pieces, manner))?,
        };
        self.delivered(written);
        Poll::Ready(Ok(written))
    }

    /// Copies bytes of the stream to `room`, as many as fit.
    pub(super) fn copy_to(&mut self, room: &mut ReadBuf<'_>) {
        let bytes = self.buffer.as_deref().unwrap_or_default();
        let mut copied = 0;
        for range in self.pieces.iter() {
            let len = range.len().min(room.remaining());
            room.put_slice(&bytes[range][..len]);
            copied += len;
        }
        self.delivered(copied);
    }

    /// Bytes of all streams that have been delivered.
    pub(super) fn data(&self) -> u64 {
        self.data
    }

    fn delivered(&mut self, bytes: usize) {
        self.data += bytes as u64;
        self.pieces.advance(bytes);
        if self.pieces.is_empty() {
            self.pieces.clear();
        }
    }

    /// Whether nothing but pings and tickets came while the connection rested, so that another stream may run on it.
    pub(super) fn is_fresh(&mut self, tcp: &TcpStream, keys: &mut Keys, share: &Arc<Share>) -> bool {
        loop {
            self.hand_over(tcp, share);
            let Ok(room) = self.room() else { return false };
            let buffer = self.buffer.get_or_insert_with(|| share.take_small());
            let end = buffer.len().min(self.filled.saturating_add(room));
            match tcp.try_read(&mut buffer[self.filled..end]) {
                Ok(0) => return false,
                Ok(read) => self.took(read),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.tidy();
                    return self.is_empty() && self.decoder.between_frames();
                }
                Err(error) => match self.take_record(error, tcp, keys) {
                    Ok(true) => {}
                    Ok(false) | Err(_) => return false,
                },
            }
            loop {
                let Ok(more) = self.open(keys) else { return false };
                match self.control.take().as_deref() {
                    _ if !self.pieces.is_empty() => return false,
                    Some(Control::Ping) => {}
                    Some(_) => return false,
                    None if more => {}
                    None => break,
                }
            }
            if self.closed {
                return false;
            }
            self.tidy();
        }
    }

    /// Reads once; `false` at the end.
    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        tcp: &TcpStream,
        keys: &mut Keys,
        share: &Arc<Share>,
    ) -> Poll<Result<bool, TunnelError>> {
        self.tidy();
        self.grow(share);
        self.hand_over(tcp, share);
        if self.buffer.is_none() {
            ready!(tcp.poll_read_ready(cx))?;
            // What a stream begins with is mostly little, and is held until the application is connected.
            let small = if self.rests { share.try_take_small() } else { None };
            self.buffer = match small {
                Some(small) => Some(small),
                None => Some(ready!(share.poll_take(cx, &mut self.waiting))),
            };
        }
        let room = self.room()?;
        let Some(buffer) = &mut self.buffer else { return Poll::Ready(Ok(true)) };
        if self.filled == buffer.len() {
            // The rest of a record has no room: the buffer is a small one, full to the brim with an overlong record.
            return Poll::Ready(Err(TunnelError::Record));
        }
        let end = buffer.len().min(self.filled.saturating_add(room));
        let room = &mut buffer[self.filled..end];
        let read = match &self.opening {
            Records::Here(_) => socket::poll_read(cx, tcp, room),
            Records::Kernel(_) => socket::poll_read_records(cx, tcp, room),
        };
        match read {
            Poll::Ready(Ok(read)) => {
                self.took(read);
                Poll::Ready(Ok(read > 0))
            }
            Poll::Ready(Err(error)) => Poll::Ready(self.take_record(error, tcp, keys)),
            Poll::Pending => {
                self.shrink(share);
                Poll::Pending
            }
        }
    }

    /// A record of a stream that does not end where a small buffer ends is part of much: a full one takes its place.
    fn grow(&mut self, share: &Arc<Share>) {
        if !self.rests
            && self.plain.is_empty()
            && self.buffer.as_ref().is_some_and(|buffer| buffer.len() < FULL)
            && let Some(mut buffer) = share.try_take()
            && buffer.len() == FULL
            && let Some(small) = self.buffer.take()
        {
            buffer[..self.filled].copy_from_slice(&small[..self.filled]);
            self.buffer = Some(buffer);
        }
    }

    /// Has the kernel open what follows, if it shall and a record begins there.
    fn hand_over(&mut self, tcp: &TcpStream, share: &Share) {
        if !self.hand_over || !self.is_empty() {
            return;
        }
        self.hand_over = false;
        if let (Records::Here(opener), Some(offload)) = (&self.opening, share.offload()) {
            let (sequence, secret) = opener.secret();
            if let Some(opening) = offload.receive(tcp, sequence, secret) {
                self.opening = Records::Kernel(opening);
            }
        }
    }

    /// How many bytes may be read at most: no more than belong to this record where the kernel is to open the next one.
    fn room(&self) -> Result<usize, TunnelError> {
        let Some(buffer) = self.buffer.as_ref().filter(|_| self.hand_over) else { return Ok(usize::MAX) };
        let record = &buffer[self.next..self.filled];
        let len = record::record_len(record)?.unwrap_or(HEADER_LEN);
        Ok(len.saturating_sub(record.len()))
    }

    /// Counts what has been read.
    fn took(&mut self, read: usize) {
        let start = self.filled;
        self.filled += read;
        if let Records::Kernel(_) = self.opening {
            debug_assert!(self.plain.is_empty() && self.next == start, "what came before is decoded");
            self.next = self.filled;
            self.plain = start..self.filled;
        }
    }

    /// A read has failed: takes the record that is no data, if that is why. `false` at the end.
    fn take_record(
        &mut self,
        error: io::Error,
        tcp: &TcpStream,
        keys: &mut Keys,
    ) -> Result<bool, TunnelError> {
        let (Records::Kernel(opening), Some(buffer)) = (&mut self.opening, &mut self.buffer) else {
            return Err(error.into());
        };
        if !kernel::is_record(&error) {
            return Err(kernel::failed(error));
        }
        let room = &mut buffer[self.filled..];
        let (content, len) = kernel::take_record(tcp, room)?;
        match content {
            Some(TlsGetRecordType::Handshake) => {
                if keys.handshake_message(&room[..len])? {
                    opening.renew(tcp)?;
                }
            }
            Some(TlsGetRecordType::Alert) => self.closed = is_end(&room[..len])?,
            Some(TlsGetRecordType::ApplicationData) => self.took(len),
            None if len == 0 => return Ok(false),
            _ => return Err(TunnelError::Record),
        }
        Ok(true)
    }

    /// Whether no further stream should begin, as keys are half worn that cannot be renewed.
    pub(super) fn wears_out(&self, tcp: &TcpStream) -> bool {
        matches!(&self.opening, Records::Kernel(opening) if opening.opened(tcp) >= REKEY_AFTER / 2)
    }

    /// While nothing more comes, a full buffer is not kept for the beginning of a record.
    fn shrink(&mut self, share: &Arc<Share>) {
        if self.is_empty() {
            self.tidy();
        } else if share.is_short()
            && self.plain.is_empty()
            && let Some(full) = self.buffer.take_if(|buffer| buffer.len() == FULL)
        {
            let mut small = share.take_small();
            small[..self.filled].copy_from_slice(&full[..self.filled]);
            self.buffer = Some(small);
        }
    }

    /// Keeps no more than it needs while nothing comes.
    pub(super) fn rest(&mut self) {
        if let Records::Here(opener) = &mut self.opening {
            opener.rest();
        }
    }

    /// Whether a stream is waited for.
    pub(super) fn set_rests(&mut self, rests: bool) {
        self.rests = rests;
    }

    /// Whether something has come that nobody has taken.
    pub(super) fn has_more(&self) -> bool {
        !self.pieces.is_empty() || !self.is_empty()
    }

    /// Whether it has bytes for a stream, or has no room for what has come.
    pub(super) fn is_stuck(&self) -> bool {
        !self.pieces.is_empty() || self.waiting.is_some()
    }

    /// Whether the peer has said that nothing follows (RFC 8446 §6.1), as one does that is not cut off.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    fn is_empty(&self) -> bool {
        self.plain.is_empty() && self.next == self.filled
    }

    /// Gives the buffer back, or moves a record that is not yet whole to its front.
    pub(super) fn tidy(&mut self) {
        if !self.pieces.is_empty() {
            return;
        }
        if self.is_empty() {
            self.buffer = None;
            (self.next, self.filled, self.plain) = (0, 0, 0..0);
        } else if self.plain.is_empty()
            && self.next > 0
            && let Some(buffer) = &mut self.buffer
        {
            buffer.copy_within(self.next..self.filled, 0);
            (self.next, self.filled, self.plain) = (0, self.filled - self.next, 0..0);
        }
    }

    /// Opens and decodes until there are as many pieces as fit, a control frame, or nothing more to open. Answers whether it
    /// got anywhere.
    fn open(&mut self, keys: &mut Keys) -> Result<bool, TunnelError> {
        let before = (self.next, self.plain.start);
        loop {
            self.decode()?;
            if self.control.is_some() || self.pieces.is_full() || self.closed {
                break;
            }
            let (Records::Here(opener), Some(buffer)) = (&mut self.opening, &mut self.buffer) else { break };
            let sealed = &mut buffer[self.next..self.filled];
            let Some(len) = record::record_len(sealed)?.filter(|len| sealed.len() >= *len) else { break };
            let (content, plain) = opener.open(&mut sealed[..len])?;
            let start = self.next + HEADER_LEN;
            self.next += len;
            match content {
                ContentType::Data => self.plain = start..start + plain,
                ContentType::Handshake => {
                    if keys.handshake_message(&buffer[start..start + plain])? {
                        opener.renew()?;
                    }
                }
                ContentType::Alert => self.closed = is_end(&buffer[start..start + plain])?,
            }
        }
        Ok((self.next, self.plain.start) != before)
    }

    fn decode(&mut self) -> Result<(), TunnelError> {
        let Some(buffer) = &self.buffer else {
            return Ok(());
        };
        while !self.plain.is_empty() && !self.pieces.is_full() && self.control.is_none() {
            let mut input = &buffer[self.plain.clone()];
            let event = self.decoder.next(&mut input)?;
            let end = self.plain.end - input.len();
            match event {
                Some(Event::Data(data)) => self.pieces.push(&(end - data.len()..end)),
                // Data before a control frame is delivered first: it stands in `pieces`.
                Some(Event::Control(control)) => self.control = Some(Box::new(control)),
                None => {}
            }
            self.plain.start = end;
        }
        Ok(())
    }
}

/// What has come.
#[derive(Debug)]
pub(super) enum Received {
    /// Bytes of the stream, to be taken by [`Receiver::poll_write_to`] or [`Receiver::copy_to`].
    Data,
    /// A frame of another type.
    Control(Control),
}

/// Whether an alert says that nothing follows; any other is an error.
fn is_end(alert: &[u8]) -> Result<bool, TunnelError> {
    match *alert {
        [_, 0] => Ok(true),
        [_, description] => Err(refused(description)),
        _ => Err(TunnelError::Record),
    }
}

fn refused(description: u8) -> TunnelError {
    let error = rustls::Error::AlertReceived(rustls::AlertDescription::from(description));
    let (reason, text) = tls::handshake_reason(&error);
    if reason == Reason::TlsHandshake {
        return TunnelError::Alert(description);
    }
    TunnelError::Handshake { reason, text }
}
