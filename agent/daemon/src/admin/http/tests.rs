use std::sync::Arc;

use rustls::{
    ClientConfig,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::aws_lc_rs,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpSocket,
    time::Instant,
};
use tokio_rustls::TlsConnector;

use super::*;
use crate::{
    cluster::{Authorizer, testing::scripted},
    telemetry::Telemetry,
};

struct Running {
    addr: SocketAddr,
    readiness: Readiness,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    async fn start() -> Self {
        Self::start_with(Some(Arc::new(Telemetry::new())), None).await
    }

    async fn start_with(metrics: Option<Arc<dyn Exposition>>, guard: Option<Arc<Guard>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let readiness = Readiness::default();
        let page = Page { metrics, guard, readiness: readiness.clone() };
        let task = tokio::spawn(serve_on(listener, page));
        Self { addr, readiness, task }
    }

    async fn send(&self, request: &str) -> String {
        exchange(TcpStream::connect(self.addr).await.unwrap(), request).await
    }

    async fn get(&self, path: &str, headers: &str) -> String {
        self.send(&get(path, headers)).await
    }

    /// A client of another source than `127.0.0.1`.
    async fn connect_from(&self, source: &str) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(format!("{source}:0").parse().unwrap()).unwrap();
        socket.connect(self.addr).await.unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn get(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: a\r\n{headers}\r\n")
}

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
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
async fn metrics_are_in_the_format_that_their_type_names() {
    let server = Running::start().await;
    let plain = server.get("/metrics", "accept: */*\r\n").await;
    assert!(plain.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{plain}");
    assert!(plain.contains("istio_build{") && !plain.contains("# EOF"), "{plain}");
    assert!(plain.contains("_total counter\n"), "counters are declared by other names: {plain}");
    let accept = "accept: text/plain;q=0.5, application/openmetrics-text;version=1.0.0\r\n";
    let open = server.get("/stats/prometheus", accept).await;
    let open_type = "content-type: application/openmetrics-text;charset=utf-8;version=1.0.0\r\n";
    assert!(open.contains(open_type) && open.ends_with("# EOF\n"), "{open}");
    assert!(!open.contains("_total counter\n"), "{open}");
}

#[tokio::test]
async fn a_server_for_health_alone_tells_nothing_else() {
    let server = Running::start_with(None, None).await;
    assert!(server.get("/healthz/ready", "").await.starts_with("HTTP/1.1 200 "));
    for path in ["/metrics", "/stats/prometheus"] {
        assert!(server.get(path, "").await.starts_with("HTTP/1.1 404 "), "{path}");
    }
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

#[tokio::test]
async fn silent_clients_keep_nobody_out() {
    let server = Running::start().await;
    let mut silent = Vec::new();
    // Five sources that take all they can, and go on taking.
    for round in 0..2 * MAX_CONNECTIONS {
        silent.push(server.connect_from(&format!("127.0.1.{}", 1 + round % 5)).await);
    }
    let begun = Instant::now();
    let request = get("/healthz/live", "");
    let answer = exchange(server.connect_from("127.0.2.1").await, &request).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let answer = exchange(server.connect_from("127.0.1.1").await, &request).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "a source that holds all it may have: {answer}");
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn silent_clients_are_let_go() {
    let server = Running::start().await;
    let mut silent = TcpStream::connect(server.addr).await.unwrap();
    let mut answer = Vec::new();
    // Nothing else runs, so that the time passes by itself.
    silent.read_to_end(&mut answer).await.unwrap();
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 408 "), "{answer:?}");
}

#[tokio::test]
async fn guarded_metrics_are_for_those_only_whom_the_cluster_lets() {
    let (client, mut calls) = scripted("none");
    tokio::spawn(async move {
        while let Some(mut call) = calls.recv().await {
            let mut object = call.body.take();
            let user =
                object["spec"]["token"].as_str().or(object["spec"]["user"].as_str()).unwrap_or_default();
            object["status"] = match call.path.ends_with("tokenreviews") {
                true => json!({"authenticated": user != "guess", "user": {"username": user}}),
                false => json!({"allowed": user == "prometheus"}),
            };
            call.answer(201, &object);
        }
    });
    let guard = Guard::new(Authorizer::new(client, METRICS_PATH)).unwrap();
    let server = Running::start_with(Some(Arc::new(Telemetry::new())), Some(Arc::new(guard))).await;
    for (headers, expected) in [
        ("", "401 "),
        ("authorization: Basic cHJvbWV0aGV1cw==\r\n", "401 "),
        ("authorization: Bearer guess\r\n", "401 "),
        ("authorization: Bearer web\r\n", "403 "),
        ("authorization: Bearer prometheus\r\nauthorization: Bearer web\r\n", "401 "),
        ("authorization: Bearer prometheus\r\n", "200 "),
    ] {
        for path in ["/metrics", "/stats/prometheus"] {
            let answer = exchange(tls(server.addr).await, &get(path, headers)).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {expected}")), "{path} {headers}: {answer}");
            assert_eq!(answer.contains("istio_build"), expected == "200 ", "{answer}");
        }
    }
    let answer = exchange(tls(server.addr).await, &get("/healthz/live", "")).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "health is for everybody: {answer}");
    let mut plain = TcpStream::connect(server.addr).await.unwrap();
    plain.write_all(get("/metrics", "authorization: Bearer prometheus\r\n").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ended = plain.read_to_end(&mut answer).await;
    assert!(!String::from_utf8_lossy(&answer).contains("HTTP"), "a token was taken in plaintext");
}

/// A TLS session with whoever is there, as a scraper with `insecure_skip_verify` has it.
async fn tls(addr: SocketAddr) -> tokio_rustls::client::TlsStream<TcpStream> {
    #[derive(Debug)]
    struct Anybody;

    impl ServerCertVerifier for Anybody {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, rustls::Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
        }
    }

    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    let stream = TcpStream::connect(addr).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = taken.local_addr().unwrap();
    let page = Page { metrics: None, guard: None, readiness: Readiness::default() };
    let error = serve_http("health-addr", addr, page, std::future::pending()).await.unwrap_err();
    assert_eq!(error.to_string(), format!("cannot listen on --health-addr {addr}"));
}
