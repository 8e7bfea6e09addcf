//! Wiring of `ambit ca`.

use std::{net::SocketAddr, sync::Arc};

use tokio::sync::watch;

use crate::{
    admin,
    ca::{Ca, CaSettings},
    identity::SystemClock,
    instance::{Readiness, Signals},
};

/// Runs the CA service until SIGTERM or SIGINT.
pub(crate) async fn run_ca(settings: CaSettings, metrics_addr: Option<SocketAddr>) -> anyhow::Result<()> {
    let readiness = Readiness::default();
    let listen = settings.listen;
    let ca = Ca::open(settings, Arc::new(SystemClock), readiness.clone()).await?;
    let metrics = ca.metrics();
    let (stop, stopped) = watch::channel(false);
    let until = |mut stopped: watch::Receiver<bool>| async move {
        // An error means that the sender is gone, which is a stop as well.
        let _ = stopped.wait_for(|stop| *stop).await;
    };
    let mut serving = tokio::task::JoinSet::<anyhow::Result<()>>::new();
    let shutdown = until(stopped.clone());
    serving.spawn(async move { Ok(ca.serve(shutdown).await?) });
    if let Some(addr) = metrics_addr {
        let shutdown = until(stopped);
        serving.spawn(async move { Ok(admin::serve_http(addr, metrics, readiness, shutdown).await?) });
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
