//! Keeps the revocation lists of `--crl-file` in force.

use std::{path::PathBuf, time::SystemTime};

use anyhow::Context as _;
use tokio::task::spawn_blocking;
use tracing::{error, info, warn};

use crate::{identity::Watched, telemetry::Telemetry, tunnel::Wallet, tunnel::tls::Revocations};

/// A larger file is not read.
const MAX_FILE: u64 = 64 * 1024 * 1024;

/// Reads `path` and returns what keeps following it. A file that is not there yet revokes nothing; one that is there and
/// cannot be used is an error. Later, what cannot be used leaves the lists before it in force.
pub(super) async fn follow(
    path: PathBuf,
    wallet: Wallet,
    telemetry: Telemetry,
) -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
    let (first, mut watched) = {
        let path = path.clone();
        spawn_blocking(move || {
            // Looked at before it is read: a change in between is read once more.
            let watched = Watched::new([path.clone()]);
            (path.exists().then(|| read(&path)).transpose(), watched)
        })
        .await?
    };
    match first.with_context(|| format!("--crl-file {}", path.display()))? {
        Some(lists) => take(&path, lists, &wallet, &telemetry),
        None => warn!(file = %path.display(), "there is no file of revocation lists yet; nothing is revoked"),
    }
    Ok(async move {
        loop {
            watched.changed().await;
            let file = path.clone();
            match spawn_blocking(move || read(&file)).await {
                Ok(Ok(lists)) => take(&path, lists, &wallet, &telemetry),
                Ok(Err(problem)) => {
                    let error = format!("{problem:#}");
                    error!(file = %path.display(), error, "the revocation lists cannot be used; those read before stay in force");
                }
                Err(_) => return,
            }
        }
    })
}

fn read(path: &std::path::Path) -> anyhow::Result<Revocations> {
    let size = std::fs::metadata(path)?.len();
    anyhow::ensure!(size <= MAX_FILE, "{size} bytes are too many");
    Ok(Revocations::parse(&std::fs::read(path)?)?)
}

fn take(path: &std::path::Path, lists: Revocations, wallet: &Wallet, telemetry: &Telemetry) {
    let now = SystemTime::now();
    for (issuer, _) in lists.updates().iter().filter(|(_, end)| end.is_some_and(|end| end < now)) {
        warn!(file = %path.display(), issuer, "a revocation list is past its next update; what it revokes stays revoked");
    }
    info!(file = %path.display(), lists = lists.updates().len(), "revocation lists in force");
    telemetry.revocation_lists(lists.updates());
    wallet.revoke(lists);
}
