//! The agent's beginning and end: taking over from another agent of the node, serving, handing over, and letting what is
//! established end by itself.

use std::{
    net::SocketAddr,
    path::Path,
    pin::pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::{
    attachment::Attaching,
    node::{Left, Node},
};
use crate::{
    admin::{self, Claim, Readiness, RunDir, StatusProvider, Successor, Takeover},
    proxy::Proxy,
    telemetry::Telemetry,
};

/// How often is looked whether all has ended.
const POLL: Duration = Duration::from_millis(50);
/// How long an agent that has handed over stays at least: connections may be on their way through the handshake to its
/// listeners.
const LINGER: Duration = Duration::from_secs(3);
/// How long tunnels get to say goodbye in the end.
const FAREWELL: Duration = Duration::from_millis(1_500);

/// SIGTERM and SIGINT.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Has them come here instead of ending the process.
    pub(super) fn listen() -> anyhow::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for one of them.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Takes over the node from the agent that serves it: gets ready beside it, has it pause, and leads all pods here.
pub(super) async fn take_over(node: &mut Node, successor: Successor) -> anyhow::Result<RunDir> {
    node.prepare().await;
    let granted = successor.ask().await?;
    // When this process gives up, it must end: the other agent finds its connection closed and takes everything back.
    timeout(admin::SWAP_LIMIT, node.take_over())
        .await
        .context("taking over took too long; the agent that served this node goes on")?;
    let run_dir = granted.done().await?;
    tracing::info!("taken over from the agent that served this node");
    Ok(run_dir)
}

/// Where an agent answers over TCP.
#[derive(Clone, Copy, Debug)]
pub(super) struct Addrs {
    /// Metrics and health; nowhere if `None`.
    pub(super) metrics: Option<SocketAddr>,
    /// The status; nowhere if `None`.
    pub(super) admin: Option<SocketAddr>,
}

/// What answers operators, Prometheus and successors, for as long as this agent has the run directory.
pub(super) struct Servers {
    tasks: JoinSet<anyhow::Result<()>>,
    run_dir: RunDir,
    stop: watch::Sender<bool>,
}

impl Servers {
    /// Starts them. The last value brings the successors that ask.
    fn start(
        run_dir: RunDir,
        status: Arc<dyn StatusProvider>,
        attaching: Attaching,
        addrs: Addrs,
        (telemetry, readiness): (Telemetry, Readiness),
    ) -> (Self, mpsc::Receiver<Takeover>) {
        let (stop, stopped) = watch::channel(false);
        let until = |mut stopped: watch::Receiver<bool>| async move {
            // An error means that the sender is gone, which is a stop as well.
            let _ = stopped.wait_for(|stop| *stop).await;
        };
        let (takeover, takeovers) = mpsc::channel(1);
        let mut tasks = JoinSet::new();
        let serving = admin::serve_status(run_dir.clone(), status.clone(), until(stopped.clone()));
        tasks.spawn(async move { Ok(serving.await?) });
        tasks.spawn(attaching.serve(run_dir.path().to_owned(), until(stopped.clone())));
        if let Some(addr) = addrs.admin {
            let serving = admin::serve_status_tcp(addr, status, until(stopped.clone()));
            tasks.spawn(async move { Ok(serving.await?) });
        }
        if let Some(addr) = addrs.metrics {
            let serving = admin::serve_http(addr, telemetry, readiness, until(stopped.clone()));
            tasks.spawn(async move { Ok(serving.await?) });
        }
        let claimed = run_dir.clone();
        tasks.spawn(async move {
            tokio::select! {
                ended = admin::serve_successors(claimed, takeover) => Ok(ended?),
                () = until(stopped) => Ok(()),
            }
        });
        (Self { tasks, run_dir, stop }, takeovers)
    }

    /// Waits until one has ended by itself, which is always a failure.
    async fn failed(&mut self) -> anyhow::Error {
        match self.tasks.join_next().await {
            Some(Ok(Err(error))) => error,
            Some(Err(error)) => error.into(),
            Some(Ok(Ok(()))) | None => anyhow::anyhow!("a server of the agent has ended"),
        }
    }

    /// Ends them and lets go of the run directory.
    async fn end(mut self) {
        // The receivers may be gone with their servers.
        let _ = self.stop.send(true);
        while self.tasks.join_next().await.is_some() {}
        // Last: a successor that has waited for it needs the address of the metrics at once.
        drop(self.run_dir);
    }
}

/// An agent that serves its node.
pub(super) struct Serving<'a> {
    pub(super) node: &'a mut Node,
    pub(super) proxy: Proxy,
    pub(super) telemetry: Telemetry,
    pub(super) status: Arc<dyn StatusProvider>,
    pub(super) attaching: Attaching,
    pub(super) addrs: Addrs,
    pub(super) readiness: Readiness,
    /// How long established connections get to end by themselves.
    pub(super) drain: Duration,
    pub(super) signals: Signals,
}

impl Serving<'_> {
    /// Serves until the end. A signal lets the connections that are established then end by themselves, while new ones
    /// are still taken, as nobody else would; a second one ends it at once. A successor that comes meanwhile takes over.
    pub(super) async fn run(mut self, run_dir: RunDir, synced: impl FnOnce()) -> anyhow::Result<()> {
        let path = run_dir.path().to_owned();
        let (mut run_dir, mut synced) = (run_dir, Some(synced));
        loop {
            match self.serve(run_dir, || synced.take().into_iter().for_each(|synced| synced())).await? {
                (Some(Left::Superseded), stopped) => match forsaken(&path, self.node.name()).await {
                    Some(back) if stopped.is_none() => {
                        self.node.take_back();
                        run_dir = back;
                    }
                    _ => {
                        self.superseded(stopped).await;
                        return Ok(());
                    }
                },
                (None, _) => {
                    self.proxy.drain();
                    if !self.drain.is_zero() {
                        tokio::select! {
                            () = idle(&self.proxy, FAREWELL) => {}
                            () = self.signals.next() => {}
                        }
                    }
                    return Ok(());
                }
            }
        }
    }

    /// Serves until another agent takes over, or, if that is `None`, until a signal and the end of what was established
    /// then; tells when the signal came. The run directory is free afterwards.
    async fn serve(
        &mut self,
        run_dir: RunDir,
        synced: impl FnOnce(),
    ) -> anyhow::Result<(Option<Left>, Option<Instant>)> {
        let told = (self.telemetry.clone(), self.readiness.clone());
        let (mut servers, takeovers) =
            Servers::start(run_dir, self.status.clone(), self.attaching.clone(), self.addrs, told);
        let mut following = pin!(self.node.run(synced, takeovers));
        let mut stopped = None;
        let left = tokio::select! {
            left = &mut following => Some(left),
            error = servers.failed() => {
                servers.end().await;
                return Err(error);
            }
            () = self.signals.next() => {
                stopped = Some(Instant::now());
                tracing::info!(drain_s = self.drain.as_secs_f64(), "agent stops once connections have ended");
                tokio::select! {
                    left = &mut following => Some(left),
                    () = ended(&self.telemetry, self.drain) => None,
                    () = self.signals.next() => None,
                }
            }
        };
        servers.end().await;
        Ok((left, stopped))
    }

    /// Lets everything end after another agent has taken over: until a signal, which then bounds it, or for the time to
    /// drain. What is still in the queues of this agent's listeners is taken all the while.
    async fn superseded(&mut self, stopped: Option<Instant>) {
        tracing::info!("another agent has taken over; connections established here go on");
        // What this agent knows of its pods is not to be reported any more.
        let _not_ready = self.readiness.gate("pods");
        self.proxy.drain();
        let since = Instant::now();
        let stopped = match stopped {
            Some(stopped) => stopped,
            None => {
                // A supervisor that starts the new agent before it stops the old one would start this one again if it
                // ended before it was told to.
                tokio::select! {
                    () = self.signals.next() => {}
                    () = sleep(self.drain.max(LINGER)) => return,
                }
                Instant::now()
            }
        };
        let left = (stopped + self.drain).saturating_duration_since(Instant::now());
        let settled = async {
            sleep((since + LINGER).saturating_duration_since(Instant::now()).min(left)).await;
            idle(&self.proxy, left).await;
        };
        tokio::select! {
            () = settled => {}
            () = self.signals.next() => {}
        }
    }
}

/// The run directory, if the agent that was to have it has died before it did.
async fn forsaken(path: &Path, node: &str) -> Option<RunDir> {
    let claimed = async {
        loop {
            match RunDir::claim_or_succeed(path, node) {
                Ok(Claim::Free(run_dir)) => return Some(run_dir),
                Ok(Claim::Held(_)) => return None,
                // It is about to claim it.
                Err(_) => sleep(POLL).await,
            }
        }
    };
    timeout(LINGER, claimed).await.unwrap_or_default()
}

/// Waits until the connections that are open now have ended, but no longer than `limit`.
async fn ended(telemetry: &Telemetry, limit: Duration) {
    let now = SystemTime::now();
    let established = async {
        while telemetry.live().iter().any(|connection| connection.opened <= now) {
            sleep(POLL).await;
        }
    };
    // What has not ended by then is cut.
    let _: Result<(), _> = timeout(limit, established).await;
}

/// Waits until nothing is carried any more, but no longer than `limit`.
async fn idle(proxy: &Proxy, limit: Duration) {
    let quiet = async {
        while proxy.active() > 0 {
            sleep(POLL).await;
        }
    };
    let _: Result<(), _> = timeout(limit, quiet).await;
}
