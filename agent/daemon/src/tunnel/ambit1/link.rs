//! One TLS connection between two agents. Streams follow one another on it.

use std::{
    fmt, io, mem,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use ambit_core::{
    frame::{Control, Open},
    reason::{Reason, Refusal},
};
use rustls::{client::ClientConnectionData, kernel::KernelConnection};
use tokio::{
    net::TcpStream,
    time::{Instant, error::Elapsed, timeout, timeout_at},
};

use super::{
    receiver::{Received, Receiver},
    record::{ContentType, Opener, Sealer},
    sender::Sender,
};
use crate::{
    capture::{bound_buffers, reset_on_drop, taken_by_tcp, unacknowledged},
    tunnel::{
        TunnelError,
        buffer::Share,
        bundle::Strand,
        kernel,
        session::{LegError, Moved, PeerFacts},
        socket,
    },
};

/// The part of what is left of a peer's certificate for which new streams may begin on a connection. Thus connections
/// follow renewed certificates soon, and none stands on an old root when that is withdrawn at last.
const RETIREMENT: f64 = 0.2;
/// How long the last frame may take to be sent.
const FAREWELL: Duration = Duration::from_secs(1);
/// After so many looks that find that the peer takes nothing of what stands in front of the reason why a stream is cut, it learns by a
/// RST that it is to wait no longer: an application that does not take what came before has its agent not get to the reason.
const LOOKS: u32 = 5;
/// The time between two of them.
const LOOK: Duration = Duration::from_millis(20);

/// A connection to a peer whose identity has been verified.
pub(crate) struct Link {
    tcp: Arc<TcpStream>,
    sender: Sender,
    receiver: Receiver,
    keys: Keys,
    facts: PeerFacts,
    share: Arc<Share>,
    /// The handshake.
    since: SystemTime,
    /// No new streams after this time.
    retired: SystemTime,
    /// The peer takes no further streams here.
    last: bool,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("facts", &self.facts).finish_non_exhaustive()
    }
}

/// What becomes of session tickets.
pub(super) enum Tickets {
    /// This end gives them.
    Given,
    /// rustls takes them. It keeps a copy of the peer's certificates for that, and more that nobody needs.
    Taken(Box<KernelConnection<ClientConnectionData>>),
    /// The peer has said something else: those come right behind the handshake that are worth waiting for.
    PassedOver,
}

/// What comes behind the handshake.
pub(super) struct Keys {
    tickets: Tickets,
    /// The peer asked for new keys of ours.
    asked: bool,
}

impl Link {
    pub(super) fn new(
        tcp: TcpStream,
        (sealer, opener, tickets): (Sealer, Opener, Tickets),
        facts: PeerFacts,
        early: &[u8],
        share: Arc<Share>,
    ) -> Self {
        let offload = share.offload().filter(|offload| offload.attach(&tcp));
        let mut sender = Sender::new(sealer);
        if let Some(offload) = offload {
            sender.hand_over(&tcp, offload);
        }
        let receiver = Receiver::new(opener, early, &share, offload.is_some());
        let now = SystemTime::now();
        let left = facts.peer.not_after.duration_since(now).unwrap_or_default();
        Self {
            tcp: Arc::new(tcp),
            sender,
            receiver,
            keys: Keys { tickets, asked: false },
            facts,
            share,
            since: now,
            retired: now + left.mul_f64(RETIREMENT),
            last: false,
        }
    }

    pub(in crate::tunnel) fn facts(&self) -> &PeerFacts {
        &self.facts
    }

    /// See [`Session::since`](crate::tunnel::Session::since).
    pub(in crate::tunnel) fn since(&self) -> SystemTime {
        self.since
    }

    /// See [`Session::is_valid`](crate::tunnel::Session::is_valid).
    pub(in crate::tunnel) fn is_valid(&self, now: SystemTime) -> bool {
        now < self.facts.peer.not_after && now < self.retired && !self.last && !self.wears_out()
    }

    /// Whether no further stream should begin, as keys are half worn that cannot be renewed.
    fn wears_out(&self) -> bool {
        self.sender.wears_out() || self.receiver.wears_out(&self.tcp)
    }

    /// See [`Session::is_fresh`](crate::tunnel::Session::is_fresh).
    pub(in crate::tunnel) fn is_fresh(&mut self) -> bool {
        self.receiver.is_fresh(&self.tcp, &mut self.keys, &self.share)
    }

    /// Sends GOAWAY between two streams.
    pub(in crate::tunnel) async fn go_away(&mut self) -> Result<(), TunnelError> {
        self.send(&Control::GoAway).await
    }

    /// Waits for the client's next stream, which is `None` once it has closed the connection; nothing at all if it keeps silent for
    /// `limit`.
    pub(in crate::tunnel) async fn next_open(
        &mut self,
        limit: Duration,
    ) -> Option<Result<Option<Open>, TunnelError>> {
        let deadline = Instant::now() + limit;
        self.receiver.set_rests(true);
        if self.wears_out()
            && let Err(error) = self.go_away().await
        {
            return Some(Err(error));
        }
        loop {
            let received = timeout_at(deadline, std::future::poll_fn(|cx| self.poll_next(cx))).await.ok()?;
            return Some(match received {
                // An idle client that dies ends no stream.
                Ok(None) | Err(TunnelError::Io(_)) => Ok(None),
                Err(error) => Err(error),
                Ok(Some(Received::Control(Control::Open(open)))) => Ok(Some(open)),
                Ok(Some(Received::Control(Control::Ping))) => continue,
                Ok(Some(Received::Control(_))) => Err(TunnelError::Unexpected("control")),
                Ok(Some(Received::Data)) => Err(TunnelError::Unexpected("DATA")),
            });
        }
    }

    /// Whether something has come behind what was taken.
    pub(in crate::tunnel) fn has_more(&self) -> bool {
        self.receiver.has_more()
    }

    /// Sends one control frame.
    pub(super) async fn send(&mut self, control: &Control) -> Result<(), TunnelError> {
        self.sender.push(&control.encode(), ContentType::Data)?;
        std::future::poll_fn(|cx| self.poll_flush(cx)).await.map(|_| ())
    }

    /// Sends a last frame and closes, waiting a moment for the peer to have read it: what it sent meanwhile must not
    /// turn our FIN into a RST that overtakes the frame. A stream that is cut while the peer takes no more is cut by a RST.
    pub(in crate::tunnel) async fn close_with(mut self: Box<Self>, last: Option<Control>) {
        let cut = matches!(last, Some(Control::Reset(_)));
        // That it was reset is all that there is to say, and a RST says it at once.
        let says_all = |refusal: &Refusal| refusal.reason == Reason::Reset;
        if self.sender.is_clogged() && matches!(&last, Some(Control::Reset(refusal)) if says_all(refusal)) {
            return self.abort();
        }
        let tcp = self.tcp.clone();
        let farewell = async {
            self.send_last(last.as_ref()).await?;
            if last.is_some() { Ok(self.drain().await?) } else { Ok::<_, TunnelError>(()) }
        };
        if cut {
            if !matches!(while_taken(&tcp, farewell).await, Some(Ok(()))) {
                reset_on_drop(&*tcp);
            }
        } else {
            // Otherwise the peer may be gone: then there is nobody to say goodbye to.
            let _: Result<_, Elapsed> = timeout(FAREWELL, farewell).await;
        }
    }

    async fn send_last(&mut self, last: Option<&Control>) -> Result<(), TunnelError> {
        if let Some(control) = last {
            self.sender.push(&control.encode(), ContentType::Data)?;
        }
        // Nothing follows (RFC 8446 §6.1).
        self.sender.push(&[1, 0], ContentType::Alert)?;
        std::future::poll_fn(|cx| self.poll_flush(cx)).await?;
        Ok(socket::shut(&self.tcp)?)
    }

    /// Reads what the peer sends until it closes, or has sent enough.
    async fn drain(&self) -> io::Result<()> {
        let mut drained = 0;
        while drained < 1 << 20 {
            self.tcp.readable().await?;
            // Not kept while nothing comes: many may say goodbye at a time.
            match self.tcp.try_read(&mut [0; 4096]) {
                Ok(0) => return Ok(()),
                Ok(read) => drained += read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // The kernel opens records, and this one is no data: it may say that nothing follows.
                Err(error) if kernel::is_record(&error) && kernel::passes_end(&self.tcp)? => return Ok(()),
                Err(error) if kernel::is_record(&error) => drained += 1,
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::FileTooLarge.into())
    }

    /// Has the connection break off when it is dropped.
    pub(in crate::tunnel) fn abort(&self) {
        reset_on_drop(&*self.tcp);
    }

    /// The socket, for who watches it.
    pub(super) fn socket(&self) -> &Arc<TcpStream> {
        &self.tcp
    }

    pub(super) fn bound_buffers(&self, bytes: usize) {
        bound_buffers(&*self.tcp, Some(bytes));
    }

    /// Keeps no more than it needs while nothing passes.
    pub(super) fn rest(&mut self) {
        self.sender.rest();
        self.receiver.rest();
    }

    pub(super) fn is_sending(&self) -> bool {
        self.sender.is_stuck()
    }

    pub(super) fn is_delivering(&self) -> bool {
        self.receiver.is_stuck()
    }

    pub(super) fn sender(&mut self) -> &mut Sender {
        &mut self.sender
    }

    pub(super) fn receiver(&mut self) -> &mut Receiver {
        &mut self.receiver
    }

    /// Writes all that is ready; answers what of a stream was in it.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Moved>, TunnelError>> {
        self.sender.poll_flush(cx, &self.tcp)
    }

    /// The next bytes or frame; `None` at the peer's end.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Received>, TunnelError>> {
        let received = ready!(self.receiver.poll_next(cx, &self.tcp, &mut self.keys, &self.share));
        self.keys.pass_over_tickets();
        if let Ok(Some(Received::Control(Control::GoAway))) = received {
            self.last = true;
        }
        Poll::Ready(received)
    }

    /// Moves up to a batch of records from `source`, under new keys if they are due; or a small message by the bundle of `strand`.
    pub(super) fn poll_send_from(
        &mut self,
        cx: &mut Context<'_>,
        source: &TcpStream,
        mut strand: Option<&mut Strand>,
    ) -> Poll<Result<Moved, LegError>> {
        loop {
            if let Some(moved) = ready!(self.poll_flush(cx))? {
                return Poll::Ready(Ok(moved));
            }
            if !self.keys.renew(&mut self.sender)? {
                ready!(self.sender.poll_read_from(cx, source, &self.share, strand.as_deref_mut()))?;
            }
        }
    }

    /// Seals what `source` has at this moment, or else only what is held; or nothing, if `patient`, which it answers with `false`.
    pub(super) fn take_now(&mut self, source: &TcpStream, patient: bool) -> Result<bool, LegError> {
        self.sender.read_now(source, &self.share, patient)
    }

    /// Seals the front of `bytes`; answers how many that is.
    pub(super) fn poll_send_bytes(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize, TunnelError>> {
        loop {
            ready!(self.poll_flush(cx))?;
            if !self.keys.renew(&mut self.sender)? {
                return self.sender.poll_read_bytes(cx, bytes, &self.share);
            }
        }
    }
}

/// Waits for `farewell` as long as the peer takes something: `None` after [`LOOKS`] that find otherwise, or once [`FAREWELL`] is over.
async fn while_taken<T>(tcp: &TcpStream, farewell: impl Future<Output = T>) -> Option<T> {
    let mut farewell = pin!(farewell);
    let end = Instant::now() + FAREWELL;
    let (mut taken, mut idle) = (acknowledged(tcp), 0);
    while idle < LOOKS && Instant::now() < end {
        if let Ok(said) = timeout(LOOK, farewell.as_mut()).await {
            return Some(said);
        }
        let now = acknowledged(tcp);
        idle = if now.is_some() && now == taken { idle + 1 } else { 0 };
        taken = now;
    }
    None
}

/// Bytes that the peer's TCP has taken; `None` while that changes too fast to tell.
fn acknowledged(tcp: &TcpStream) -> Option<u64> {
    Some(taken_by_tcp(tcp).ok()?.saturating_sub(unacknowledged(tcp).ok()?))
}

impl Keys {
    /// Tells the peer new keys and goes on with them (RFC 8446 §4.6.3), if that is due; answers whether it was.
    fn renew(&mut self, sender: &mut Sender) -> Result<bool, TunnelError> {
        const KEY_UPDATE_NOT_REQUESTED: [u8; 5] = [24, 0, 0, 1, 0];
        if !mem::take(&mut self.asked) && !sender.is_worn() {
            return Ok(false);
        }
        sender.renew(&KEY_UPDATE_NOT_REQUESTED)?;
        Ok(true)
    }

    /// Takes no more tickets.
    fn pass_over_tickets(&mut self) {
        if let Tickets::Taken(_) = self.tickets {
            self.tickets = Tickets::PassedOver;
        }
    }

    /// Tickets and key updates, the only handshake messages behind the handshake (RFC 8446 §4.6). Answers whether the next record is
    /// under new keys.
    pub(super) fn handshake_message(&mut self, mut message: &[u8]) -> Result<bool, TunnelError> {
        const NEW_SESSION_TICKET: u8 = 4;
        const KEY_UPDATE: u8 = 24;
        while let Some((header, rest)) = message.split_first_chunk::<4>() {
            let len = u32::from_be_bytes([0, header[1], header[2], header[3]]) as usize;
            let (body, rest) = rest.split_at_checked(len).ok_or(TunnelError::Record)?;
            message = rest;
            match (header[0], &mut self.tickets, body) {
                (NEW_SESSION_TICKET, Tickets::Taken(kernel), _) => kernel.handle_new_session_ticket(body)?,
                (NEW_SESSION_TICKET, Tickets::PassedOver, _) => {}
                // Nothing of the record may stand behind it (RFC 8446 §5.1).
                (KEY_UPDATE, _, [requested @ (0 | 1)]) if message.is_empty() => {
                    self.asked |= *requested == 1;
                    return Ok(true);
                }
                _ => return Err(TunnelError::Unexpected("TLS handshake")),
            }
        }
        if message.is_empty() { Ok(false) } else { Err(TunnelError::Record) }
    }
}

#[cfg(test)]
mod tests;
