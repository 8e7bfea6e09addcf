//! Where things lie in the workspace, and how child commands are run. Knows no verb.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    time::Instant,
};

use anyhow::{Context as _, Result, bail};

use crate::times;

const KNOWN_NIGHTLY: &str = "nightly-2026-05-20";

/// The root of the workspace: that of the call, where cargo says it, for another clone may have built this program.
pub(crate) fn root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let own = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        Path::new(&own).parent().map_or_else(|| ".".into(), Path::to_path_buf)
    })
}

/// Cargo's target directory, wherever the environment or a configuration file puts it.
pub(crate) fn target_dir() -> Result<&'static Path> {
    static TARGET: OnceLock<PathBuf> = OnceLock::new();
    if let Some(found) = TARGET.get() {
        return Ok(found);
    }
    let mut metadata = cargo();
    metadata.args(["metadata", "--no-deps", "--offline", "--format-version", "1"]);
    let parsed: serde_json::Value =
        serde_json::from_str(&output(&mut metadata)?).context("cargo metadata printed no JSON")?;
    let path = parsed["target_directory"].as_str().context("cargo metadata names no target directory")?;
    Ok(TARGET.get_or_init(|| path.into()))
}

/// Where tools that this workspace builds for itself are installed.
pub(crate) fn tools_dir() -> Result<PathBuf> {
    Ok(target_dir()?.join("tools"))
}

/// The cargo of the workspace's own toolchain, run from the root.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// The toolchain that builds the eBPF programs: what `AMBIT_NIGHTLY` names, else the nightly that is installed, else one
/// that is known to go with our bpf-linker.
pub(crate) fn nightly() -> String {
    if let Ok(name) = env::var("AMBIT_NIGHTLY") {
        return name;
    }
    let installed = Command::new("rustup").args(["run", "nightly", "rustc", "--version"]).output();
    let name = if installed.is_ok_and(|output| output.status.success()) { "nightly" } else { KNOWN_NIGHTLY };
    name.to_owned()
}

/// The nightly toolchain's cargo, run from the root, free of what `cargo run` and the user's shell set for the stable one.
pub(crate) fn nightly_cargo() -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", &nightly(), "cargo"]).current_dir(root());
    for name in [
        "CARGO",
        "CARGO_BUILD_TARGET",
        "CARGO_ENCODED_RUSTFLAGS",
        "RUSTC",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTDOC",
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
    ] {
        command.env_remove(name);
    }
    command
}

/// Runs `command` with its output on this terminal's stderr; a failure names the command.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .stdout(std::io::stderr())
        .status()
        .with_context(|| format!("cannot start {}", shown(command)))?;
    if !status.success() {
        bail!("{} failed: {status}", shown(command));
    }
    Ok(())
}

/// Runs `command` and returns what it printed on stdout; a failure carries its stderr.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {}", shown(command)))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{} failed: {}\n{}", shown(command), output.status, stderr.trim_end());
    }
    String::from_utf8(output.stdout).with_context(|| format!("{} printed no UTF-8", shown(command)))
}

/// Says what is being done and how long that took the last time, does it, and says how long it took this time, when that was
/// long enough to wonder.
pub(crate) fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    match times::last(what) {
        Some(last) => eprintln!("==> {what} (last time: {})", times::shown(last)),
        None => eprintln!("==> {what}"),
    }
    let start = Instant::now();
    let done = work()?;
    let took = start.elapsed();
    times::keep(what, took);
    if took.as_secs() >= 5 {
        eprintln!("    ({what}: {})", times::shown(took));
    }
    Ok(done)
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
