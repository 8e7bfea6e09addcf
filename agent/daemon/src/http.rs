//! Connections to our pods that carry requests on which policy, tokens or telemetry depend: requests and answers out of bytes, each
//! request judged, and exactly what was judged passed on to the application.
//!
//! Promises that a message which two parsers could read differently is answered with 400 and goes nowhere, that buffers, heads and
//! waits are bounded, and that the application's protocol, order and connection stay the client's. Leaves to `proxy` which
//! connections come here, and to policy, `jwt` and `authz` what a request is worth.

mod answer;
mod body;
mod exchange;
mod gate;
mod head;
mod http1;
mod http2;
mod sniff;
mod way;
mod window;

use std::{future::poll_fn, sync::Arc, task::Poll, time::Duration};

use ::http::StatusCode;
use tokio::{
    io::ReadBuf,
    net::TcpStream,
    time::{sleep, timeout},
};

use self::{
    body::Malformed,
    http1::Http1,
    way::{Client, Sink as _},
    window::Window,
};
pub(crate) use self::{
    gate::{Ask, Asking, Gate, rehearse},
    sniff::Carries,
    way::Stuck,
};
use crate::tunnel::{Leg, LegError, Share};

/// How long the word that a connection stands is kept for the first bytes of an answer.
const ANSWER: Duration = Duration::from_millis(5);
/// How long a client may take for a head it has begun, and for as much of a body as has to be seen before the verdict.
const HEAD: Duration = Duration::from_secs(60);
const LATE_BODY: Malformed =
    Malformed::answered(StatusCode::REQUEST_TIMEOUT, "the beginning of the body did not come within 60 s");
/// How long a line may take from its first byte on for it to be seen whether it is a request.
const FIRST_LINE: Duration = Duration::from_secs(10);

/// What a connection turned out to be, and its first bytes.
#[derive(Debug)]
pub(crate) struct Begun {
    /// What it carries; [`Carries::Other`] also of a client that says nothing.
    pub(crate) carries: Carries,
    first: Window,
}

impl Begun {
    /// The bytes that were read and not passed on.
    pub(crate) fn first(&self) -> &[u8] {
        self.first.bytes()
    }
}

/// Waits until either side of a connection speaks. Where it is `expected` that it carries requests, text is taken for one. Where the
/// application speaks first, it is something else, unless it is HTTP/2 that it speaks.
pub(crate) async fn recognise<L: Leg>(
    leg: &mut L,
    app: &TcpStream,
    share: &Arc<Share>,
    expected: bool,
) -> Result<Begun, LegError> {
    let mut first = Window::default();
    let mut late = None;
    let mut app_speaks_http2 = false;
    let mut answer = leg.holds_answer().then(|| Box::pin(sleep(ANSWER)));
    let carries = poll_fn(|cx| {
        if let Some(held) = &mut answer
            && held.as_mut().poll(cx).is_ready()
        {
            leg.answer()?;
            answer = None;
        }
        if answer.is_none() {
            // What is still not taken is taken later.
            let _ = Client(&mut *leg).poll_flush(cx)?;
        }
        loop {
            if let Some(carries) = sniff::sniff(first.bytes(), expected) {
                let is_other = app_speaks_http2 && carries == Carries::Http1;
                return Poll::Ready(Ok::<_, LegError>(if is_other { Carries::Other } else { carries }));
            }
            match first.poll_fill(cx, &mut Client(&mut *leg), share)? {
                Poll::Ready(0) => return Poll::Ready(Ok(Carries::Other)),
                Poll::Ready(_) => {}
                Poll::Pending => break,
            }
        }
        if !first.is_empty() || app_speaks_http2 {
            let late = late.get_or_insert_with(|| Box::pin(sleep(FIRST_LINE)));
            if late.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(Carries::Other));
            }
        }
        if app_speaks_http2 {
            return Poll::Pending;
        }
        let mut said = [0; sniff::SETTINGS];
        let mut buffer = ReadBuf::new(&mut said);
        let Poll::Ready(peeked) = app.poll_peek(cx, &mut buffer) else { return Poll::Pending };
        let len = peeked.map_err(LegError::App)?;
        // Who only ends has said nothing.
        if len == 0 {
            let carries = if first.is_empty() { Carries::Http1 } else { Carries::Other };
            return Poll::Ready(Ok(carries));
        }
        if len == sniff::SETTINGS && sniff::is_settings(&said) {
            app_speaks_http2 = true;
            // The client's preface is on its way, and has to come in time.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Ok(Carries::Other))
    });
    let carries = carries.await?;
    Ok(Begun { carries, first })
}

/// The name that the client of an application's own TLS asks for (RFC 6066, section 3), if it is TLS and a name is asked for.
pub(crate) async fn server_name<L: Leg>(
    leg: &mut L,
    begun: &mut Begun,
    share: &Arc<Share>,
) -> Result<Option<String>, LegError> {
    let whole = poll_fn(|cx| {
        loop {
            if let Some(name) = sniff::server_name(begun.first.bytes()) {
                return Poll::Ready(Ok(name));
            }
            match begun.first.poll_fill(cx, &mut Client(&mut *leg), share)? {
                Poll::Ready(0) => return Poll::Ready(Ok(None)),
                Poll::Ready(_) => {}
                Poll::Pending => return Poll::Pending,
            }
        }
    });
    timeout(FIRST_LINE, whole).await.unwrap_or(Ok(None))
}

/// Carries the requests of a connection to the application, until either side ends. Answers whether both have, so that nothing is left
/// to say.
pub(crate) async fn carry<L: Leg>(
    leg: &mut L,
    app: &TcpStream,
    gate: &Gate<'_>,
    share: &Arc<Share>,
    stuck: &Stuck,
    begun: Begun,
) -> Result<bool, LegError> {
    let Begun { carries, first } = begun;
    if carries == Carries::Http2 {
        return http2::run(leg, app, gate, share, stuck, first).await;
    }
    Http1::new(leg, app, gate, share, stuck, first).run().await
}

/// Reads a request as [`carry`] does, in one piece and in two of which the first has `cut` bytes. What is promised of it stands here as
/// assertions: what goes on is read as what was judged, and it does not matter in how many pieces it came.
pub(crate) fn examine(bytes: &[u8], cut: usize) {
    let whole = head::end(bytes, &mut 0);
    let mut seen = 0;
    let early = head::end(&bytes[..cut], &mut seen);
    match early {
        Ok(None) => assert_eq!(head::end(bytes, &mut seen), whole, "the same end in two pieces"),
        early => assert_eq!(early, whole, "what ends early ends there"),
    }
    let Ok(Some(len)) = whole else { return };
    let Ok(request) = head::request(&bytes[..len]) else { return };
    let again = request.rewritten(&bytes[..len]);
    let read = head::request(&again).expect("what goes on can be read");
    assert_eq!(read.parts.method, request.parts.method);
    assert_eq!(read.parts.uri, request.parts.uri);
    assert_eq!(read.parts.headers, request.parts.headers);
    assert_eq!(read.body, request.body);
    assert_eq!(sniff::sniff(&again, false), Some(Carries::Http1));
    let body = &bytes[len..];
    let cut = cut.saturating_sub(len).min(body.len());
    let (mut at_once, mut in_two) = (request.body, request.body);
    let at_once_gone = at_once.advance(body);
    let in_two_gone = in_two.advance(&body[..cut]).and_then(|gone| Ok(gone + in_two.advance(&body[gone..])?));
    match (at_once_gone, in_two_gone) {
        (Ok(at_once_gone), Ok(in_two_gone)) => {
            assert_eq!((at_once_gone, at_once), (in_two_gone, in_two), "the same body in two pieces");
        }
        (at_once_gone, in_two_gone) => assert_eq!(at_once_gone.is_err(), in_two_gone.is_err()),
    }
}
