//! Wiring: the only room that knows everyone. Builds the rooms, hands each what it needs, and ends them.

mod attachment;
mod ca;
mod clusters;
mod control_plane;
mod federation;
mod footprint;
mod handles;
mod health;
mod installation;
mod issuer;
mod kernel_tls;
mod lifecycle;
mod locations;
mod node;
mod observations;
mod policies;
mod revocation;
mod roots;
mod source;
mod status;
mod tokens;
mod trust;
mod uninstall;

use std::{path::PathBuf, sync::Arc};

use tokio::task::JoinSet;

pub(crate) use ca::run_ca;
pub(crate) use uninstall::Left;

use self::{handles::Handles, node::Node, uninstall::Release};
use crate::{
    admin::{self, StatusProvider},
    config::AgentConfig,
    error::with_causes,
    instance::{Claim, Readiness, RunDir, Signals, TAKEOVER},
    proxy::BusyPoll,
};

/// Runs the agent of one node until SIGTERM or SIGINT, or until another agent has taken over. Enrolled pods stay closed
/// after it: the next agent, or `ambit uninstall`, opens them.
pub(crate) async fn run(config: AgentConfig, busy: Arc<BusyPoll>) -> anyhow::Result<()> {
    let claim = RunDir::claim_or_succeed(&config.run_dir, &config.node)?;
    let readiness = Readiness::default();
    let (objects, enrolment) = (readiness.gate(config.source.gate()), readiness.gate("pods"));
    let mut background = JoinSet::new();
    let handles = Handles::open(&config, busy, readiness, &mut background).await?;
    let (mut node, attaching) = handles.node(&config)?;
    handles.connect(&config, objects, &mut background);
    if let Some(own) = RunDir::own_socket_path(&config.run_dir, &config.instance) {
        background.spawn(answer_for_itself(own, handles.status(&config)));
    }
    let taking_over = matches!(claim, Claim::Held(_)).then(|| handles.readiness.gate(TAKEOVER));
    let mut signals = Signals::listen()?;
    let release = Release::follow(config.daemonset.clone());
    let Some(run_dir) = occupy(claim, &mut node, &mut signals).await? else { return Ok(()) };
    drop(taking_over);
    tracing::info!(node = config.node, version = env!("CARGO_PKG_VERSION"), "agent started");
    // Not before: an agent that dies on the way leaves the installation to the one that goes on.
    let installed = installation::keep(&config, &handles.telemetry)?;
    let serving = handles.serving(&config, &mut node, attaching, signals)?;
    let ended = serving.run(run_dir, enrolment).await;
    node.end().await;
    ended?;
    if release.uninstall_wanted().await {
        // First what repairs and informs the plugin, or it would come back.
        drop(installed);
        background.shutdown().await;
        uninstall::take_off(&config).await?;
    } else {
        tracing::info!(
            node = config.node,
            "agent stopped; enrolled pods stay closed until the next one starts"
        );
    }
    Ok(())
}

/// Tells how this agent stands while another one serves the node, too.
async fn answer_for_itself(socket: PathBuf, status: Arc<dyn StatusProvider>) {
    if let Err(error) = admin::serve_own_status(socket, status).await {
        tracing::warn!(
            error = with_causes(&error),
            "only the agent that serves this node can be asked for its status"
        );
    }
}

/// The run directory, at once or from the agent that serves this node; `None` if a signal came before that let go of it.
async fn occupy(claim: Claim, node: &mut Node, signals: &mut Signals) -> anyhow::Result<Option<RunDir>> {
    let successor = match claim {
        Claim::Free(run_dir) => return Ok(Some(run_dir)),
        Claim::Held(successor) => successor,
    };
    tracing::info!(node = node.name(), version = env!("CARGO_PKG_VERSION"), "another agent serves this node");
    tokio::select! {
        taken = lifecycle::take_over(node, successor) => taken.map(Some),
        () = signals.next() => Ok(None),
    }
}

/// Takes off what agents left on this node; says what that was.
pub(crate) fn uninstall(left: &Left<'_>) -> anyhow::Result<Vec<String>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(left.take_off())
}
