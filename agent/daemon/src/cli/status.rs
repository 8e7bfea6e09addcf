//! `ambit status`: asks the agent of this node over its socket and shows the answer.

mod nodes;
pub(super) mod table;
pub(super) mod view;

use std::{io, path::Path, time::Duration};

use ambit_proto::admin::v1::{StatusRequest, StatusResponse, admin_client::AdminClient};
use anyhow::{Context, anyhow, bail};
use clap::{Args, ValueEnum};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixStream,
    runtime::Builder,
    time::timeout,
};
use tonic::transport::Endpoint;
use tower::service_fn;

use super::{
    config::DEFAULT_RUN_DIR,
    output,
    remote::{Answer, Remote},
    values::Location,
};
use crate::admin::RunDir;
use nodes::NodeView;
use view::StatusView;

/// How long the agent has for its answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Connections in a table that was not asked for all of them.
const FEW_CONNECTIONS: u32 = 10;
const ALL_CONNECTIONS: u32 = u32::MAX;
/// The longest answer taken, in bytes: several times what the agent lists at most.
const MAX_ANSWER: usize = 128 * 1024 * 1024;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ambit status
  ambit status connections
  ambit status certs problems
  ambit status --ready
  ambit status --kubeconfig ~/.kube/config
  ambit status --context prod --pod shop/web-7d4b9 connections
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
    /// With --ready: the agent that called itself so, not its predecessor or successor
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
    Connections,
    Problems,
}

impl StatusArgs {
    fn max_connections(&self) -> u32 {
        let wanted = self.sections.contains(&Section::Connections);
        if self.connections || self.output != Format::Table || wanted {
            ALL_CONNECTIONS
        } else {
            FEW_CONNECTIONS
        }
    }
}

pub(super) fn run(args: &StatusArgs) -> anyhow::Result<()> {
    if args.ready {
        let status = ask_in_time(&args.run_dir.0, 0)?;
        return output::emit(&readiness(&status, args.instance.as_deref())?);
    }
    if args.remote.wanted() {
        return run_remote(args);
    }
    let status = ask_in_time(&args.run_dir.0, args.max_connections())?;
    output::emit(&render(&StatusView::new(status, &args.sections), args.output)?)
}

fn run_remote(args: &StatusArgs) -> anyhow::Result<()> {
    let mut answers = args.remote.ask(args.max_connections())?;
    if args.remote.one() && answers.len() == 1 {
        let Answer { node, status } = answers.remove(0);
        let status = status.with_context(|| format!("the agent of node {node}"))?;
        return output::emit(&render(&StatusView::new(status, &args.sections), args.output)?);
    }
    let views: Vec<_> = answers.into_iter().map(|answer| NodeView::new(answer, &args.sections)).collect();
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
        Some(instance) if instance != status.instance => {
            bail!("another agent serves this node; this one has not taken over, or has been replaced")
        }
        _ if !status.ready => bail!("not ready, pending: {}", status.pending.join(", ")),
        _ => Ok("ready\n".to_owned()),
    }
}

/// Asks the agent with this run directory, and waits no longer than five seconds.
pub(super) fn ask_in_time(run_dir: &Path, max_connections: u32) -> anyhow::Result<StatusResponse> {
    let runtime = Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    runtime.block_on(async {
        timeout(PATIENCE, ask(run_dir, max_connections)).await.unwrap_or_else(|_| {
            bail!("the agent did not answer within {PATIENCE:?}: it is overloaded or stuck; see its log")
        })
    })
}

fn render(view: &StatusView, format: Format) -> anyhow::Result<String> {
    Ok(match format {
        Format::Table => table::render(view, std::time::SystemTime::now()),
        Format::Json => serde_json::to_string_pretty(view)? + "\n",
        Format::Yaml => serde_yaml_ng::to_string(view)?,
    })
}

async fn ask(run_dir: &Path, max_connections: u32) -> anyhow::Result<StatusResponse> {
    let socket = RunDir::socket_path(run_dir);
    let stream = UnixStream::connect(&socket).await.map_err(|error| explain(error, run_dir, &socket))?;
    ask_over(stream, max_connections).await
}

/// Asks the agent at the other end of `stream`.
pub(super) async fn ask_over(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    max_connections: u32,
) -> anyhow::Result<StatusResponse> {
    let mut stream = Some(TokioIo::new(stream));
    // The name is not looked up: the connection is there already, and there is but one.
    let channel = Endpoint::from_static("http://agent")
        .connect_with_connector(service_fn(move |_| {
            let stream = stream.take().ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionAborted));
            async { stream }
        }))
        .await
        .context("what answers does not speak ambit's protocol")?;
    let request = StatusRequest { max_connections: Some(max_connections) };
    match AdminClient::new(channel).max_decoding_message_size(MAX_ANSWER).status(request).await {
        Ok(answer) => Ok(answer.into_inner()),
        Err(status) => bail!("the agent could not answer: {} ({:?})", status.message(), status.code()),
    }
}

fn explain(error: io::Error, run_dir: &Path, socket: &Path) -> anyhow::Error {
    let run_dir = run_dir.display();
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => anyhow!(
            "no agent runs with --run-dir {run_dir}: start one (ambit agent --help), or name the folder of the one \
             that runs with --run-dir or AMBIT_RUN_DIR"
        ),
        io::ErrorKind::PermissionDenied => {
            anyhow!("{} belongs to another user: run this command as the user of the agent", socket.display())
        }
        _ => anyhow::Error::new(error).context(format!("cannot connect to {}", socket.display())),
    }
}

#[cfg(test)]
mod tests;
