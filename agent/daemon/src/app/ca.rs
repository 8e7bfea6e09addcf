//! Wiring of `ambit ca`.

use std::sync::Arc;

use tokio::sync::watch;

use crate::{
    admin::{self, Guard, METRICS_PATH, Page},
    ca::Ca,
    cluster::{self, Authorizer},
    config::CaConfig,
    identity::SystemClock,
    instance::{Readiness, Signals},
};

/// Runs the CA service until SIGTERM or SIGINT.
pub(crate) async fn run_ca(config: CaConfig) -> anyhow::Result<()> {
    let readiness = Readiness::default();
    let listen = config.service.listen;
    let guard = match &config.service.kubernetes {
        Some(cluster) if config.metrics_guarded => {
            let client = cluster::client(cluster::config(cluster.kubeconfig.as_deref()).await?)?;
            Some(Arc::new(Guard::new(Authorizer::new(client, METRICS_PATH))?))
        }
        _ => None,
    };
    let ca = Ca::open(config.service, Arc::new(SystemClock), readiness.clone()).await?;
    let health = Page { metrics: None, guard: None, readiness };
    let metrics = Page { metrics: Some(Arc::new(ca.metrics())), guard, ..health.clone() };
    let (stop, stopped) = watch::channel(false);
    let until = |mut stopped: watch::Receiver<bool>| async move {
        // An error means that the sender is gone, which is a stop as well.
        let _ = stopped.wait_for(|stop| *stop).await;
    };
    let mut serving = tokio::task::JoinSet::<anyhow::Result<()>>::new();
    let shutdown = until(stopped.clone());
    serving.spawn(async move { Ok(ca.serve(shutdown).await?) });
    let pages = [("metrics-addr", config.metrics_addr, metrics), ("health-addr", config.health_addr, health)];
    for (flag, addr, page) in pages {
        if let Some(addr) = addr {
            let shutdown = until(stopped.clone());
            serving.spawn(async move { Ok(admin::serve_http(flag, addr, page, shutdown).await?) });
        }
    }
    tracing::info!(%listen, version = env!("CARGO_PKG_VERSION"), "CA service started");
    let mut signals = Signals::listen()?;
    let ended = tokio::select! {
        Some(served) = serving.join_next() => match served? {
            Ok(()) => Err(anyhow::anyhow!("a server of the CA has ended")),
            Err(error) => Err(error),
        },
        () = signals.next() => Ok(()),
    };
    // The receivers may be gone with their servers.
    let _ = stop.send(true);
    while serving.join_next().await.is_some() {}
    if ended.is_ok() {
        tracing::info!("CA service stopped");
    }
    ended
}
