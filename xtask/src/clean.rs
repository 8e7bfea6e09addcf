//! `cargo xtask clean`: removes what runs that were killed, or kept on purpose, have left on the machine.

use ambit_integration::sandbox::{Kept, sweep_abandoned};
use anyhow::Result;

/// Remove namespaces, processes, pins and files of runs that were kept or killed.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask demo --keep\n  cargo xtask clean\n\n\
    Runs that are still going are left alone. Nothing in target/ is touched.")]
pub(crate) struct Args {}

/// Runs the verb.
pub(crate) fn run(_args: &Args) -> Result<()> {
    match sweep_abandoned(Kept::Sweep)? {
        0 => println!("nothing to clean"),
        runs => println!("cleaned what {runs} runs had left"),
    }
    Ok(())
}
