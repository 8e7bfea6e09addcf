//! HTTP for Prometheus and the kubelet: `/metrics`, `/healthz/ready`, `/healthz/live`, and Istio's path for
//! metrics, `/stats/prometheus`.

use std::{collections::HashMap, convert::Infallible, net::SocketAddr, time::Duration};

use ambit_core::crowd::Crowd;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderMap, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::AdminError;
use crate::{instance::Readiness, telemetry::Telemetry};

/// Clients served at once. Of more, the oldest of the address that has most is sent away: a flood of one does not keep the kubelet
/// from its answer.
const MAX_CONNECTIONS: usize = 64;
/// How long a client may take to send its request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a client may take altogether. A connection serves one request.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_HEADER_BYTES: usize = 16 * 1024;

const OPENMETRICS: &str = "application/openmetrics-text";
const OPENMETRICS_TYPE: &str = "application/openmetrics-text;charset=utf-8;version=1.0.0";
const TEXT_TYPE: &str = "text/plain; charset=utf-8";

/// Metrics that can be written out.
pub(crate) trait Exposition: Clone + Send + Sync + 'static {
    /// All of them as OpenMetrics text, ending in `# EOF`.
    fn encode(&self) -> String;
}

impl Exposition for Telemetry {
    fn encode(&self) -> String {
        Self::encode(self)
    }
}

/// Serves metrics and health on `addr` until `shutdown`.
pub(crate) async fn serve_http(
    addr: SocketAddr,
    telemetry: impl Exposition,
    readiness: Readiness,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), AdminError> {
    let listener = TcpListener::bind(addr).await.map_err(|source| AdminError::Listen { addr, source })?;
    tokio::select! {
        () = serve_on(listener, telemetry, readiness) => {}
        () = shutdown => {}
    }
    Ok(())
}

async fn serve_on(listener: TcpListener, telemetry: impl Exposition, readiness: Readiness) {
    // Dropping the set ends the connections that are still open.
    let mut connections = JoinSet::new();
    let (mut crowd, mut tickets) = (Crowd::default(), HashMap::new());
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                while let Some(ended) = connections.try_join_next_with_id() {
                    let id = ended.map_or_else(|error| error.id(), |(id, ())| id);
                    if let Some(ticket) = tickets.remove(&id) {
                        crowd.remove(ticket);
                    }
                }
                let (telemetry, readiness) = (telemetry.clone(), readiness.clone());
                let connection = connections.spawn(async move {
                    // How a scrape ends is its client's affair.
                    let _ = timeout(CONNECTION_TIMEOUT, serve_one(stream, telemetry, readiness)).await;
                });
                tickets.insert(connection.id(), crowd.insert(peer.ip().to_canonical(), connection));
                if crowd.len() > MAX_CONNECTIONS
                    && let Some(oldest) = crowd.evict()
                {
                    oldest.abort();
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection for metrics");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_one(stream: TcpStream, telemetry: impl Exposition, readiness: Readiness) -> hyper::Result<()> {
    let service = service_fn(move |request: Request<Incoming>| {
        let (telemetry, readiness) = (telemetry.clone(), readiness.clone());
        async move {
            Ok::<_, Infallible>(
                answer(request.method(), request.uri().path(), request.headers(), telemetry, &readiness)
                    .await,
            )
        }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEADER_BYTES)
        .max_headers(64)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

async fn answer(
    method: &Method,
    path: &str,
    headers: &HeaderMap,
    telemetry: impl Exposition,
    readiness: &Readiness,
) -> Response<Full<Bytes>> {
    if !matches!(path, "/metrics" | "/stats/prometheus" | "/healthz/ready" | "/healthz/live") {
        return text(StatusCode::NOT_FOUND, "not found: use /metrics, /healthz/ready or /healthz/live\n");
    }
    if !matches!(*method, Method::GET | Method::HEAD) {
        let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, "use GET\n");
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    match path {
        "/healthz/live" => text(StatusCode::OK, "alive\n"),
        "/healthz/ready" => {
            let pending = readiness.pending();
            if pending.is_empty() {
                text(StatusCode::OK, "ready\n")
            } else {
                let body = format!("not ready, pending: {}\n", pending.join(", "));
                text(StatusCode::INTERNAL_SERVER_ERROR, body)
            }
        }
        _ => metrics(headers, telemetry).await,
    }
}

async fn metrics(headers: &HeaderMap, telemetry: impl Exposition) -> Response<Full<Bytes>> {
    let openmetrics = headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|accept| accept.to_str().ok())
        .any(|accept| accept.to_ascii_lowercase().contains(OPENMETRICS));
    // Thousands of series take long enough to encode to keep a worker of the data plane from its work.
    let Ok(body) = tokio::task::spawn_blocking(move || telemetry.encode()).await else {
        return text(StatusCode::INTERNAL_SERVER_ERROR, "metrics could not be encoded\n");
    };
    let mut response = text(StatusCode::OK, body);
    if openmetrics {
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(OPENMETRICS_TYPE));
    }
    response
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(TEXT_TYPE));
    response
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpSocket,
    };

    use super::*;

    struct Running {
        addr: SocketAddr,
        readiness: Readiness,
        task: tokio::task::JoinHandle<()>,
    }

    impl Running {
        async fn start() -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let addr = listener.local_addr().unwrap();
            let readiness = Readiness::default();
            let task = tokio::spawn(serve_on(listener, Telemetry::new(), readiness.clone()));
            Self { addr, readiness, task }
        }

        async fn send(&self, request: &str) -> String {
            let mut stream = TcpStream::connect(self.addr).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        }

        async fn get(&self, path: &str, headers: &str) -> String {
            self.send(&format!("GET {path} HTTP/1.1\r\nhost: a\r\n{headers}\r\n")).await
        }
    }

    impl Drop for Running {
        fn drop(&mut self) {
            self.task.abort();
        }
    }

    #[tokio::test]
    async fn readiness_names_what_is_pending() {
        let server = Running::start().await;
        let (manifests, capture) = (server.readiness.gate("manifests"), server.readiness.gate("capture"));
        let answer = server.get("/healthz/ready", "").await;
        assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}");
        assert!(answer.ends_with("\r\n\r\nnot ready, pending: capture, manifests\n"), "{answer}");
        drop((manifests, capture));
        let answer = server.get("/healthz/ready", "").await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\nready\n"), "{answer}");
        assert!(server.get("/healthz/live", "").await.starts_with("HTTP/1.1 200 "));
    }

    #[tokio::test]
    async fn metrics_are_openmetrics_only_for_those_who_ask() {
        let server = Running::start().await;
        let plain = server.get("/metrics", "accept: */*\r\n").await.to_lowercase();
        assert!(plain.contains("content-type: text/plain; charset=utf-8\r\n"), "{plain}");
        assert!(plain.contains("istio_build{") && plain.ends_with("# eof\n"), "{plain}");
        let accept = "accept: text/plain;q=0.5, application/openmetrics-text;version=1.0.0\r\n";
        let open = server.get("/stats/prometheus", accept).await;
        assert!(open.contains(&format!("content-type: {OPENMETRICS_TYPE}\r\n")), "{open}");
    }

    #[tokio::test]
    async fn everything_else_is_refused() {
        let server = Running::start().await;
        assert!(server.get("/quitquitquit", "").await.starts_with("HTTP/1.1 404 "));
        let answer = server.send("POST /metrics HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 405 ") && answer.contains("allow: GET, HEAD\r\n"), "{answer}");
        assert!(server.send("nonsense\r\n\r\n").await.starts_with("HTTP/1.1 400 "));
        let endless = format!("x-{}: 1\r\n", "a".repeat(2 * MAX_HEADER_BYTES));
        assert!(server.get("/metrics", &endless).await.starts_with("HTTP/1.1 431 "));
    }

    #[tokio::test(start_paused = true)]
    async fn silent_clients_are_dropped_and_hold_no_slot() {
        let server = Running::start().await;
        let mut silent = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            silent.push(TcpStream::connect(server.addr).await.unwrap());
        }
        let answer = server.get("/healthz/live", "").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }

    #[tokio::test]
    async fn a_flood_of_one_client_costs_another_nothing() {
        let server = Running::start().await;
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        let mut kubelet = socket.connect(server.addr).await.unwrap();
        let mut silent = Vec::new();
        for _ in 0..4 * MAX_CONNECTIONS {
            silent.push(TcpStream::connect(server.addr).await.unwrap());
        }
        let mut answer = String::new();
        kubelet.write_all(b"GET /healthz/live HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        kubelet.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }

    #[tokio::test]
    async fn an_address_in_use_is_named() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = taken.local_addr().unwrap();
        let error = serve_http(addr, Telemetry::new(), Readiness::default(), std::future::pending())
            .await
            .unwrap_err();
        assert_eq!(error.to_string(), format!("cannot listen on --metrics-addr {addr}"));
    }
}
