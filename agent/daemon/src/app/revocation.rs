//! Keeps the revocation lists of `--crl-file` in force.

use std::{path::PathBuf, time::SystemTime};

use anyhow::Context as _;
use tokio::task::spawn_blocking;
use tracing::{error, info, warn};

use crate::{
    files::{self, ReadError, Watched},
    telemetry::Telemetry,
    tunnel::Wallet,
    tunnel::tls::Revocations,
};

/// A larger file is not read.
const MAX_FILE: u64 = 64 * 1024 * 1024;

/// Reads `path` and returns what keeps following it. A file that is not there, or cannot be used, is an error: what it revokes
/// would be believed. Later, what cannot be used leaves the lists before it in force.
pub(super) async fn follow(
    path: PathBuf,
    wallet: Wallet,
    telemetry: Telemetry,
) -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
    let (first, watched) = {
        let path = path.clone();
        spawn_blocking(move || {
            let watched = Watched::new([path.clone()]);
            (read(&path), watched)
        })
        .await?
    };
    let advice = "where nothing is revoked, put an empty list there";
    let lists = first.with_context(|| format!("--crl-file {} ({advice})", path.display()))?;
    take(&path, lists, &wallet, &telemetry);
    let file = path.clone();
    let again = move || {
        let lists = read(&file).map_err(|problem| format!("{problem:#}"))?;
        take(&file, lists, &wallet, &telemetry);
        Ok(())
    };
    Ok(watched.follow(again, move |problem| {
        error!(file = %path.display(), error = problem, "the revocation lists cannot be used; those read before stay in force");
    }))
}

fn read(path: &std::path::Path) -> anyhow::Result<Revocations> {
    Ok(Revocations::parse(&files::read(path, MAX_FILE).map_err(ReadError::into_problem)?)?)
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
