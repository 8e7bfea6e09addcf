//! `cargo xtask ebpf`: builds the eBPF programs with the nightly toolchain and bpf-linker.

use std::{ffi::OsString, path::PathBuf, process::Command};

use anyhow::{Result, bail};

use crate::{
    build::Arch,
    setup,
    workspace::{self, step},
};

const TARGET: &str = "bpfel-unknown-none";

/// Build the eBPF programs and print the object's path.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask ebpf\n  \
    AMBIT_EBPF_OBJECT=$(cargo xtask ebpf) cargo build -p ambit   a daemon build by hand")]
pub(crate) struct Args {}

/// Runs the verb.
pub(crate) fn run(_args: &Args) -> Result<()> {
    println!("{}", object()?.display());
    Ok(())
}

/// Builds the programs; returns the path of the object that a daemon for this machine embeds.
pub(crate) fn object() -> Result<PathBuf> {
    object_for(Arch::host()?)
}

/// Builds the programs for machines of `arch`; returns the object's path.
pub(crate) fn object_for(arch: Arch) -> Result<PathBuf> {
    let mut build = command_for("build", arch)?;
    build.arg("--release");
    step("Building the eBPF programs", || workspace::run(&mut build))?;
    let object = target_dir(arch)?.join(TARGET).join("release/ambit-ebpf");
    if !object.is_file() {
        bail!("cargo built the eBPF programs, but left no {}", object.display());
    }
    Ok(object)
}

/// A nightly cargo call on the programs' crate for the BPF target: `verb` is `build`, `clippy`, …
pub(crate) fn command(verb: &str) -> Result<Command> {
    command_for(verb, Arch::host()?)
}

fn command_for(verb: &str, arch: Arch) -> Result<Command> {
    let linker = setup::bpf_toolchain()?;
    // One target folder of its own: build-std for BPF and the host's builds would throw each other's results away.
    let mut cargo = workspace::nightly_cargo();
    cargo
        .args([verb, "--package", "ambit-ebpf", "--bins", "-Z", "build-std=core", "--target", TARGET])
        .arg("--target-dir")
        .arg(target_dir(arch)?)
        .env("CARGO_PROFILE_RELEASE_LTO", "false")
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(&linker, arch));
    Ok(cargo)
}

fn rustflags(linker: &std::path::Path, arch: Arch) -> OsString {
    let mut flags = OsString::from(format!("--cfg=bpf_target_arch=\"{}\"", arch.bpf_name()));
    flags.push("\x1f-Cdebuginfo=2\x1f-Clink-arg=--btf\x1f-Clinker=");
    flags.push(linker);
    flags
}

/// A folder for each architecture, so that neither throws the other's results away.
fn target_dir(arch: Arch) -> Result<PathBuf> {
    let folder =
        if arch == Arch::host()? { "ebpf".to_owned() } else { format!("ebpf-{}", arch.image_name()) };
    Ok(workspace::target_dir()?.join(folder))
}
