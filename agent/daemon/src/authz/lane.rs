//! The connections of one pod to one provider, and how many checks may run on them.
//!
//! Promises that a connection which has broken is replaced, and that those who wait for one that fails learn it together.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ::http::{Request, Response};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{select, sync::Semaphore};

use super::{Dialled, Dialler, answer::Failure, settings::ProviderAddr};
use crate::telemetry::CheckResult;

/// Checks of one pod that run at a time at one provider; others wait for their turn.
const CHECKS: usize = 128;
/// How long a connection may rest.
const IDLE: Duration = Duration::from_secs(60);
/// Connections that rest at a time.
const RESTING: usize = 16;
/// How long a check goes on without a sign of life from the provider.
const PING: Duration = Duration::from_secs(10);
const PONG: Duration = Duration::from_secs(5);
/// The longest head of an answer, in bytes.
const HEAD: usize = 64 * 1024;

/// Whose connections they are: nobody else's identity or address is on them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PodKey {
    /// The pod's UID.
    pub(crate) uid: Arc<str>,
    /// The address that it dials from.
    pub(crate) source: IpAddr,
}

/// One pod's way to one provider.
#[derive(Debug)]
pub(super) struct Lane {
    checks: Semaphore,
    /// HTTP/2 carries all checks on one connection. Locked while it is dialled.
    multiplexed: tokio::sync::Mutex<Multiplexed>,
    /// HTTP/1 has one for each check that runs.
    resting: Mutex<Vec<(http1::SendRequest<Full<Bytes>>, Instant)>>,
    used: Mutex<Instant>,
}

#[derive(Debug, Default)]
struct Multiplexed {
    sender: Option<Http2>,
    failed: Option<(Instant, String)>,
}

/// Sends checks on a connection that is shared.
pub(super) type Http2 = http2::SendRequest<tonic::body::Body>;

impl Default for Lane {
    fn default() -> Self {
        Self {
            checks: Semaphore::new(CHECKS),
            multiplexed: tokio::sync::Mutex::default(),
            resting: Mutex::default(),
            used: Mutex::new(Instant::now()),
        }
    }
}

impl Lane {
    /// A place for one check, in the order in which they came.
    pub(super) async fn place(&self) -> Option<tokio::sync::SemaphorePermit<'_>> {
        *lock(&self.used) = Instant::now();
        // It is never closed.
        self.checks.acquire().await.ok()
    }

    /// Whether nothing has used it for long.
    pub(super) fn rests(&self, now: Instant) -> bool {
        let busy = self.checks.available_permits() < CHECKS;
        !busy && now.saturating_duration_since(*lock(&self.used)) > IDLE
    }

    /// The shared connection, and whether it was there already.
    pub(super) async fn http2(
        &self,
        dialler: &dyn Dialler,
        addr: &ProviderAddr,
    ) -> Result<(Http2, bool), Failure> {
        let asked = Instant::now();
        let mut shared = self.multiplexed.lock().await;
        if let Some(sender) = shared.sender.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok((sender.clone(), true));
        }
        // Somebody has tried meanwhile: it would go the same way again.
        if let Some((_, why)) = shared.failed.as_ref().filter(|(at, _)| *at >= asked) {
            return Err(Failure::failed(why.clone()));
        }
        match connect_http2(dialler, addr).await {
            Ok(sender) => {
                *shared = Multiplexed { sender: Some(sender.clone()), failed: None };
                Ok((sender, false))
            }
            Err(failure) => {
                *shared = Multiplexed { sender: None, failed: Some((Instant::now(), failure.why.clone())) };
                Err(failure)
            }
        }
    }

    /// Has the next check dial anew, unless somebody does so already.
    pub(super) fn give_up_http2(&self) {
        if let Ok(mut shared) = self.multiplexed.try_lock() {
            shared.sender = None;
        }
    }

    /// Sends a request and waits for the head of its answer. The connection comes back by [`Exchange::finish`].
    pub(super) async fn exchange(
        &self,
        dialler: &dyn Dialler,
        addr: &ProviderAddr,
        request: Request<Full<Bytes>>,
    ) -> Result<(Response<Incoming>, Exchange<'_>), Failure> {
        // One that rested may have ended, and its end was on the way.
        if let Some(mut sender) = self.rested().await
            && let Ok(response) = sender.send_request(request.clone()).await
        {
            return Ok((response, Exchange { lane: self, sender }));
        }
        let mut sender = connect_http1(dialler, addr).await?;
        let response = sender.send_request(request).await.map_err(|error| broken(addr, &error))?;
        Ok((response, Exchange { lane: self, sender }))
    }

    async fn rested(&self) -> Option<http1::SendRequest<Full<Bytes>>> {
        loop {
            let (mut sender, since) = lock(&self.resting).pop()?;
            if since.elapsed() < IDLE && sender.ready().await.is_ok() {
                return Some(sender);
            }
        }
    }
}

/// A request whose answer is being read.
pub(super) struct Exchange<'a> {
    lane: &'a Lane,
    sender: http1::SendRequest<Full<Bytes>>,
}

impl Exchange<'_> {
    /// All of the answer has been read.
    pub(super) fn finish(self) {
        let mut resting = lock(&self.lane.resting);
        if !self.sender.is_closed() && resting.len() < RESTING {
            resting.push((self.sender, Instant::now()));
        }
    }
}

async fn dialled(dialler: &dyn Dialler, addr: &ProviderAddr) -> Result<Dialled, Failure> {
    dialler.dial(addr).await.map_err(|refusal| {
        let label = refusal.reason.label();
        Failure::new(CheckResult::Unreachable, format!("no connection to {addr}: {} ({label})", refusal.text))
    })
}

async fn connect_http2(dialler: &dyn Dialler, addr: &ProviderAddr) -> Result<Http2, Failure> {
    let Dialled { stream, revoked } = dialled(dialler, addr).await?;
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.timer(TokioTimer::new()).keep_alive_interval(PING).keep_alive_timeout(PONG);
    builder.max_header_list_size(HEAD as u32);
    let handshake = builder.handshake(TokioIo::new(stream)).await;
    let (sender, connection) = handshake.map_err(|error| broken(addr, &error))?;
    tokio::spawn(async move {
        select! {
            // How it has ended, whoever uses it is told.
            _ = connection => {}
            () = revoked => {}
        }
    });
    Ok(sender)
}

async fn connect_http1(
    dialler: &dyn Dialler,
    addr: &ProviderAddr,
) -> Result<http1::SendRequest<Full<Bytes>>, Failure> {
    let Dialled { stream, revoked } = dialled(dialler, addr).await?;
    let handshake = http1::Builder::new().max_buf_size(HEAD).handshake(TokioIo::new(stream)).await;
    let (sender, connection) = handshake.map_err(|error| broken(addr, &error))?;
    tokio::spawn(async move {
        select! {
            _ = connection => {}
            () = revoked => {}
        }
    });
    Ok(sender)
}

/// What came of a connection that stood.
pub(super) fn broken(addr: &ProviderAddr, error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::failed(format!("the connection to {addr}: {}", crate::error::with_causes(error)))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic cannot leave what they hold half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
