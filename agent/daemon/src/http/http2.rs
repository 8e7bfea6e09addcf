//! HTTP/2 with prior knowledge on one connection: every stream is judged by itself, and passed on to the application on the one
//! connection that it has for this client. Trailers, interim answers and resets pass as they are.
//!
//! All streams of a connection share its task. What either side may send without being read is bounded by the windows that the other
//! is given.

mod ends;
mod stream;

use std::{io, pin::pin, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use h2::{Reason as Code, client, server};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    select,
    time::timeout,
};

use self::{
    ends::{FromClient, ToApp},
    stream::stream,
};
use super::{Stuck, gate::Gate, way::leg_error, window::Window};
use crate::tunnel::{Leg, LegError, shut};

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
