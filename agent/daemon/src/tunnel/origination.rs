//! The leg to an end that speaks TLS of its own, over another leg: the application speaks plaintext, and the agent TLS for it.
//!
//! Promises that nothing is sent before the server is verified, and that what is cut off is no clean end.

use std::{
    io,
    ops::Range,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use ambit_core::reason::Reason;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    TunnelError,
    buffer::{Buffer, Share, Waiting},
    session::{Leg, LegError, Moved},
    socket,
    tls::{Outside, outside_reason},
};

/// TLS over a leg.
#[derive(Debug)]
pub(crate) struct Originated<L> {
    tls: TlsStream<L>,
    share: Arc<Share>,
    /// Read from the application and not yet taken by TLS.
    sending: Option<(Buffer, Range<usize>)>,
    sending_waits: Waiting,
    /// TLS may hold what the leg below has not taken.
    unflushed: bool,
    /// Read here and not yet written to the application.
    delivering: Option<(Buffer, Range<usize>)>,
    delivering_waits: Waiting,
    app_failed: bool,
}

impl<L: Leg> Originated<L> {
    /// The handshake of a client, within `limit`.
    pub(crate) async fn connect(
        leg: L,
        outside: &Outside,
        share: Arc<Share>,
        limit: Duration,
    ) -> Result<Self, TunnelError> {
        let connector = TlsConnector::from(outside.config.clone());
        let tls = timeout(limit, connector.connect(outside.name.clone(), leg))
            .await
            .map_err(|_| TunnelError::Timeout("finish the TLS handshake"))?
            .map_err(|error| handshake_failed(&error))?;
        Ok(Self {
            tls,
            share,
            sending: None,
            sending_waits: Waiting::default(),
            unflushed: false,
            delivering: None,
            delivering_waits: Waiting::default(),
            app_failed: false,
        })
    }

    /// The leg below.
    pub(crate) fn into_inner(self) -> L {
        self.tls.into_inner().0
    }

    /// Writes all that TLS holds.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LegError>> {
        if self.unflushed {
            ready!(Pin::new(&mut self.tls).poll_flush(cx)).map_err(|error| broken(&error))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }
}

/// Why a handshake failed.
fn handshake_failed(error: &io::Error) -> TunnelError {
    match tls_error(error) {
        Some(error) => {
            let (reason, text) = outside_reason(error);
            TunnelError::Handshake { reason, text }
        }
        None if error.kind() == io::ErrorKind::UnexpectedEof => TunnelError::Handshake {
            reason: Reason::TlsHandshake,
            text: "the server ended the connection in the TLS handshake: it may speak plaintext on this port"
                .into(),
        },
        None => TunnelError::Handshake {
            reason: Reason::TlsHandshake,
            text: format!("the connection failed in the TLS handshake: {error}"),
        },
    }
}

/// A server tells only after the handshake of TLS 1.3 that it does not take the client's certificate.
fn broken(error: &io::Error) -> LegError {
    match tls_error(error) {
        Some(error) => {
            let (reason, text) = outside_reason(error);
            TunnelError::Handshake { reason, text }.into()
        }
        None => LegError::Plain(io::Error::new(error.kind(), error.to_string())),
    }
}

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

fn pass(held: &mut Option<(Buffer, Range<usize>)>, bytes: usize) {
    if let Some((_, range)) = held {
        range.start += bytes;
        if range.start >= range.end {
            *held = None;
        }
    }
}

impl<L: Leg> Leg for Originated<L> {
    fn poll_send_from(&mut self, cx: &mut Context<'_>, app: &TcpStream) -> Poll<Result<Moved, LegError>> {
        if self.sending.is_none() {
            ready!(self.poll_drain(cx))?;
            ready!(app.poll_read_ready(cx)).map_err(LegError::App)?;
            let mut buffer = ready!(self.share.poll_take(cx, &mut self.sending_waits));
            let read =
                ready!(socket::poll_read_urgent(cx, app, &mut buffer, false)).map_err(LegError::App)?;
            if read == 0 {
                if self.app_failed {
                    return Poll::Ready(Err(LegError::App(io::ErrorKind::ConnectionReset.into())));
                }
                drop(buffer);
                ready!(Pin::new(&mut self.tls).poll_shutdown(cx)).map_err(|error| broken(&error))?;
                return Poll::Ready(Ok(Moved { bytes: 0, end: true }));
            }
            self.sending = Some((buffer, 0..read));
        }
        let Some((buffer, range)) = &self.sending else { return Poll::Pending };
        let written = Pin::new(&mut self.tls).poll_write(cx, &buffer[range.clone()]);
        let bytes = ready!(written).map_err(|error| broken(&error))?;
        pass(&mut self.sending, bytes);
        self.unflushed = true;
        Poll::Ready(Ok(Moved { bytes, end: false }))
    }

    fn poll_deliver_to(&mut self, cx: &mut Context<'_>, app: &TcpStream) -> Poll<Result<Moved, LegError>> {
        if self.delivering.is_none() {
            let mut buffer = ready!(self.share.poll_take(cx, &mut self.delivering_waits));
            let mut room = ReadBuf::new(&mut buffer);
            // Nothing there: the buffer goes back.
            ready!(Pin::new(&mut self.tls).poll_read(cx, &mut room)).map_err(|error| broken(&error))?;
            let read = room.filled().len();
            if read == 0 {
                socket::shut(app).map_err(LegError::App)?;
                return Poll::Ready(Ok(Moved { bytes: 0, end: true }));
            }
            self.delivering = Some((buffer, 0..read));
        }
        let Some((buffer, range)) = &self.delivering else { return Poll::Pending };
        let bytes = ready!(socket::poll_write(cx, app, &buffer[range.clone()])).map_err(LegError::App)?;
        pass(&mut self.delivering, bytes);
        Poll::Ready(Ok(Moved { bytes, end: false }))
    }

    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LegError>> {
        if self.delivering.is_none() {
            let mut buffer = ready!(self.share.poll_take(cx, &mut self.delivering_waits));
            let mut room = ReadBuf::new(&mut buffer);
            // Nothing there: the buffer goes back. The end is read again.
            ready!(Pin::new(&mut self.tls).poll_read(cx, &mut room)).map_err(|error| broken(&error))?;
            let read = room.filled().len();
            self.delivering = (read > 0).then_some((buffer, 0..read));
        }
        Poll::Ready(Ok(()))
    }

    fn app_failed(&mut self) {
        self.app_failed = true;
    }

    fn socket(&self) -> Arc<TcpStream> {
        self.tls.get_ref().0.socket()
    }

    fn failure(&self) -> LegError {
        self.tls.get_ref().0.failure()
    }

    fn bound_buffers(&self, bytes: usize) {
        self.tls.get_ref().0.bound_buffers(bytes);
    }

    fn is_sending(&self) -> bool {
        self.sending.is_some() || self.sending_waits.is_some() || self.unflushed
    }

    fn is_delivering(&self) -> bool {
        self.delivering.is_some() || self.delivering_waits.is_some()
    }

    fn end_cleanly(&mut self) {
        self.tls.get_mut().0.end_cleanly();
    }
}

impl<L: Leg> AsyncRead for Originated<L> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        room: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some((buffer, range)) = &self.delivering else {
            return Pin::new(&mut self.tls).poll_read(cx, room);
        };
        let len = range.len().min(room.remaining());
        room.put_slice(&buffer[range.clone()][..len]);
        pass(&mut self.delivering, len);
        Poll::Ready(Ok(()))
    }
}

impl<L: Leg> AsyncWrite for Originated<L> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        while let Some((buffer, range)) = &this.sending {
            let written = ready!(Pin::new(&mut this.tls).poll_write(cx, &buffer[range.clone()]))?;
            pass(&mut this.sending, written);
        }
        Pin::new(&mut this.tls).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
