//! Wiring: the only room that knows everyone. Builds the rooms, hands each what it needs, and ends them.

mod node;

use std::{collections::HashMap, sync::Arc, time::Duration};

use ambit_core::discovery::Settings;

use self::node::Node;
use crate::{
    capture::{Capture, CaptureSettings},
    discovery,
    identity::{BuiltinCa, Clock, KeyStore, SystemClock},
    proxy::Proxy,
    telemetry::Telemetry,
    tunnel::{Wallet, tls::{PostQuantum, TlsSettings}},
};

pub(crate) async fn run() -> anyhow::Result<()> {
    let env = |name: &str| std::env::var(name).unwrap_or_default();
    let _guard = crate::telemetry::init_logging(&env("LOG"), crate::telemetry::LogFormat::Text)?;
    let telemetry = Telemetry::new();
    let settings = Settings::default();
    let feed = discovery::watch_folder(std::path::Path::new(&env("MANIFESTS")), settings.clone())?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let ca = BuiltinCa::open(std::path::Path::new(&env("CA")), settings.trust_domain.clone(), clock.clone())?;
    let keys = KeyStore::new(Arc::new(ca), clock.clone(), Duration::from_secs(86400));
    let wallet = Wallet::new(keys.clone(), TlsSettings { post_quantum: PostQuantum::Offer, trust_domains: vec![settings.trust_domain.clone()] }, clock);
    let proxy = Proxy::new(feed.clone(), wallet.clone(), telemetry.clone());
    let capture = Capture::new(CaptureSettings { node: env("NODE"), bpf_root: "/sys/fs/bpf".into(), cgroup_root: None })?;
    let node = Node { name: env("NODE"), capture, feed, keys, wallet, proxy, telemetry, pods: Default::default(), enrolled: HashMap::new(), serving: Default::default() };
    node.run(|| tracing::info!("ready")).await;
    Ok(())
}
