//! `cargo xtask lint`: formatting, clippy with every warning an error, the walls between rooms, and dependencies.

use anyhow::{Result, bail};

use crate::{
    deny, ebpf, rooms, setup,
    workspace::{self, step},
};

/// Check formatting, lints, the walls between the rooms of the house, and dependencies (deny.toml).
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask lint\n  \
    cargo xtask lint --rooms                       rooms, arrows, the longest files and functions\n  \
    cargo xtask lint --rooms --dot | dot -Tsvg     the rooms as a picture\n\n\
    The rooms and what each may not touch are in docs/architecture.md.")]
pub(crate) struct Args {
    /// Only show the rooms with their arrows, and how long files and functions are.
    #[arg(long)]
    rooms: bool,
    /// Show the rooms in Graphviz's language.
    #[arg(long, requires = "rooms")]
    dot: bool,
}

/// Runs the verb.
pub(crate) fn run(args: &Args) -> Result<()> {
    match args {
        Args { rooms: false, .. } => {
            all()?;
            return deny::check();
        }
        Args { dot: false, .. } => print!("{}", rooms::text(workspace::root())?),
        Args { dot: true, .. } => print!("{}", rooms::dot(workspace::root())?),
    }
    Ok(())
}

/// Runs every check but that of dependencies, whose tool takes a while to build.
pub(crate) fn all() -> Result<()> {
    setup::bpf_toolchain()?;
    step("Checking the format", || workspace::run(workspace::cargo().args(["fmt", "--all", "--check"])))?;
    step("Checking the walls between rooms", || {
        let breaches = rooms::breaches(workspace::root())?;
        if !breaches.is_empty() {
            bail!("{} breaches of the walls between rooms:\n  {}", breaches.len(), breaches.join("\n  "));
        }
        Ok(())
    })?;
    step("Linting", || {
        let mut clippy = workspace::cargo();
        clippy.args([
            "clippy",
            "--workspace",
            "--exclude",
            "ambit-ebpf",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ]);
        workspace::run(&mut clippy)
    })?;
    step("Linting the eBPF programs", || {
        let mut clippy = ebpf::command("clippy")?;
        workspace::run(clippy.args(["--release", "--", "-D", "warnings"]))
    })
}
