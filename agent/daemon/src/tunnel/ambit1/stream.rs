//! One stream on a connection: which frames may come when, and bytes in batches between it and an application's socket.

use std::{
    io, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::SystemTime,
};

use ambit_core::{
    frame::{Control, Open, parcel},
    reason::Refusal,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::{link::Link, receiver::Received};
use crate::{
    capture::Patience,
    tunnel::{
        TunnelError,
        bundle::{Next, Strand},
        session::{LegError, Moved},
        socket,
    },
};

/// A stream, and with it the connection that it has for itself.
#[derive(Debug)]
pub(crate) struct Stream {
    link: Box<Link>,
    /// Its part in the bundle beside the connection. On the heap, as most of it is small and some streams have none.
    strand: Option<Box<Strand>>,
    /// OPEN has not gone out: it goes at once, with the bytes that are there.
    opens: bool,
    awaits_accept: bool,
    /// Nothing has been written to the application's socket.
    new: bool,
    /// FIN has come.
    ended: bool,
    /// FIN has gone, by [`AsyncWrite::poll_shutdown`].
    shut: bool,
}

impl Stream {
    /// The client's end. OPEN goes out with the first bytes, or with the first flush.
    pub(in crate::tunnel) fn open(mut link: Box<Link>, open: Open, strand: Option<Strand>) -> Self {
        link.sender().hold(&Control::Open(open));
        let strand = strand.map(Box::new);
        Self { link, strand, opens: true, awaits_accept: true, new: true, ended: false, shut: false }
    }

    /// The server's end of a stream whose OPEN has come. ACCEPT goes out with the first bytes, or by [`Self::answer`].
    pub(in crate::tunnel) fn accepted(mut link: Box<Link>, mut strand: Option<Strand>) -> Self {
        link.receiver().set_rests(false);
        link.sender().hold(&Control::Accept { bundles: strand.is_some() });
        strand.iter_mut().for_each(|strand| strand.answered(true));
        let strand = strand.map(Box::new);
        Self { link, strand, opens: false, awaits_accept: false, new: true, ended: false, shut: false }
    }

    /// Whether ACCEPT waits for the application's first bytes.
    pub(in crate::tunnel) fn holds_answer(&mut self) -> bool {
        !self.opens && self.link.sender().holds()
    }

    /// Has ACCEPT go out with the next flush.
    pub(in crate::tunnel) fn answer(&mut self) -> Result<(), LegError> {
        self.link.sender().release().map_err(LegError::Tunnel)
    }

    /// Whether OPEN still waits for the application's first bytes, of which there are none.
    pub(in crate::tunnel) fn awaits_words(&mut self, app: &TcpStream) -> Result<bool, LegError> {
        self.opens = self.opens && !self.link.take_now(app, true)?;
        Ok(self.opens)
    }

    /// Has OPEN go out by itself, and waits for ACCEPT.
    pub(in crate::tunnel) fn poll_confirmed(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LegError>> {
        self.opens = false;
        self.link.sender().release().map_err(LegError::Tunnel)?;
        ready!(self.link.poll_flush(cx)).map_err(LegError::Tunnel)?;
        while self.awaits_accept {
            match ready!(self.link.poll_next(cx))? {
                Some(Received::Data) => return unexpected("DATA"),
                Some(Received::Control(control)) => self.take(control)?,
                None => return Poll::Ready(Err(TunnelError::Closed.into())),
            }
        }
        Poll::Ready(Ok(()))
    }

    #[cfg(test)]
    pub(in crate::tunnel) fn strand(&self) -> Option<&Strand> {
        self.strand.as_deref()
    }

    /// Whether the peer has yet to take the stream.
    pub(in crate::tunnel) fn awaits_accept(&self) -> bool {
        self.awaits_accept
    }

    /// Breaks the connection off.
    pub(in crate::tunnel) fn abort(self) {
        self.link.abort();
    }

    pub(in crate::tunnel) fn socket(&self) -> &Arc<TcpStream> {
        self.link.socket()
    }

    pub(in crate::tunnel) fn app_failed(&mut self) {
        self.link.sender().source_failed();
    }

    /// The connection, for further streams; both directions have ended. It may rest for long, and keeps no buffer meanwhile.
    pub(in crate::tunnel) fn into_link(mut self) -> Box<Link> {
        self.link.receiver().tidy();
        self.link
    }

    /// Says why the stream is not taken, in place of ACCEPT.
    pub(in crate::tunnel) async fn refuse(link: Box<Link>, refusal: Refusal) {
        link.close_with(Some(Control::Deny(refusal))).await;
    }

    /// Whether further streams might begin on the connection at `now`.
    pub(in crate::tunnel) fn is_valid(&self, now: SystemTime) -> bool {
        self.link.is_valid(now)
    }

    /// Cuts the stream; the peer is told `why` unless it knows, behind all that was said before.
    pub(in crate::tunnel) async fn close(mut self, why: Option<Refusal>) {
        // Whatever keeps it from being sealed keeps the rest from it, too.
        let _: Result<(), TunnelError> = self.mark();
        self.link.close_with(why.map(Control::Reset)).await;
    }

    pub(in crate::tunnel) fn bound_buffers(&self, bytes: usize) {
        self.link.bound_buffers(bytes);
    }

    /// A time-out for what is not acknowledged takes effect on the stream's own connection: who has one says nothing elsewhere.
    pub(in crate::tunnel) fn set_patience(&mut self, patience: &Patience) {
        // It fails only for what is no socket.
        let _: io::Result<()> = patience.set_on(&**self.socket());
        if let Some(strand) = &mut self.strand
            && patience.has_user_timeout()
        {
            strand.keep_away();
        }
    }

    pub(in crate::tunnel) fn rest(&mut self) {
        self.link.rest();
        if let Some(strand) = &mut self.strand {
            strand.rest();
        }
    }

    pub(in crate::tunnel) fn is_sending(&self) -> bool {
        self.link.is_sending()
    }

    pub(in crate::tunnel) fn is_delivering(&self) -> bool {
        self.link.is_delivering() || self.strand.as_ref().is_some_and(|strand| strand.is_delivering())
    }

    pub(in crate::tunnel) fn poll_send_from(
        &mut self,
        cx: &mut Context<'_>,
        app: &TcpStream,
    ) -> Poll<Result<Moved, LegError>> {
        if mem::take(&mut self.opens) {
            self.link.take_now(app, false)?;
        }
        if self.ended
            && let Poll::Ready(cut) = self.poll_cut(cx)
        {
            return Poll::Ready(Err(cut));
        }
        self.link.poll_send_from(cx, app, self.strand.as_deref_mut())
    }

    pub(in crate::tunnel) fn poll_deliver_to(
        &mut self,
        cx: &mut Context<'_>,
        app: &TcpStream,
    ) -> Poll<Result<Moved, LegError>> {
        let next = ready!(self.poll_data(cx))?;
        let new = mem::take(&mut self.new);
        let written = match (next, &mut self.strand) {
            (Some(Next::Direct), _) => self.link.receiver().poll_write_to(cx, app, new),
            (Some(Next::Parcel), Some(strand)) => strand.poll_write_to(cx, app),
            (Some(Next::Parcel) | None, _) => {
                socket::shut(app).map_err(LegError::App)?;
                return Poll::Ready(Ok(Moved { bytes: 0, end: true }));
            }
        };
        written.map(|bytes| Ok(Moved { bytes: bytes.map_err(LegError::App)?, end: false }))
    }

    pub(in crate::tunnel) fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LegError>> {
        self.poll_data(cx).map_ok(|_| ())
    }

    /// Waits until there are bytes for the application, and answers where; or until there will be none.
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Next>, LegError>> {
        loop {
            if self.ended {
                return Poll::Ready(Ok(None));
            }
            if !self.awaits_accept
                && let Some(strand) = &mut self.strand
                && let Next::Parcel = ready!(strand.poll_next(cx, self.link.receiver().data()))?
            {
                return Poll::Ready(Ok(Some(Next::Parcel)));
            }
            match ready!(self.link.poll_next(cx))? {
                Some(Received::Data) if self.awaits_accept => return unexpected("DATA"),
                Some(Received::Data) => return Poll::Ready(Ok(Some(Next::Direct))),
                Some(Received::Control(control)) => self.take(control)?,
                None => return Poll::Ready(Err(TunnelError::Closed.into())),
            }
        }
    }

    /// Tells the peer of parcels in front of what comes next.
    fn mark(&mut self) -> Result<(), TunnelError> {
        match &mut self.strand {
            Some(strand) if strand.is_unmarked() => {
                self.link.sender().mark(strand);
                self.link.sender().release()
            }
            _ => Ok(()),
        }
    }

    /// What a frame that comes before FIN means for the stream.
    fn take(&mut self, control: Control) -> Result<(), LegError> {
        match control {
            Control::Accept { bundles } if self.awaits_accept => {
                self.awaits_accept = false;
                if let Some(strand) = &mut self.strand {
                    strand.answered(bundles);
                }
            }
            Control::Mark(mark)
                if !self.awaits_accept
                    && let Some(strand) = &mut self.strand =>
            {
                strand.expect(mark)?;
            }
            Control::Deny(refusal) if self.awaits_accept => return Err(LegError::Refused(refusal)),
            Control::Fin if !self.awaits_accept => self.ended = true,
            Control::Reset(refusal) => return Err(LegError::Reset(refusal)),
            Control::Ping | Control::GoAway => {}
            _ => return Err(TunnelError::Unexpected("control").into()),
        }
        Ok(())
    }

    /// Waits until the peer, which has said all it had to say, breaks off or leaves.
    fn poll_cut(&mut self, cx: &mut Context<'_>) -> Poll<LegError> {
        loop {
            return Poll::Ready(match ready!(self.link.poll_next(cx)) {
                Ok(Some(Received::Control(Control::Ping | Control::GoAway))) => continue,
                Ok(Some(Received::Control(Control::Reset(refusal)))) => LegError::Reset(refusal),
                Ok(Some(Received::Control(_))) => TunnelError::Unexpected("control").into(),
                Ok(Some(Received::Data)) => TunnelError::Unexpected("DATA").into(),
                Ok(None) if self.link.receiver().is_closed() => LegError::PeerLeft,
                Ok(None) => TunnelError::Closed.into(),
                Err(error) => error.into(),
            });
        }
    }
}

fn unexpected<T>(frame: &'static str) -> Poll<Result<T, LegError>> {
    Poll::Ready(Err(TunnelError::Unexpected(frame).into()))
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        room: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match (ready!(self.poll_data(cx))?, &mut self.strand) {
            (Some(Next::Direct), _) => self.link.receiver().copy_to(room),
            (Some(Next::Parcel), Some(strand)) => strand.copy_to(room),
            (Some(Next::Parcel) | None, _) => {}
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.opens = false;
        let Self { link, strand, .. } = &mut *self;
        if let Some(strand) = strand {
            let sender = link.sender();
            if !sender.holds() && bytes.len() <= parcel::MAX && strand.offer(bytes, sender.data()) {
                return Poll::Ready(Ok(bytes.len()));
            }
            sender.mark(strand);
        }
        Poll::Ready(Ok(ready!(self.link.poll_send_bytes(cx, bytes)).map_err(LegError::Tunnel)?))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.opens = false;
        self.link.sender().release().map_err(LegError::Tunnel)?;
        ready!(self.link.poll_flush(cx)).map_err(LegError::Tunnel)?;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.shut {
            self.link.sender().release().map_err(LegError::Tunnel)?;
            self.mark().map_err(LegError::Tunnel)?;
            self.strand.iter_mut().for_each(|strand| strand.end());
            self.link.sender().hold(&Control::Fin);
            self.shut = true;
        }
        self.poll_flush(cx)
    }
}
