//! The sending direction of a tunnel's connection: what goes into records together, and when new keys are due.

use std::{
    io::{self, Read as _},
    mem,
    sync::{PoisonError, atomic::Ordering},
};

use ambit_core::frame::Control;
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, Interest},
    net::tcp::{ReadHalf, WriteHalf},
};

use super::{
    super::{
        Buffer, TunnelError,
        handshake::Kernel,
        record::{self, Batch, ContentType, HEADER_LEN, RECORD_LEN, Sealer, TRAILER_LEN},
    },
    Shared,
};

/// The sending direction.
pub(crate) struct Writer<'a> {
    pub(super) tcp: WriteHalf<'a>,
    pub(super) sealer: &'a mut Sealer,
    pub(super) torn: &'a mut bool,
    pub(super) shared: &'a Shared,
    /// A frame that goes out in front of whatever is sent next.
    pub(super) held: Vec<u8>,
}

/// What was moved from a local socket into a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    /// Bytes of the stream.
    pub(crate) bytes: usize,
    /// The source has ended, and FIN is on its way too.
    pub(crate) end: bool,
}

/// Why bytes could not be moved from a local socket into a tunnel.
#[derive(Debug)]
pub(crate) enum MoveError {
    /// The local socket failed.
    Source(io::Error),
    /// The tunnel failed.
    Tunnel(TunnelError),
}

impl From<TunnelError> for MoveError {
    fn from(error: TunnelError) -> Self {
        Self::Tunnel(error)
    }
}

impl Writer<'_> {
    /// Sends one control frame.
    pub(crate) async fn control(&mut self, control: &Control) -> Result<(), TunnelError> {
        self.hold(control);
        self.flush().await
    }

    /// Has one control frame go out in front of whatever is sent next: a record, a packet and the peer's waking less.
    pub(crate) fn hold(&mut self, control: &Control) {
        debug_assert!(self.held.is_empty(), "one frame is held at a time");
        self.held = control.encode();
    }

    /// Sends what is held.
    pub(crate) async fn flush(&mut self) -> Result<(), TunnelError> {
        let mut sealed = vec![0; sealed_len(self.held.len())];
        let len = self.seal_held(&mut sealed)?;
        self.write(&sealed[..len]).await
    }

    /// Waits for bytes from `source` and sends what there is, up to a batch of records, with FIN behind it if `source` has
    /// ended.
    pub(crate) async fn send_from(&mut self, source: &mut ReadHalf<'_>) -> Result<Sent, MoveError> {
        let ready = source.ready(Interest::READABLE).await.map_err(MoveError::Source)?;
        let mut buffer = Buffer::take();
        let mut batch = Batch(&mut buffer[sealed_len(self.held.len())..]);
        let mut bytes = source.read(batch.first()).await.map_err(MoveError::Source)?;
        let mut end = bytes == 0;
        if Batch::fills_first(bytes) {
            bytes += at_once(source.try_read_vectored(&mut batch.rest()))?.unwrap_or(0);
        } else if !end && ready.is_read_closed() {
            let more = at_once(source.try_read(&mut batch.first()[bytes..]))?;
            end = more == Some(0);
            bytes += more.unwrap_or(0);
        }
        self.send(&mut buffer, Sent { bytes, end }).await
    }

    /// Sends what `source` has at this moment, or else only what is held.
    pub(crate) async fn send_now(&mut self, source: &mut ReadHalf<'_>) -> Result<Sent, MoveError> {
        let mut buffer = Buffer::take();
        let mut batch = Batch(&mut buffer[sealed_len(self.held.len())..]);
        // Not by tokio: of a new socket it knows nothing before it has asked the kernel for events.
        let read = at_once((&*SockRef::from(source.as_ref())).read(batch.first()))?;
        self.send(&mut buffer, Sent { bytes: read.unwrap_or(0), end: read == Some(0) }).await
    }

    /// Seals and writes what is held, then the payload that stands behind the room for that, then FIN if it is the end.
    async fn send(&mut self, buffer: &mut [u8], sent: Sent) -> Result<Sent, MoveError> {
        if self.sealer.is_worn() || self.shared.rekey.load(Ordering::Relaxed) {
            self.rekey().await?;
        }
        let mut wire = self.seal_held(buffer)?;
        wire += record::seal_batch(&mut buffer[wire..], self.sealer, sent.bytes)?;
        if sent.end {
            self.hold(&Control::Fin);
            wire += self.seal_held(&mut buffer[wire..])?;
        }
        self.write(&buffer[..wire]).await?;
        Ok(sent)
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

    /// Says that nothing follows (RFC 8446 §6.1).
    pub(super) async fn close_notify(&mut self) -> Result<(), TunnelError> {
        let mut alert = [0; HEADER_LEN + 2 + TRAILER_LEN];
        alert[HEADER_LEN] = 1;
        self.record(&mut alert, 2, ContentType::Alert).await
    }

    /// Tells the peer new keys and goes on with them (RFC 8446 §4.6.3).
    async fn rekey(&mut self) -> Result<(), TunnelError> {
        const KEY_UPDATE_NOT_REQUESTED: [u8; 5] = [24, 0, 0, 1, 0];
        let mut update = [0; HEADER_LEN + 5 + TRAILER_LEN];
        update[HEADER_LEN..HEADER_LEN + 5].copy_from_slice(&KEY_UPDATE_NOT_REQUESTED);
        self.record(&mut update, 5, ContentType::Handshake).await?;
        self.shared.rekey.store(false, Ordering::Relaxed);
        let mut kernel = self.shared.kernel.lock().unwrap_or_else(PoisonError::into_inner);
        let (sequence, secrets) = match &mut *kernel {
            Kernel::Client(kernel) => kernel.update_tx_secret()?,
            Kernel::Server(kernel) => kernel.update_tx_secret()?,
        };
        *self.sealer = Sealer::new(sequence, &secrets)?;
        Ok(())
    }

    async fn record(
        &mut self,
        sealed: &mut [u8],
        len: usize,
        content: ContentType,
    ) -> Result<(), TunnelError> {
        debug_assert!(sealed.len() <= RECORD_LEN, "control messages are small");
        self.sealer.seal(sealed, len, content)?;
        self.write(sealed).await
    }

    /// A write that is cancelled half-way leaves a cut record behind it: nothing may follow that.
    async fn write(&mut self, sealed: &[u8]) -> Result<(), TunnelError> {
        if mem::replace(self.torn, true) {
            return Err(TunnelError::Closed);
        }
        self.tcp.write_all(sealed).await?;
        *self.torn = false;
        Ok(())
    }
}

/// Bytes of the record that carries `len` bytes of frames; none for none.
fn sealed_len(len: usize) -> usize {
    if len == 0 { 0 } else { HEADER_LEN + len + TRAILER_LEN }
}

/// What a read that does not wait has brought; `None` if nothing is there.
fn at_once(read: io::Result<usize>) -> Result<Option<usize>, MoveError> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        // The kernel tells an error once; after that the source would seem to have ended well.
        Err(error) => Err(MoveError::Source(error)),
    }
}
