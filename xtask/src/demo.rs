//! `cargo xtask demo`: shows a newcomer what ambit does, step by step, on this machine.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;

use crate::{
    build,
    harness::{self, Call},
    kube, setup,
};

/// Show what ambit does, step by step, with two nodes and five pods on this machine. Needs root.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  cargo xtask demo\n  cargo xtask demo --keep   leaves it running, and says how to look around\n  \
    cargo xtask demo --kube   on a real Kubernetes, with the chart and the image\n  \
    cargo xtask demo --json   the figures alone, for a program"
)]
pub(crate) struct Args {
    /// Leave everything running at the end; `cargo xtask clean` removes it.
    #[arg(long)]
    keep: bool,
    /// Print the figures as JSON on stdout, and everything else on stderr.
    #[arg(long)]
    json: bool,
    /// Show it on a real two-node Kubernetes, installed by Helm. Needs Go the first time.
    #[arg(long)]
    kube: bool,
    /// Use this image (a docker-archive) instead of making one.
    #[arg(long, requires = "kube", conflicts_with = "binary")]
    image: Option<PathBuf>,
    /// Use this binary instead of building one.
    #[arg(long)]
    binary: Option<PathBuf>,
    /// How long each of the loads lasts, in seconds.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
}

/// Runs the verb.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    harness::must_be_root()?;
    if args.binary.is_none() && !build::harness_path()?.is_file() {
        eprintln!(
            "Everything is built first: once, and for about ten minutes on two processors; later it takes seconds."
        );
    }
    let binary = args.binary.as_deref();
    let call = if args.kube {
        let kit = kube::kit(args.image.as_deref(), binary)?;
        Call::for_binary(binary, "demo-kube")?.kit(&kit)
    } else {
        setup::programs()?;
        let daemon = build::daemon_or(binary)?;
        Call::for_binary(binary, "demo")?.value("--binary", daemon)
    };
    let seconds = args.seconds.to_string();
    call.flag("--keep", args.keep).flag("--json", args.json).value("--seconds", seconds).become_it()
}
