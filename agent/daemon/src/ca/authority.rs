//! The CA that signs, and the TLS face of the service that follows from it: taken over when it changes where it is kept, the
//! serving certificate renewed at half-life.
//!
//! Promises that what was good stays in force until something good takes its place. Leaves to `identity` what a CA is.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use ambit_core::model::TrustDomain;
use arc_swap::ArcSwap;
use rcgen::SanType;
use rustls::{ServerConfig, crypto::aws_lc_rs, server::NoServerSessionStorage};
use tokio::{
    sync::Notify,
    task::spawn_blocking,
    time::{sleep, timeout},
};

use super::{
    CaServiceError, CaSource,
    clients::Clients,
    kubernetes::{Cluster, RootConfigMap, RootSecret},
    metrics::CaMetrics,
};
use crate::{
    error::with_causes,
    files::Watched,
    identity::{BuiltinCa, CaError, Clock},
};

/// Lifetime of the service's own certificate.
const SERVING_TTL: Duration = Duration::from_secs(24 * 3600);
/// How often a Secret is read again: a root that is withdrawn there must be out within seconds.
const SECRET_POLL: Duration = Duration::from_secs(2);
/// How often the roots are published again, in case that somebody else has written there.
const PUBLISH: Duration = Duration::from_secs(10);
/// After roots could not be published.
const PUBLISH_RETRY: Duration = Duration::from_secs(1);
/// How often it is looked whether the serving certificate is to be renewed.
const SERVING_LOOK: Duration = Duration::from_secs(1);

/// What signs now.
pub(crate) struct Authority {
    store: Store,
    published: Option<RootConfigMap>,
    /// There are roots to publish.
    changed: Notify,
    trust_domain: TrustDomain,
    names: Vec<SanType>,
    clock: Arc<dyn Clock>,
    ca: ArcSwap<BuiltinCa>,
    tls: ArcSwap<Tls>,
    metrics: CaMetrics,
}

struct Tls {
    config: Arc<ServerConfig>,
    renew_at: SystemTime,
}

/// Where the CA is kept.
enum Store {
    Folder { dir: PathBuf, files: Watched },
    Secret(Box<RootSecret>),
}

impl Authority {
    /// Loads the CA, or makes it where it is our own and there is none; its roots go to the ConfigMap with the namespace and
    /// name `publish`. `cluster` is where objects are.
    pub(crate) async fn open(
        source: CaSource,
        publish: Option<(String, String)>,
        cluster: Option<&Cluster>,
        trust_domain: TrustDomain,
        names: Vec<SanType>,
        clock: Arc<dyn Clock>,
        metrics: CaMetrics,
    ) -> Result<Self, CaServiceError> {
        let (store, ca) = match source {
            CaSource::Own(dir) => folder(dir, trust_domain.clone(), clock.clone(), BuiltinCa::open).await?,
            CaSource::PluggedIn(dir) => {
                folder(dir, trust_domain.clone(), clock.clone(), BuiltinCa::open_plugged_in).await?
            }
            CaSource::Secret { namespace, name } => {
                let secret = cluster.ok_or(CaServiceError::NoCluster)?.root_secret(&namespace, &name);
                let place = secret.place();
                let files = secret.open(|| BuiltinCa::make(&place, &trust_domain, clock.now())).await?;
                let ca = BuiltinCa::read(&place, &files, trust_domain.clone(), clock.clone())?;
                (Store::Secret(Box::new(secret)), ca)
            }
        };
        let published = match publish {
            Some((namespace, name)) => {
                let map = cluster.ok_or(CaServiceError::NoCluster)?.root_config_map(&namespace, &name);
                map.publish(&ca.roots_pem()).await?;
                Some(map)
            }
            None => None,
        };
        let tls = serving(&ca, &names, clock.now())?;
        metrics.ca(ca.not_after(), &ca.root_standings());
        Ok(Self {
            store,
            published,
            changed: Notify::new(),
            trust_domain,
            names,
            clock,
            ca: ArcSwap::from_pointee(ca),
            tls: ArcSwap::from_pointee(tls),
            metrics,
        })
    }

    /// The CA that signs now.
    pub(crate) fn ca(&self) -> Arc<BuiltinCa> {
        self.ca.load_full()
    }

    /// What new connections are accepted with.
    pub(crate) fn tls(&self) -> Arc<ServerConfig> {
        self.tls.load().config.clone()
    }

    /// Whether the CA's own certificate is valid still.
    pub(crate) fn can_sign(&self) -> bool {
        self.ca.load().not_after() > self.clock.now()
    }

    /// Takes over a changed CA, keeps the roots published, and renews the serving certificate when it is time. Never ends.
    pub(crate) async fn follow(self: Arc<Self>) {
        tokio::join!(self.follow_store(), self.follow_published(), self.follow_serving());
    }

    async fn follow_store(self: &Arc<Self>) {
        let complain = |problem: &str| {
            self.metrics.reload_failed();
            let from = &self.store;
            tracing::error!(%from, error = problem, "the CA there cannot be used; the last good one stays in force");
        };
        match &self.store {
            Store::Folder { dir, files } => {
                let (authority, dir) = (self.clone(), dir.clone());
                let take = move || {
                    // Never makes one: files that are gone at this point are being exchanged, or lost.
                    let (domain, clock) = (authority.trust_domain.clone(), authority.clock.clone());
                    let ca = BuiltinCa::open_plugged_in(&dir, domain, clock).map_err(CaServiceError::from);
                    ca.and_then(|ca| authority.take(ca)).map_err(|error| with_causes(&error))
                };
                files.clone().follow(take, complain).await;
            }
            Store::Secret(secret) => {
                let mut told = None;
                loop {
                    sleep(SECRET_POLL).await;
                    let problem = self.read(secret).await.err().map(|error| with_causes(&error));
                    if let Some(problem) = problem.as_ref().filter(|problem| told.as_ref() != Some(*problem))
                    {
                        complain(problem);
                    }
                    told = problem;
                }
            }
        }
    }

    async fn follow_published(&self) {
        let Some(map) = &self.published else { return };
        let mut told = None;
        loop {
            // At once when they have changed.
            let pause = if told.is_none() { PUBLISH } else { PUBLISH_RETRY };
            let _unchanged = timeout(pause, self.changed.notified()).await;
            let problem = self.publish(map).await.err().map(|error| with_causes(&error));
            if let Some(error) = problem.as_ref().filter(|problem| told.as_ref() != Some(*problem)) {
                tracing::warn!(error, "the roots could not be published");
            }
            told = problem;
        }
    }

    /// Another replica may have read a change already: what it has published must not be undone by what was read before.
    async fn publish(&self, map: &RootConfigMap) -> Result<(), CaServiceError> {
        if let Store::Secret(secret) = &self.store {
            self.read(secret).await?;
        }
        Ok(map.publish(&self.ca().roots_pem()).await?)
    }

    async fn follow_serving(&self) {
        loop {
            sleep(SERVING_LOOK).await;
            let now = self.clock.now();
            if now < self.tls.load().renew_at || !self.can_sign() {
                continue;
            }
            match serving(&self.ca(), &self.names, now) {
                Ok(tls) => self.tls.store(Arc::new(tls)),
                Err(error) => tracing::error!(%error, "the certificate of the service could not be renewed"),
            }
        }
    }

    async fn read(&self, secret: &RootSecret) -> Result<(), CaServiceError> {
        let files = secret.read().await?;
        self.take(BuiltinCa::read(&secret.place(), &files, self.trust_domain.clone(), self.clock.clone())?)
    }

    /// Makes `ca` what signs, if it is another one and can.
    fn take(&self, ca: BuiltinCa) -> Result<(), CaServiceError> {
        if ca.is_same_as(&self.ca()) {
            return Ok(());
        }
        let tls = serving(&ca, &self.names, self.clock.now())?;
        tracing::info!(from = %self.store, roots = ca.roots().len(), "CA reloaded");
        self.metrics.ca(ca.not_after(), &ca.root_standings());
        self.ca.store(Arc::new(ca));
        self.tls.store(Arc::new(tls));
        self.changed.notify_one();
        Ok(())
    }
}

impl std::fmt::Display for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Folder { dir, .. } => dir.display().fmt(f),
            Self::Secret(secret) => secret.place().display().fmt(f),
        }
    }
}

/// A way to open the CA in a folder.
type Open = fn(&Path, TrustDomain, Arc<dyn Clock>) -> Result<BuiltinCa, CaError>;

async fn folder(
    dir: PathBuf,
    trust_domain: TrustDomain,
    clock: Arc<dyn Clock>,
    open: Open,
) -> Result<(Store, BuiltinCa), CaServiceError> {
    let opening = spawn_blocking(move || {
        let files = Watched::new(BuiltinCa::FILES.map(|name| dir.join(name)));
        let ca = open(&dir, trust_domain, clock)?;
        Ok((Store::Folder { dir, files }, ca))
    });
    opening.await.map_err(|_| CaServiceError::Internal)?
}

/// Issues the service's own certificate, and makes the configuration that offers it and takes client certificates of the
/// mesh, where clients have any.
fn serving(ca: &BuiltinCa, names: &[SanType], now: SystemTime) -> Result<Tls, CaServiceError> {
    let certificate = ca.sign_server(names.to_vec(), SERVING_TTL).map_err(CaServiceError::Serving)?;
    let roots = ca.trust().anchors().map_err(CaServiceError::Tls)?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let clients =
        Clients::new(roots, provider.clone()).map_err(|error| CaServiceError::Clients(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(CaServiceError::Tls)?
        .with_client_cert_verifier(Arc::new(clients))
        .with_single_cert(certificate.chain, certificate.key.der().clone_key())
        .map_err(CaServiceError::Tls)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session would outlive what its client certificate was verified against.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    let lifetime = certificate.not_after.duration_since(now).unwrap_or_default();
    Ok(Tls { config: Arc::new(config), renew_at: now + lifetime / 2 })
}
