//! HTTP/2 with prior knowledge on one connection: every stream is judged by itself, and passed on to the application on the one
//! connection that it has for this client. Trailers, interim answers and resets pass as they are.
//!
//! All streams of a connection share its task. What either side may send without being read is bounded by the windows that the other
//! is given.

use std::{
    future::poll_fn,
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use h2::{
    Reason as Code, RecvStream, SendStream, client,
    client::{ResponseFuture, SendRequest},
    server::{self, SendResponse},
};
use http::{
    Method, Request, Response, Uri, Version,
    header::HOST,
    request::Parts,
    uri::{Authority, Scheme},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    join,
    net::TcpStream,
    select,
    time::timeout,
};

use super::{
    Stuck,
    answer::Answer,
    body::Malformed,
    gate::{Admitted, Gate},
    way::leg_error,
    window::Window,
};
use crate::{
    telemetry::{Connection, GrpcMessages, RequestEnd, ResponseFlag},
    tunnel::{self, Leg, LegError, shut},
};

/// How much one stream, and all of them together, may send before it is passed on.
const WINDOW: u32 = 128 * 1024;
const CONNECTION_WINDOW: u32 = 512 * 1024;
/// Streams at a time.
const STREAMS: u32 = 250;
/// Bytes of a head.
const HEAD: u32 = 64 * 1024;
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
    stuck: &Stuck,
    first: Window,
) -> Result<bool, LegError> {
    let mut client = FromClient { leg, first, ended: false, connection: gate.connection, stuck };
    let carried = carry(&mut client, &ToApp { app, stuck }, gate).await;
    // It fails where the application has gone.
    let _ = shut(app);
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
    app: &ToApp<'_>,
    gate: &Gate<'_>,
) -> Result<(), LegError> {
    let (to_app, from_app) = client::Builder::new()
        .initial_window_size(WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEAD)
        .max_send_buffer_size(SEND_BUFFER)
        .enable_push(false)
        .handshake::<_, Bytes>(*app)
        .await
        .map_err(|error| broken(error, LegError::App))?;
    let mut from_client = server::Builder::new()
        .initial_window_size(WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEAD)
        .max_concurrent_streams(STREAMS)
        .max_send_buffer_size(SEND_BUFFER)
        .handshake::<_, Bytes>(client)
        .await
        .map_err(|error| broken(error, leg_error))?;
    let mut to_app = Some(to_app);
    let mut from_app = pin!(from_app);
    let mut app_ended = None;
    let mut streams = FuturesUnordered::new();
    loop {
        select! {
            biased;
            come = from_client.accept() => match (come, &to_app) {
                (Some(Ok((request, respond))), Some(to_app)) => {
                    streams.push(stream(gate, request, respond, to_app.clone()));
                }
                // It has crossed the word that no further ones are taken.
                (Some(Ok((_, mut respond))), None) => respond.send_reset(Code::REFUSED_STREAM),
                (Some(Err(error)), _) => return Err(broken(error, leg_error)),
                (None, _) => break,
            },
            Some(()) = streams.next() => {}
            ended = &mut from_app, if app_ended.is_none() => {
                app_ended = Some(ended);
                to_app = None;
                from_client.graceful_shutdown();
            }
        }
    }
    drop(streams);
    drop(to_app);
    if app_ended.is_none() {
        // Says goodbye to the application.
        let _ = timeout(FAREWELL, from_app).await;
    }
    match app_ended {
        Some(Err(error)) if !error.is_go_away() => Err(broken(error, LegError::App)),
        _ => Ok(()),
    }
}

/// What a connection has failed of.
fn broken(error: h2::Error, of: impl FnOnce(io::Error) -> LegError) -> LegError {
    let text = error.to_string();
    of(error.into_io().unwrap_or_else(|| io::Error::new(io::ErrorKind::ConnectionReset, text)))
}

/// Carries one stream.
async fn stream(
    gate: &Gate<'_>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    to_app: SendRequest<Bytes>,
) {
    let (mut head, mut body) = request.into_parts();
    let mut begun = Vec::new();
    let judged = judge(gate, &mut head, &mut body, &mut begun).await;
    let admitted = match judged {
        Ok(admitted) => admitted,
        Err(answer) => return say(&answer, head.method == Method::HEAD, &mut respond),
    };
    let mut end = RequestEnd::default();
    let Admitted { told, changes, .. } = admitted;
    let sent = async {
        let mut to_app = to_app.ready().await?;
        let is_whole = begun.is_empty() && body.is_end_stream();
        to_app.send_request(Request::from_parts(head, ()), is_whole).map(|sent| (sent, is_whole))
    };
    let ((answer, mut up), is_whole) = match sent.await {
        Ok(sent) => sent,
        Err(error) => {
            // The client may try again, on another connection.
            let unsent = error.is_go_away() || error.is_io() || error.is_library();
            respond.send_reset(if unsent { Code::REFUSED_STREAM } else { Code::INTERNAL_ERROR });
            end.flag = ResponseFlag::UpstreamFailure;
            return told.finish(&end);
        }
    };
    let mut sent = Counted::default();
    let mut got = Counted::default();
    let upload = async {
        if !is_whole {
            pass(body, &mut up, begun, &mut sent).await;
        }
        // The answer tells of what goes wrong from here on.
        up
    };
    let download = async {
        let answer = match answered(answer, &mut respond).await {
            Ok(answer) => answer,
            Err(Failed::Client) => {
                end.flag = ResponseFlag::DownstreamClosed;
                return;
            }
            Err(Failed::App(code)) => {
                end.flag = ResponseFlag::UpstreamClosed;
                return respond.send_reset(code);
            }
        };
        let (mut head, body) = answer.into_parts();
        if let Some(changes) = changes {
            changes.apply_to_answer(&mut head.headers);
        }
        end.status = Some(head.status);
        end.grpc_status = grpc_status(&head.headers);
        let is_whole = body.is_end_stream();
        let Ok(mut down) = respond.send_response(Response::from_parts(head, ()), is_whole) else { return };
        if !is_whole {
            end.flag = pass(body, &mut down, Vec::new(), &mut got).await;
        }
    };
    let (mut up, ()) = join_until_answered(upload, download).await;
    if let Some(up) = &mut up
        && end.flag == ResponseFlag::DownstreamClosed
    {
        up.send_reset(Code::CANCEL);
    }
    end.request_bytes = sent.bytes;
    end.request_messages = sent.messages.count();
    end.response_bytes = got.bytes;
    end.response_messages = got.messages.count();
    if got.status.is_some() {
        end.grpc_status = got.status;
    }
    told.finish(&end);
}

/// Both at once. An answer that ends early does not end the other direction, but what goes wrong with it does.
async fn join_until_answered(
    upload: impl Future<Output = SendStream<Bytes>>,
    download: impl Future<Output = ()>,
) -> (Option<SendStream<Bytes>>, ()) {
    let (up, down) = join!(upload, download);
    (Some(up), down)
}

/// What of a body has passed.
#[derive(Debug, Default)]
struct Counted {
    bytes: u64,
    messages: GrpcMessages,
    /// `grpc-status` of the trailers.
    status: Option<i64>,
}

/// Whose fault it is.
enum Failed {
    Client,
    App(Code),
}

/// Judges a request; the head is then as it is to be forwarded. What had to be read of the body is in `begun`.
async fn judge(
    gate: &Gate<'_>,
    head: &mut Parts,
    body: &mut RecvStream,
    begun: &mut Vec<Bytes>,
) -> Result<Admitted, Answer> {
    if let Err(malformed) = settle_authority(head) {
        return Err(gate.malformed(&malformed));
    }
    let pending = gate.begin(head)?;
    let wanted = pending.wants_body;
    if wanted == 0 {
        return gate.judge(pending, head, None).await;
    }
    let mut read = Vec::new();
    // Never more than a client may send before any of it is passed on.
    while read.len() < wanted.min(WINDOW as usize) && !body.is_end_stream() {
        let Some(Ok(piece)) = body.data().await else { break };
        read.extend_from_slice(&piece);
        begun.push(piece);
    }
    let whole = body.is_end_stream() && read.len() <= wanted;
    read.truncate(wanted);
    gate.judge(pending, head, Some((&read, whole))).await
}

/// There is one authority: who has it by a field names no other by the pseudo-field (RFC 9113, section 8.3.1).
fn settle_authority(head: &mut Parts) -> Result<(), Malformed> {
    let mut hosts = head.headers.get_all(HOST).iter();
    let host = hosts.next().cloned();
    if hosts.next().is_some() {
        return Err(Malformed::new("there are several host fields"));
    }
    let named = head.uri.authority().map(Authority::as_str);
    if named.is_some_and(|named| named.contains('@')) {
        return Err(Malformed::new("the authority names a user"));
    }
    let path_is_right = match head.uri.path_and_query() {
        None => head.method == Method::CONNECT,
        Some(path) => {
            path.as_str().starts_with('/') || path.as_str() == "*" && head.method == Method::OPTIONS
        }
    };
    if !path_is_right {
        return Err(Malformed::new("the path is malformed"));
    }
    let Some(host) = host else {
        if named.is_none() {
            // Only so may it be sent without one.
            head.version = Version::HTTP_11;
        }
        return Ok(());
    };
    if let Some(named) = named {
        let same = named.as_bytes().eq_ignore_ascii_case(host.as_bytes());
        return if same { Ok(()) } else { Err(Malformed::new("the host field is not the authority")) };
    }
    let malformed = || Malformed::new("the host field is malformed");
    let authority = Authority::try_from(host.as_bytes()).map_err(|_| malformed())?;
    if authority.as_str().contains('@') {
        return Err(malformed());
    }
    let mut uri = head.uri.clone().into_parts();
    uri.scheme.get_or_insert(Scheme::HTTP);
    uri.authority = Some(authority);
    head.uri = Uri::from_parts(uri).map_err(|_| malformed())?;
    Ok(())
}

/// Sends an answer of our own.
fn say(answer: &Answer, is_head: bool, respond: &mut SendResponse<Bytes>) {
    let mut response = Response::new(());
    *response.status_mut() = answer.status;
    response.headers_mut().clone_from(&answer.headers);
    if !answer.body.is_empty() {
        response.headers_mut().insert(http::header::CONTENT_LENGTH, answer.body.len().into());
    }
    let is_whole = answer.body.is_empty() || is_head;
    // It fails where the client has gone.
    if let Ok(mut body) = respond.send_response(response, is_whole)
        && !is_whole
    {
        let _ = body.send_data(answer.body.clone(), true);
    }
}

/// Waits for the answer while the client does; interim ones are passed on.
async fn answered(
    mut answer: ResponseFuture,
    respond: &mut SendResponse<Bytes>,
) -> Result<Response<RecvStream>, Failed> {
    poll_fn(|cx| {
        while let Poll::Ready(Some(interim)) = answer.poll_informational(cx) {
            let Ok(interim) = interim else { break };
            if respond.send_informational(interim).is_err() {
                break;
            }
        }
        match Pin::new(&mut answer).poll(cx) {
            Poll::Ready(Ok(answer)) => Poll::Ready(Ok(answer)),
            Poll::Ready(Err(error)) => Poll::Ready(Err(Failed::App(code(&error)))),
            Poll::Pending => respond.poll_reset(cx).map(|_| Err(Failed::Client)),
        }
    })
    .await
}

fn code(error: &h2::Error) -> Code {
    error.reason().unwrap_or(Code::INTERNAL_ERROR)
}

/// Passes a body on, behind what of it has been read, with its trailers. Answers what has gone wrong.
async fn pass(
    mut from: RecvStream,
    to: &mut SendStream<Bytes>,
    begun: Vec<Bytes>,
    counted: &mut Counted,
) -> ResponseFlag {
    let mut begun = begun.into_iter();
    loop {
        let piece = match begun.next() {
            Some(piece) => Some(Ok(piece)),
            None => match data_or_reset(&mut from, to).await {
                Ok(piece) => piece,
                Err(()) => return ResponseFlag::DownstreamClosed,
            },
        };
        match piece {
            Some(Ok(piece)) => {
                let len = piece.len();
                counted.bytes += len as u64;
                counted.messages.see(&piece);
                let is_last = begun.len() == 0 && from.is_end_stream();
                if send(to, piece, is_last).await.is_err() {
                    return ResponseFlag::DownstreamClosed;
                }
                // It fails where there is nothing to release any more.
                let _ = from.flow_control().release_capacity(len);
                if is_last {
                    return ResponseFlag::None;
                }
            }
            Some(Err(error)) => {
                to.send_reset(code(&error));
                return ResponseFlag::UpstreamClosed;
            }
            None => break,
        }
    }
    match from.trailers().await {
        Ok(Some(trailers)) => {
            counted.status = grpc_status(&trailers);
            let _ = to.send_trailers(trailers);
        }
        Ok(None) => {
            let _ = to.send_data(Bytes::new(), true);
        }
        Err(error) => {
            to.send_reset(code(&error));
            return ResponseFlag::UpstreamClosed;
        }
    }
    ResponseFlag::None
}

/// The next piece of a body, unless its receiver wants no more.
async fn data_or_reset(
    from: &mut RecvStream,
    to: &mut SendStream<Bytes>,
) -> Result<Option<Result<Bytes, h2::Error>>, ()> {
    poll_fn(|cx| match from.poll_data(cx) {
        Poll::Ready(piece) => Poll::Ready(Ok(piece)),
        Poll::Pending => to.poll_reset(cx).map(|_| Err(())),
    })
    .await
}

/// Sends one piece as the receiver has room for it.
async fn send(to: &mut SendStream<Bytes>, mut piece: Bytes, is_last: bool) -> Result<(), h2::Error> {
    while !piece.is_empty() {
        to.reserve_capacity(piece.len());
        let mut room = to.capacity();
        if room == 0 {
            let more = poll_fn(|cx| to.poll_capacity(cx)).await;
            room = more.unwrap_or_else(|| Err(Code::CANCEL.into()))?;
        }
        let part = piece.split_to(room.min(piece.len()));
        let ends = is_last && piece.is_empty();
        to.send_data(part, ends)?;
        if ends {
            return Ok(());
        }
    }
    if is_last { to.send_data(piece, true) } else { Ok(()) }
}

fn grpc_status(headers: &http::HeaderMap) -> Option<i64> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// The client's end: what it has said already, and then its leg.
struct FromClient<'a, L> {
    leg: &'a mut L,
    first: Window,
    /// It has ended its side.
    ended: bool,
    connection: &'a Connection,
    stuck: &'a Stuck,
}

impl<L: Leg> AsyncRead for FromClient<'_, L> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        room: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = room.filled().len();
        if self.first.is_empty() {
            ready!(Pin::new(&mut *self.leg).poll_read(cx, room))?;
        } else {
            let len = self.first.bytes().len().min(room.remaining());
            room.put_slice(&self.first.bytes()[..len]);
            self.first.consume(len);
            if self.first.is_empty() {
                // Gives its buffer back.
                self.first = Window::default();
            }
        }
        let read = room.filled().len() - before;
        self.ended |= read == 0 && room.remaining() > 0;
        self.connection.client_to_server(read as u64);
        Poll::Ready(Ok(()))
    }
}

impl<L: Leg> AsyncWrite for FromClient<'_, L> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut *self.leg).poll_write(cx, bytes);
        self.stuck.set(written.is_pending());
        if let Poll::Ready(Ok(written)) = written {
            self.connection.server_to_client(written as u64);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.leg).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.leg).poll_shutdown(cx)
    }
}

/// The application's end.
#[derive(Clone, Copy)]
struct ToApp<'a> {
    app: &'a TcpStream,
    stuck: &'a Stuck,
}

impl AsyncRead for ToApp<'_> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = ready!(tunnel::poll_read(cx, self.app, room.initialize_unfilled()))?;
        room.advance(read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ToApp<'_> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = tunnel::poll_write(cx, self.app, bytes);
        self.stuck.set(written.is_pending());
        written
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(shut(self.app))
    }
}
