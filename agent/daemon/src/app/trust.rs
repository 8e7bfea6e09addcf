//! Who this node's pods are and whom they believe: the key store and the wallet, as the configuration has them.

use std::sync::Arc;

use kube::Client;
use tokio::task::JoinSet;

use super::{federation, issuer::issuer, revocation};
use crate::{
    config::{AgentConfig, PostQuantum},
    discovery::Feed,
    identity::{Clock, KeyStore, SystemClock},
    telemetry::Telemetry,
    tunnel::{Wallet, tls},
};

/// Builds both. Tasks in `background` keep revocation lists, federated roots and the issuer's own roots in force, which may
/// stand in the API. Must be called in a tokio runtime.
pub(super) async fn open(
    config: &AgentConfig,
    feed: &Feed,
    api: Option<&Client>,
    telemetry: &Telemetry,
    background: &mut JoinSet<()>,
) -> anyhow::Result<(KeyStore, Wallet)> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let issuer = issuer(config, feed, api, clock.clone(), background).await?;
    let foreign = issuer.foreign();
    let keys = KeyStore::new(issuer, clock.clone(), config.svid_ttl);
    let wallet = Wallet::new(keys.clone(), tls_settings(config), clock);
    if let Some(file) = config.crl_file.clone() {
        background.spawn(revocation::follow(file, wallet.clone(), telemetry.clone()).await?);
    }
    for (domain, file) in config.trust_bundles.clone() {
        background.spawn(federation::follow(domain, file, wallet.clone()).await?);
    }
    if let Some(foreign) = foreign {
        let own = [&config.trust_domain].into_iter().chain(&config.trust_domain_aliases);
        let kept = own.chain(config.trust_bundles.iter().map(|(domain, _)| domain)).cloned().collect();
        background.spawn(federation::follow_issuer(foreign, kept, wallet.clone()));
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
