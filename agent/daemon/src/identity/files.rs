//! The issuer `files`: certificates that others put into a folder, such as cert-manager's CSI driver or an operator.
//!
//! The layout is `<dir>/<namespace>/<service account>/{tls.crt,tls.key,ca.crt}`; or `<dir>/{tls.crt,tls.key,ca.crt}` where
//! there is but one identity. `ca.crt` may hold several roots; missing, the folder's own (`<dir>/ca.crt`) is taken.
//! Watched: what changes is in use within seconds. Files that do not fit together change nothing.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use ambit_core::model::SpiffeId;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::task::{AbortHandle, spawn_blocking};
use zeroize::Zeroizing;

use super::{Csr, IssueError, IssueFuture, Issued, Issuer, Renewed, key::PrivateKey, pem};
use crate::files::{self, Watched};

const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const ROOTS: &str = "ca.crt";
/// No file is larger.
const MAX_FILE: u64 = 1024 * 1024;

/// Hands out what lies in the folder; watches the folders of the identities that were asked for.
pub(crate) struct FilesIssuer {
    dir: PathBuf,
    renewed: Arc<Renewed>,
    watchers: Mutex<HashMap<SpiffeId, AbortHandle>>,
}

impl FilesIssuer {
    /// Over the folder `dir`; it may still be empty.
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir, renewed: Arc::default(), watchers: Mutex::default() }
    }

    /// Watches the files of `id` from before they are read for the first time.
    async fn watch(&self, id: &SpiffeId) {
        if self.watchers().contains_key(id) {
            return;
        }
        let paths = paths_of(&self.dir, id);
        let Ok(mut watched) = spawn_blocking(move || Watched::new(paths)).await else { return };
        let (renewed, told) = (self.renewed.clone(), id.clone());
        let watcher = tokio::spawn(async move {
            loop {
                watched.changed().await;
                renewed.tell(told.clone());
            }
        });
        if let Some(old) = self.watchers().insert(id.clone(), watcher.abort_handle()) {
            old.abort();
        }
    }

    fn watchers(&self) -> std::sync::MutexGuard<'_, HashMap<SpiffeId, AbortHandle>> {
        self.watchers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Issuer for FilesIssuer {
    fn name(&self) -> &str {
        "files"
    }

    fn issue(&self, csr: Csr) -> IssueFuture<'_> {
        Box::pin(async move {
            self.watch(&csr.id).await;
            let dir = self.dir.clone();
            spawn_blocking(move || read(&dir, &csr.id)).await.unwrap_or(Err(IssueError::Internal))
        })
    }

    fn retain(&self, ids: &HashSet<SpiffeId>) {
        self.watchers().extract_if(|id, _| !ids.contains(id)).for_each(|(_, watcher)| watcher.abort());
    }

    fn renewed(&self) -> Option<Arc<Renewed>> {
        Some(self.renewed.clone())
    }
}

impl Drop for FilesIssuer {
    fn drop(&mut self) {
        self.watchers().values().for_each(AbortHandle::abort);
    }
}

/// Where the certificate of `id` may be, and the folder's own roots.
fn paths_of(dir: &Path, id: &SpiffeId) -> Vec<PathBuf> {
    // Both names are free of slashes, and not `..` (SpiffeId::new).
    let own = dir.join(id.namespace()).join(id.service_account());
    [own.as_path(), dir]
        .into_iter()
        .flat_map(|dir| [CERTIFICATE, KEY, ROOTS].map(|name| dir.join(name)))
        .collect()
}

fn read(dir: &Path, id: &SpiffeId) -> Result<Issued, IssueError> {
    let own = dir.join(id.namespace()).join(id.service_account());
    let place = if is_there(&own.join(CERTIFICATE))? { own.as_path() } else { dir };
    let chain = certificates(&place.join(CERTIFICATE))?;
    let key_path = place.join(KEY);
    let key = read_file(&key_path)?;
    let key = PrivateKeyDer::from_pem_slice(&key)
        .map_err(|error| unusable(&key_path, &format!("no unencrypted PEM key: {error}")))?;
    let roots = [place, dir].map(|place| place.join(ROOTS));
    let roots = certificates(if is_there(&roots[0])? { &roots[0] } else { &roots[1] })?;
    // Peers want intermediates and no roots.
    let chain = chain.into_iter().filter(|certificate| !roots.contains(certificate)).collect();
    Ok(Issued { chain, roots, key: Some(PrivateKey::from(key)) })
}

/// Only what is known not to be there has something else take its place.
fn is_there(path: &Path) -> Result<bool, IssueError> {
    path.try_exists().map_err(|error| unusable(path, &error.to_string()))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, IssueError> {
    let text = read_file(path)?;
    pem::certificates(&text).map_err(|problem| unusable(path, &problem))
}

fn read_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, IssueError> {
    files::read(path, MAX_FILE).map_err(|error| IssueError::Unusable(error.to_string()))
}

fn unusable(path: &Path, problem: &str) -> IssueError {
    IssueError::Unusable(format!("{}: {problem}", path.display()))
}

#[cfg(test)]
mod tests;
