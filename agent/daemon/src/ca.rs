//! The CA service: Istio's certificate service (`security/v1alpha1/ca.proto` in istio/api) over TLS.
//!
//! Promises that a caller gets only certificates for identities that run on its node, that every issue and refusal is in
//! the audit log, and that several processes can serve one directory: nothing is kept between requests but rate limits.
//! Leaves to `identity` how a certificate is made, and to its clients when.

mod authority;
mod callers;
mod clients;
mod kubernetes;
mod limits;
mod metrics;
mod refusal;
mod server;
mod service;
mod standing;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use ambit_core::model::TrustDomain;
use rcgen::SanType;
use tokio::{net::TcpListener, task::spawn_blocking, time::sleep};

use self::{
    authority::Authority,
    callers::Callers,
    kubernetes::{Cluster, ObjectError},
    limits::Limits,
    server::Patience,
    service::Service,
};
use crate::{
    cluster::ClusterError,
    identity::{CaError, Clock, IssueError},
    instance::Readiness,
};

pub(crate) use kubernetes::KubernetesSettings;
pub(crate) use metrics::CaMetrics;

/// How often it is looked whether the CA's own certificate holds.
const TICK: Duration = Duration::from_secs(1);

/// Everything that the CA service is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CaSettings {
    /// Where to serve.
    pub(crate) listen: SocketAddr,
    /// The CA.
    pub(crate) source: CaSource,
    /// Namespace and name of the ConfigMap in which its roots are published.
    pub(crate) publish: Option<(String, String)>,
    /// The trust domain whose identities are signed.
    pub(crate) trust_domain: TrustDomain,
    /// The longest lifetime signed; longer ones are refused.
    pub(crate) max_ttl: Duration,
    /// The names in the service's own certificate.
    pub(crate) names: Vec<SanType>,
    /// The file of callers.
    pub(crate) token_file: Option<PathBuf>,
    /// The cluster whose service accounts are callers.
    pub(crate) kubernetes: Option<KubernetesSettings>,
    /// Certificates a second for one caller; ten seconds' worth may come at once.
    pub(crate) rate: u32,
}

/// Where the CA is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CaSource {
    /// A directory of our own; a self-signed CA is made in it on first use.
    Own(PathBuf),
    /// A CA that somebody else keeps there, as Istio's `cacerts` (Istio's documentation, "Plug in CA Certificates").
    PluggedIn(PathBuf),
    /// A Secret of the cluster; a self-signed CA is made there on first use.
    Secret {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
}

/// Why the CA service cannot run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CaServiceError {
    /// There is no usable CA.
    #[error("no usable CA")]
    Ca(#[from] CaError),
    /// The Secret of the CA cannot be used.
    #[error("no usable CA")]
    Object(#[from] ObjectError),
    /// A Secret, but no cluster.
    #[error("a CA in a Secret needs a cluster: run in a pod, or pass --kubeconfig")]
    NoCluster,
    /// The cluster cannot be asked.
    #[error("cannot use the cluster")]
    Cluster(#[from] ClusterError),
    /// The file of callers cannot be used.
    #[error("the file of callers {path}: {problem}")]
    Callers {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and where.
        problem: String,
    },
    /// The service could not give itself a certificate.
    #[error("no certificate for the service itself")]
    Serving(#[source] IssueError),
    /// TLS cannot be set up with this CA.
    #[error("TLS cannot be set up")]
    Tls(#[source] rustls::Error),
    /// The roots are of no use to verify clients with.
    #[error("client certificates cannot be verified: {0}")]
    Clients(String),
    /// The address cannot be listened on.
    #[error("cannot listen on --listen {addr}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The server stopped by itself.
    #[error("the certificate server failed")]
    Server(#[source] tonic::transport::Error),
    /// A task panicked.
    #[error("the CA service failed internally")]
    Internal,
}

/// The CA service, ready to serve.
pub(crate) struct Ca {
    listener: TcpListener,
    authority: Arc<Authority>,
    callers: Arc<Callers>,
    service: Service,
    metrics: CaMetrics,
    readiness: Readiness,
    patience: Patience,
}

impl Ca {
    /// Loads the CA and the callers and listens. What is wrong at this point is an error; later, the last good CA and
    /// callers stay in force.
    pub(crate) async fn open(
        settings: CaSettings,
        clock: Arc<dyn Clock>,
        readiness: Readiness,
    ) -> Result<Self, CaServiceError> {
        let starting = readiness.gate("ca");
        let metrics = CaMetrics::new();
        let addr = settings.listen;
        let (rate, max_ttl) = (settings.rate, settings.max_ttl);
        let cluster = match settings.kubernetes {
            Some(cluster) => Some(Arc::new(Cluster::new(cluster).await?)),
            None => None,
        };
        let (domain, names) = (settings.trust_domain.clone(), settings.names);
        let authority = Authority::open(
            settings.source,
            settings.publish,
            cluster.as_deref(),
            domain,
            names,
            clock,
            metrics.clone(),
        )
        .await?;
        let open = spawn_blocking(move || {
            Callers::open(settings.token_file.as_deref(), cluster, &settings.trust_domain)
        });
        let callers = open.await.map_err(|_| CaServiceError::Internal)??;
        let (authority, callers) = (Arc::new(authority), Arc::new(callers));
        let listener =
            TcpListener::bind(addr).await.map_err(|source| CaServiceError::Listen { addr, source })?;
        let service =
            Service::new(authority.clone(), callers.clone(), Limits::new(rate), max_ttl, metrics.clone());
        drop(starting);
        Ok(Self { listener, authority, callers, service, metrics, readiness, patience: Patience::default() })
    }

    /// The metrics of this service.
    pub(crate) fn metrics(&self) -> CaMetrics {
        self.metrics.clone()
    }

    /// Where it listens.
    #[cfg(test)]
    pub(crate) fn addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `shutdown`, then lets requests under way end.
    pub(crate) async fn serve(
        self,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), CaServiceError> {
        let Self { listener, authority, callers, service, metrics, readiness, patience } = self;
        let following = async {
            let expiry = watch_expiry(&authority, &readiness);
            tokio::join!(authority.clone().follow(), callers.follow(), expiry);
        };
        tokio::select! {
            served = server::serve(listener, authority.clone(), service, metrics, patience, shutdown) => served,
            // The runtime ends.
            () = following => Ok(()),
        }
    }
}

/// Is not ready while the CA's own certificate has expired. Never ends.
async fn watch_expiry(authority: &Authority, readiness: &Readiness) {
    let mut expired = None;
    loop {
        if authority.can_sign() {
            expired = None;
        } else if expired.is_none() {
            tracing::error!("the CA certificate has expired; nothing is signed until it is replaced");
            expired = Some(readiness.gate("CA certificate expired"));
        }
        sleep(TICK).await;
    }
}

#[cfg(test)]
mod tests;
