//! One TLS connection between two agents: frames in records, read and written in batches. Streams follow one another on
//! it; a stream's two directions run side by side through [`Reader`] and [`Writer`].

pub(super) mod writer;

use std::{
    fmt,
    io::{self, IoSlice},
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use ambit_core::{
    frame::{Control, Decoder, Event, Open},
    reason::Reason,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    time::{Instant, timeout, timeout_at},
};

use super::{
    Buffer, TunnelError,
    handshake::Kernel,
    record::{self, ContentType, HEADER_LEN, Opener, Sealer},
    tls::{self, PeerIdentity},
};

pub(crate) use self::writer::{MoveError, Writer};

/// Pieces of stream data that one batch of records may come in.
const PIECES: usize = 16;

/// The part of what is left of a peer's certificate for which new streams may begin on a connection. Thus connections
/// follow renewed certificates soon, and none stands on an old root when that is withdrawn at last.
const RETIREMENT: f64 = 0.2;

/// A connection to a peer whose identity has been verified.
pub(crate) struct Link {
    tcp: TcpStream,
    sealer: Sealer,
    /// A write was cut in the middle of a record.
    torn: bool,
    incoming: Incoming,
    shared: Shared,
    peer: Arc<PeerIdentity>,
    group: &'static str,
    resumed: bool,
    /// No new streams after this time.
    retired: SystemTime,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// What both directions need now and then.
struct Shared {
    kernel: Mutex<Kernel>,
    /// The peer asked for new keys of ours.
    rekey: AtomicBool,
    /// The peer takes no further streams here.
    last: AtomicBool,
}

impl Link {
    pub(super) fn new(
        tcp: TcpStream,
        sealer: Sealer,
        opener: Opener,
        kernel: Kernel,
        peer: PeerIdentity,
        (group, resumed): (&'static str, bool),
        early: &[u8],
    ) -> Self {
        let mut incoming = Incoming::new(opener);
        incoming.preload(early);
        let shared = Shared {
            kernel: Mutex::new(kernel),
            rekey: AtomicBool::new(false),
            last: AtomicBool::new(false),
        };
        let now = SystemTime::now();
        let left = peer.not_after.duration_since(now).unwrap_or_default();
        let retired = now + left.mul_f64(RETIREMENT);
        Self { tcp, sealer, torn: false, incoming, shared, peer: Arc::new(peer), group, resumed, retired }
    }

    /// The peer, as its certificate says.
    pub(crate) fn peer(&self) -> &Arc<PeerIdentity> {
        &self.peer
    }

    /// The key exchange group of the handshake.
    pub(crate) fn group(&self) -> &'static str {
        self.group
    }

    /// Whether the handshake resumed an earlier session.
    pub(crate) fn is_resumed(&self) -> bool {
        self.resumed
    }

    /// Whether another stream may begin at `now`: the peer's certificate is valid, the handshake not too long ago, and the
    /// peer has not asked for an end.
    pub(crate) fn is_valid(&self, now: SystemTime) -> bool {
        now < self.peer.not_after && now < self.retired && !self.shared.last.load(Ordering::Relaxed)
    }

    /// Tells the client between two streams that it shall begin no other; one that it has begun meanwhile may follow.
    pub(crate) async fn go_away(&mut self) -> Result<(), TunnelError> {
        let (_, mut writer) = self.split();
        writer.control(&Control::GoAway).await
    }

    /// The two directions, to be used by one task side by side.
    pub(crate) fn split(&mut self) -> (Reader<'_>, Writer<'_>) {
        let (read, write) = self.tcp.split();
        (
            Reader { tcp: read, incoming: &mut self.incoming, shared: &self.shared },
            Writer {
                tcp: write,
                sealer: &mut self.sealer,
                torn: &mut self.torn,
                shared: &self.shared,
                held: Vec::new(),
            },
        )
    }

    /// Waits for the client's next stream; `None` once it has closed the connection or has kept silent for `idle`.
    pub(crate) async fn next_open(&mut self, idle: Duration) -> Result<Option<Open>, TunnelError> {
        let deadline = Instant::now() + idle;
        let (mut reader, _) = self.split();
        loop {
            let Ok(received) = timeout_at(deadline, reader.receive()).await else {
                return Ok(None);
            };
            match received {
                Ok(Received::Control(Control::Open(open))) => return Ok(Some(open)),
                Ok(Received::Control(Control::Ping)) => {}
                Ok(Received::Control(_)) => return Err(TunnelError::Unexpected("control")),
                Ok(Received::Data(_)) => return Err(TunnelError::Unexpected("DATA")),
                Err(TunnelError::Closed) => return Ok(None),
                // An idle client that dies ends no stream.
                Err(TunnelError::Io(_)) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether a connection that rested can carry another stream: nothing but pings and tickets came meanwhile.
    pub(super) fn is_fresh(&mut self) -> bool {
        loop {
            let incoming = &mut self.incoming;
            let buffer = incoming.buffer.get_or_insert_with(Buffer::take);
            match self.tcp.try_read(&mut buffer[incoming.filled..]) {
                Ok(0) => return false,
                Ok(read) => incoming.filled += read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    incoming.tidy();
                    return incoming.is_empty() && incoming.decoder.between_frames();
                }
                Err(_) => return false,
            }
            while let Ok(more) = incoming.open(&self.shared) {
                match incoming.control.take() {
                    _ if incoming.pieces > 0 => return false,
                    Some(Control::Ping) => {}
                    Some(_) => return false,
                    None if more => {}
                    None => break,
                }
            }
            if incoming.closed || incoming.failed {
                return false;
            }
        }
    }

    /// Sends a last frame and closes, waiting a moment for the peer to have read it: what it sent meanwhile must not
    /// turn our FIN into a RST that overtakes the frame.
    pub(crate) async fn close_with(mut self, last: Option<Control>) {
        let farewell = async {
            let (_, mut writer) = self.split();
            if let Some(control) = &last {
                writer.control(control).await?;
            }
            writer.close_notify().await?;
            self.tcp.shutdown().await?;
            let mut sink = Buffer::take();
            let mut drained = 0;
            while last.is_some() && drained < 1 << 20 {
                match self.tcp.read(&mut sink).await? {
                    0 => break,
                    read => drained += read,
                }
            }
            Ok::<_, TunnelError>(())
        };
        // The peer may be gone: then there is nobody to say goodbye to.
        let _: Result<_, _> = timeout(Duration::from_secs(1), farewell).await;
    }
}

/// What [`Reader::receive`] brings.
#[derive(Debug)]
pub(crate) enum Received<'a> {
    /// Bytes of the stream, in order.
    Data(Pieces<'a>),
    /// A frame of another type.
    Control(Control),
}

/// Bytes of a stream, in up to [`PIECES`] pieces.
#[derive(Debug)]
pub(crate) struct Pieces<'a> {
    bytes: &'a [u8],
    ranges: &'a [Range<usize>],
}

impl Pieces<'_> {
    /// How many bytes there are in all.
    pub(crate) fn len(&self) -> usize {
        self.ranges.iter().map(ExactSizeIterator::len).sum()
    }

    /// Writes all of them to `sink`.
    pub(crate) async fn write_to(&self, sink: &mut WriteHalf<'_>) -> io::Result<()> {
        if let [range] = self.ranges {
            return sink.write_all(&self.bytes[range.clone()]).await;
        }
        let mut slices = [IoSlice::new(&[]); PIECES];
        for (slice, range) in slices.iter_mut().zip(self.ranges) {
            *slice = IoSlice::new(&self.bytes[range.clone()]);
        }
        let mut left = &mut slices[..self.ranges.len()];
        while !left.is_empty() {
            let written = sink.write_vectored(left).await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            IoSlice::advance_slices(&mut left, written);
        }
        Ok(())
    }
}

/// The receiving direction.
pub(crate) struct Reader<'a> {
    tcp: ReadHalf<'a>,
    incoming: &'a mut Incoming,
    shared: &'a Shared,
}

impl Reader<'_> {
    /// The next data or control frame. Cancel safe. [`TunnelError::Closed`] is the peer's orderly or silent end.
    pub(crate) async fn receive(&mut self) -> Result<Received<'_>, TunnelError> {
        loop {
            // A control frame that stood behind data which has been taken.
            if self.incoming.control.is_some() {
                self.incoming.pieces = 0;
                break;
            }
            let more = self.incoming.open(self.shared)?;
            if self.incoming.pieces > 0 || self.incoming.control.is_some() {
                break;
            }
            if self.incoming.closed {
                return Err(TunnelError::Closed);
            }
            if !more {
                self.fill().await?;
            }
        }
        if self.incoming.pieces > 0 {
            return Ok(Received::Data(self.incoming.pieces()));
        }
        match self.incoming.control.take() {
            Some(control) => {
                if control == Control::GoAway {
                    self.shared.last.store(true, Ordering::Relaxed);
                }
                Ok(Received::Control(control))
            }
            None => Err(TunnelError::Closed),
        }
    }

    async fn fill(&mut self) -> Result<(), TunnelError> {
        self.incoming.tidy();
        if self.incoming.buffer.is_none() {
            self.tcp.readable().await?;
        }
        let buffer = self.incoming.buffer.get_or_insert_with(Buffer::take);
        let read = self.tcp.read(&mut buffer[self.incoming.filled..]).await?;
        if read == 0 {
            return Err(TunnelError::Closed);
        }
        self.incoming.filled += read;
        Ok(())
    }
}

/// Received bytes on their way from records to frames. `buffer[plain]` is opened and not yet decoded, and
/// `buffer[plain.end..]` … `buffer[next..filled]` are records still sealed.
struct Incoming {
    opener: Opener,
    decoder: Decoder,
    buffer: Option<Buffer>,
    /// End of the received bytes.
    filled: usize,
    /// Start of the next sealed record.
    next: usize,
    plain: Range<usize>,
    ranges: [Range<usize>; PIECES],
    pieces: usize,
    control: Option<Control>,
    closed: bool,
    failed: bool,
}

impl Incoming {
    fn new(opener: Opener) -> Self {
        Self {
            opener,
            decoder: Decoder::default(),
            buffer: None,
            filled: 0,
            next: 0,
            plain: 0..0,
            ranges: std::array::from_fn(|_| 0..0),
            pieces: 0,
            control: None,
            closed: false,
            failed: false,
        }
    }

    fn preload(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            let mut buffer = Buffer::take();
            buffer[..bytes.len()].copy_from_slice(bytes);
            self.filled = bytes.len();
            self.buffer = Some(buffer);
        }
    }

    fn is_empty(&self) -> bool {
        self.plain.is_empty() && self.next == self.filled
    }

    /// Gives the buffer back, or moves a record that is not yet whole to its front.
    fn tidy(&mut self) {
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

    fn pieces(&self) -> Pieces<'_> {
        Pieces { bytes: self.buffer.as_deref().unwrap_or_default(), ranges: &self.ranges[..self.pieces] }
    }

    /// Forgets the last pieces; then opens and decodes until there are as many new ones as fit, a control frame, or
    /// nothing more to open. Answers whether it got anywhere.
    fn open(&mut self, shared: &Shared) -> Result<bool, TunnelError> {
        self.pieces = 0;
        let before = (self.next, self.plain.start);
        let result = self.open_records(shared);
        self.failed |= result.is_err();
        result?;
        Ok((self.next, self.plain.start) != before)
    }

    fn open_records(&mut self, shared: &Shared) -> Result<(), TunnelError> {
        loop {
            self.decode()?;
            if self.control.is_some() || self.pieces == PIECES || self.closed {
                return Ok(());
            }
            let Some(buffer) = &mut self.buffer else {
                return Ok(());
            };
            let sealed = &mut buffer[self.next..self.filled];
            let Some(len) = record::record_len(sealed)?.filter(|len| sealed.len() >= *len) else {
                return Ok(());
            };
            let (content, plain) = self.opener.open(&mut sealed[..len])?;
            let start = self.next + HEADER_LEN;
            self.next += len;
            match content {
                ContentType::Data => self.plain = start..start + plain,
                ContentType::Handshake => {
                    let message = &buffer[start..start + plain];
                    if let Some(opener) = shared.handshake_message(message)? {
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
    }

    fn decode(&mut self) -> Result<(), TunnelError> {
        let Some(buffer) = &self.buffer else {
            return Ok(());
        };
        while !self.plain.is_empty() && self.pieces < PIECES && self.control.is_none() {
            let mut input = &buffer[self.plain.clone()];
            let event = self.decoder.next(&mut input)?;
            let end = self.plain.end - input.len();
            match event {
                Some(Event::Data(data)) => {
                    self.ranges[self.pieces] = end - data.len()..end;
                    self.pieces += 1;
                }
                // Data before a control frame is delivered first: it stands in `pieces`.
                Some(Event::Control(control)) => self.control = Some(control),
                None => {}
            }
            self.plain.start = end;
        }
        Ok(())
    }
}

impl Shared {
    /// Tickets and key updates, the only handshake messages behind the handshake (RFC 8446 §4.6).
    fn handshake_message(&self, mut message: &[u8]) -> Result<Option<Opener>, TunnelError> {
        const NEW_SESSION_TICKET: u8 = 4;
        const KEY_UPDATE: u8 = 24;
        let mut opener = None;
        let mut kernel = self.kernel.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((header, rest)) = message.split_first_chunk::<4>() {
            let len = u32::from_be_bytes([0, header[1], header[2], header[3]]) as usize;
            let (body, rest) = rest.split_at_checked(len).ok_or(TunnelError::Record)?;
            message = rest;
            match (header[0], &mut *kernel, body) {
                (NEW_SESSION_TICKET, Kernel::Client(kernel), _) => kernel.handle_new_session_ticket(body)?,
                (KEY_UPDATE, kernel, [requested @ (0 | 1)]) => {
                    let (sequence, secrets) = match kernel {
                        Kernel::Client(kernel) => kernel.update_rx_secret()?,
                        Kernel::Server(kernel) => kernel.update_rx_secret()?,
                    };
                    opener = Some(Opener::new(sequence, &secrets)?);
                    if *requested == 1 {
                        self.rekey.store(true, Ordering::Relaxed);
                    }
                }
                _ => return Err(TunnelError::Unexpected("TLS handshake")),
            }
        }
        Ok(opener)
    }
}

fn alert(description: u8) -> TunnelError {
    let error = rustls::Error::AlertReceived(rustls::AlertDescription::from(description));
    let (reason, text) = tls::handshake_reason(&error);
    if reason == Reason::TlsHandshake {
        return TunnelError::Alert(description);
    }
    TunnelError::Handshake { reason, text }
}
