//! One request and its answer, under way in both directions at once.

use std::task::{Context, Poll};

use ambit_core::reason::{Reason, Refusal};
use http::{Method, StatusCode};

use super::{
    body::Body,
    gate::Admitted,
    head::{self, Request},
    http1::Http1,
    way::{App, Client, Fault, Passed},
};
use crate::{
    authz::Changes,
    telemetry::{self, RequestEnd, ResponseFlag},
    tunnel::{Leg, LegError, shut},
};

/// How much is read ahead of further requests: who breaks off is noticed by that.
const AHEAD: usize = 8 * 1024;

/// A request that has been let in.
#[derive(Debug)]
pub(super) struct Exchange {
    method: Method,
    may_upgrade: bool,
    /// What is to come of the request's body.
    up: Body,
    up_done: bool,
    /// The application takes no more of it.
    up_failed: Option<LegError>,
    down: Down,
    /// No request follows.
    last: bool,
    changes: Option<Changes>,
    told: Option<telemetry::Request>,
    end: RequestEnd,
    /// What had passed of bodies in both directions before.
    before: [u64; 2],
    /// The client may not send the body before it has an interim answer, or never.
    expects_continue: bool,
}

/// How far the answer has come.
#[derive(Clone, Copy, Debug)]
enum Down {
    Head,
    /// Behind the head of an answer, or of an interim one.
    Body {
        body: Body,
        interim: bool,
    },
    Done,
}

/// How an exchange has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exchanged {
    /// Another may follow.
    Whole,
    /// None may.
    Last,
}

impl Exchange {
    /// Of a request whose head, and what has come of its body but for `up`, may go on.
    pub(super) fn new(request: &Request, up: Body, admitted: Admitted, before: [u64; 2]) -> Self {
        let Admitted { told, changes, .. } = admitted;
        Self {
            method: request.parts.method.clone(),
            may_upgrade: request.may_upgrade(),
            up,
            up_done: false,
            up_failed: None,
            down: Down::Head,
            last: false,
            changes,
            told: Some(told),
            end: RequestEnd::default(),
            before,
            expects_continue: request.expects_continue,
        }
    }

    /// Whether the client has been sent something of an answer.
    pub(super) fn has_answered(&self) -> bool {
        self.end.status.is_some()
    }

    /// It has been answered as far as it ever will be.
    pub(super) fn finish(&mut self) {
        if self.end.status.is_none() && self.end.flag == ResponseFlag::None {
            self.end.flag = ResponseFlag::UpstreamClosed;
        }
        if let Some(told) = self.told.take() {
            told.finish(&self.end);
        }
    }

    /// One end has failed.
    pub(super) fn broken(&mut self, error: &LegError) {
        self.end.flag = match error {
            LegError::App(_) => ResponseFlag::UpstreamClosed,
            LegError::Here(_) => ResponseFlag::UpstreamProtocolError,
            _ => ResponseFlag::DownstreamClosed,
        };
        self.finish();
    }

    /// Passes on what there is, both ways.
    pub(super) fn poll<L: Leg>(
        &mut self,
        cx: &mut Context<'_>,
        on: &mut Http1<'_, L>,
    ) -> Poll<Result<Exchanged, Fault>> {
        loop {
            self.poll_up(cx, on)?;
            let down = self.poll_down(cx, on)?;
            let [request, answer] = on.bodies();
            self.end.request_bytes = request.saturating_sub(self.before[0]);
            self.end.response_bytes = answer.saturating_sub(self.before[1]);
            match down {
                Poll::Ready(Some(exchanged)) => return Poll::Ready(Ok(exchanged)),
                // Both directions carry other bytes from here on.
                Poll::Ready(None) => {}
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn poll_up<L: Leg>(&mut self, cx: &mut Context<'_>, on: &mut Http1<'_, L>) -> Result<(), Fault> {
        if !self.up_done {
            let (source, sink) = (&mut Client(&mut *on.leg), &mut App(on.app));
            match on.up.poll_pass(cx, source, sink, on.share, &mut self.up) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(Passed::Whole)) => self.up_done = true,
                Poll::Ready(Ok(Passed::Ended)) => {
                    self.up_done = true;
                    self.last = true;
                    return self.client_ended(on);
                }
                // It may have answered before.
                Poll::Ready(Err(Fault::Leg(error @ LegError::App(_)))) => {
                    self.up_done = true;
                    self.last = true;
                    self.up_failed = Some(error);
                    return Ok(());
                }
                Poll::Ready(Err(error)) => return Err(error),
            }
        }
        while !on.client_ended && self.up_failed.is_none() && on.up.window.bytes().len() < AHEAD {
            match on.up.window.poll_fill(cx, &mut Client(&mut *on.leg), on.share) {
                Poll::Pending => break,
                Poll::Ready(Ok(0)) => return self.client_ended(on),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The application learns of the client's end at once, as it would without us.
    fn client_ended<L: Leg>(&mut self, on: &mut Http1<'_, L>) -> Result<(), Fault> {
        on.client_ended = true;
        if on.up.window.is_empty() {
            shut(on.app).map_err(LegError::App)?;
        }
        Ok(())
    }

    /// `None` once it has to be looked at both directions again.
    fn poll_down<L: Leg>(
        &mut self,
        cx: &mut Context<'_>,
        on: &mut Http1<'_, L>,
    ) -> Result<Poll<Option<Exchanged>>, Fault> {
        loop {
            match &mut self.down {
                Down::Head => {
                    if !on.down.window.is_empty()
                        && let Some(goes_on) = self.answer(on)?
                    {
                        if !goes_on {
                            return Ok(Poll::Ready(None));
                        }
                        continue;
                    }
                    match on.down.window.poll_fill(cx, &mut App(on.app), on.share) {
                        Poll::Pending => return Ok(Poll::Pending),
                        Poll::Ready(Ok(0)) if on.down.window.is_empty() => {
                            return Ok(Poll::Ready(Some(Exchanged::Last)));
                        }
                        Poll::Ready(Ok(0)) => self.raw_answer(),
                        Poll::Ready(Ok(_)) => {}
                        Poll::Ready(Err(error)) => return Err(self.up_failed.take().unwrap_or(error).into()),
                    }
                }
                Down::Body { body, interim } => {
                    let interim = *interim;
                    let (source, sink) = (&mut App(on.app), &mut Client(&mut *on.leg));
                    match on.down.poll_pass(cx, source, sink, on.share, body) {
                        Poll::Pending => return Ok(Poll::Pending),
                        Poll::Ready(Ok(Passed::Whole)) => {
                            self.down = if interim { Down::Head } else { Down::Done };
                        }
                        Poll::Ready(Ok(Passed::Ended)) => return Ok(Poll::Ready(Some(Exchanged::Last))),
                        // Where it ends is not to be known: all that comes belongs to it.
                        Poll::Ready(Err(Fault::Malformed(_))) => self.raw_answer(),
                        Poll::Ready(Err(error)) => return Err(error),
                    }
                }
                Down::Done if self.last => return Ok(Poll::Ready(Some(Exchanged::Last))),
                Down::Done if self.up_done => return Ok(Poll::Ready(Some(Exchanged::Whole))),
                // Whether the client still sends the body is not known, and neither what the application takes it for.
                Down::Done if self.expects_continue => return Ok(Poll::Ready(Some(Exchanged::Last))),
                // It has answered before it had all of the request, and may leave now.
                Down::Done if !on.down.window.is_empty() => return Ok(Poll::Pending),
                Down::Done => match on.down.window.poll_fill(cx, &mut App(on.app), on.share) {
                    Poll::Pending => return Ok(Poll::Pending),
                    Poll::Ready(Ok(0) | Err(_)) => return Ok(Poll::Ready(Some(Exchanged::Last))),
                    Poll::Ready(Ok(_)) => {}
                },
            }
        }
    }

    /// Has the head of an answer go on; `None` while it is not whole, `false` where other bytes than HTTP follow.
    fn answer<L: Leg>(&mut self, on: &mut Http1<'_, L>) -> Result<Option<bool>, Fault> {
        let bytes = on.down.window.bytes();
        let answer = match head::answer(bytes, &self.method) {
            Ok(Some(answer)) => answer,
            Ok(None) if !on.down.window.is_full() => return Ok(None),
            // What clients make of it is theirs.
            Ok(None) | Err(_) => {
                self.end.flag = ResponseFlag::UpstreamProtocolError;
                self.raw_answer();
                return Ok(Some(true));
            }
        };
        let interim = answer.status.is_informational() && answer.status != StatusCode::SWITCHING_PROTOCOLS;
        let switches = answer.status == StatusCode::SWITCHING_PROTOCOLS
            || self.method == Method::CONNECT && answer.status.is_success();
        if switches && !self.may_upgrade && self.method != Method::CONNECT {
            let text = "the application changes the protocol without having been asked";
            return Err(LegError::Here(Refusal::new(Reason::ProtocolError, text)).into());
        }
        let rewritten = self.changes.as_ref().filter(|_| !interim && !switches).map(|changes| {
            let head = &bytes[..answer.len];
            let mut headers = head::answer_fields(head);
            changes.apply_to_answer(&mut headers);
            head::answer_rewritten(head, &headers)
        });
        let mut body = if switches { Body::UntilEnd } else { answer.body };
        if on.down.admit(answer.len, rewritten, &mut body).is_err() {
            self.raw_answer();
            return Ok(Some(true));
        }
        self.down = Down::Body { body, interim };
        if answer.status == StatusCode::CONTINUE {
            self.expects_continue = false;
        }
        if !interim {
            self.end.status = Some(answer.status);
        }
        if switches {
            self.last = true;
            self.up = Body::UntilEnd;
            self.up_done = on.client_ended && on.up.window.is_empty();
        }
        Ok(Some(!switches))
    }

    fn raw_answer(&mut self) {
        self.last = true;
        self.down = Down::Body { body: Body::UntilEnd, interim: false };
    }
}
