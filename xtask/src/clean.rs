//! `cargo xtask clean`: removes what runs that were killed, or kept on purpose, have left on the machine.

use std::process::ExitCode;

use anyhow::Result;

use crate::harness::Call;

/// Remove namespaces, processes, pins and files of runs that were kept or killed.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask demo --keep\n  cargo xtask clean\n\n\
    Runs that are still going are left alone. Nothing in target/ is touched.")]
pub(crate) struct Args {}

/// Runs the verb.
pub(crate) fn run(_args: &Args) -> Result<ExitCode> {
    Call::new("clean")?.become_it()
}
