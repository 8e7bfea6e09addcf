//! `ambit agent`: settings to configuration, then the runtime and the agent on it.

use std::{process::ExitCode, time::Duration};

use anyhow::Context;
use clap::Args;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::runtime::Builder;

use super::{
    config::{AgentConfig, ConfigError},
    settings::{self, Settings},
    supervise,
    values::Location,
};
use crate::{app, telemetry};

/// How long tasks get to end after the agent is done.
pub(super) const LAST_MOMENT: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
#[command(after_help = "\
A flag goes before its environment variable, that before the config file, that before the default.
The config file is YAML; its keys are the flags without the dashes (node: worker-1).

Without --manifests the agent watches the Kubernetes API: of the cluster whose pod it is, or that of --kubeconfig.

Examples:
  ambit agent --node worker-1 --ca-dir /var/lib/ambit/ca
  ambit agent --node worker-1 --kubeconfig /etc/kubernetes/ambit.conf --ca-dir /var/lib/ambit/ca
  ambit agent --node worker-1 --manifests ./manifests --ca-dir /var/lib/ambit/ca
  ambit agent --config /etc/ambit/agent.yaml --log info,access=warn
  ambit agent --node worker-1 --manifests ./manifests --issuer istio --ca-address ambit-ca.ambit-system.svc:15012
  AMBIT_NODE=worker-1 ambit agent --config /etc/ambit/agent.yaml --metrics-addr 0.0.0.0:15020
  ambit agent --node worker-1 --manifests ./manifests --ca-dir ./ca --run-dir ./run --svid-ttl 10m --log-format json")]
pub(super) struct AgentArgs {
    #[command(flatten)]
    settings: Settings,
    /// A file with settings
    #[arg(long, env = "AMBIT_CONFIG", value_name = "FILE", hide_env_values = true)]
    config: Option<Location>,
    /// Start the agent again at once when a signal has killed it
    #[arg(long, env = SUPERVISE, hide_env_values = true)]
    supervise: bool,
}

const SUPERVISE: &str = "AMBIT_SUPERVISE";

impl AgentArgs {
    /// The configuration that flags, environment, file and defaults make together.
    pub(super) fn resolve(self) -> Result<AgentConfig, ConfigError> {
        let file = self.config.map(|path| settings::read(&path.0)).transpose()?.unwrap_or_default();
        AgentConfig::resolve(self.settings.over(file))
    }
}

/// Runs the agent until it is told to stop or cannot go on; the latter goes to the log and leaves only the exit code.
pub(super) fn run(args: AgentArgs) -> anyhow::Result<ExitCode> {
    let supervised = args.supervise;
    let config = args.resolve()?;
    if supervised {
        let mut log = None;
        let logging = || log = telemetry::init_logging(&config.log_filter, config.log_format).ok();
        return supervise::run("--supervise", SUPERVISE, logging);
    }
    supervise::end_with_parent()?;
    config.prepare_folders()?;
    let _log = telemetry::init_logging(&config.log_filter, config.log_format)?;
    raise_open_files();
    let runtime = Builder::new_multi_thread()
        .worker_threads(config.workers)
        .thread_name("ambit")
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let done = runtime.block_on(app::run(config));
    runtime.shutdown_timeout(LAST_MOMENT);
    match done {
        Err(error) if tracing::enabled!(tracing::Level::ERROR) => {
            tracing::error!(error = format!("{error:#}"), "the agent cannot go on");
            Ok(ExitCode::FAILURE)
        }
        done => done.map(|()| ExitCode::SUCCESS),
    }
}

/// A connection takes several descriptors; the usual soft limit of 1024 is meant for programs that call select(2).
pub(super) fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| hard));
    match raised {
        Ok(limit) => tracing::debug!(limit, "open files"),
        Err(error) => tracing::warn!(%error, "cannot raise the limit of open files"),
    }
}
