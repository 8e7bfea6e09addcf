//! The client of Istio's certificate service (`security/v1alpha1/ca.proto` in istio/api): istiod, istio-csr, or `ambit ca`.
//!
//! Promises to send the token only to a server that the roots vouch for, and to read token and root file anew for every call.
//! Where the CA publishes its roots, those are what counts, not what comes with certificates. Leaves retries and what is
//! believed of the answer to the store; only the answer's shape is judged here.

mod refusal;
mod token;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ambit_core::model::SpiffeId;
use ambit_proto::istio::auth::{
    IstioCertificateRequest, IstioCertificateResponse,
    istio_certificate_service_client::IstioCertificateServiceClient,
};
use hyper_util::rt::TokioIo;
use prost_types::{Struct, Value, value::Kind};
use rustls::{ClientConfig, crypto::aws_lc_rs};
use rustls_pki_types::ServerName;
use tokio::{net::TcpStream, sync::watch};
use tokio_rustls::TlsConnector;
use tonic::{
    Request,
    metadata::AsciiMetadataValue,
    transport::{Channel, Endpoint},
};
use zeroize::Zeroizing;

use self::token::Token;
use super::{
    Csr, Fault, IssueError, IssueFuture, Issued, Issuer, Leaf, PublishedRoots, TrustBundle, certificates,
};
use crate::files;

/// How long to wait for TCP and TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one call may take, connecting included. The store repeats it.
const CALL_TIMEOUT: Duration = Duration::from_secs(12);
/// How long a call waits for roots that the CA publishes and that have not been read yet.
const ROOTS_WAIT: Duration = Duration::from_secs(5);
/// An idle connection is asked for a sign of life this often, so that a call never goes to a server long gone.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest answer read.
const MAX_ANSWER: usize = 512 * 1024;
/// More elements in an answer are not looked at.
const MAX_ELEMENTS: usize = 16;
/// No root file is longer.
const MAX_ROOTS: u64 = 1024 * 1024;

/// Where the certificate service is and what proves the two ends to each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IstioSettings {
    /// Host name or IP of the service, without brackets.
    pub(crate) host: String,
    /// Its TCP port.
    pub(crate) port: u16,
    /// The name that its certificate must bear, where that is not `host`.
    pub(crate) server_name: Option<String>,
    /// PEM file with the roots that its certificate must lead to, unless they are published elsewhere.
    pub(crate) root: PathBuf,
    /// File with the bearer token; none is sent without it.
    pub(crate) token_file: Option<PathBuf>,
    /// The `clusterid` sent.
    pub(crate) cluster_id: String,
}

/// An issuer over the network.
pub(crate) struct IstioIssuer {
    settings: IstioSettings,
    published: Option<PublishedRoots>,
    called: &'static str,
    name: ServerName<'static>,
    link: Mutex<Option<Link>>,
}

/// A channel and the roots that it was built with.
struct Link {
    roots: TrustBundle,
    client: Client,
}

type Client = IstioCertificateServiceClient<Channel>;

impl IstioIssuer {
    /// An issuer that has not connected yet: the service may come up later. Roots that are `published` are trusted by workloads,
    /// and vouch for the service itself. The error names what is no server name.
    pub(crate) fn new(settings: IstioSettings, published: Option<PublishedRoots>) -> Result<Self, String> {
        let name = settings.server_name.as_deref().unwrap_or(&settings.host);
        let name = ServerName::try_from(name.to_owned()).map_err(|_| name.to_owned())?;
        Ok(Self { settings, published, called: "istio", name, link: Mutex::default() })
    }

    /// The same under another name in logs and status.
    pub(crate) fn called(self, called: &'static str) -> Self {
        Self { called, ..self }
    }

    async fn ask(&self, csr: &Csr) -> Result<Issued, IssueError> {
        let mut request = Request::new(IstioCertificateRequest {
            csr: pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", csr.der.as_ref())),
            validity_duration: i64::try_from(csr.ttl.as_secs()).unwrap_or(i64::MAX),
            metadata: Some(impersonate(&csr.id)),
        });
        let settings = self.settings.clone();
        let files = tokio::task::spawn_blocking(move || read_files(&settings));
        let (token, in_file) = files.await.map_err(|_| IssueError::Internal)?;
        let published = self.published().await?;
        let roots = published.as_ref().map_or(in_file, |published| Ok(TrustBundle::clone(published)));
        let mut account = None;
        if let Some(Token { header, account: named }) = token? {
            request.metadata_mut().insert("authorization", header);
            account = named;
        }
        let cluster = AsciiMetadataValue::try_from(self.settings.cluster_id.as_str());
        if let Ok(cluster) = cluster {
            request.metadata_mut().insert("clusterid", cluster);
        }
        let mut client = self.client(roots)?;
        match tokio::time::timeout(CALL_TIMEOUT, client.create_certificate(request)).await {
            Err(_) => {
                // Its connection may lead to a server that is gone without a word.
                self.link.lock().unwrap_or_else(PoisonError::into_inner).take();
                Err(IssueError::Timeout(CALL_TIMEOUT))
            }
            Ok(Err(status)) => Err(refusal::failure(&status, account.as_deref())),
            Ok(Ok(answer)) => {
                let issued = read_answer(&csr.id, &answer.into_inner())?;
                // Anew: they may have changed meanwhile.
                Ok(match self.published().await? {
                    Some(published) => Issued { roots: published.roots.clone(), ..issued },
                    None => issued,
                })
            }
        }
    }

    /// The roots that the CA publishes; `None` if it does so nowhere.
    async fn published(&self) -> Result<Option<Arc<TrustBundle>>, IssueError> {
        let Some(published) = &self.published else { return Ok(None) };
        let known = published.known(ROOTS_WAIT).await;
        let unread =
            || IssueError::Unreachable("the roots that the CA publishes have not been read yet".into());
        known.map(Some).ok_or_else(unread)
    }

    /// The channel for these roots. Such that cannot be used leave the last channel in place.
    fn client(&self, roots: Result<TrustBundle, IssueError>) -> Result<Client, IssueError> {
        let mut link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = match (roots, &*link) {
            (Ok(roots), Some(link)) if link.roots == roots => return Ok(link.client.clone()),
            (Ok(roots), _) => self.connect(&roots).map(|client| Link { roots, client }),
            (Err(error), _) => Err(error),
        };
        match (fresh, &*link) {
            (Ok(fresh), _) => {
                let client = fresh.client.clone();
                *link = Some(fresh);
                Ok(client)
            }
            (Err(error), Some(last)) => {
                tracing::warn!(%error, "the CA's root file is unusable; its last good content stays in force");
                Ok(last.client.clone())
            }
            (Err(error), None) => Err(error),
        }
    }

    fn connect(&self, roots: &TrustBundle) -> Result<Client, IssueError> {
        let config = client_config(roots)
            .map_err(|error| IssueError::Unreachable(format!("the roots of the CA: {error}")))?;
        let connector = TlsConnector::from(Arc::new(config));
        let (host, port, name) = (self.settings.host.clone(), self.settings.port, self.name.clone());
        let connect = tower::service_fn(move |_| {
            let (connector, host, name) = (connector.clone(), host.clone(), name.clone());
            async move {
                let stream = TcpStream::connect((host.as_str(), port)).await?;
                stream.set_nodelay(true)?;
                Ok::<_, io::Error>(TokioIo::new(connector.connect(name, stream).await?))
            }
        });
        // The URI is what the server sees as authority; the connector goes where the settings say.
        let authority = match self.settings.host.contains(':') {
            true => format!("https://[{}]:{}", self.settings.host, self.settings.port),
            false => format!("https://{}:{}", self.settings.host, self.settings.port),
        };
        let endpoint = Endpoint::try_from(authority)
            .map_err(|error| IssueError::Unreachable(error.to_string()))?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT);
        let channel = endpoint.connect_with_connector_lazy(connect);
        Ok(IstioCertificateServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER))
    }
}

impl Issuer for IstioIssuer {
    fn name(&self) -> &str {
        self.called
    }

    fn issue(&self, csr: Csr) -> IssueFuture<'_> {
        Box::pin(async move { self.ask(&csr).await })
    }

    fn trust(&self) -> Option<watch::Receiver<Arc<TrustBundle>>> {
        self.published.as_ref().map(PublishedRoots::subscribe)
    }
}

fn impersonate(id: &SpiffeId) -> Struct {
    let value = Value { kind: Some(Kind::StringValue(id.to_string())) };
    Struct { fields: BTreeMap::from([("ImpersonatedIdentity".to_owned(), value)]) }
}

type Files = (Result<Option<Token>, IssueError>, Result<TrustBundle, IssueError>);

fn read_files(settings: &IstioSettings) -> Files {
    let token = settings.token_file.as_deref().map(Token::read).transpose();
    let roots = read_file(&settings.root, MAX_ROOTS).and_then(|content| {
        let unusable =
            |text| IssueError::Unreachable(format!("the root file {}: {text}", settings.root.display()));
        TrustBundle::from_pem(&content).map_err(unusable)
    });
    (token, roots)
}

fn read_file(path: &Path, limit: u64) -> Result<Zeroizing<Vec<u8>>, IssueError> {
    files::read(path, limit).map_err(|error| IssueError::Unreachable(format!("cannot read {error}")))
}

fn client_config(roots: &TrustBundle) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots.anchors()?)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// Leaf, intermediates, and as the last element all roots: so says Istio's `ca.proto`. The leaf must be for `id`.
fn read_answer(id: &SpiffeId, answer: &IstioCertificateResponse) -> Result<Issued, IssueError> {
    let unusable = |text: String| IssueError::Unusable(text);
    let elements = &answer.cert_chain;
    let Some((bundle, path)) =
        elements.split_last().filter(|(_, path)| !path.is_empty() && elements.len() <= MAX_ELEMENTS)
    else {
        return Err(unusable(format!("{} elements in the certificate chain", elements.len())));
    };
    let roots = certificates(bundle.as_bytes()).map_err(|text| unusable(format!("its roots: {text}")))?;
    let mut chain = Vec::new();
    for element in path {
        chain.extend(certificates(element.as_bytes()).map_err(&unusable)?);
    }
    chain.retain(|certificate| !roots.contains(certificate));
    let leaf = chain.first().ok_or_else(|| unusable("no certificate but roots".into()))?;
    let found = Leaf::read(leaf).map_err(|fault: Fault| unusable(fault.to_string()))?.id;
    if found != *id {
        return Err(unusable(format!("asked for {id}, got a certificate for {found}")));
    }
    Ok(Issued { chain, roots, key: None })
}

#[cfg(test)]
mod tests;
