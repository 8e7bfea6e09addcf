//! One stream: judged, passed on, and answered, with both bodies under way at once.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
};

use bytes::Bytes;
use h2::{
    Reason as Code, RecvStream,
    client::{ResponseFuture, SendRequest},
    server::SendResponse,
};
use http::{
    Method, Request, Response, Uri, Version,
    header::HOST,
    request::Parts,
    uri::{Authority, Scheme},
};
use tokio::time::timeout;

use super::{
    Head, WINDOW,
    flow::{Flow, Piece},
    pass::{Counted, code, grpc_status, pass},
};
use crate::{
    authz::Changes,
    http::{
        HEAD, LATE_BODY,
        answer::Answer,
        body::Malformed,
        gate::{Admitted, Gate, Judged},
    },
    telemetry::{self, RequestEnd, ResponseFlag},
};

/// Carries one stream, whose bodies are of these flows, up and down, and whose head counts.
pub(super) async fn stream(
    gate: &Gate<'_>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Piece>,
    to_app: SendRequest<Piece>,
    [up_flow, down_flow]: [Arc<Flow>; 2],
    counted_head: Head<'_>,
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
    drop(counted_head);
    let mut sent = Counted::default();
    let gone = {
        let mut upload = pin!(async {
            // The answer tells of what goes wrong with it.
            if !is_whole {
                pass(body, &mut up, begun, &up_flow, &mut sent).await;
            }
        });
        let download = pass_answer(answer, &mut respond, changes, &down_flow, &mut end);
        let uploaded = until_answered(upload.as_mut(), download).await;
        let left = end.flag == ResponseFlag::DownstreamClosed;
        left || !uploaded && !unless_reset(upload, &mut respond).await
    };
    if gone {
        up.send_reset(Code::CANCEL);
    }
    end.request_bytes = sent.bytes;
    end.request_messages = sent.messages.count();
    // Who stops a client in the midst of its request does so together with the end of the answer.
    drop((respond, up));
    let _told = Told { told: Some(told), end };
    others_first().await;
}

/// Is told of once it is dropped, be it with the connection.
struct Told {
    told: Option<telemetry::Request>,
    end: RequestEnd,
}

impl Drop for Told {
    fn drop(&mut self) {
        if let Some(told) = self.told.take() {
            told.finish(&self.end);
        }
    }
}

/// Lets what has been said go out: the client is not to wait for metrics and log.
async fn others_first() {
    let mut waited = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut waited, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Both at once, until the answer has ended. Answers whether the request has as well.
async fn until_answered(
    mut upload: Pin<&mut impl Future<Output = ()>>,
    download: impl Future<Output = ()>,
) -> bool {
    let (mut download, mut uploaded) = (pin!(download), false);
    poll_fn(|cx| {
        uploaded = uploaded || upload.as_mut().poll(cx).is_ready();
        download.as_mut().poll(cx).map(|()| uploaded)
    })
    .await
}

/// The rest of a request that has been answered; `false` of one whose client gives it up. An application that does not take what came
/// before would not hear of that otherwise.
async fn unless_reset(
    mut upload: Pin<&mut impl Future<Output = ()>>,
    respond: &mut SendResponse<Piece>,
) -> bool {
    poll_fn(|cx| match upload.as_mut().poll(cx) {
        Poll::Ready(()) => Poll::Ready(true),
        Poll::Pending => respond.poll_reset(cx).map(|_| false),
    })
    .await
}

/// Passes the answer on once it is there, and tells of it in `end`.
async fn pass_answer(
    answer: ResponseFuture,
    respond: &mut SendResponse<Piece>,
    changes: Option<Changes>,
    flow: &Arc<Flow>,
    end: &mut RequestEnd,
) {
    let answer = match answered(answer, respond).await {
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
    if is_whole {
        return;
    }
    let mut got = Counted::default();
    end.flag = pass(body, &mut down, Vec::new(), flow, &mut got).await;
    end.response_bytes = got.bytes;
    end.response_messages = got.messages.count();
    end.grpc_status = got.status.or(end.grpc_status);
}

/// Whose fault it is.
enum Failed {
    Client,
    App(Code),
}

/// Judges a request; the head is then as it is to be forwarded. What had to be read of the body is in `begun`.
async fn judge(gate: &Gate<'_>, head: &mut Parts, body: &mut RecvStream, begun: &mut Vec<Bytes>) -> Judged {
    if let Err(malformed) = settle_authority(head) {
        return Err(Box::new(gate.malformed(&malformed)));
    }
    let pending = gate.begin(head)?;
    let wanted = pending.wants_body;
    if wanted == 0 {
        return gate.judge(pending, head, None).await;
    }
    let mut read = Vec::new();
    // Never more than a client may send before any of it is passed on.
    let wanted_in_time = async {
        while read.len() < wanted.min(WINDOW as usize) && !body.is_end_stream() {
            let Some(Ok(piece)) = body.data().await else { break };
            read.extend_from_slice(&piece);
            begun.push(piece);
        }
    };
    if timeout(HEAD, wanted_in_time).await.is_err() {
        return Err(Box::new(gate.malformed(&LATE_BODY)));
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
            let is_any = path.as_str() == "*" && head.method == Method::OPTIONS;
            head.method != Method::CONNECT && (path.as_str().starts_with('/') || is_any)
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
fn say(answer: &Answer, is_head: bool, respond: &mut SendResponse<Piece>) {
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
        let _ = body.send_data(answer.body.clone().into(), true);
    }
}

/// Waits for the answer while the client does; interim ones are passed on.
async fn answered(
    mut answer: ResponseFuture,
    respond: &mut SendResponse<Piece>,
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
