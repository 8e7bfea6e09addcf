//! `ambit ca`: settings to configuration, then the CA service on a runtime.

use std::process::ExitCode;

use clap::Args;
use tokio::runtime::Builder;

use super::process;
use crate::{
    app,
    cluster::in_pod,
    config::{CaConfig, CaServiceSettings, Location},
    telemetry,
};

#[derive(Debug, Args)]
#[command(after_help = "\
A flag goes before its environment variable, that before the config file, that before the default.
The config file is YAML; its keys are the flags without the dashes (listen: 0.0.0.0:15012).

Examples:
  ambit ca --listen 0.0.0.0:15012 --ca-dir /var/lib/ambit/ca --token-file /etc/ambit/callers.yaml
  ambit ca --listen 0.0.0.0:15012 --cacerts /etc/cacerts --token-file /etc/ambit/callers.yaml --max-ttl 1h
  ambit ca --listen 0.0.0.0:15012 --cacerts /etc/cacerts --kubeconfig ~/.kube/config --node-accounts ambit-system/ambit
  ambit ca --listen 0.0.0.0:15012 --root-secret ambit-system/ambit-ca
  ambit ca --config /etc/ambit/ca.yaml --metrics-addr 127.0.0.1:15020 --health-addr 127.0.0.1:15021 --dns-name ca.example.com,10.0.0.5")]
pub(super) struct CaArgs {
    #[command(flatten)]
    settings: CaServiceSettings,
    /// A file with settings
    #[arg(long, env = "AMBIT_CA_CONFIG", value_name = "FILE", hide_env_values = true)]
    config: Option<Location>,
}

/// Runs the CA service until it is told to stop or cannot go on; the latter goes to the log and leaves only the exit code.
pub(super) fn run(args: CaArgs) -> anyhow::Result<ExitCode> {
    let file = args.config.as_ref().map(|file| &*file.0);
    let config = CaConfig::resolve(args.settings, file, in_pod())?;
    config.prepare_folders()?;
    let _log = telemetry::init_logging(&config.log_filter, config.log_format)?;
    let service = app::run_ca(config);
    process::run(Builder::new_multi_thread().thread_name("ambit-ca"), "the CA service", service)
}
