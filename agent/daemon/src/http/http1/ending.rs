//! What of a connection does not go to the application: answers of the agent's own, bodies of what was refused, and the end.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::Method;
use tokio::time::timeout;

use super::{Http1, ends_connection, fatal};
use crate::{
    http::{
        HEAD,
        answer::Answer,
        body::Body,
        head::Request,
        way::{App, Client, Fault, leg_error},
    },
    tunnel::{Leg, LegError, shut},
};

/// How much of the body of a refused request is read over, so that the connection can live on.
const READ_OVER: u64 = 256 * 1024;
/// How long a client has to take the last answer and end its side.
const FAREWELL: Duration = Duration::from_secs(2);

impl<L: Leg> Http1<'_, L> {
    /// Answers in the application's place. Answers whether the connection can live on.
    pub(super) async fn refuse(&mut self, request: &Request, answer: &Answer) -> Result<bool, LegError> {
        self.up.window.consume(request.len);
        // Who waits for an interim answer may send the body or not, and nobody knows.
        let reads_over = match request.body {
            Body::Length(length) => length <= READ_OVER,
            _ => true,
        };
        let closes = ends_connection(request) || request.expects_continue || !reads_over;
        self.say(answer, request.parts.method == Method::HEAD, closes).await?;
        if closes {
            return Ok(false);
        }
        let mut body = request.body;
        let mut left = READ_OVER;
        let read_over = timeout(HEAD, poll_fn(|cx| self.poll_read_over(cx, &mut body, &mut left))).await;
        match read_over {
            Ok(Err(Fault::Leg(error))) => Err(error),
            Ok(Ok(whole)) => Ok(whole),
            Ok(Err(Fault::Malformed(_))) | Err(_) => Ok(false),
        }
    }

    /// Reads a body that goes nowhere; `false` if it is not whole before `left` bytes have passed.
    fn poll_read_over(
        &mut self,
        cx: &mut Context<'_>,
        body: &mut Body,
        left: &mut u64,
    ) -> Poll<Result<bool, Fault>> {
        loop {
            let len = body.advance(self.up.window.bytes())?;
            self.up.window.consume(len);
            *left = left.saturating_sub(len as u64);
            if body.is_done() || *left == 0 {
                return Poll::Ready(Ok(body.is_done()));
            }
            if len == 0 {
                match self.up.window.poll_fill(cx, &mut Client(self.leg), self.share) {
                    Poll::Ready(Ok(0)) => {
                        self.client_ended = true;
                        return Poll::Ready(Ok(false));
                    }
                    Poll::Ready(Ok(_)) => {}
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                    Poll::Pending => return Poll::Pending,
                }
            }
        }
    }

    /// Sends an answer of our own.
    pub(super) async fn say(&mut self, answer: &Answer, is_head: bool, closes: bool) -> Result<(), LegError> {
        self.late = None;
        self.down.say(answer.to_http1(is_head, closes));
        poll_fn(|cx| self.down.poll_out(cx, &mut Client(self.leg))).await?;
        self.count();
        Ok(())
    }

    /// Passes on what the application still says, until it ends. Never lives on.
    pub(super) async fn rest(&mut self) -> Result<bool, LegError> {
        let mut body = Body::UntilEnd;
        let passed = poll_fn(|cx| {
            if let Poll::Ready(Err(error)) = self.poll_word(cx) {
                return Poll::Ready(Err(error.into()));
            }
            let (source, sink) = (&mut App(self.app), &mut Client(self.leg));
            let passed = self.down.poll_pass(cx, source, sink, self.share, &mut body);
            self.count();
            passed
        });
        passed.await.map_err(fatal)?;
        Ok(false)
    }

    /// Tells the client that nothing follows, and waits a moment for it to say the same: what it sends meanwhile must not turn our
    /// last words into a reset. Answers whether it has.
    pub(super) async fn farewell(mut self) -> Result<bool, LegError> {
        poll_fn(|cx| self.down.poll_out(cx, &mut Client(self.leg))).await?;
        poll_fn(|cx| Pin::new(&mut *self.leg).poll_shutdown(cx)).await.map_err(leg_error)?;
        // It fails where the application has gone.
        let _ = shut(self.app);
        let mut everything = Body::UntilEnd;
        let mut left = u64::MAX;
        let ended = poll_fn(|cx| {
            if self.client_ended {
                Poll::Ready(Ok(false))
            } else {
                self.poll_read_over(cx, &mut everything, &mut left)
            }
        });
        let ended = timeout(FAREWELL, ended).await;
        match ended {
            Ok(Err(Fault::Leg(error))) => Err(error),
            _ => Ok(self.client_ended),
        }
    }
}
