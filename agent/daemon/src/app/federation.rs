//! Keeps the roots of `--trust-bundle` in force, one file for each foreign trust domain.

use std::path::{Path, PathBuf};

use ambit_core::model::TrustDomain;
use anyhow::Context as _;
use rustls_pki_types::CertificateDer;
use tokio::task::spawn_blocking;
use tracing::{error, info, warn};

use crate::{
    files::{self, ReadError, Watched},
    identity::certificates,
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
