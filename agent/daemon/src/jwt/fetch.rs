//! One fetch of an issuer's keys over HTTP.
//!
//! Promises that no address is dialled that a policy must not lead an agent to, whatever a name resolves to; that redirects are not
//! followed; and bounds on what is read. How long one may take is whoever calls' to say.

mod blocked;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header, uri::Scheme};
use http_body_util::{BodyExt as _, Collected, Empty, Limited};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::{
    client::legacy::{
        Client,
        connect::{HttpConnector, dns::Name},
    },
    rt::TokioExecutor,
};
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::Value;
use tokio::task::spawn_blocking;

pub(crate) use self::blocked::Blocked;
use super::{
    issuers::Source,
    keys::{BadKeys, KeySet},
};
use crate::{
    error::with_causes,
    files::{self, ReadError},
    web_pki,
};

/// No answer is longer.
const MAX_ANSWER: usize = 512 * 1024;
/// The longest file of roots read, in bytes.
const MAX_ROOTS: u64 = 1024 * 1024;
/// Where an issuer's configuration is (OpenID Connect Discovery 1.0, section 4).
const CONFIGURATION: &str = "/.well-known/openid-configuration";

/// The way to issuers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fetching {
    /// Roots beside the machine's that issuers' certificates may lead to, PEM; read again for each fetch.
    pub(crate) ca_file: Option<PathBuf>,
    /// Addresses that are not dialled.
    pub(crate) blocked: Arc<Blocked>,
}

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("{url} is not the URL of an http or https server")]
    Url { url: String },
    #[error(
        "{host} is {address}, an address that keys may not be fetched from (--jwks-blocked and docs/policy.md)"
    )]
    Blocked { host: String, address: IpAddr },
    #[error("cannot resolve {host}")]
    Resolve { host: String, source: std::io::Error },
    #[error("cannot reach {url}")]
    Unreachable { url: String, source: hyper_util::client::legacy::Error },
    #[error("{url} answers {status}")]
    Status { url: String, status: StatusCode },
    #[error("the answer of {url} breaks off, or is longer than {MAX_ANSWER} bytes")]
    Body { url: String },
    #[error("{url} is no OpenID configuration with a jwks_uri")]
    Configuration { url: String },
    #[error("the configuration at {url} leads from https to http, at {keys}")]
    Downgrade { url: String, keys: String },
    #[error("what {url} answers is no set of keys for tokens")]
    Keys { url: String, source: BadKeys },
    #[error("--jwks-ca-file: {0}")]
    Roots(String),
    #[error("no answer within {} ms", .0.as_millis())]
    TimedOut(Duration),
}

/// The keys of an issuer as they are now.
pub(super) async fn keys(fetching: &Fetching, source: &Source) -> Result<KeySet, FetchError> {
    let url = match &source.url {
        Some(url) => url.to_string(),
        None => discovered(fetching, &source.issuer).await?,
    };
    let answer = fetching.get(&url).await?;
    KeySet::parse(&answer).map_err(|source| FetchError::Keys { url, source })
}

/// Where the issuer says that its keys are.
async fn discovered(fetching: &Fetching, issuer: &str) -> Result<String, FetchError> {
    let url = format!("{}{CONFIGURATION}", issuer.strip_suffix('/').unwrap_or(issuer));
    let answer: Option<Value> = serde_json::from_slice(&fetching.get(&url).await?).ok();
    let keys = answer.as_ref().and_then(|answer| answer.get("jwks_uri")).and_then(Value::as_str);
    let Some(keys) = keys.map(str::to_owned) else { return Err(FetchError::Configuration { url }) };
    if url.starts_with("https:") && !keys.starts_with("https:") {
        return Err(FetchError::Downgrade { url, keys });
    }
    Ok(keys)
}

impl Fetching {
    async fn get(&self, url: &str) -> Result<Bytes, FetchError> {
        let uri = server(url).ok_or_else(|| FetchError::Url { url: url.to_owned() })?;
        let host = uri.host().unwrap_or_default();
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        // The connector asks no resolver about what is an address already.
        if let Ok(address) = bare.parse::<IpAddr>()
            && self.blocked.contains(address)
        {
            return Err(FetchError::Blocked { host: host.to_owned(), address });
        }
        let mut tcp = HttpConnector::new_with_resolver(Resolver(self.blocked.clone()));
        tcp.enforce_http(false);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(self.tls(uri.scheme() == Some(&Scheme::HTTPS)).await?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(0)
            .build::<_, Empty<Bytes>>(connector);
        let request = Request::get(uri)
            .header(header::ACCEPT, "application/json, application/jwk-set+json")
            .header(header::USER_AGENT, concat!("ambit/", env!("CARGO_PKG_VERSION")))
            .body(Empty::new())
            .map_err(|_| FetchError::Url { url: url.to_owned() })?;
        let answer = client
            .request(request)
            .await
            .map_err(|source| FetchError::Unreachable { url: url.to_owned(), source })?;
        if answer.status() != StatusCode::OK {
            return Err(FetchError::Status { url: url.to_owned(), status: answer.status() });
        }
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        body.map(Collected::to_bytes).map_err(|_| FetchError::Body { url: url.to_owned() })
    }

    async fn tls(&self, wanted: bool) -> Result<ClientConfig, FetchError> {
        let (file, mut roots) = (self.ca_file.clone().filter(|_| wanted), RootCertStore::empty());
        if wanted {
            let read = move || -> Result<RootCertStore, String> {
                let mut roots = (*web_pki::roots()).clone();
                let Some(file) = file else { return Ok(roots) };
                let text = files::read(&file, MAX_ROOTS).map_err(ReadError::into_problem);
                let bad =
                    |problem: &dyn std::error::Error| format!("{}: {}", file.display(), with_causes(problem));
                let text = text.map_err(|problem| format!("{}: {problem}", file.display()))?;
                for certificate in CertificateDer::pem_slice_iter(&text) {
                    roots.add(certificate.map_err(|error| bad(&error))?).map_err(|error| bad(&error))?;
                }
                Ok(roots)
            };
            roots = spawn_blocking(read)
                .await
                .map_err(|error| FetchError::Roots(error.to_string()))?
                .map_err(FetchError::Roots)?;
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| FetchError::Roots(error.to_string()))?;
        Ok(builder.with_root_certificates(roots).with_no_client_auth())
    }
}

/// The URL, if it is one of a server that can be asked, and has no secrets in it.
fn server(url: &str) -> Option<Uri> {
    let uri: Uri = url.parse().ok()?;
    let named = uri
        .authority()
        .is_some_and(|authority| !authority.host().is_empty() && !authority.as_str().contains('@'));
    (named && matches!(uri.scheme_str(), Some("http" | "https"))).then_some(uri)
}

/// Resolves names to the addresses that may be dialled; those are dialled, and the name is not looked up again.
#[derive(Clone)]
struct Resolver(Arc<Blocked>);

impl tower::Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = FetchError;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, FetchError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), FetchError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let blocked = self.0.clone();
        Box::pin(async move {
            let host = name.as_str().to_owned();
            let resolved = tokio::net::lookup_host((&*host, 0)).await.map(Iterator::collect::<Vec<_>>);
            let found = match resolved {
                Ok(found) => found,
                Err(source) => return Err(FetchError::Resolve { host, source }),
            };
            let first = found.first().map(SocketAddr::ip);
            let allowed: Vec<SocketAddr> =
                found.into_iter().filter(|address| !blocked.contains(address.ip())).collect();
            match first.filter(|_| allowed.is_empty()) {
                Some(address) => Err(FetchError::Blocked { host, address }),
                None => Ok(allowed.into_iter()),
            }
        })
    }
}
