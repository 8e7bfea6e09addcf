//! One HTTP call to Vault, over TLS with our own roots. A connection serves one call: there are few.

use std::{path::PathBuf, sync::Arc, time::Duration};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Method, Request, StatusCode, Uri,
    body::Bytes,
    client::conn::http1,
    header::{CONTENT_TYPE, HOST, HeaderValue},
};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, crypto::aws_lc_rs};
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::spawn_blocking,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::{
    files,
    identity::{IssueError, TrustBundle},
};

/// One call may take this long. Shorter than an attempt of the store, so that the error is ours.
const PATIENCE: Duration = Duration::from_secs(10);
/// No answer is longer.
const MAX_ANSWER: usize = 1024 * 1024;
/// The longest file of roots read, in bytes.
const MAX_ROOTS: u64 = 1024 * 1024;

/// Vault at one address.
pub(super) struct Client {
    addr: Uri,
    ca_file: Option<PathBuf>,
}

/// Why a call gave nothing.
#[derive(Debug)]
pub(super) enum Failure {
    /// 403: the token is not, or no longer, good for it.
    Forbidden(String),
    /// Another 4xx.
    Refused(String),
    /// No answer, or none of use.
    Unreachable(String),
}

impl From<Failure> for IssueError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Forbidden(text) | Failure::Refused(text) => Self::Refused(format!("Vault: {text}")),
            Failure::Unreachable(text) => Self::Unreachable(format!("Vault: {text}")),
        }
    }
}

impl Client {
    pub(super) fn new(addr: Uri, ca_file: Option<PathBuf>) -> Self {
        Self { addr, ca_file }
    }

    /// Calls `path`; a body of null is none.
    pub(super) async fn call(
        &self,
        method: &Method,
        path: &str,
        token: Option<&str>,
        body: &Value,
    ) -> Result<Value, Failure> {
        timeout(PATIENCE, self.attempt(method, path, token, body)).await.unwrap_or_else(|_| {
            Err(Failure::Unreachable(format!("no answer within {} s", PATIENCE.as_secs())))
        })
    }

    async fn attempt(
        &self,
        method: &Method,
        path: &str,
        token: Option<&str>,
        body: &Value,
    ) -> Result<Value, Failure> {
        let host = self.addr.host().unwrap_or_default();
        let tls = self.addr.scheme_str() == Some("https");
        let port = self.addr.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let tcp = TcpStream::connect((bare, port)).await.map_err(unreachable)?;
        if !tls && !tcp.peer_addr().map_err(unreachable)?.ip().is_loopback() {
            return Err(Failure::Unreachable(format!("{bare} is not this host; use https")));
        }
        let mut request = Request::builder().method(method).uri(path);
        let authority = self.addr.authority().map_or(host, |authority| authority.as_str());
        request = request.header(HOST, authority).header("x-vault-request", "true");
        if let Some(token) = token {
            let mut token = HeaderValue::from_str(token).map_err(unreachable)?;
            token.set_sensitive(true);
            request = request.header("x-vault-token", token);
        }
        let content = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let request = request
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(content)))
            .map_err(unreachable)?;
        if !tls {
            return exchange(tcp, request).await;
        }
        let name = ServerName::try_from(bare.to_owned()).map_err(unreachable)?;
        let connector = TlsConnector::from(Arc::new(self.tls().await?));
        exchange(connector.connect(name, tcp).await.map_err(unreachable)?, request).await
    }

    async fn tls(&self) -> Result<ClientConfig, Failure> {
        let Some(file) = self.ca_file.clone() else {
            return Err(Failure::Unreachable("https needs --vault-ca-file".into()));
        };
        let roots = spawn_blocking(move || {
            let bad = |problem: String| Failure::Unreachable(format!("{}: {problem}", file.display()));
            let text = files::read(&file, MAX_ROOTS).map_err(unreachable)?;
            TrustBundle::from_pem(&text).map_err(bad)?.anchors().map_err(|error| bad(error.to_string()))
        });
        let roots = roots.await.map_err(unreachable)??;
        Ok(ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unreachable)?
            .with_root_certificates(roots)
            .with_no_client_auth())
    }
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Value, Failure>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(unreachable)?;
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(unreachable)?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await.map_err(unreachable)?;
        drop(sender);
        outcome(status, &body.to_bytes())
    };
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        done = &mut exchange => done,
        // The connection may end first, with the answer in hand or without.
        _ = connection => exchange.await,
    }
}

fn outcome(status: StatusCode, body: &[u8]) -> Result<Value, Failure> {
    let answer: Value =
        if body.is_empty() { Value::Null } else { serde_json::from_slice(body).unwrap_or(Value::Null) };
    if status.is_success() {
        return Ok(answer);
    }
    let errors: Vec<&str> =
        answer["errors"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let text: String = format!("{status} {}", errors.join("; ")).trim().chars().take(512).collect();
    Err(match status {
        StatusCode::FORBIDDEN => Failure::Forbidden(text),
        status if status.is_client_error() => Failure::Refused(text),
        _ => Failure::Unreachable(text),
    })
}

fn unreachable(error: impl std::fmt::Display) -> Failure {
    Failure::Unreachable(error.to_string())
}
