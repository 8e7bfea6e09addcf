//! `ambit status`: asks the agent of this node over its socket and shows the answer.

mod nodes;
mod table;
mod view;

use std::time::{Duration, Instant};

use ambit_proto::admin::v1::StatusResponse;
use anyhow::{Context, bail};
use clap::{Args, ValueEnum};

use super::{
    ask::ask_in_time,
    output,
    remote::{Answer, Remote},
};
use crate::{
    config::{DEFAULT_RUN_DIR, Location, Wait},
    instance::REPLACED,
};
use nodes::NodeView;
use view::StatusView;

/// How soon an agent that is waited for is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(250);
/// Connections in a table that was not asked for all of them.
const FEW_CONNECTIONS: u32 = 10;
const ALL_CONNECTIONS: u32 = u32::MAX;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ambit status
  ambit status connections
  ambit status certs problems
  ambit status issuers
  ambit status clusters
  ambit status --ready
  ambit status --ready --wait 1m
  ambit status --kubeconfig ~/.kube/config
  ambit status --context prod --pod web-7d4b9 -n shop connections
  ambit status -o json | jq '.connections[] | select(.security == \"plaintext\")'
  ambit status --run-dir /run/ambit-n2")]
pub(super) struct StatusArgs {
    /// Show only these; everything if none is named
    #[arg(value_enum)]
    sections: Vec<Section>,
    /// The folder of the agent's status socket
    #[arg(long, env = "AMBIT_RUN_DIR", hide_env_values = true, value_name = "DIR", default_value = DEFAULT_RUN_DIR)]
    run_dir: Location,
    /// How to show it
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "table")]
    output: Format,
    /// List every connection, not just the first ten
    #[arg(long)]
    connections: bool,
    /// Show nothing but whether the agent is ready, and exit with 1 while it is not
    #[arg(long, conflicts_with_all = ["sections", "output", "connections"])]
    ready: bool,
    /// With --ready: wait so long until it is
    #[arg(long, value_name = "DURATION", requires = "ready")]
    wait: Option<Wait>,
    /// The agent that called itself so, not its predecessor or successor
    #[arg(long, env = "AMBIT_INSTANCE", hide_env_values = true, value_name = "NAME")]
    instance: Option<String>,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
    Yaml,
}

/// A part of the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Section {
    Pods,
    Certs,
    /// Issuers of end users' tokens, and their keys
    Issuers,
    /// Other clusters whose objects are read
    Clusters,
    Connections,
    Denials,
    Problems,
}

impl StatusArgs {
    /// What was asked for of an agent's answer.
    fn view(&self, status: StatusResponse) -> StatusView {
        StatusView::new(self.remote.narrowed(status), &self.sections)
    }

    fn max_connections(&self) -> u32 {
        let wanted = self.sections.contains(&Section::Connections);
        // Those of one namespace are picked out here.
        let narrowed = self.remote.namespace().is_some();
        if narrowed || self.connections || self.output != Format::Table || wanted {
            ALL_CONNECTIONS
        } else {
            FEW_CONNECTIONS
        }
    }
}

pub(super) fn run(args: &StatusArgs) -> anyhow::Result<()> {
    let instance = args.instance.as_deref();
    if args.ready {
        return output::emit(&ready_in_time(args)?);
    }
    if args.remote.wanted() {
        return run_remote(args);
    }
    let status = ask_in_time(&args.run_dir.0, instance, args.max_connections())?;
    if instance.is_some_and(|instance| instance != status.instance) {
        output::complain(
            "the agent asked for does not answer; this is how the one stands that serves the node\n",
        );
    }
    output::emit(&render(&args.view(status), args.output)?)
}

/// Asks until the agent is ready, for as long as was asked for.
fn ready_in_time(args: &StatusArgs) -> anyhow::Result<String> {
    let instance = args.instance.as_deref();
    let ask = || readiness(&ask_in_time(&args.run_dir.0, instance, 0)?, instance);
    let deadline = Instant::now() + args.wait.as_ref().map_or(Duration::ZERO, |wait| wait.0);
    loop {
        match ask() {
            Err(_) if Instant::now() < deadline => std::thread::sleep(ASK_AGAIN),
            answer => return answer,
        }
    }
}

fn run_remote(args: &StatusArgs) -> anyhow::Result<()> {
    let mut answers = args.remote.ask(args.max_connections())?;
    if args.remote.one() && answers.len() == 1 {
        let Answer { node, status } = answers.remove(0);
        let status = status.with_context(|| format!("the agent of node {node}"))?;
        return output::emit(&render(&args.view(status), args.output)?);
    }
    let view = |answer| NodeView::new(answer, |status| args.view(status));
    let views: Vec<_> = answers.into_iter().map(view).collect();
    output::emit(&match args.output {
        Format::Table => nodes::render(&views, std::time::SystemTime::now()),
        Format::Json => serde_json::to_string_pretty(&views)? + "\n",
        Format::Yaml => serde_yaml_ng::to_string(&views)?,
    })?;
    let silent = views.iter().filter(|view| matches!(view, NodeView::Silent { .. })).count();
    if silent > 0 { bail!("{silent} of {} agents did not answer", views.len()) } else { Ok(()) }
}

/// Whether the agent that calls itself `instance` is ready; why not is an error.
fn readiness(status: &StatusResponse, instance: Option<&str>) -> anyhow::Result<String> {
    match instance {
        // Its work is done, and nobody waits for it any more.
        Some(instance)
            if instance == status.instance && status.pending.iter().any(|gate| gate == REPLACED) =>
        {
            Ok("replaced: another agent serves this node\n".to_owned())
        }
        Some(instance) if instance != status.instance => {
            bail!("another agent serves this node; this one has not taken over, or has been replaced")
        }
        _ if !status.ready => bail!("not ready, pending: {}", status.pending.join(", ")),
        _ => Ok("ready\n".to_owned()),
    }
}

fn render(view: &StatusView, format: Format) -> anyhow::Result<String> {
    Ok(match format {
        Format::Table => table::render(view, std::time::SystemTime::now()),
        Format::Json => serde_json::to_string_pretty(view)? + "\n",
        Format::Yaml => serde_yaml_ng::to_string(view)?,
    })
}

#[cfg(test)]
mod tests;
