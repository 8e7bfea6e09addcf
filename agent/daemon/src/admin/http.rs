//! HTTP for Prometheus and the kubelet: `/metrics`, `/healthz/ready`, `/healthz/live`, and Istio's path for
//! metrics, `/stats/prometheus`.
//!
//! A client that says nothing keeps nobody out: it gives way to those who come after it.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ALLOW, CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    AdminError,
    exposition::{Exposition, Format},
    guard::{Guard, METRICS_PATH},
};
use crate::{clients::Places, instance::Readiness};

/// Clients served at once, and of them from one source.
const MAX_CONNECTIONS: usize = 64;
const MAX_EACH: usize = 16;
/// How long a client may take for a TLS handshake, and to send its request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a client may take altogether. A connection serves one request.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_HEADER_BYTES: usize = 16 * 1024;

const TEXT_TYPE: &str = "text/plain; charset=utf-8";

/// What a server shows.
#[derive(Clone)]
pub(crate) struct Page {
    /// The metrics; none on a server for health alone.
    pub(crate) metrics: Option<Arc<dyn Exposition>>,
    /// What stands before the metrics; none if everybody may read them.
    pub(crate) guard: Option<Arc<Guard>>,
    /// What health is told by.
    pub(crate) readiness: Readiness,
}

/// Serves `page` on `addr`, which the setting `flag` names, until `shutdown`.
pub(crate) async fn serve_http(
    flag: &'static str,
    addr: SocketAddr,
    page: Page,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), AdminError> {
    let failed = |source| AdminError::Listen { flag, addr, source };
    let listener = TcpListener::bind(addr).await.map_err(failed)?;
    tokio::select! {
        () = serve_on(listener, page) => {}
        () = shutdown => {}
    }
    Ok(())
}

async fn serve_on(listener: TcpListener, page: Page) {
    let places = Places::new(MAX_CONNECTIONS, MAX_EACH);
    // Dropping the set ends the connections that are still open.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, from)) => {
                let Some(place) = places.take(from.ip()) else { continue };
                let page = page.clone();
                connections.spawn(async move {
                    tokio::select! {
                        // How a scrape ends is its client's affair.
                        _ = timeout(CONNECTION_TIMEOUT, page.serve(stream)) => {}
                        () = place.lost() => {}
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection for metrics or health");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

impl Page {
    async fn serve(self, stream: TcpStream) {
        match self.guard.clone() {
            None => self.speak(stream).await,
            Some(guard) => {
                if let Ok(Ok(stream)) = timeout(HEADER_TIMEOUT, guard.secure(stream)).await {
                    self.speak(stream).await;
                }
            }
        }
    }

    async fn speak(self, stream: impl AsyncRead + AsyncWrite + Unpin) {
        let service = service_fn(move |request: Request<Incoming>| {
            let page = self.clone();
            async move {
                Ok::<_, Infallible>(
                    page.answer(request.method(), request.uri().path(), request.headers()).await,
                )
            }
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(MAX_HEADER_BYTES)
            .max_headers(64)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service);
        if let Err(error) = served.await {
            tracing::trace!(%error, "a client of metrics or health");
        }
    }

    async fn answer(&self, method: &Method, path: &str, headers: &HeaderMap) -> Response<Full<Bytes>> {
        let metrics = self.metrics.as_ref().filter(|_| matches!(path, METRICS_PATH | "/stats/prometheus"));
        if metrics.is_none() && !matches!(path, "/healthz/ready" | "/healthz/live") {
            return text(StatusCode::NOT_FOUND, "not found: use /metrics, /healthz/ready or /healthz/live\n");
        }
        if !matches!(*method, Method::GET | Method::HEAD) {
            let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, "use GET\n");
            refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refused;
        }
        match (metrics, path) {
            (Some(metrics), _) => self.show(metrics.clone(), headers).await,
            (None, "/healthz/live") => text(StatusCode::OK, "alive\n"),
            (None, _) => {
                let pending = self.readiness.pending();
                if pending.is_empty() {
                    return text(StatusCode::OK, "ready\n");
                }
                let body = format!("not ready, pending: {}\n", pending.join(", "));
                text(StatusCode::INTERNAL_SERVER_ERROR, body)
            }
        }
    }

    async fn show(&self, metrics: Arc<dyn Exposition>, headers: &HeaderMap) -> Response<Full<Bytes>> {
        if let Some(guard) = &self.guard
            && let Err((status, sentence)) = guard.admit(headers).await
        {
            let mut refused = text(status, sentence);
            if status == StatusCode::UNAUTHORIZED {
                refused.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            return refused;
        }
        let format = Format::asked_for(headers);
        // Thousands of series take long enough to encode to keep a worker of the data plane from its work.
        let Ok(body) = tokio::task::spawn_blocking(move || format.write(&*metrics)).await else {
            return text(StatusCode::INTERNAL_SERVER_ERROR, "metrics could not be encoded\n");
        };
        let mut response = text(StatusCode::OK, body);
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
        response
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(TEXT_TYPE));
    response
}

#[cfg(test)]
mod tests;
