//! A client of Istio's certificate service that says what it is told to say, and one that asks as often as it can.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use ambit_proto::istio::auth::{
    IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient,
};
use anyhow::{Context as _, Result};
use hyper_util::rt::TokioIo;
use prost_types::{Struct, Value, value::Kind};
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use serde::{Deserialize, Serialize};
use tokio::{net::TcpStream, runtime, task::JoinSet, time::timeout};
use tokio_rustls::TlsConnector;
use tonic::{
    Request, Status,
    transport::{Channel, Endpoint},
};

use super::IO_LIMIT;

/// How `create-certificate` asks.
#[derive(Clone, Debug, clap::Args)]
pub struct CreateCertificate {
    #[command(flatten)]
    login: Login,
    /// The certificate service.
    #[arg(long)]
    to: SocketAddr,
    /// The lifetime asked for, in seconds.
    #[arg(long, default_value_t = 60, allow_negative_numbers = true)]
    ttl: i64,
}

/// How `issue-load` asks.
#[derive(Clone, Debug, clap::Args)]
pub struct IssueLoad {
    #[command(flatten)]
    login: Login,
    /// The certificate services; every one gets as many calls at a time.
    #[arg(long, required = true)]
    to: Vec<SocketAddr>,
    /// Calls under way at a time at each.
    #[arg(long, default_value_t = 16)]
    concurrency: usize,
    /// For this long, in milliseconds.
    #[arg(long, default_value_t = 5_000)]
    for_ms: u64,
}

#[derive(Clone, Debug, clap::Args)]
struct Login {
    /// The roots that the service's certificate must lead to, PEM.
    #[arg(long)]
    root: PathBuf,
    /// The name that it must bear.
    #[arg(long)]
    server_name: String,
    /// The file with the bearer token; none is sent without it.
    #[arg(long)]
    token: Option<PathBuf>,
    /// The certificate request, PEM.
    #[arg(long)]
    csr: PathBuf,
    /// The identity asked for in the call's metadata.
    #[arg(long)]
    identity: Option<String>,
    /// The cluster that the caller says it is of, as Istio's agents do.
    #[arg(long)]
    cluster_id: Option<String>,
}

/// What a certificate service answered.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// The gRPC code by its name: `Ok`, `PermissionDenied`, …
    pub code: String,
    /// What it says beside the code.
    pub message: String,
    /// PEM: leaf, intermediates, all roots.
    pub chain: Vec<String>,
}

/// What came of asking as often as possible.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Issued {
    /// Certificates got.
    pub issued: u64,
    /// Calls that gave none.
    pub failed: u64,
    /// One of the failures.
    pub error: Option<String>,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// Half of the calls took at most this long, in microseconds.
    pub p50_us: u64,
    /// 99 % of the calls took at most this long, in microseconds.
    pub p99_us: u64,
}

impl Issued {
    /// Certificates a second.
    pub fn per_second(&self) -> f64 {
        self.issued as f64 * 1000.0 / (self.took_ms.max(1) as f64)
    }
}

pub(super) fn create(how: &CreateCertificate) -> Result<Answer> {
    let work = async {
        let mut client = connect(how.to, &how.login.root, &how.login.server_name)?;
        let request = how.login.request(how.ttl)?;
        let answered = timeout(IO_LIMIT, client.create_certificate(request)).await.context("no answer")?;
        Ok(match answered {
            Ok(answer) => Answer {
                code: "Ok".to_owned(),
                message: String::new(),
                chain: answer.into_inner().cert_chain,
            },
            Err(status) => Answer {
                code: format!("{:?}", status.code()),
                message: with_causes(&status),
                chain: Vec::new(),
            },
        })
    };
    runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

pub(super) fn load(how: &IssueLoad) -> Result<Issued> {
    runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let start = Instant::now();
        let end = start + Duration::from_millis(how.for_ms);
        let mut asking = JoinSet::new();
        for to in &how.to {
            // One connection would be one task at the server.
            for _ in 0..how.concurrency {
                let client = connect(*to, &how.login.root, &how.login.server_name)?;
                asking.spawn(ask_until(end, client, how.login.clone()));
            }
        }
        let (mut total, mut took) = (Issued::default(), Vec::new());
        while let Some(asked) = asking.join_next().await {
            let (part, times) = asked??;
            total.issued += part.issued;
            total.failed += part.failed;
            total.error = total.error.or(part.error);
            took.extend(times);
        }
        total.took_ms = start.elapsed().as_millis().try_into()?;
        took.sort_unstable();
        let at = |share: f64| took.get((took.len() as f64 * share) as usize).copied().unwrap_or(0);
        (total.p50_us, total.p99_us) = (at(0.5), at(0.99));
        Ok(total)
    })
}

async fn ask_until(end: Instant, mut client: Client, login: Login) -> Result<(Issued, Vec<u64>)> {
    let (mut part, mut took) = (Issued::default(), Vec::new());
    while Instant::now() < end {
        let request = login.request(600)?;
        let start = Instant::now();
        match timeout(IO_LIMIT, client.create_certificate(request)).await.context("no answer")? {
            Ok(_) => part.issued += 1,
            Err(status) => {
                part.failed += 1;
                part.error = Some(with_causes(&status));
            }
        }
        took.push(start.elapsed().as_micros().try_into()?);
    }
    Ok((part, took))
}

impl Login {
    fn request(&self, ttl: i64) -> Result<Request<IstioCertificateRequest>> {
        let metadata = self.identity.as_ref().map(|identity| {
            let value = Value { kind: Some(Kind::StringValue(identity.clone())) };
            Struct { fields: BTreeMap::from([("ImpersonatedIdentity".to_owned(), value)]) }
        });
        let csr = fs::read_to_string(&self.csr).with_context(|| self.csr.display().to_string())?;
        let mut request = Request::new(IstioCertificateRequest { csr, validity_duration: ttl, metadata });
        if let Some(file) = &self.token {
            let token = fs::read_to_string(file).with_context(|| file.display().to_string())?;
            let header = format!("Bearer {}", token.trim()).parse().context("a token that is no header")?;
            request.metadata_mut().insert("authorization", header);
        }
        if let Some(cluster) = &self.cluster_id {
            request
                .metadata_mut()
                .insert("clusterid", cluster.parse().context("a cluster that is no header")?);
        }
        Ok(request)
    }
}

type Client = IstioCertificateServiceClient<Channel>;

/// A client that connects when it is first used.
fn connect(to: SocketAddr, root: &Path, server_name: &str) -> Result<Client> {
    let connector = TlsConnector::from(Arc::new(trusting(root)?));
    let name = ServerName::try_from(server_name.to_owned())?;
    let dial = tower::service_fn(move |_| {
        let (connector, name) = (connector.clone(), name.clone());
        async move {
            let stream = TcpStream::connect(to).await?;
            stream.set_nodelay(true)?;
            Ok::<_, std::io::Error>(TokioIo::new(connector.connect(name, stream).await?))
        }
    });
    let endpoint = Endpoint::try_from(format!("https://{to}"))?.connect_timeout(Duration::from_secs(5));
    Ok(IstioCertificateServiceClient::new(endpoint.connect_with_connector_lazy(dial)))
}

/// TLS for gRPC with a server whose certificate leads to the roots in a file.
pub(super) fn trusting(root: &Path) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(root).with_context(|| root.display().to_string())? {
        roots.add(certificate?)?;
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

fn with_causes(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
