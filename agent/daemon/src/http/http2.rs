//! HTTP/2 with prior knowledge on one connection: every stream is judged by itself, and passed on to the application on the one
//! connection that it has for this client. Trailers, interim answers and resets pass as they are.
//!
//! All streams of a connection share its task. What either side may send without being read is bounded by the windows that the other
//! is given.

mod bell;
mod ends;
mod flow;
mod pace;
mod pass;
mod stream;

use std::{
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use ambit_core::reason::{Reason, Refusal};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use h2::{Reason as Code, RecvStream, client, server};
use http::Request;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use self::{
    bell::{APP, Bell, CLIENT, STREAMS},
    ends::{FromClient, ToApp},
    flow::{Flow, Piece},
    pace::Pace,
    stream::stream,
};
use super::{Stuck, gate::Gate, way::leg_error, window::Window};
use crate::tunnel::{Hold, Leg, LegError, Share, shut};

/// How much one stream may send before it is passed on.
const WINDOW: u32 = 128 * 1024;
/// How much all of them together may: as the protocol has it, and more where one direction carries much and the pod has memory for it.
const CONNECTION_WINDOW: usize = 65_535;
const WIDE_WINDOW: usize = 512 * 1024;
/// A direction carries much that has carried so much, and so much of it at once.
const MUCH: usize = 512 * 1024;
const AT_ONCE: usize = 32 * 1024;
/// Streams at a time.
const STREAMS_AT_ONCE: u32 = 250;
/// Bytes of a head, and of all heads of a connection that wait for a verdict or for the application.
const HEAD: u32 = 64 * 1024;
const HEADS: usize = 1024 * 1024;
/// How much of a stream waits for a receiver.
const SEND_BUFFER: usize = 32 * 1024;
/// How long a client that has said that it leaves may take to do so.
const FAREWELL: Duration = Duration::from_secs(2);

/// Carries the streams of a client that has said what is in `first`, until either side ends. Answers whether both have, so that
/// nothing is left to say.
pub(super) async fn run<L: Leg>(
    leg: &mut L,
    app: &TcpStream,
    gate: &Gate<'_>,
    share: &Arc<Share>,
    stuck: &Stuck,
    first: Window,
) -> Result<bool, LegError> {
    let (connection, pace) = (gate.connection, Pace::new());
    let mut client = FromClient { leg, first, ended: false, connection, pace, late: false };
    let carried = carry(&mut client, ToApp::new(app), gate, share, stuck).await;
    // It fails where the application has gone.
    let _ = shut(app);
    if client.late {
        let text = "a frame of HTTP/2, or a header block, was not whole within 60 s";
        return Err(LegError::Here(Refusal::new(Reason::MalformedRequest, text)));
    }
    carried?;
    let farewell = async {
        client.shutdown().await?;
        let mut rest = [0; 1024];
        while !client.ended && client.read(&mut rest).await? > 0 {}
        Ok::<_, io::Error>(())
    };
    match timeout(FAREWELL, farewell).await {
        Ok(Ok(())) => Ok(true),
        Ok(Err(error)) => Err(leg_error(error)),
        Err(_) => Ok(false),
    }
}

async fn carry<L: Leg>(
    client: &mut FromClient<'_, L>,
    app: ToApp<'_>,
    gate: &Gate<'_>,
    share: &Arc<Share>,
    stuck: &Stuck,
) -> Result<(), LegError> {
    let (to_app, from_app) = client::Builder::new()
        .initial_window_size(WINDOW)
        .max_header_list_size(HEAD)
        .max_send_buffer_size(SEND_BUFFER)
        .enable_push(false)
        .handshake::<_, Piece>(app)
        .await
        .map_err(|error| broken(error, LegError::App))?;
    let from_client = server::Builder::new()
        .initial_window_size(WINDOW)
        .max_header_list_size(HEAD)
        .max_concurrent_streams(STREAMS_AT_ONCE)
        .max_send_buffer_size(SEND_BUFFER)
        .handshake::<_, Piece>(client)
        .await
        .map_err(|error| broken(error, leg_error))?;
    let mut to_app = Some(to_app);
    let (mut up, mut down) = (Direction::new(share), Direction::new(share));
    let heads = Heads { share: share.clone(), held: AtomicUsize::new(0) };
    let mut ends = Ends { from_client, from_app, app_ended: None };
    let mut streams = FuturesUnordered::new();
    let bell = Bell::new();
    let ended = std::future::poll_fn(|cx| {
        let ended = bell.poll(cx, |woken| {
            if woken & CLIENT != 0 {
                while let Poll::Ready(come) = pin!(ends.from_client.accept()).poll(&mut bell.context(CLIENT))
                {
                    let (request, mut respond) = match come {
                        None => return Poll::Ready(Ok(())),
                        Some(Err(error)) => return Poll::Ready(Err(broken(error, leg_error))),
                        Some(Ok(come)) => come,
                    };
                    match (&to_app, heads.hold(&request)) {
                        (Some(to_app), Some(head)) => {
                            let flows = [&up.flow, &down.flow].map(Arc::clone);
                            streams.push(stream(gate, request, respond, to_app.clone(), flows, head));
                            bell.ring(STREAMS);
                        }
                        // It has crossed the word that no further ones are taken, or there are too many bytes of heads.
                        _ => respond.send_reset(Code::REFUSED_STREAM),
                    }
                }
            }
            let mut cx = bell.context(STREAMS);
            while woken & STREAMS != 0 && matches!(streams.poll_next_unpin(&mut cx), Poll::Ready(Some(()))) {}
            if woken & APP != 0 && ends.poll_app(&mut bell.context(APP)) {
                to_app = None;
                ends.from_client.graceful_shutdown();
                bell.ring(CLIENT);
            }
            Poll::Pending
        });
        if let Some(size) = up.wider(share) {
            ends.from_client.set_target_window_size(size);
        }
        if let Some(size) = down.wider(share) {
            ends.from_app.set_target_window_size(size);
        }
        stuck.set(up.flow.is_stuck() || down.flow.is_stuck());
        ended
    });
    let ended = ended.await;
    drop((streams, to_app));
    if ended.is_ok() && ends.app_ended.is_none() {
        // Says goodbye to the application.
        let _ = timeout(FAREWELL, ends.from_app).await;
    }
    ended?;
    match ends.app_ended {
        Some(Err(error)) if !error.is_go_away() => Err(broken(error, LegError::App)),
        _ => Ok(()),
    }
}

/// The connections that streams are carried between.
struct Ends<C, A>
where
    C: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    A: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    from_client: server::Connection<C, Piece>,
    from_app: client::Connection<A, Piece>,
    app_ended: Option<Result<(), h2::Error>>,
}

impl<C, A> Ends<C, A>
where
    C: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    A: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    /// Whether the application has just ended.
    fn poll_app(&mut self, cx: &mut Context<'_>) -> bool {
        if self.app_ended.is_some() {
            return false;
        }
        if let Poll::Ready(ended) = Pin::new(&mut self.from_app).poll(cx) {
            self.app_ended = Some(ended);
        }
        self.app_ended.is_some()
    }
}

/// One direction of a connection.
struct Direction {
    flow: Arc<Flow>,
    /// What had moved when it was looked last.
    moved: usize,
    /// For a wider window.
    held: Option<Hold>,
}

impl Direction {
    fn new(share: &Arc<Share>) -> Self {
        Self { flow: Flow::new(share), moved: 0, held: None }
    }

    /// The size that its connection's window is to have from here on, if it carries so much that this one is narrow.
    fn wider(&mut self, share: &Arc<Share>) -> Option<u32> {
        if self.held.is_some() {
            return None;
        }
        let moved = self.flow.moved();
        let at_once = moved.wrapping_sub(std::mem::replace(&mut self.moved, moved));
        if at_once < AT_ONCE || moved < MUCH {
            return None;
        }
        self.held = share.try_hold(WIDE_WINDOW - CONNECTION_WINDOW);
        self.held.as_ref().map(|_| WIDE_WINDOW as u32)
    }
}

/// The heads of requests that have been read and not passed on. They are small on the wire, by compression, and not in memory.
struct Heads {
    share: Arc<Share>,
    held: AtomicUsize,
}

/// One of them.
struct Head<'a> {
    heads: &'a Heads,
    len: usize,
    _hold: Hold,
}

impl Heads {
    /// Counts that of `request`, unless there are too many.
    fn hold(&self, request: &Request<RecvStream>) -> Option<Head<'_>> {
        let fields = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 32);
        let target = request.uri().path().len() + request.uri().query().map_or(0, str::len);
        let len = target + fields.sum::<usize>();
        let held = self.held.fetch_add(len, Ordering::Relaxed);
        let head = Head { heads: self, len, _hold: self.share.hold(len) };
        (held + len <= HEADS).then_some(head)
    }
}

impl Drop for Head<'_> {
    fn drop(&mut self) {
        self.heads.held.fetch_sub(self.len, Ordering::Relaxed);
    }
}

/// What a connection has failed of.
fn broken(error: h2::Error, of: impl FnOnce(io::Error) -> LegError) -> LegError {
    let text = error.to_string();
    of(error.into_io().unwrap_or_else(|| io::Error::new(io::ErrorKind::ConnectionReset, text)))
}
