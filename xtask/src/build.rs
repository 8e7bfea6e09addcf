//! `cargo xtask build`: the finished daemon, eBPF object inside.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::{
    ebpf,
    workspace::{self, step},
};

/// Build the finished `ambit` binary with the eBPF programs inside.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask build             target/debug/ambit\n  \
    cargo xtask build --release   target/release/ambit")]
pub(crate) struct Args {
    /// With optimisations, as it is shipped and measured.
    #[arg(long)]
    release: bool,
}

/// Runs the verb.
pub(crate) fn run(args: &Args) -> Result<()> {
    let binary = daemon(args.release)?;
    let size = std::fs::metadata(&binary)?.len();
    println!("{} ({:.1} MB)", binary.display(), size as f64 / 1e6);
    Ok(())
}

/// The binary at `given`, or the release build that tests, demo and bench use.
pub(crate) fn daemon_or(given: Option<&Path>) -> Result<PathBuf> {
    match given {
        Some(binary) => binary.canonicalize().with_context(|| binary.display().to_string()),
        None => daemon(true),
    }
}

/// Builds programs and daemon; returns the binary's path.
pub(crate) fn daemon(release: bool) -> Result<PathBuf> {
    let object = ebpf::object()?;
    let (profile, folder) = if release { ("release", "release") } else { ("dev", "debug") };
    step(&format!("Building the daemon ({profile})"), || {
        let mut build = workspace::cargo();
        build.args(["build", "--package", "ambit", "--bin", "ambit", "--profile", profile]);
        workspace::run(build.env("AMBIT_EBPF_OBJECT", &object))
    })?;
    let binary = workspace::target_dir()?.join(folder).join("ambit");
    binary.canonicalize().with_context(|| format!("cargo left no {}", binary.display()))
}
