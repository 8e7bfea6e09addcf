//! The agent's beginning and end: taking over from another agent of the node, serving, handing over, and letting what is
//! established end by itself.

use std::{
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, timeout},
};

use super::{
    attachment::Attaching,
    node::{Left, Node},
};
use crate::{
    admin::{self, Page, StatusProvider},
    instance::{
        Gate, REPLACED, Readiness, RunDir, SWAP_LIMIT, Signals, Successor, Takeover, drained, end_superseded,
        reclaim, serve_successors,
    },
    proxy::Proxy,
    telemetry::Telemetry,
};

/// How long tunnels get to say goodbye in the end.
const FAREWELL: Duration = Duration::from_millis(1_500);

/// Takes over the node from the agent that serves it: gets ready beside it, has it pause, and leads all pods here.
pub(super) async fn take_over(node: &mut Node, successor: Successor) -> anyhow::Result<RunDir> {
    node.prepare().await;
    let granted = successor.ask().await?;
    // When this process gives up, it must end: the other agent finds its connection closed and takes everything back.
    timeout(SWAP_LIMIT, node.take_over())
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
        page: Page,
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
            let serving = admin::serve_http("metrics-addr", addr, page, until(stopped.clone()));
            tasks.spawn(async move { Ok(serving.await?) });
        }
        let claimed = run_dir.clone();
        tasks.spawn(async move {
            tokio::select! {
                ended = serve_successors(claimed, takeover) => Ok(ended?),
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
    pub(super) page: Page,
    pub(super) readiness: Readiness,
    /// How long established connections get to end by themselves.
    pub(super) drain: Duration,
    pub(super) signals: Signals,
}

/// Why an agent does not serve its node any more.
enum Ended {
    /// Another agent has taken over. A signal may have come before that.
    Superseded { signalled: Option<Instant> },
    /// A signal came, and what was established then has ended or was not waited for any longer.
    Signalled,
}

impl Serving<'_> {
    /// Serves until the end; the gate `enrolment` is passed after the first round over the pods. A signal lets the
    /// connections that are established then end by themselves, while new ones are still taken, as nobody else would; a
    /// second one ends it at once. A successor that comes meanwhile takes over.
    pub(super) async fn run(mut self, run_dir: RunDir, enrolment: Gate) -> anyhow::Result<()> {
        let path = run_dir.path().to_owned();
        let (mut run_dir, mut enrolment) = (run_dir, Some(enrolment));
        loop {
            match self.serve(run_dir, || drop(enrolment.take())).await? {
                Ended::Superseded { signalled } => match reclaim(&path, self.node.name()).await {
                    Some(back) if signalled.is_none() => {
                        self.node.take_back();
                        run_dir = back;
                    }
                    _ => {
                        self.superseded(signalled).await;
                        return Ok(());
                    }
                },
                Ended::Signalled => {
                    self.say_goodbye().await;
                    return Ok(());
                }
            }
        }
    }

    /// Serves until another agent takes over, or until a signal and the end of what was established then. The run
    /// directory is free afterwards.
    async fn serve(&mut self, run_dir: RunDir, synced: impl FnOnce()) -> anyhow::Result<Ended> {
        let (mut servers, takeovers) = Servers::start(
            run_dir,
            self.status.clone(),
            self.attaching.clone(),
            self.addrs,
            self.page.clone(),
        );
        let mut following = pin!(self.node.run(synced, takeovers));
        let mut signalled = None;
        let left = tokio::select! {
            left = &mut following => Some(left),
            error = servers.failed() => {
                servers.end().await;
                return Err(error);
            }
            () = self.signals.next() => {
                signalled = Some(Instant::now());
                tracing::info!(drain_s = self.drain.as_secs_f64(), "agent stops once connections have ended");
                let now = SystemTime::now();
                let established =
                    || self.telemetry.live().iter().filter(|connection| connection.opened <= now).count();
                tokio::select! {
                    left = &mut following => Some(left),
                    () = drained(self.drain, established) => None,
                    () = self.signals.next() => None,
                }
            }
        };
        servers.end().await;
        Ok(match left {
            Some(Left::Superseded) => Ended::Superseded { signalled },
            None => Ended::Signalled,
        })
    }

    /// Lets everything end after another agent has taken over: until a signal, which then bounds it, or for the time to
    /// drain. What is still in the queues of this agent's listeners is taken all the while.
    async fn superseded(&mut self, signalled: Option<Instant>) {
        tracing::info!("another agent has taken over; connections established here go on");
        // What this agent knows of its pods is not to be reported any more.
        let _not_ready = [self.readiness.gate("pods"), self.readiness.gate(REPLACED)];
        self.proxy.drain();
        end_superseded(&mut self.signals, self.drain, signalled, || self.proxy.active()).await;
    }

    /// Ends the tunnels, and gives peers a moment to hear of it.
    async fn say_goodbye(&mut self) {
        self.proxy.drain();
        if !self.drain.is_zero() {
            tokio::select! {
                () = drained(FAREWELL, || self.proxy.active()) => {}
                () = self.signals.next() => {}
            }
        }
    }
}
