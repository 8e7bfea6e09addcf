//! Keeps the roots of foreign trust domains in force: those of `--trust-bundle`, one file for each, and those that the issuer
//! federates with.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

use ambit_core::model::TrustDomain;
use anyhow::Context as _;
use rustls_pki_types::CertificateDer;
use tokio::{sync::watch, task::spawn_blocking};
use tracing::{error, info, warn};

use crate::{
    files::{self, ReadError, Watched},
    identity::{Foreign, certificates},
    tunnel::Wallet,
};

/// A larger file is not read.
const MAX_FILE: u64 = 1024 * 1024;

/// Reads the roots of `domain` and returns what keeps following them. While there is no file nobody of that domain is
/// believed; one that is there and cannot be used is an error. Later, what cannot be used leaves the roots before it in
/// force.
pub(super) async fn follow(
    domain: TrustDomain,
    path: PathBuf,
    wallet: Wallet,
) -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
    let (first, watched) = {
        let path = path.clone();
        spawn_blocking(move || {
            let watched = Watched::new([path.clone()]);
            (path.exists().then(|| read(&path)).transpose(), watched)
        })
        .await?
    };
    let told = || format!("--trust-bundle {domain}={}", path.display());
    match first.with_context(told)? {
        Some(roots) => take(&domain, &path, &roots, &wallet).with_context(told)?,
        None => {
            warn!(%domain, file = %path.display(), "there is no file of roots yet; nobody of that trust domain is believed");
        }
    }
    let (file, foreign) = (path.clone(), domain.clone());
    let again = move || {
        let taken = read(&file).and_then(|roots| take(&foreign, &file, &roots, &wallet));
        taken.map_err(|problem| format!("{problem:#}"))
    };
    Ok(watched.follow(again, move |problem| {
        error!(%domain, file = %path.display(), error = problem, "the roots cannot be used; those read before stay in force");
    }))
}

/// Follows the bundles of the trust domains that the issuer federates with, for ever. Those that are `kept` are not its to say:
/// our own, and those that the operator gave roots for.
pub(super) async fn follow_issuer(
    mut foreign: watch::Receiver<Foreign>,
    kept: HashSet<TrustDomain>,
    wallet: Wallet,
) {
    let mut before = Foreign::default();
    loop {
        let bundles = foreign.borrow_and_update().clone();
        for (domain, bundle) in bundles.iter().filter(|(domain, _)| !kept.contains(*domain)) {
            if before.get(domain) == Some(bundle) {
                continue;
            }
            match wallet.federate(domain, &bundle.roots) {
                Ok(()) => {
                    info!(%domain, roots = bundle.roots.len(), "roots of a trust domain that the issuer federates with in force")
                }
                Err(error) => {
                    error!(%domain, %error, "the issuer's roots of a federated trust domain cannot be used")
                }
            }
        }
        for domain in before.keys().filter(|domain| !kept.contains(*domain) && !bundles.contains_key(*domain))
        {
            info!(%domain, "the issuer federates with this trust domain no more");
            wallet.end_federation(domain);
        }
        before = bundles;
        if foreign.changed().await.is_err() {
            return;
        }
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    certificates(&files::read(path, MAX_FILE).map_err(ReadError::into_problem)?).map_err(anyhow::Error::msg)
}

fn take(
    domain: &TrustDomain,
    path: &Path,
    roots: &[CertificateDer<'static>],
    wallet: &Wallet,
) -> anyhow::Result<()> {
    wallet.federate(domain, roots)?;
    info!(%domain, file = %path.display(), roots = roots.len(), "roots of a federated trust domain in force");
    Ok(())
}
