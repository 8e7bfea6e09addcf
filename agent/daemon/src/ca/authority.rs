//! The CA that signs, and the TLS face of the service that follows from it: taken over when it changes where it is kept, the
//! serving certificate renewed at half-life.
//!
//! Promises that what was good stays in force until something good takes its place. Leaves to `identity` what a CA is.

use std::{
    fs,
    io::ErrorKind,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use ambit_core::model::TrustDomain;
use arc_swap::ArcSwap;
use rcgen::SanType;
use rustls::{
    RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};
use tokio::task::spawn_blocking;

use super::{
    CaServiceError, CaSource,
    kubernetes::{Cluster, RootConfigMap, RootSecret},
    metrics::CaMetrics,
};
use crate::identity::{BuiltinCa, CaError, Clock, with_causes};

/// Lifetime of the service's own certificate.
const SERVING_TTL: Duration = Duration::from_secs(24 * 3600);
/// How often a Secret is read, and the roots are published, again.
const API_POLL: Duration = Duration::from_secs(10);

/// What signs now.
pub(crate) struct Authority {
    store: Store,
    published: Option<RootConfigMap>,
    /// When the API is asked again.
    next: Mutex<Instant>,
    trust_domain: TrustDomain,
    names: Vec<SanType>,
    clock: Arc<dyn Clock>,
    ca: ArcSwap<BuiltinCa>,
    tls: ArcSwap<Tls>,
    /// Why what is kept now is not what signs.
    problem: Mutex<Option<String>>,
}

struct Tls {
    config: Arc<ServerConfig>,
    renew_at: SystemTime,
}

/// Where the CA is kept, and what is known of that.
enum Store {
    Folder { dir: PathBuf, seen: Mutex<Stamp> },
    Secret(Box<RootSecret>),
}

/// What tells one state of the files from another: for each its device, inode, size and change time.
type Stamp = Vec<Option<(u64, u64, u64, i64, i64)>>;

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
        metrics: &CaMetrics,
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
        report(&ca, metrics);
        Ok(Self {
            store,
            published,
            next: Mutex::new(Instant::now() + API_POLL),
            trust_domain,
            names,
            clock,
            ca: ArcSwap::from_pointee(ca),
            tls: ArcSwap::from_pointee(tls),
            problem: Mutex::default(),
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

    /// Takes over a changed CA and renews the serving certificate when it is time.
    pub(crate) async fn refresh(self: &Arc<Self>, metrics: &CaMetrics) -> Result<(), CaServiceError> {
        let due = self.is_due();
        match &self.store {
            Store::Folder { .. } => {
                let (authority, metrics) = (self.clone(), metrics.clone());
                let look = spawn_blocking(move || authority.look_at_folder(&metrics));
                look.await.map_err(|_| CaServiceError::Internal)?;
            }
            Store::Secret(secret) if due => self.look_at_secret(secret, metrics).await,
            Store::Secret(_) => {}
        }
        if let Some(map) = self.published.as_ref().filter(|_| due)
            && let Err(error) = map.publish(&self.ca.load().roots_pem()).await
        {
            tracing::warn!(%error, "the roots could not be published");
        }
        let now = self.clock.now();
        if now >= self.tls.load().renew_at && self.can_sign() {
            match serving(&self.ca.load(), &self.names, now) {
                Ok(tls) => self.tls.store(Arc::new(tls)),
                Err(error) => tracing::error!(%error, "the certificate of the service could not be renewed"),
            }
        }
        Ok(())
    }

    fn look_at_folder(&self, metrics: &CaMetrics) {
        let Store::Folder { dir, seen } = &self.store else { return };
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        // Taken before the files are read: what changes in between is seen as a change again.
        let stamp = stamp(dir);
        if stamp != *seen || self.problem().is_some() {
            *seen = stamp;
            // Never makes one: files that are gone at this point are being exchanged, or lost.
            let ca = BuiltinCa::open_plugged_in(dir, self.trust_domain.clone(), self.clock.clone());
            self.take(ca.map_err(CaServiceError::from), metrics);
        }
    }

    async fn look_at_secret(&self, secret: &RootSecret, metrics: &CaMetrics) {
        let read = secret.read().await.map_err(CaServiceError::from).and_then(|files| {
            Ok(BuiltinCa::read(&secret.place(), &files, self.trust_domain.clone(), self.clock.clone())?)
        });
        self.take(read, metrics);
    }

    /// Whether it is time to ask the API again; not another time then.
    fn is_due(&self) -> bool {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let due = Instant::now() >= *next;
        if due {
            *next = Instant::now() + API_POLL;
        }
        due
    }

    /// Makes `fresh` what signs, if it can.
    fn take(&self, fresh: Result<BuiltinCa, CaServiceError>, metrics: &CaMetrics) {
        let fresh = fresh.and_then(|ca| {
            let same = ca.is_same_as(&self.ca.load());
            let tls = if same { None } else { Some(serving(&ca, &self.names, self.clock.now())?) };
            Ok((ca, tls))
        });
        let mut problem = self.problem();
        match fresh {
            Ok((ca, tls)) => {
                if let Some(tls) = tls {
                    tracing::info!(from = %self.store, roots = ca.roots().len(), "CA reloaded");
                    report(&ca, metrics);
                    self.ca.store(Arc::new(ca));
                    self.tls.store(Arc::new(tls));
                }
                *problem = None;
            }
            Err(error) => {
                let text = with_causes(&error);
                if problem.as_ref() != Some(&text) {
                    metrics.reload_failed();
                    let from = &self.store;
                    tracing::error!(%from, error = text, "the CA there cannot be used; the last good one stays in force");
                }
                *problem = Some(text);
            }
        }
    }

    fn problem(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner)
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
        let ca = open(&dir, trust_domain, clock)?;
        let seen = Mutex::new(stamp(&dir));
        Ok((Store::Folder { dir, seen }, ca))
    });
    opening.await.map_err(|_| CaServiceError::Internal)?
}

fn report(ca: &BuiltinCa, metrics: &CaMetrics) {
    metrics.ca(ca.not_after(), &ca.root_standings());
}

/// Issues the service's own certificate, and makes the configuration that offers it and takes client certificates of the
/// mesh, where clients have any.
fn serving(ca: &BuiltinCa, names: &[SanType], now: SystemTime) -> Result<Tls, CaServiceError> {
    let certificate = ca.sign_server(names.to_vec(), SERVING_TTL).map_err(CaServiceError::Serving)?;
    let mut roots = RootCertStore::empty();
    for root in ca.roots() {
        roots.add(root.clone()).map_err(CaServiceError::Tls)?;
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|error| CaServiceError::Clients(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(CaServiceError::Tls)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificate.chain, certificate.key.der().clone_key())
        .map_err(CaServiceError::Tls)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session would outlive what its client certificate was verified against.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    let lifetime = certificate.not_after.duration_since(now).unwrap_or_default();
    Ok(Tls { config: Arc::new(config), renew_at: now + lifetime / 2 })
}

fn stamp(dir: &Path) -> Stamp {
    let look = |name: &str| match fs::metadata(dir.join(name)) {
        Ok(file) => Some((file.dev(), file.ino(), file.size(), file.ctime(), file.ctime_nsec())),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(_) => Some(Default::default()),
    };
    BuiltinCa::FILES.iter().map(|name| look(name)).collect()
}
