//! Keeps the keys of one issuer fresh, beside the way of requests.
//!
//! Promises that keys are replaced by good ones only, that an issuer is not asked more often than it should be however many
//! tokens come, and that one that was away is found again. Intervals are those of Istio's control plane.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{
    select,
    sync::Semaphore,
    time::{sleep, timeout},
};

use super::{
    JwksSettings,
    fetch::{self, FetchError},
    issuers::Issuer,
    keys::KeySet,
};
use crate::{error::with_causes, telemetry::Telemetry};

/// How old keys get before they are fetched again.
pub(super) const INTERVAL: Duration = Duration::from_secs(20 * 60);
/// Between one fetch and the next that somebody wishes for who lacks a key.
const COOLDOWN: Duration = Duration::from_secs(30);
/// The pause after a failure, doubled with each, and the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(60 * 60);
/// The longest patience with one answer, whatever a rule says.
const PATIENCE: Duration = Duration::from_secs(60);
/// Attempts in a row before a pause, and between two of them.
const ATTEMPTS: usize = 8;
const BETWEEN: Duration = Duration::from_secs(1);

/// Fetches the keys of `issuer` now and whenever they have got old, for ever.
pub(super) async fn keep(
    issuer: Arc<Issuer>,
    settings: Arc<JwksSettings>,
    permits: Arc<Semaphore>,
    telemetry: Telemetry,
) {
    let source = &issuer.source;
    let (name, url) = (&*source.issuer, source.url.as_deref().unwrap_or("by its OpenID configuration"));
    let first_pause = FIRST_PAUSE.min(settings.refresh);
    let mut pause = first_pause;
    let mut told = None;
    loop {
        let fetched = attempts(&issuer, &settings, &permits, &telemetry).await;
        let rest = match fetched {
            Ok(keys) => {
                let count = keys.len();
                let trouble = issuer.take(keys) && told.take().is_some();
                if trouble {
                    tracing::info!(issuer = name, keys = count, "the issuer's keys can be had again");
                }
                pause = first_pause;
                jittered(settings.refresh)
            }
            Err(error) => {
                let error = with_causes(&error);
                let kept = issuer.fail(error.clone());
                if told.as_ref() != Some(&(error.clone(), kept)) {
                    let what = if kept { "those it had stay in use" } else { "its tokens are refused" };
                    tracing::warn!(issuer = name, url, error, "the issuer's keys cannot be had; {what}");
                    told = Some((error, kept));
                }
                let rest = pause;
                pause = (pause * 2).min(LONGEST_PAUSE);
                jittered(rest)
            }
        };
        telemetry.issuer(issuer.status().measured());
        let cooldown = COOLDOWN.min(settings.refresh);
        let wished = async {
            sleep(cooldown).await;
            issuer.wished.notified().await;
        };
        select! {
            () = sleep(rest) => {}
            () = wished => {}
        }
    }
}

/// Fetches, again and again for a few seconds where that fails.
async fn attempts(
    issuer: &Issuer,
    settings: &JwksSettings,
    permits: &Semaphore,
    telemetry: &Telemetry,
) -> Result<KeySet, FetchError> {
    let mut left = ATTEMPTS;
    loop {
        left -= 1;
        let fetched = {
            // Closed by nobody.
            let _permit = permits.acquire().await;
            let patience = Duration::from_millis(issuer.timeout_ms.load(Ordering::Relaxed));
            let patience = patience.min(PATIENCE);
            let fetching = fetch::keys(&settings.fetching, &issuer.source);
            timeout(patience, fetching).await.unwrap_or(Err(FetchError::TimedOut(patience)))
        };
        telemetry.keys_fetched(fetched.is_ok());
        match fetched {
            Err(error) if left > 0 => {
                issuer.fail(with_causes(&error));
                sleep(BETWEEN).await;
            }
            fetched => return fetched,
        }
    }
}

/// A little more or less, so that not all nodes ask at once.
fn jittered(time: Duration) -> Duration {
    time.mul_f64(0.95 + 0.1 * rand::random::<f64>())
}
