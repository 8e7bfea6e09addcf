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
mod seams;
mod sniff;
mod way;
mod window;

use std::{future::poll_fn, sync::Arc, task::Poll, time::Duration};

use ambit_core::policy::Facts;
use tokio::{
    net::TcpStream,
    time::{Instant, sleep_until},
};

use self::{
    body::Malformed,
    http1::Http1,
    way::{Client, Way},
    window::Window,
};
pub(crate) use self::{
    gate::{Ask, Asking, Gate, rehearse},
    sniff::Carries,
    way::Stuck,
};
use crate::tunnel::{Leg, LegError, Share};

/// How long a client may keep silent before it is taken for one of a protocol in which the server speaks first.
const SILENCE: Duration = Duration::from_secs(1);
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

/// Waits for the first bytes of a connection. Where it is `expected` that it carries requests, text is taken for one, and a client may
/// be silent as long as it likes. Elsewhere a client that is silent for a second speaks a protocol of which the server is first to
/// speak if `app` has spoken, or if it does not matter because it `may_be_silent`.
pub(crate) async fn recognise<L: Leg>(
    leg: &mut L,
    app: &TcpStream,
    share: &Arc<Share>,
    expected: bool,
    may_be_silent: bool,
) -> Result<Begun, LegError> {
    let mut first = Window::default();
    let silence = Instant::now() + SILENCE;
    let mut line_begun = None;
    loop {
        let deadline = line_begun.map_or(silence, |begun| begun + FIRST_LINE);
        let filled = tokio::select! {
            biased;
            filled = poll_fn(|cx| first.poll_fill(cx, &mut Client(&mut *leg), share)) => Some(filled?),
            () = sleep_until(deadline), if line_begun.is_some() || !expected => None,
        };
        let carries = match filled {
            Some(0) => Some(Carries::Other),
            Some(_) => {
                line_begun.get_or_insert_with(Instant::now);
                sniff::sniff(first.bytes(), expected)
            }
            None if line_begun.is_some() || may_be_silent => Some(Carries::Other),
            // Who neither speaks nor is spoken to may still begin with a request.
            None => silent(leg, app, &mut first, share).await?,
        };
        match carries {
            Some(carries) => return Ok(Begun { carries, first }),
            None => {
                line_begun.get_or_insert_with(Instant::now);
            }
        }
    }
}

/// Waits until either side of a silent connection speaks.
async fn silent<L: Leg>(
    leg: &mut L,
    app: &TcpStream,
    first: &mut Window,
    share: &Arc<Share>,
) -> Result<Option<Carries>, LegError> {
    if leg.holds_answer() {
        leg.answer()?;
        poll_fn(|cx| std::pin::Pin::new(&mut *leg).poll_flush(cx)).await.map_err(way::leg_error)?;
    }
    poll_fn(|cx| {
        if let Poll::Ready(filled) = first.poll_fill(cx, &mut Client(&mut *leg), share) {
            return Poll::Ready(filled.map(|filled| match filled {
                0 => Some(Carries::Other),
                _ => sniff::sniff(first.bytes(), false),
            }));
        }
        app.poll_read_ready(cx).map(|_| Ok(Some(Carries::Other)))
    })
    .await
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
        return http2::run(leg, app, gate, stuck, first).await;
    }
    let up = Way { window: first, ..Way::default() };
    Http1::new(leg, app, gate, share, stuck, up).run().await
}
