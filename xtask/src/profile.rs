//! `cargo xtask profile`: where the agents' time goes under a load.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;

use crate::{
    build,
    harness::{self, Call},
    setup, workspace,
};

/// Profile both agents under a load with perf: a flame graph (SVG) and a list of functions. Needs root.
///
/// The daemon is built anew, as it is shipped but with symbols and frame pointers: minutes the first time.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  cargo xtask profile bulk-1-up\n  cargo xtask profile http-32 --seconds 30\n  \
    cargo xtask profile grpc-1 --path ambit-http   with requests that are judged\n  \
    cargo xtask profile conn-8 --binary BINARY   one that you have built with symbols and frame pointers\n  \
    cargo xtask bench --list                     which loads there are"
)]
pub(crate) struct Args {
    /// The load, as `cargo xtask bench --list` names it.
    load: String,
    /// For how long, in seconds.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=120))]
    seconds: u32,
    /// What lies between client and server: `ambit`, or `ambit-http`, where each request is judged.
    #[arg(long, default_value = "ambit", value_parser = ["ambit", "ambit-http"])]
    path: String,
    /// Where LOAD.svg, LOAD.txt and LOAD.folded go [default: target/profile].
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Use this binary instead of building one.
    #[arg(long)]
    binary: Option<PathBuf>,
}

/// Runs the verb.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    harness::must_be_root()?;
    setup::profile_programs()?;
    let binary = args.binary.as_deref();
    let daemon = match binary {
        Some(_) => build::daemon_or(binary)?,
        None => build::profiled_daemon()?,
    };
    let out = match &args.out {
        Some(out) => out.clone(),
        None => workspace::target_dir()?.join("profile"),
    };
    // The harness is not what is measured: whichever is there will do.
    Call::new("profile")?
        .words([&args.load])
        .value("--path", &args.path)
        .value("--seconds", args.seconds.to_string())
        .value("--binary", daemon)
        .value("--out", out)
        .become_it()
}
