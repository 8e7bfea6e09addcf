//! The seam between the data plane and the dialects: a [`Session`] with a peer carries [`Stream`]s, and a [`Leg`] is one end
//! of a relay. What is known of the peer is apart from what is known of a stream.
//!
//! A dialect is one variant of both enums, so that a batch of records costs one branch. `ambit/1` carries one stream at a time:
//! the stream takes the session along and gives it back at its end. Of HBONE (HTTP/2 CONNECT) and QUIC, which carry many at a
//! time, a session would be a handle on the connection that stays in the pool while streams run; OPEN is CONNECT there, DENY an
//! answer other than 200, and RESET a RST_STREAM or RESET_STREAM.

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use ambit_core::{frame, reason::Refusal};
use rustls::{ClientConfig, ServerConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::timeout,
};

use super::{
    TunnelError,
    ambit1::{self, Link, Verify},
    buffer::Share,
    bundle::Strand,
    tls::PeerIdentity,
};
use crate::capture::{Patience, failure, path};

/// What is known of a session once its handshake is over.
#[derive(Clone, Debug)]
pub(crate) struct PeerFacts {
    /// The peer, as its certificate says.
    pub(crate) peer: Arc<PeerIdentity>,
    /// The key exchange group of the handshake.
    pub(crate) group: &'static str,
    /// Whether the handshake resumed an earlier session.
    pub(crate) resumed: bool,
}

/// What a client says of a stream when it opens it. All of it is the client agent's word: good for logs and metrics, never
/// for a verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Incoming {
    /// What the application dialled.
    pub(crate) original_dst: SocketAddr,
    /// The service's host name, if a service was dialled; at most 1,024 bytes.
    pub(crate) service: Option<String>,
    /// W3C trace context (`traceparent`), if there is one.
    pub(crate) trace: Option<String>,
    /// The place of the connection among those of the same client to the same destination.
    pub(crate) order: Order,
    /// The application is not connected before the answer is here.
    pub(crate) waits: bool,
    /// Which strand of a bundle it may be.
    pub(crate) strand: Option<frame::Strand>,
}

/// Where a connection stands among others that were numbered in the same place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Order {
    /// A random number for the place and time of numbering.
    pub(crate) epoch: u64,
    /// 0, 1, 2, …
    pub(crate) number: u64,
}

/// What was moved in one step of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moved {
    /// Bytes of the stream.
    pub(crate) bytes: usize,
    /// This direction has ended, and the receiver has been told.
    pub(crate) end: bool,
}

/// Why a leg cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LegError {
    /// The application's socket failed.
    #[error("the application reset the connection: {0}")]
    App(io::Error),
    /// The socket of a plaintext leg failed.
    #[error("the other end reset the connection: {0}")]
    Plain(io::Error),
    /// The peer refused the stream.
    #[error("refused by the peer: {0}")]
    Refused(Refusal),
    /// The peer reset the stream.
    #[error("the other end reset the connection: {0}")]
    Reset(Refusal),
    /// This end has decided not to go on.
    #[error("given up: {0}")]
    Here(Refusal),
    /// The application ended its direction long ago, and its end of the connection does not exist any more.
    #[error("the application has left")]
    AppLeft,
    /// The same at the other end.
    #[error("the other end has left")]
    PeerLeft,
    /// The session failed.
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
}

impl From<Refusal> for LegError {
    fn from(refusal: Refusal) -> Self {
        Self::Here(refusal)
    }
}

impl From<LegError> for io::Error {
    fn from(error: LegError) -> Self {
        match error {
            LegError::App(error) | LegError::Plain(error) | LegError::Tunnel(TunnelError::Io(error)) => error,
            LegError::Reset(_) | LegError::AppLeft | LegError::PeerLeft => {
                Self::new(io::ErrorKind::ConnectionReset, error)
            }
            LegError::Refused(_) | LegError::Here(_) => Self::new(io::ErrorKind::ConnectionRefused, error),
            LegError::Tunnel(_) => Self::other(error),
        }
    }
}

/// One end of a relay whose other end is an application's socket. Moves bytes in batches; what it has read and not yet
/// written is kept here, so that no step is lost when a task stops between two. What needs the bytes themselves reads and
/// writes the leg.
pub(crate) trait Leg: AsyncRead + AsyncWrite + Unpin {
    /// Moves what `app` has, up to a batch, or its end.
    fn poll_send_from(&mut self, cx: &mut Context<'_>, app: &TcpStream) -> Poll<Result<Moved, LegError>>;

    /// Moves what has come for `app`, or the end.
    fn poll_deliver_to(&mut self, cx: &mut Context<'_>, app: &TcpStream) -> Poll<Result<Moved, LegError>>;

    /// Waits until there are bytes for the application, or none will come any more: then a read takes room that is not needed before.
    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LegError>>;

    /// The application's socket has failed: what can still be read of it is moved, and then the error comes, not the end.
    fn app_failed(&mut self);

    /// Its socket, for who watches it.
    fn socket(&self) -> Arc<TcpStream>;

    /// What its socket has failed of.
    fn failure(&self) -> LegError;

    /// Whether the word that the connection stands is kept for the application's first bytes.
    fn holds_answer(&mut self) -> bool {
        false
    }

    /// Does not keep it any longer.
    fn answer(&mut self) -> Result<(), LegError> {
        Ok(())
    }

    /// Whether the other end has not been told of the connection yet, as `app` has not said anything that could go with that word.
    /// It is told by the next step.
    fn awaits_words(&mut self, _app: &TcpStream) -> Result<bool, LegError> {
        Ok(false)
    }

    /// Whether the other end has yet to say that the connection stands.
    fn awaits_answer(&self) -> bool {
        false
    }

    /// Has the kernel wait for its other end as long as told.
    fn set_patience(&mut self, patience: &Patience) {
        // It fails only for what is no socket.
        let _: io::Result<()> = patience.set_on(&self.socket());
    }

    /// Nothing passes for the moment: keeps no more than it needs to go on.
    fn rest(&mut self) {}

    /// Cuts the buffers of its socket.
    fn bound_buffers(&self, bytes: usize);

    /// Whether it holds bytes from the application.
    fn is_sending(&self) -> bool;

    /// Whether it holds bytes for the application.
    fn is_delivering(&self) -> bool;

    /// Both directions have ended: dropping the leg is not to reset the connection.
    fn end_cleanly(&mut self) {}
}

/// A connection to a peer whose identity has been verified.
#[derive(Debug)]
pub(crate) enum Session {
    /// See [`ambit1`].
    Ambit1(Box<Link>),
}

impl Session {
    /// The client's side. `verify` sees the peer's certificates after every handshake, resumed or not. The session's buffers
    /// count for `share`.
    pub(crate) async fn connect(
        tcp: TcpStream,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
        share: &Arc<Share>,
        verify: impl Verify,
    ) -> Result<Self, TunnelError> {
        ambit1::connect(tcp, config, name, share, verify).await.map(Self::Ambit1)
    }

    /// The server's side.
    pub(crate) async fn accept(
        tcp: TcpStream,
        config: Arc<ServerConfig>,
        share: &Arc<Share>,
        verify: impl Verify,
    ) -> Result<Self, TunnelError> {
        ambit1::accept(tcp, config, share, verify).await.map(Self::Ambit1)
    }

    /// What is known of the peer.
    pub(crate) fn facts(&self) -> &PeerFacts {
        let Self::Ambit1(link) = self;
        link.facts()
    }

    /// When its handshake was: both ends' certificates are those of then.
    pub(crate) fn since(&self) -> SystemTime {
        let Self::Ambit1(link) = self;
        link.since()
    }

    /// Begins a stream, on the client. Nothing waits for the peer's answer: it comes with the first bytes, as may a refusal. Small messages
    /// may go by the bundle of its `strand`, which the stream names.
    pub(crate) fn open(self, stream: Incoming, strand: Option<Strand>) -> Stream {
        let Self::Ambit1(link) = self;
        let Incoming { original_dst, service, trace, order: Order { epoch, number }, waits, strand: name } =
            stream;
        let order = frame::Order { epoch, number };
        let open = frame::Open { original_dst, service, trace, order, waits, strand: name };
        Stream::Ambit1(ambit1::Stream::open(link, open, strand))
    }

    /// Waits for the client's next stream; `None` once the client has closed the session or has kept silent for `idle`. Cancel
    /// safe. Then follows [`Self::accept_stream`] or [`Self::refuse_stream`].
    pub(crate) async fn next(&mut self, idle: Duration) -> Result<Option<Incoming>, TunnelError> {
        self.next_within(idle).await.unwrap_or(Ok(None))
    }

    /// The same, but that nothing is closed if the client keeps silent for so long: then it is `None`.
    pub(crate) async fn next_within(
        &mut self,
        limit: Duration,
    ) -> Option<Result<Option<Incoming>, TunnelError>> {
        let Self::Ambit1(link) = self;
        let incoming = |open: frame::Open| {
            let frame::Open { original_dst, service, trace, order, waits, strand } = open;
            let frame::Order { epoch, number } = order;
            Incoming { original_dst, service, trace, order: Order { epoch, number }, waits, strand }
        };
        Some(link.next_open(limit).await?.map(|open| open.map(incoming)))
    }

    /// Whether something of the stream has come with its beginning.
    pub(crate) fn has_spoken(&self) -> bool {
        let Self::Ambit1(link) = self;
        link.has_more()
    }

    /// Takes the stream that [`Self::next`] has brought. A client that waits for that learns of it at once, another one with the
    /// first bytes, or by [`Leg::answer`]. Small messages may go by the bundle of its `strand`.
    pub(crate) fn accept_stream(self, strand: Option<Strand>) -> Stream {
        let Self::Ambit1(link) = self;
        Stream::Ambit1(ambit1::Stream::accepted(link, strand))
    }

    /// Refuses it, and closes the session.
    pub(crate) async fn refuse_stream(self, refusal: Refusal) {
        let Self::Ambit1(link) = self;
        ambit1::Stream::refuse(link, refusal).await;
    }

    /// Tells the client between two streams that it shall begin no other; one that it has begun meanwhile may follow.
    pub(crate) async fn go_away(&mut self) -> Result<(), TunnelError> {
        let Self::Ambit1(link) = self;
        link.go_away().await
    }

    /// Closes the session; the peer is told `why` if there is a reason. Takes a second at most.
    pub(crate) async fn close(self, why: Option<Refusal>) {
        let Self::Ambit1(link) = self;
        link.close_with(why.map(frame::Control::Reset)).await;
    }

    /// Whether another stream may begin at `now`: the peer's certificate is valid, the handshake not too long ago, and the
    /// peer has not asked for an end.
    pub(super) fn is_valid(&self, now: SystemTime) -> bool {
        let Self::Ambit1(link) = self;
        link.is_valid(now)
    }

    /// Whether a session that rested can carry another stream: nothing came meanwhile that would end it.
    pub(super) fn is_fresh(&mut self) -> bool {
        let Self::Ambit1(link) = self;
        link.is_fresh()
    }
}

/// One connection of an application over a session.
#[derive(Debug)]
pub(crate) enum Stream {
    /// See [`ambit1`].
    Ambit1(ambit1::Stream),
}

/// How long a peer may take to answer an OPEN: a little longer than it gives the application.
pub(crate) const ANSWERED_WITHIN: Duration = Duration::from_secs(12);
/// How long nothing at all may come back for it on a session that was used before.
const SILENCE: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(1)];

impl Stream {
    /// Waits until the peer has taken a stream that this end has opened; an error if it refuses. On a session that was used
    /// before, it is also an error if no packet is answered for a moment: another session may lead there.
    pub(crate) async fn confirmed(&mut self, used_before: bool) -> Result<(), LegError> {
        let Self::Ambit1(stream) = self;
        if used_before {
            let round_trip = path(stream.socket()).map_or(Duration::ZERO, |path| path.round_trip);
            let patience = (4 * round_trip).clamp(SILENCE[0], SILENCE[1]);
            match timeout(patience, poll_fn(|cx| stream.poll_confirmed(cx))).await {
                Ok(confirmed) => return confirmed,
                Err(_) if path(stream.socket()).is_none_or(|path| path.unanswered) => {
                    return Err(TunnelError::Timeout("answer on a connection that had rested").into());
                }
                // Packets arrive: it is the application there that takes its time.
                Err(_) => {}
            }
        }
        poll_fn(|cx| stream.poll_confirmed(cx)).await
    }

    /// Whether further streams might begin on its session at `now`.
    pub(super) fn is_valid(&self, now: SystemTime) -> bool {
        let Self::Ambit1(stream) = self;
        stream.is_valid(now)
    }

    /// Breaks the session off; the peer is told nothing, and what is on its way to it will not be repeated.
    pub(crate) fn abort(self) {
        let Self::Ambit1(stream) = self;
        stream.abort();
    }

    /// The session, for further streams, once both directions have ended.
    pub(crate) fn into_session(self) -> Session {
        let Self::Ambit1(stream) = self;
        Session::Ambit1(stream.into_link())
    }

    /// Cuts the stream; the peer is told `why` unless it knows. Takes a second at most.
    pub(crate) async fn close(self, why: Option<Refusal>) {
        let Self::Ambit1(stream) = self;
        stream.close(why).await;
    }
}

impl Leg for Stream {
    fn poll_send_from(&mut self, cx: &mut Context<'_>, app: &TcpStream) -> Poll<Result<Moved, LegError>> {
        let Self::Ambit1(stream) = self;
        stream.poll_send_from(cx, app)
    }

    fn poll_deliver_to(&mut self, cx: &mut Context<'_>, app: &TcpStream) -> Poll<Result<Moved, LegError>> {
        let Self::Ambit1(stream) = self;
        stream.poll_deliver_to(cx, app)
    }

    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LegError>> {
        let Self::Ambit1(stream) = self;
        stream.poll_readable(cx)
    }

    fn app_failed(&mut self) {
        let Self::Ambit1(stream) = self;
        stream.app_failed();
    }

    fn socket(&self) -> Arc<TcpStream> {
        let Self::Ambit1(stream) = self;
        stream.socket().clone()
    }

    fn failure(&self) -> LegError {
        TunnelError::Io(failure(&self.socket())).into()
    }

    fn holds_answer(&mut self) -> bool {
        let Self::Ambit1(stream) = self;
        stream.holds_answer()
    }

    fn set_patience(&mut self, patience: &Patience) {
        let Self::Ambit1(stream) = self;
        stream.set_patience(patience);
    }

    fn rest(&mut self) {
        let Self::Ambit1(stream) = self;
        stream.rest();
    }

    fn bound_buffers(&self, bytes: usize) {
        let Self::Ambit1(stream) = self;
        stream.bound_buffers(bytes);
    }

    fn is_sending(&self) -> bool {
        let Self::Ambit1(stream) = self;
        stream.is_sending()
    }

    fn is_delivering(&self) -> bool {
        let Self::Ambit1(stream) = self;
        stream.is_delivering()
    }

    fn answer(&mut self) -> Result<(), LegError> {
        let Self::Ambit1(stream) = self;
        stream.answer()
    }

    fn awaits_words(&mut self, app: &TcpStream) -> Result<bool, LegError> {
        let Self::Ambit1(stream) = self;
        stream.awaits_words(app)
    }

    fn awaits_answer(&self) -> bool {
        let Self::Ambit1(stream) = self;
        stream.awaits_accept()
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self::Ambit1(stream) = self.get_mut();
        Pin::new(stream).poll_read(cx, room)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Self::Ambit1(stream) = self.get_mut();
        Pin::new(stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self::Ambit1(stream) = self.get_mut();
        Pin::new(stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self::Ambit1(stream) = self.get_mut();
        Pin::new(stream).poll_shutdown(cx)
    }
}
