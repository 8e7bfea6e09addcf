//! The built-in CA as it changes on disk: a new signer, roots added and removed.
//!
//! Promises that files that do not fit together change nothing, and that a root is never dropped while the CA still
//! signs under it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use ambit_core::model::TrustDomain;
use arc_swap::ArcSwap;
use tokio::{
    sync::watch,
    task::{AbortHandle, spawn_blocking},
};
use tracing::{error, info};

use super::{
    BuiltinCa, CaError,
    files::{self, CA_CERT, CA_KEY, CERT_CHAIN, ROOT_CERT},
};
use crate::{
    error::with_causes,
    files::Watched,
    identity::{Clock, Csr, IssueFuture, Issuer, TrustBundle},
};

/// A [`BuiltinCa`] that follows its directory for as long as it lives.
pub(crate) struct LiveCa {
    shared: Arc<Shared>,
    watcher: AbortHandle,
}

struct Shared {
    dir: PathBuf,
    trust_domain: TrustDomain,
    clock: Arc<dyn Clock>,
    ca: ArcSwap<BuiltinCa>,
    trust: watch::Sender<Arc<TrustBundle>>,
}

impl LiveCa {
    /// Opens the CA in `dir` as [`BuiltinCa::open`] does, and watches its files from then on. `root-cert.pem` may hold
    /// several roots. Must be called in a tokio runtime.
    pub(crate) async fn open(
        dir: &Path,
        trust_domain: TrustDomain,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, CaError> {
        let (path, domain, time) = (dir.to_owned(), trust_domain.clone(), clock.clone());
        let opening = spawn_blocking(move || {
            let watched = Watched::new([CA_CERT, CA_KEY, CERT_CHAIN, ROOT_CERT].map(|name| path.join(name)));
            BuiltinCa::open(&path, domain, time).map(|ca| (ca, watched))
        });
        let (ca, watched) = match opening.await {
            Ok(opened) => opened?,
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        };
        let trust = watch::Sender::new(Arc::new(ca.trust()));
        let shared =
            Shared { dir: dir.to_owned(), trust_domain, clock, ca: ArcSwap::from_pointee(ca), trust };
        let shared = Arc::new(shared);
        let (reader, path) = (shared.clone(), dir.to_owned());
        let following = watched.follow(
            move || reader.reload(),
            move |problem| error!(dir = %path.display(), error = problem, "the CA has changed and cannot be used; the one read before stays in use"),
        );
        let watcher = tokio::spawn(following).abort_handle();
        Ok(Self { shared, watcher })
    }
}

impl Issuer for LiveCa {
    fn name(&self) -> &str {
        "builtin"
    }

    fn issue(&self, csr: Csr) -> IssueFuture<'_> {
        let signed = self.shared.ca.load().answer(&csr);
        Box::pin(std::future::ready(signed))
    }

    fn trust(&self) -> Option<watch::Receiver<Arc<TrustBundle>>> {
        Some(self.shared.trust.subscribe())
    }
}

impl Drop for LiveCa {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

impl Shared {
    /// Takes the files into use, if they are of any; else says why not.
    fn reload(&self) -> Result<(), String> {
        let dir = &self.dir;
        let gone = || CaError::Incomplete { dir: dir.clone(), missing: "all files".into() };
        let ca = files::open(dir, || Err(gone()))
            .and_then(|files| BuiltinCa::read(dir, &files, self.trust_domain.clone(), self.clock.clone()))
            .map_err(|problem| with_causes(&problem))?;
        let trust = ca.trust();
        info!(dir = %dir.display(), roots = trust.roots.len(), "the CA was read again");
        // Whoever is signed for from here on must find the bundle that goes with it.
        self.trust.send_if_modified(|now| {
            let differs = **now != trust;
            if differs {
                *now = Arc::new(trust);
            }
            differs
        });
        self.ca.store(Arc::new(ca));
        Ok(())
    }
}
