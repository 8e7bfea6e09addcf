//! `cargo xtask image`: the container image, without a container engine.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Result;

use crate::{
    build::{self, Arch},
    harness::Call,
    workspace::{self, step},
};

/// Make the container image, with no container engine: one static binary, no shell.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask image                     target/ambit-image.tar\n  \
    cargo xtask image --arch arm64        target/ambit-image-arm64.tar, cross-compiled if need be\n  \
    docker load < target/ambit-image.tar\n  \
    ctr -n k8s.io images import target/ambit-image.tar\n  \
    kind load image-archive target/ambit-image.tar")]
pub(crate) struct Args {
    /// The processors it is for; by default those of this machine.
    #[arg(long)]
    arch: Option<Arch>,
    /// Where to put it.
    #[arg(long)]
    output: Option<PathBuf>,
    /// Use this binary instead of building one. It must be static.
    #[arg(long)]
    binary: Option<PathBuf>,
}

/// Runs the verb.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let host = Arch::host()?;
    let arch = args.arch.unwrap_or(host);
    let binary = match &args.binary {
        None if arch != host => build::static_daemon(arch)?,
        given => build::daemon_or(given.as_deref())?,
    };
    let output = match (&args.output, arch == host) {
        (Some(output), _) => output.clone(),
        (None, true) => default_output()?,
        (None, false) => workspace::target_dir()?.join(format!("ambit-image-{}.tar", arch.image_name())),
    };
    call(Call::new("image")?, arch, &binary, &output).become_it()
}

/// The image of the daemon `given`, or else of the release build, for this machine; returns its path.
pub(crate) fn of(given: Option<&Path>) -> Result<PathBuf> {
    let (output, binary) = (default_output()?, build::daemon_or(given)?);
    let call = call(Call::for_binary(given, "image")?, Arch::host()?, &binary, &output);
    step("Writing the image", || call.run())?;
    Ok(output)
}

fn default_output() -> Result<PathBuf> {
    Ok(workspace::target_dir()?.join("ambit-image.tar"))
}

fn call(call: Call, arch: Arch, binary: &Path, output: &Path) -> Call {
    call.value("--arch", arch.image_name()).value("--binary", binary).value("--output", output)
}
