//! A plain HTTPS client for the Kubernetes API: a connection for each request, every length and wait bounded.

use std::{fs::File, io, io::Read, path::Path, sync::Arc, time::Duration};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, StatusCode,
    body::Bytes,
    client::conn::http1,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue},
};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::TcpStream, sync::Semaphore, time::timeout};
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

use super::config::{ApiConfig, Content, Login};

/// How long one request may take, connecting included.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Requests under way at a time; more wait.
const CONCURRENCY: usize = 16;
/// The longest answer read.
const MAX_ANSWER: usize = 16 * 1024 * 1024;
/// No token or certificate file is longer.
const MAX_FILE: u64 = 1024 * 1024;

/// Why the API server gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// A file that the login needs cannot be used.
    #[error("cannot use {0}")]
    Login(String),
    /// No connection, or it broke.
    #[error("cannot reach the API server: {0}")]
    Connection(#[from] io::Error),
    /// HTTP failed.
    #[error("cannot talk to the API server: {0}")]
    Http(#[from] hyper::Error),
    /// It took too long.
    #[error("the API server did not answer within {} s", TIMEOUT.as_secs())]
    Timeout,
    /// It answered with an error.
    #[error("the API server says {0}")]
    Status(StatusCode),
    /// Its answer is not what was asked for.
    #[error("the API server's answer is unusable: {0}")]
    Answer(String),
}

/// The client. Reads token and certificates anew for each request.
#[derive(Debug)]
pub(super) struct ApiClient {
    config: ApiConfig,
    slots: Semaphore,
}

impl ApiClient {
    pub(super) fn new(config: ApiConfig) -> Self {
        Self { config, slots: Semaphore::new(CONCURRENCY) }
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        read(&self.send(Method::GET, path, Bytes::new()).await?)
    }

    /// Like [`get`](Self::get), but nothing if there is no such object.
    pub(super) async fn find<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, ApiError> {
        match self.send(Method::GET, path, Bytes::new()).await {
            Err(ApiError::Status(StatusCode::NOT_FOUND)) => Ok(None),
            answer => read(&answer?).map(Some),
        }
    }

    pub(super) async fn post<T: Serialize + DeserializeOwned>(
        &self,
        path: &str,
        body: &T,
    ) -> Result<T, ApiError> {
        let body = serde_json::to_vec(body).map_err(|error| ApiError::Answer(error.to_string()))?;
        read(&self.send(Method::POST, path, body.into()).await?)
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, ApiError> {
        let exchange = async {
            // The semaphore is never closed.
            let _slot = self.slots.acquire().await.map_err(|_| ApiError::Timeout)?;
            self.exchange(method, path, body).await
        };
        timeout(TIMEOUT, exchange).await.map_err(|_| ApiError::Timeout)?
    }

    async fn exchange(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, ApiError> {
        let config = self.config.clone();
        let prepared = tokio::task::spawn_blocking(move || prepare(&config)).await;
        let (tls, bearer) = prepared.map_err(|error| ApiError::Login(error.to_string()))??;
        let name = ServerName::try_from(self.config.server_name.clone())
            .map_err(|_| ApiError::Login(format!("the server name {:?}", self.config.server_name)))?;
        let stream = TcpStream::connect((self.config.host.as_str(), self.config.port)).await?;
        stream.set_nodelay(true)?;
        let stream = TlsConnector::from(Arc::new(tls)).connect(name, stream).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = format!("{}{path}", self.config.base)
            .parse()
            .map_err(|_| ApiError::Answer("a path that is none".into()))?;
        let headers = request.headers_mut();
        let host = match self.config.host.contains(':') {
            true => format!("[{}]:{}", self.config.host, self.config.port),
            false => format!("{}:{}", self.config.host, self.config.port),
        };
        let host = HeaderValue::try_from(host).map_err(|_| ApiError::Login("the server's name".into()))?;
        headers.insert(HOST, host);
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(bearer) = bearer {
            headers.insert(AUTHORIZATION, bearer);
        }
        let answer = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
            match status.is_success() {
                true => body
                    .map(http_body_util::Collected::to_bytes)
                    .map_err(|error| ApiError::Answer(error.to_string())),
                false => Err(ApiError::Status(status)),
            }
        };
        tokio::pin!(answer);
        tokio::select! {
            answer = &mut answer => answer,
            ended = connection => {
                ended?;
                answer.await
            }
        }
    }
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| ApiError::Answer(error.to_string()))
}

/// TLS towards the API server, and the `authorization` header. Reads files.
fn prepare(config: &ApiConfig) -> Result<(ClientConfig, Option<HeaderValue>), ApiError> {
    let bad = |what: &str, error: String| ApiError::Login(format!("{what}: {error}"));
    let ca = content(&config.ca)?;
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(&ca) {
        let root = root.map_err(|error| bad("the certificate authority", error.to_string()))?;
        roots.add(root).map_err(|error| bad("the certificate authority", error.to_string()))?;
    }
    let tls = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| bad("TLS", error.to_string()))?
        .with_root_certificates(roots);
    let mut bearer = None;
    let mut tls = match &config.login {
        Login::Certificate { chain, key } => {
            let chain: Vec<_> = CertificateDer::pem_slice_iter(&content(chain)?)
                .collect::<Result<_, _>>()
                .map_err(|error| bad("the client certificate", error.to_string()))?;
            let key = PrivateKeyDer::from_pem_slice(&content(key)?)
                .map_err(|error| bad("the client key", error.to_string()))?;
            tls.with_client_auth_cert(chain, key)
                .map_err(|error| bad("the client certificate", error.to_string()))?
        }
        Login::Token(token) => {
            let token = content(token)?;
            let text = std::str::from_utf8(&token).unwrap_or_default().trim();
            let header = Zeroizing::new(format!("Bearer {text}"));
            let mut value = HeaderValue::from_str(&header)
                .map_err(|_| ApiError::Login("the token: not one line of text".into()))?;
            value.set_sensitive(true);
            bearer = Some(value);
            tls.with_no_client_auth()
        }
    };
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok((tls, bearer))
}

fn content(content: &Content) -> Result<Zeroizing<Vec<u8>>, ApiError> {
    match content {
        Content::Inline(bytes) => Ok(Zeroizing::new(bytes.clone())),
        Content::File(path) => {
            read_file(path).map_err(|error| ApiError::Login(format!("{}: {error}", path.display())))
        }
    }
}

/// Reads one regular file of bounded length.
pub(super) fn read_file(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut bytes = Zeroizing::new(Vec::new());
    if file.take(MAX_FILE + 1).read_to_end(&mut bytes)? as u64 > MAX_FILE {
        return Err(io::Error::other(format!("larger than {MAX_FILE} bytes")));
    }
    Ok(bytes)
}
