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
use tokio::{io::ReadBuf, net::TcpStream};

use super::{
    link::Keys,
    record::{self, ContentType, HEADER_LEN, Opener},
};
use crate::tunnel::{
    TunnelError,
    buffer::{Buffer, FULL, Share, Waiting},
    socket, tls,
};

/// Pieces of stream data that one batch of records may come in.
const PIECES: usize = 16;

/// `buffer[pieces]` are bytes of the stream, `buffer[plain]` is opened and not yet decoded, and what is between `next` and
/// `filled` are records still sealed.
pub(super) struct Receiver {
    opener: Opener,
    decoder: Decoder,
    buffer: Option<Buffer>,
    /// End of the received bytes.
    filled: usize,
    /// Start of the next sealed record.
    next: usize,
    plain: Range<usize>,
    pieces: Pieces,
    control: Option<Control>,
    closed: bool,
    waiting: Waiting,
}

/// Where bytes of the stream stand that have not been delivered. They take little room: offsets in a buffer are small.
#[derive(Default)]
struct Pieces {
    ranges: [(u32, u32); PIECES],
    first: u8,
    len: u8,
}

impl Pieces {
    fn is_empty(&self) -> bool {
        self.first == self.len
    }

    fn is_full(&self) -> bool {
        usize::from(self.len) == PIECES
    }

    fn clear(&mut self) {
        (self.first, self.len) = (0, 0);
    }

    fn push(&mut self, range: &Range<usize>) {
        // A buffer is far shorter than 4 GiB.
        self.ranges[usize::from(self.len)] = (range.start as u32, range.end as u32);
        self.len += 1;
    }

    fn iter(&self) -> impl ExactSizeIterator<Item = Range<usize>> + '_ {
        let ranges = &self.ranges[usize::from(self.first)..usize::from(self.len)];
        ranges.iter().map(|(start, end)| *start as usize..*end as usize)
    }

    fn advance(&mut self, mut by: usize) {
        while by > 0 && !self.is_empty() {
            let (start, end) = &mut self.ranges[usize::from(self.first)];
            let step = by.min((*end - *start) as usize);
            *start += step as u32;
            by -= step;
            if start == end {
                self.first += 1;
            }
        }
    }
}

impl Receiver {
    pub(super) fn new(opener: Opener, early: &[u8], share: &Arc<Share>) -> Self {
        let buffer = (!early.is_empty()).then(|| {
            let mut buffer = share.take_small();
            buffer[..early.len()].copy_from_slice(early);
            buffer
        });
        Self {
            opener,
            decoder: Decoder::default(),
            buffer,
            filled: early.len(),
            next: 0,
            plain: 0..0,
            pieces: Pieces::default(),
            control: None,
            closed: false,
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
                return Poll::Ready(Ok(Some(Received::Control(control))));
            }
            let more = self.open(keys)?;
            if !self.pieces.is_empty() || self.control.is_some() {
                continue;
            }
            if self.closed {
                return Poll::Ready(Ok(None));
            }
            if !more && !ready!(self.poll_fill(cx, tcp, share))? {
                return Poll::Ready(Ok(None));
            }
        }
    }

    /// Writes bytes of the stream to `sink`, some of those that are here; answers how many.
    pub(super) fn poll_write_to(
        &mut self,
        cx: &mut Context<'_>,
        sink: &TcpStream,
    ) -> Poll<io::Result<usize>> {
        let bytes = self.buffer.as_deref().unwrap_or_default();
        let mut slices = [IoSlice::new(&[]); PIECES];
        let mut count = 0;
        for range in self.pieces.iter() {
            slices[count] = IoSlice::new(&bytes[range]);
            count += 1;
        }
        let written = match &slices[..count] {
            [piece] => ready!(socket::poll_write(cx, sink, piece))?,
            pieces => ready!(socket::poll_write_vectored(cx, sink, pieces))?,
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

    fn delivered(&mut self, bytes: usize) {
        self.pieces.advance(bytes);
        if self.pieces.is_empty() {
            self.pieces.clear();
        }
    }

    /// Whether nothing but pings and tickets came while the connection rested, so that another stream may run on it.
    pub(super) fn is_fresh(&mut self, tcp: &TcpStream, keys: &mut Keys, share: &Arc<Share>) -> bool {
        loop {
            let buffer = self.buffer.get_or_insert_with(|| share.take_small());
            match tcp.try_read(&mut buffer[self.filled..]) {
                Ok(0) => return false,
                Ok(read) => self.filled += read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.tidy();
                    return self.is_empty() && self.decoder.between_frames();
                }
                Err(_) => return false,
            }
            loop {
                let Ok(more) = self.open(keys) else { return false };
                match self.control.take() {
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
        share: &Arc<Share>,
    ) -> Poll<Result<bool, TunnelError>> {
        self.tidy();
        if self.buffer.is_none() {
            ready!(tcp.poll_read_ready(cx))?;
            self.buffer = Some(ready!(share.poll_take(cx, &mut self.waiting)));
        }
        let Some(buffer) = &mut self.buffer else { return Poll::Ready(Ok(true)) };
        if self.filled == buffer.len() {
            // The rest of a record has no room: the buffer is a small one, full to the brim with an overlong record.
            return Poll::Ready(Err(TunnelError::Record));
        }
        match socket::poll_read(cx, tcp, &mut buffer[self.filled..]) {
            Poll::Ready(read) => {
                let read = read?;
                self.filled += read;
                Poll::Ready(Ok(read > 0))
            }
            Poll::Pending => {
                self.shrink(share);
                Poll::Pending
            }
        }
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
        self.opener.rest();
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
            let Some(buffer) = &mut self.buffer else { break };
            let sealed = &mut buffer[self.next..self.filled];
            let Some(len) = record::record_len(sealed)?.filter(|len| sealed.len() >= *len) else { break };
            let (content, plain) = self.opener.open(&mut sealed[..len])?;
            let start = self.next + HEADER_LEN;
            self.next += len;
            match content {
                ContentType::Data => self.plain = start..start + plain,
                ContentType::Handshake => {
                    if let Some(opener) = keys.handshake_message(&buffer[start..start + plain])? {
                        self.opener = opener;
                    }
                }
                ContentType::Alert => match buffer[start..start + plain] {
                    [_, 0] => self.closed = true,
                    [_, description] => return Err(alert(description)),
                    _ => return Err(TunnelError::Record),
                },
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
                Some(Event::Control(control)) => self.control = Some(control),
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

fn alert(description: u8) -> TunnelError {
    let error = rustls::Error::AlertReceived(rustls::AlertDescription::from(description));
    let (reason, text) = tls::handshake_reason(&error);
    if reason == Reason::TlsHandshake {
        return TunnelError::Alert(description);
    }
    TunnelError::Handshake { reason, text }
}
