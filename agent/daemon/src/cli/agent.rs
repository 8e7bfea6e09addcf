//! `ambit agent`: settings to configuration, then the agent on a runtime.

use std::{process::ExitCode, sync::Arc, time::Duration};

use clap::Args;
use tokio::runtime::Builder;

use super::{process, supervise};
use crate::{
    app,
    config::{AgentConfig, AgentSettings, BusyPolling, Location},
    instance,
    proxy::BusyPoll,
    telemetry,
    tunnel::give_back_spares,
};

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
    settings: AgentSettings,
    /// A file with settings
    #[arg(long, env = "AMBIT_CONFIG", value_name = "FILE", hide_env_values = true)]
    config: Option<Location>,
    /// Start the agent again at once when a signal has killed it
    #[arg(long, env = SUPERVISE, hide_env_values = true)]
    supervise: bool,
}

const SUPERVISE: &str = "AMBIT_SUPERVISE";

/// How long it pays to look for what comes next: most answers of what answers at once take less, through two agents.
const BUSY: Duration = Duration::from_micros(200);

fn busy_poll(setting: BusyPolling) -> Arc<BusyPoll> {
    BusyPoll::new(match setting {
        BusyPolling::Off => Duration::ZERO,
        // Looks would use up what messages need.
        BusyPolling::Auto if instance::has_processor_limit() => Duration::ZERO,
        BusyPolling::Auto => BUSY,
        BusyPolling::For(window) => window,
    })
}

/// Runs the agent until it is told to stop or cannot go on; the latter goes to the log and leaves only the exit code.
pub(super) fn run(args: AgentArgs) -> anyhow::Result<ExitCode> {
    process::begin_with_small_heap();
    let file = args.config.as_ref().map(|file| &*file.0);
    let config = AgentConfig::resolve(args.settings, file)?;
    if args.supervise {
        let mut log = None;
        let logging = || log = telemetry::init_logging(&config.log_filter, config.log_format).ok();
        return supervise::run("--supervise", SUPERVISE, logging);
    }
    supervise::end_with_parent()?;
    config.prepare_folders()?;
    let _log = telemetry::init_logging(&config.log_filter, config.log_format)?;
    let busy = busy_poll(config.busy_poll);
    let parks = busy.clone();
    let mut runtime = Builder::new_multi_thread();
    runtime.worker_threads(config.workers).thread_name("ambit").on_thread_park(move || {
        give_back_spares();
        parks.stand_aside();
    });
    process::run(&mut runtime, "the agent", app::run(config, busy))
}
