//! The CA that signs, and the TLS face of the service that follows from it: reloaded when the files change, the serving
//! certificate renewed at half-life.
//!
//! Promises that what was good stays in force until something good takes its place. Leaves to `identity` what a CA is.

use std::{
    fs,
    io::ErrorKind,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use ambit_core::model::TrustDomain;
use arc_swap::ArcSwap;
use rcgen::SanType;
use rustls::{
    RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};

use super::{CaServiceError, CaSource, metrics::CaMetrics};
use crate::identity::{BuiltinCa, Clock};

/// Lifetime of the service's own certificate.
const SERVING_TTL: Duration = Duration::from_secs(24 * 3600);

/// What signs now.
pub(crate) struct Authority {
    source: CaSource,
    trust_domain: TrustDomain,
    names: Vec<SanType>,
    clock: Arc<dyn Clock>,
    ca: ArcSwap<BuiltinCa>,
    tls: ArcSwap<Tls>,
    files: Mutex<Files>,
}

struct Tls {
    config: Arc<ServerConfig>,
    renew_at: SystemTime,
}

struct Files {
    stamp: Stamp,
    problem: Option<String>,
}

/// What tells one state of the four files from another: for each its device, inode, size and change time.
type Stamp = Vec<Option<(u64, u64, u64, i64, i64)>>;

impl Authority {
    /// Loads the CA, or makes it where it is our own and there is none. Blocks.
    pub(crate) fn open(
        source: CaSource,
        trust_domain: TrustDomain,
        names: Vec<SanType>,
        clock: Arc<dyn Clock>,
        metrics: &CaMetrics,
    ) -> Result<Self, CaServiceError> {
        let ca = match &source {
            CaSource::Own(dir) => BuiltinCa::open(dir, trust_domain.clone(), clock.clone()),
            CaSource::PluggedIn(dir) => BuiltinCa::open_plugged_in(dir, trust_domain.clone(), clock.clone()),
        }?;
        let files = Files { stamp: stamp(source.dir()), problem: None };
        let tls = serving(&ca, &names, clock.now())?;
        report(&ca, metrics);
        Ok(Self {
            source,
            trust_domain,
            names,
            clock,
            ca: ArcSwap::from_pointee(ca),
            tls: ArcSwap::from_pointee(tls),
            files: Mutex::new(files),
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

    /// Takes over changed files and renews the serving certificate when it is time. Blocks.
    pub(crate) fn refresh(&self, metrics: &CaMetrics) {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        // Taken before the files are read: what changes in between is seen as a change again.
        let stamp = stamp(self.source.dir());
        if stamp != files.stamp || files.problem.is_some() {
            match self.reload() {
                Ok((ca, tls)) => {
                    if *ca.roots() != *self.ca.load().roots() || ca.not_after() != self.ca.load().not_after()
                    {
                        tracing::info!(dir = %self.source.dir().display(), roots = ca.roots().len(), "CA reloaded");
                    }
                    report(&ca, metrics);
                    self.ca.store(Arc::new(ca));
                    self.tls.store(Arc::new(tls));
                    *files = Files { stamp, problem: None };
                }
                Err(error) => {
                    let problem = chain(&error);
                    if stamp != files.stamp {
                        metrics.reload_failed();
                    }
                    if files.problem.as_ref() != Some(&problem) {
                        tracing::error!(
                            error = problem,
                            "the CA's files cannot be used; the last good CA stays in force"
                        );
                    }
                    *files = Files { stamp, problem: Some(problem) };
                }
            }
        }
        drop(files);
        let now = self.clock.now();
        if now >= self.tls.load().renew_at && self.can_sign() {
            match serving(&self.ca.load(), &self.names, now) {
                Ok(tls) => self.tls.store(Arc::new(tls)),
                Err(error) => tracing::error!(%error, "the certificate of the service could not be renewed"),
            }
        }
    }

    fn reload(&self) -> Result<(BuiltinCa, Tls), CaServiceError> {
        // Never makes one: files that are gone at this point are being exchanged, or lost.
        let ca =
            BuiltinCa::open_plugged_in(self.source.dir(), self.trust_domain.clone(), self.clock.clone())?;
        let tls = serving(&ca, &self.names, self.clock.now())?;
        Ok((ca, tls))
    }
}

impl CaSource {
    fn dir(&self) -> &Path {
        match self {
            Self::Own(dir) | Self::PluggedIn(dir) => dir,
        }
    }
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", chain(cause)),
        None => error.to_string(),
    }
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
