//! `cargo xtask setup`: whatever the other verbs need and a fresh Debian machine with rustup lacks.
//!
//! Does nothing, and asks for no network, where everything is there already.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use nix::unistd::geteuid;

use crate::{
    build::Arch,
    deny, kube, peers,
    workspace::{self, step},
};

/// The release that builds against the LLVM inside rustc; later ones want a system LLVM.
const BPF_LINKER: &str = "0.10.3";

/// A program that tests, demo and bench call, and the Debian package that has it.
const PROGRAMS: &[(&str, &str)] = &[
    ("curl", "curl"),
    ("ip", "iproute2"),
    ("iperf3", "iperf3"),
    ("nc.openbsd", "netcat-openbsd"),
    ("nft", "nftables"),
    ("nsenter", "util-linux"),
    ("openssl", "openssl"),
    ("setpriv", "util-linux"),
    ("socat", "socat"),
    ("sysctl", "procps"),
    ("tc", "iproute2"),
    ("tcpdump", "tcpdump"),
    ("wrk", "wrk"),
];

/// Users' applications, clients and servers, which the end-to-end tests run beside them.
const APPLICATIONS: &[(&str, &str)] = &[
    ("dig", "bind9-dnsutils"),
    ("dnsperf", "dnsperf"),
    ("go", "golang-go"),
    ("h2load", "nghttp2-client"),
    // Python's modules have no programs: they come with one that is used beside them.
    ("nginx", "nginx-light python3-grpcio python3-websockets"),
    ("musl-gcc", "musl-tools"),
    ("named", "bind9"),
    ("node", "nodejs"),
    ("pg_createcluster", "postgresql"),
    ("python3", "python3"),
    ("redis-server", "redis-server"),
    ("vsftpd", "vsftpd"),
];

/// What a Kubernetes cluster on this machine calls beside them.
const KUBE_PROGRAMS: &[(&str, &str)] = &[("ldd", "libc-bin"), ("runc", "runc")];

/// What building and fetching the programs of others that ambit is tried against calls beside them.
const PEER_PROGRAMS: &[(&str, &str)] = &[("dpkg-deb", "dpkg"), ("gcc", "gcc libc6-dev")];

/// What fetching the proxies that ambit is measured beside calls; pip has no program of its own in every set-up.
const PROXY_PROGRAMS: &[(&str, &str)] =
    &[("dpkg-deb", "dpkg"), ("pip3", "python3-pip"), ("python3", "python3"), ("chmod", "coreutils")];

/// What `profile` calls beside the usual ones.
const PROFILE_PROGRAMS: &[(&str, &str)] = &[("perf", "linux-perf")];

/// What booting another kernel under emulation calls beside them.
const KERNEL_PROGRAMS: &[(&str, &str)] = &[
    ("busybox", "busybox-static"),
    ("cpio", "cpio"),
    ("depmod", "kmod"),
    ("dpkg-deb", "dpkg"),
    ("ldd", "libc-bin"),
    ("modprobe", "kmod"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("xz", "xz-utils"),
];

/// Install what the other verbs need: the BPF toolchain and the programs the tests use.
///
/// Every other verb calls it by itself. Run it alone to prepare an image or a cache.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask setup               everything\n  \
    cargo xtask setup --kube        also Kubernetes itself, for test --kube and its like\n  \
    cargo xtask setup --peers       also SPIRE, istiod and promtool, for test --peers\n  \
    cargo xtask setup --build-only  only what building needs, no root")]
pub(crate) struct Args {
    /// Leave out the programs that only tests, demo and bench need (no root needed).
    #[arg(long)]
    build_only: bool,
    /// Build Kubernetes, etcd, containerd and their like too. Needs Go.
    #[arg(long, conflicts_with = "build_only")]
    kube: bool,
    /// Build SPIRE and istiod too, and fetch promtool. Needs Go and gcc.
    #[arg(long, conflicts_with = "build_only")]
    peers: bool,
}

/// Runs the verb.
pub(crate) fn run(args: &Args) -> Result<()> {
    bpf_toolchain()?;
    if let Err(error) = deny::tool() {
        eprintln!(
            "    cargo-deny cannot be had, so `cargo xtask lint` will not check dependencies: {error:#}"
        );
    }
    if !args.build_only {
        test_programs()?;
    }
    if args.kube {
        kube::programs()?;
    }
    if args.peers {
        peers::programs()?;
        kube::programs()?;
    }
    eprintln!("==> Set-up is complete");
    Ok(())
}

/// Makes sure of all that every suite needs, but for what is built of Go modules.
pub(crate) fn everything() -> Result<()> {
    test_programs()?;
    kube_programs()?;
    peer_programs()?;
    bpf_toolchain().map(drop)
}

/// Makes sure of a nightly toolchain with rust-src, and of bpf-linker in the target folder; returns the linker's path.
pub(crate) fn bpf_toolchain() -> Result<PathBuf> {
    let nightly = workspace::nightly();
    let components = Command::new("rustup")
        .args(["component", "list", "--installed", "--toolchain", &nightly])
        .output()
        .context("rustup is not installed; see https://rustup.rs")?;
    let has = |name: &str| String::from_utf8_lossy(&components.stdout).lines().any(|l| l.starts_with(name));
    if !components.status.success() || !has("rust-src") || !has("clippy") {
        step(&format!("Installing the toolchain {nightly} with rust-src and clippy"), || {
            workspace::run(Command::new("rustup").args([
                "toolchain",
                "install",
                &nightly,
                "--profile",
                "minimal",
                "--component",
                "rust-src",
                "--component",
                "clippy",
                "--no-self-update",
            ]))
        })?;
    }
    bpf_linker()
}

/// Makes sure of every program that tests, demo and bench call.
pub(crate) fn programs() -> Result<()> {
    install(PROGRAMS)
}

/// Makes sure of every program that the end-to-end tests call.
pub(crate) fn test_programs() -> Result<()> {
    install(&[PROGRAMS, APPLICATIONS].concat())
}

/// Makes sure of every program that a Kubernetes cluster calls.
pub(crate) fn kube_programs() -> Result<()> {
    install(&[PROGRAMS, KUBE_PROGRAMS].concat())
}

/// Makes sure of every program that it takes to have the peers of `test --peers`.
pub(crate) fn peer_programs() -> Result<()> {
    install(&[PROGRAMS, PEER_PROGRAMS].concat())
}

/// Makes sure of every program that it takes to have the proxies of `bench`.
pub(crate) fn proxy_programs() -> Result<()> {
    install(&[PROGRAMS, PROXY_PROGRAMS].concat())
}

/// Makes sure of every program that `profile` calls.
pub(crate) fn profile_programs() -> Result<()> {
    install(&[PROGRAMS, PROFILE_PROGRAMS].concat())
}

/// Makes sure of every program that the end-to-end tests on another kernel call.
pub(crate) fn kernel_programs() -> Result<()> {
    install(&[PROGRAMS, APPLICATIONS, KERNEL_PROGRAMS].concat())
}

/// Makes sure of what builds programs for machines of another architecture than this one.
pub(crate) fn cross(arch: Arch) -> Result<()> {
    let installed = workspace::output(
        Command::new("rustup").args(["target", "list", "--installed"]).current_dir(workspace::root()),
    )?;
    if !installed.lines().any(|line| line == arch.target()) {
        step(&format!("Installing Rust's standard library for {}", arch.target()), || {
            workspace::run(
                Command::new("rustup").args(["target", "add", arch.target()]).current_dir(workspace::root()),
            )
        })?;
    }
    match arch {
        Arch::Amd64 => install(&[("x86_64-linux-gnu-gcc", "gcc-x86-64-linux-gnu libc6-dev-amd64-cross")]),
        Arch::Arm64 => install(&[("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu libc6-dev-arm64-cross")]),
    }
}

/// Makes sure of `wanted`: programs, each with the Debian packages that bring it.
fn install(wanted: &[(&str, &str)]) -> Result<()> {
    let mut packages: Vec<&str> = wanted
        .iter()
        .filter(|(program, _)| find(program).is_none())
        .flat_map(|(_, packages)| packages.split(' '))
        .collect();
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    if !geteuid().is_root() {
        bail!("these Debian packages are missing and installing them needs root: {list}");
    }
    if find("apt-get").is_none() {
        bail!("these Debian packages are missing and there is no apt-get; install their like: {list}");
    }
    step(&format!("Installing Debian packages: {list}"), || {
        let _quiet = NoServices::begin()?;
        let apt = |args: &[&str]| workspace::run(apt_get().args(args));
        let install: Vec<&str> = ["install", "-y", "--no-install-recommends"]
            .into_iter()
            .chain(packages.iter().copied())
            .collect();
        apt(&install).or_else(|_| apt(&["update"]).and_then(|()| apt(&install)))
    })?;
    match wanted.iter().find(|(program, _)| find(program).is_none()) {
        Some((program, package)) => bail!("{package} is installed, but brought no program {program}"),
        None => Ok(()),
    }
}

/// Keeps packages from starting their services for as long as it lives, by the script that Debian asks (invoke-rc.d(8)). A
/// script that is there already is left alone.
struct NoServices(Option<&'static str>);

impl NoServices {
    fn begin() -> Result<Self> {
        const SCRIPT: &str = "/usr/sbin/policy-rc.d";
        if Path::new(SCRIPT).exists() {
            return Ok(Self(None));
        }
        fs::write(SCRIPT, "#!/bin/sh\nexit 101\n").context(SCRIPT)?;
        fs::set_permissions(SCRIPT, fs::Permissions::from_mode(0o755)).context(SCRIPT)?;
        Ok(Self(Some(SCRIPT)))
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Some(script) = self.0 {
            // One that is gone already does no harm.
            let _ = fs::remove_file(script);
        }
    }
}

/// Debian's package tool, asking nothing.
pub(crate) fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C");
    command
}

/// Where things are that outlive the workspace, because getting them takes minutes.
pub(crate) fn cache() -> Result<PathBuf> {
    let root = env::var_os("XDG_CACHE_HOME")
        .filter(|root| !root.is_empty())
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME says where a cache may be")?;
    Ok(root.join("ambit"))
}

/// Removes a folder; one that is not there is no error.
pub(crate) fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| folder.display().to_string())
        }
        _ => Ok(()),
    }
}

/// The path of a program, also where only root's `PATH` would look.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// A program, also where only root's `PATH` would look.
pub(crate) fn program(name: &str) -> Command {
    Command::new(find(name).unwrap_or_else(|| name.into()))
}

fn bpf_linker() -> Result<PathBuf> {
    let tools = workspace::tools_dir()?;
    let linker = tools.join("bin/bpf-linker");
    if version(&linker).as_deref() == Some(BPF_LINKER) {
        return Ok(linker);
    }
    step(&format!("Building bpf-linker {BPF_LINKER} (once, about two minutes)"), || {
        let build = tools.join("build");
        let mut install = workspace::nightly_cargo();
        install
            .args(["install", "bpf-linker", "--version", BPF_LINKER, "--locked", "--force", "--root"])
            .arg(&tools)
            // It works for seconds: what is built faster is done sooner.
            .env("CARGO_PROFILE_RELEASE_DEBUG", "false")
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1")
            .env("CARGO_TARGET_DIR", &build);
        workspace::run(&mut install)?;
        remove(&build)
    })?;
    Ok(linker)
}

/// What a program says its version is, if it is there.
pub(crate) fn version(program: &Path) -> Option<String> {
    let output = Command::new(program).arg("--version").output().ok()?;
    String::from_utf8_lossy(&output.stdout).split_whitespace().nth(1).map(str::to_owned)
}
