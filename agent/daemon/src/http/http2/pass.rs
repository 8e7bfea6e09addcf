//! The body of a message of HTTP/2 on its way: piece by piece as its receiver has room, with its trailers, and counted.

use std::{future::poll_fn, sync::Arc, task::Poll};

use bytes::Bytes;
use h2::{Reason as Code, RecvStream, SendStream};
use http::HeaderMap;

use super::flow::{Flow, Piece};
use crate::telemetry::{GrpcMessages, ResponseFlag};

/// What of a body has passed.
#[derive(Debug, Default)]
pub(super) struct Counted {
    pub(super) bytes: u64,
    pub(super) messages: GrpcMessages,
    /// `grpc-status` of the trailers.
    pub(super) status: Option<i64>,
}

/// Passes a body on, behind what of it has been read, with its trailers. Answers what has gone wrong.
pub(super) async fn pass(
    mut from: RecvStream,
    to: &mut SendStream<Piece>,
    begun: Vec<Bytes>,
    flow: &Arc<Flow>,
    counted: &mut Counted,
) -> ResponseFlag {
    let mut begun = begun.into_iter();
    loop {
        let piece = match begun.next() {
            Some(piece) => Some(Ok(piece)),
            None => match data_or_reset(&mut from, to, flow).await {
                Ok(piece) => piece,
                Err(()) => return ResponseFlag::DownstreamClosed,
            },
        };
        match piece {
            Some(Ok(piece)) => {
                let len = piece.len();
                let is_first = counted.bytes == 0;
                counted.bytes += len as u64;
                counted.messages.see(&piece);
                let is_last = begun.len() == 0 && from.is_end_stream();
                if send(to, piece, is_first, is_last, flow).await.is_err() {
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
            let _ = to.send_data(Bytes::new().into(), true);
        }
        Err(error) => {
            to.send_reset(code(&error));
            return ResponseFlag::UpstreamClosed;
        }
    }
    ResponseFlag::None
}

/// The next piece of a body, once there is room for it and unless its receiver wants no more.
async fn data_or_reset(
    from: &mut RecvStream,
    to: &mut SendStream<Piece>,
    flow: &Flow,
) -> Result<Option<Result<Bytes, h2::Error>>, ()> {
    poll_fn(|cx| {
        if flow.poll_room(cx).is_ready()
            && let Poll::Ready(piece) = from.poll_data(cx)
        {
            return Poll::Ready(Ok(piece));
        }
        to.poll_reset(cx).map(|_| Err(()))
    })
    .await
}

/// Sends one piece as the receiver has room for it.
async fn send(
    to: &mut SendStream<Piece>,
    mut piece: Bytes,
    is_first: bool,
    is_last: bool,
    flow: &Arc<Flow>,
) -> Result<(), h2::Error> {
    // A stream has no room before its head has been written: a request whose body is there with its head would go out in two packets,
    // and wake the application twice. The library keeps what exceeds the room.
    if is_first && !piece.is_empty() && flow.takes_unasked(piece.len()) {
        return to.send_data(flow.piece(piece), is_last);
    }
    while !piece.is_empty() {
        to.reserve_capacity(piece.len());
        let mut room = to.capacity();
        if room == 0 {
            let _waits = flow.waits();
            let more = poll_fn(|cx| to.poll_capacity(cx)).await;
            room = more.unwrap_or_else(|| Err(Code::CANCEL.into()))?;
        }
        let part = piece.split_to(room.min(piece.len()));
        let ends = is_last && piece.is_empty();
        to.send_data(flow.piece(part), ends)?;
        if ends {
            return Ok(());
        }
    }
    if is_last { to.send_data(piece.into(), true) } else { Ok(()) }
}

/// What the fields say of a gRPC call, if it is one.
pub(super) fn grpc_status(headers: &HeaderMap) -> Option<i64> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// Of a stream that has failed.
pub(super) fn code(error: &h2::Error) -> Code {
    error.reason().unwrap_or(Code::INTERNAL_ERROR)
}
