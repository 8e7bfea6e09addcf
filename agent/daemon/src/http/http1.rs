//! HTTP/1 on one connection: each request is read, judged, and passed on to the application as it was judged, byte for byte but for
//! what the verdict changes; what the application answers passes as it is.
//!
//! One request is under way at a time, so that answers have their order; both directions of it pass at once, as bodies, interim
//! answers and early ones want it. The next request is not read before the last is answered, but for what fits into the window.

mod ending;

use std::{
    future::poll_fn,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{StatusCode, Version, header::CONNECTION};
use tokio::{
    net::TcpStream,
    time::{Sleep, sleep, timeout},
};

use super::{
    ANSWER, HEAD, LATE_BODY, Stuck,
    body::Malformed,
    exchange::{Exchange, Exchanged},
    gate::Gate,
    head::{self, Request},
    way::{App, Client, Fault, Way},
    window::{LONGEST, Window},
};
use crate::tunnel::{Leg, LegError, Share, shut};

const LATE_HEAD: Malformed =
    Malformed::answered(StatusCode::REQUEST_TIMEOUT, "the head was not whole within 60 s");
const LONG_HEAD: Malformed = Malformed::answered(
    StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
    "the head is longer than 64 KiB with its request line",
);

/// A connection that carries HTTP/1.
pub(super) struct Http1<'a, L> {
    pub(super) leg: &'a mut L,
    pub(super) app: &'a TcpStream,
    pub(super) gate: &'a Gate<'a>,
    pub(super) share: &'a Arc<Share>,
    pub(super) stuck: &'a Stuck,
    /// To the application.
    pub(super) up: Way,
    /// To the client.
    pub(super) down: Way,
    /// The client has ended its side, and the application has been told.
    pub(super) client_ended: bool,
    /// Bytes of the window in which no head ends.
    seen: usize,
    /// When the word that the connection stands is not kept any longer.
    late: Option<Pin<Box<Sleep>>>,
    counted: (u64, u64),
}

/// What comes next on a connection.
enum Next {
    Request(Box<Request>),
    /// The client has ended.
    ClientEnded,
    /// The application has ended, and the client has got all that it said.
    AppEnded,
    /// The application says something unasked.
    Unasked,
    /// It is no request.
    Malformed(Malformed),
}

impl<'a, L: Leg> Http1<'a, L> {
    /// Over a connection whose client has said what is in the window of `up`.
    pub(super) fn new(
        leg: &'a mut L,
        app: &'a TcpStream,
        gate: &'a Gate<'a>,
        share: &'a Arc<Share>,
        stuck: &'a Stuck,
        first: Window,
    ) -> Self {
        let late = leg.holds_answer().then(|| Box::pin(sleep(ANSWER)));
        let (up, down) = (Way::of(first), Way::default());
        Self { leg, app, gate, share, stuck, up, down, client_ended: false, seen: 0, late, counted: (0, 0) }
    }

    /// Carries requests until one side ends. Answers whether both have, so that nothing is left to say.
    pub(super) async fn run(mut self) -> Result<bool, LegError> {
        loop {
            let next = match self.next().await {
                Err(Fault::Malformed(malformed)) => Next::Malformed(malformed),
                next => next.map_err(fatal)?,
            };
            let goes_on = match next {
                Next::Request(request) => self.request(*request).await?,
                Next::ClientEnded => {
                    shut(self.app).map_err(LegError::App)?;
                    self.client_ended = true;
                    self.rest().await?
                }
                Next::AppEnded => false,
                Next::Unasked => self.rest().await?,
                Next::Malformed(malformed) => {
                    let answer = self.gate.malformed(&malformed);
                    self.say(&answer, false, true).await?;
                    false
                }
            };
            if !goes_on {
                return self.farewell().await;
            }
        }
    }

    /// Waits for the next request, or for the end of either side.
    async fn next(&mut self) -> Result<Next, Fault> {
        let mut deadline: Option<Pin<Box<Sleep>>> = None;
        let next = poll_fn(|cx| {
            let next = self.poll_next(cx);
            if next.is_pending() && !self.up.window.is_empty() {
                let deadline = deadline.get_or_insert_with(|| Box::pin(sleep(HEAD)));
                if deadline.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Ok(Next::Malformed(LATE_HEAD)));
                }
            }
            next
        });
        next.await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Next, Fault>> {
        if let Poll::Ready(Err(error)) = self.poll_word(cx) {
            return Poll::Ready(Err(error.into()));
        }
        loop {
            // Empty lines in front of a request are passed over (RFC 9112, section 2.2).
            while self.up.window.bytes().starts_with(b"\r\n") {
                self.up.window.consume(2);
                self.seen = 0;
            }
            if let Some(len) = head::end(self.up.window.bytes(), &mut self.seen)? {
                self.seen = 0;
                if len > LONGEST {
                    return Poll::Ready(Ok(Next::Malformed(LONG_HEAD)));
                }
                let request = head::request(&self.up.window.bytes()[..len])?;
                return Poll::Ready(Ok(Next::Request(Box::new(request))));
            }
            if self.up.window.is_full() {
                return Poll::Ready(Ok(Next::Malformed(LONG_HEAD)));
            }
            if self.client_ended {
                return Poll::Ready(Ok(Next::ClientEnded));
            }
            match self.up.window.poll_fill(cx, &mut Client(self.leg), self.share) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Ok(Next::ClientEnded)),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                Poll::Pending => break,
            }
        }
        let said = self.down.window.poll_fill(cx, &mut App(self.app), self.share)?;
        said.map(|said| Ok(if said == 0 { Next::AppEnded } else { Next::Unasked }))
    }

    /// Has one request judged, and passed on or answered. Answers whether the connection can live on.
    async fn request(&mut self, mut request: Request) -> Result<bool, LegError> {
        let pending = match self.gate.begin(&mut request.parts) {
            Ok(pending) => pending,
            Err(answer) => return self.refuse(&request, &answer).await,
        };
        let body = match pending.wants_body {
            0 => None,
            // Until there is an answer, the application is not asked to let the body come.
            _ if request.expects_continue => Some((Vec::new(), false)),
            wanted => match self.beginning(&request, wanted).await {
                Ok(beginning) => Some(beginning),
                Err(Fault::Malformed(malformed)) => {
                    let answer = self.gate.malformed(&malformed);
                    self.say(&answer, false, true).await?;
                    return Ok(false);
                }
                Err(Fault::Leg(error)) => return Err(error),
            },
        };
        let beginning = body.as_ref().map(|(bytes, whole)| (&bytes[..], *whole));
        let judged = self.gate.judge(pending, &mut request.parts, beginning).await;
        let admitted = match judged {
            Ok(admitted) => admitted,
            Err(answer) => return self.refuse(&request, &answer).await,
        };
        let rewritten = (admitted.changed || request.changed)
            .then(|| request.rewritten(&self.up.window.bytes()[..request.len]));
        let mut body = request.body;
        let before = self.bodies();
        if let Err(malformed) = self.up.admit(request.len, rewritten, &mut body) {
            let answer = self.gate.malformed(&malformed);
            self.say(&answer, false, true).await?;
            return Ok(false);
        }
        let exchange = Exchange::new(&request, body, admitted, before);
        self.exchange(exchange).await
    }

    /// Passes a request on, and the answer back.
    async fn exchange(&mut self, mut exchange: Exchange) -> Result<bool, LegError> {
        let ended = poll_fn(|cx| {
            if let Poll::Ready(Err(error)) = self.poll_word(cx) {
                return Poll::Ready(Err(error.into()));
            }
            let ended = exchange.poll(cx, self);
            self.count();
            self.stuck.set(ended.is_pending() && (self.up.is_stuck() || self.down.is_stuck()));
            ended
        });
        let ended = ended.await;
        match ended {
            Ok(Exchanged::Whole) => {
                exchange.finish();
                Ok(true)
            }
            Ok(Exchanged::Last) => {
                exchange.finish();
                Ok(false)
            }
            Err(Fault::Leg(error)) => {
                exchange.broken(&error);
                Err(error)
            }
            Err(Fault::Malformed(malformed)) => {
                // What has gone on of the body is cut: the application is not to take it for whole.
                let answer = self.gate.malformed(&malformed);
                if !exchange.has_answered() && !self.down.is_stuck() {
                    self.say(&answer, false, true).await?;
                }
                exchange.finish();
                let text = format!("the request is malformed: {malformed}");
                let refusal =
                    ambit_core::reason::Refusal::new(ambit_core::reason::Reason::MalformedRequest, text);
                Err(LegError::Here(refusal))
            }
        }
    }

    /// The beginning of a body, `wanted` bytes of it if it has so many and they fit in the window, and whether that is all. It stays in
    /// the window.
    async fn beginning(&mut self, request: &Request, wanted: usize) -> Result<(Vec<u8>, bool), Fault> {
        let mut read = Vec::new();
        let whole = poll_fn(|cx| {
            loop {
                let came = &self.up.window.bytes()[request.len..];
                read.clear();
                let whole = request.body.content(came, &mut read)?;
                let enough = read.len() >= wanted;
                if whole || enough || self.up.window.is_full() {
                    let cut = read.len() > wanted;
                    read.truncate(wanted);
                    return Poll::Ready(Ok(whole && !cut));
                }
                match self.up.window.poll_fill(cx, &mut Client(self.leg), self.share) {
                    Poll::Ready(Ok(0)) => {
                        let gone = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
                        return Poll::Ready(Err(Fault::Leg(LegError::Plain(gone))));
                    }
                    Poll::Ready(Ok(_)) => {}
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                    Poll::Pending => return Poll::Pending,
                }
            }
        });
        let whole = timeout(HEAD, whole).await;
        Ok((mem::take(&mut read), whole.unwrap_or_else(|_| Err(LATE_BODY.into()))?))
    }

    /// Does not keep the word that the connection stands for long.
    fn poll_word(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LegError>> {
        let Some(late) = &mut self.late else { return Poll::Ready(Ok(())) };
        if self.leg.holds_answer() {
            if late.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.leg.answer()?;
            self.down.wants_flush();
        }
        self.late = None;
        if self.down.is_stuck() { Poll::Ready(Ok(())) } else { self.down.poll_out(cx, &mut Client(self.leg)) }
    }

    /// Bytes that have passed in both directions and are not of heads.
    pub(super) fn bodies(&self) -> [u64; 2] {
        [&self.up, &self.down].map(|way| way.moved.saturating_sub(way.heads))
    }

    fn count(&mut self) {
        let (up, down) = (self.up.moved, self.down.moved);
        let (counted_up, counted_down) = mem::replace(&mut self.counted, (up, down));
        if up > counted_up {
            self.gate.connection.client_to_server(up - counted_up);
        }
        if down > counted_down {
            self.gate.connection.server_to_client(down - counted_down);
        }
    }
}

/// Whether the client takes the connection for ended after the answer (RFC 9112, section 9.3).
fn ends_connection(request: &Request) -> bool {
    let says = |option: &str| {
        let values = request.parts.headers.get_all(CONNECTION).iter();
        let mut options = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
        options.any(|said| said.trim_ascii().eq_ignore_ascii_case(option.as_bytes()))
    };
    says("close") || request.parts.version == Version::HTTP_10 && !says("keep-alive")
}

/// What is malformed where nothing is read as a message does not happen.
fn fatal(fault: Fault) -> LegError {
    match fault {
        Fault::Leg(error) => error,
        Fault::Malformed(malformed) => LegError::Here(ambit_core::reason::Refusal::new(
            ambit_core::reason::Reason::MalformedRequest,
            malformed.to_string(),
        )),
    }
}
