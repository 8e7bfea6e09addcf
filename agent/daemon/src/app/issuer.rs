//! The issuer that the configuration names.

use std::sync::Arc;

use anyhow::Context as _;

use crate::{
    cli::{AgentConfig, IssuerKind},
    discovery::Feed,
    identity::{BuiltinCa, Clock, Issuer, IstioIssuer},
};

/// Builds the issuer. Must be called in a tokio runtime.
pub(super) async fn issuer(
    config: &AgentConfig,
    _feed: &Feed,
    clock: Arc<dyn Clock>,
) -> anyhow::Result<Arc<dyn Issuer>> {
    Ok(match &config.issuer {
        IssuerKind::Builtin { ca_dir } => {
            let (ca_dir, domain) = (ca_dir.clone(), config.trust_domain.clone());
            let ca = tokio::task::spawn_blocking(move || BuiltinCa::open(&ca_dir, domain, clock))
                .await
                .context("the built-in CA could not be opened")??;
            Arc::new(ca)
        }
        IssuerKind::Istio(settings) => {
            let issuer = IstioIssuer::new(settings.clone())
                .map_err(|name| anyhow::anyhow!("{name:?} cannot be the name of a certificate service"))?;
            Arc::new(issuer)
        }
    })
}
