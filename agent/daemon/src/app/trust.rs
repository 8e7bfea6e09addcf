//! Who this node's pods are and whom they believe: the key store and the wallet, as the configuration has them.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::{federation, issuer::issuer, revocation};
use crate::{
    config::{AgentConfig, PostQuantum},
    discovery::Feed,
    identity::{Clock, KeyStore, SystemClock},
    telemetry::Telemetry,
    tunnel::{Wallet, tls},
};

/// Builds both. Tasks in `background` keep the files of revocation lists and of federated roots in force. Must be called in
/// a tokio runtime.
pub(super) async fn open(
    config: &AgentConfig,
    feed: &Feed,
    telemetry: &Telemetry,
    background: &mut JoinSet<()>,
) -> anyhow::Result<(KeyStore, Wallet)> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let issuer = issuer(config, feed, clock.clone()).await?;
    let keys = KeyStore::new(issuer, clock.clone(), config.svid_ttl);
    let wallet = Wallet::new(keys.clone(), tls_settings(config), clock);
    if let Some(file) = config.crl_file.clone() {
        background.spawn(revocation::follow(file, wallet.clone(), telemetry.clone()).await?);
    }
    for (domain, file) in config.trust_bundles.clone() {
        background.spawn(federation::follow(domain, file, wallet.clone()).await?);
    }
    Ok((keys, wallet))
}

fn tls_settings(config: &AgentConfig) -> tls::TlsSettings {
    tls::TlsSettings {
        post_quantum: match config.post_quantum {
            PostQuantum::Off => tls::PostQuantum::Off,
            PostQuantum::Offer => tls::PostQuantum::Offer,
            PostQuantum::Prefer => tls::PostQuantum::Prefer,
            PostQuantum::Require => tls::PostQuantum::Require,
        },
        trust_domains: [&config.trust_domain]
            .into_iter()
            .chain(&config.trust_domain_aliases)
            .cloned()
            .collect(),
    }
}
