//! `cargo xtask build`: the finished daemon, eBPF object inside.
//!
//! Release builds are static, so that the binary which was tested is the one in the image and runs on any distribution.
//! They link glibc: it needs no further toolchain, its allocator and `memcpy` are the fast ones, and since 2.34 its static
//! `getaddrinfo` reads `/etc/hosts` and asks DNS without loading a library.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    ebpf, setup,
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
    let size = fs::metadata(&binary)?.len();
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
    if release {
        let object = ebpf::object()?;
        // With the harness, which is wanted next and has most of its dependencies in common.
        let built = release_build(Arch::host()?, &["ambit", "ambit-integration"], Some(&object))?;
        return place(&built, &workspace::target_dir()?.join("release/ambit"));
    }
    let object = ebpf::object()?;
    step("Building the daemon (dev)", || {
        let mut build = workspace::cargo();
        build.args(["build", "--package", "ambit", "--bin", "ambit"]);
        workspace::run(build.env("AMBIT_EBPF_OBJECT", &object))
    })?;
    built(&workspace::target_dir()?.join("debug/ambit"))
}

/// Builds the static release of the daemon for `arch`; returns the path where cargo left it.
pub(crate) fn static_daemon(arch: Arch) -> Result<PathBuf> {
    let object = ebpf::object_for(arch)?;
    release_build(arch, &["ambit"], Some(&object))
}

/// Builds the daemon as it is shipped, but with symbols and frame pointers, so that its stacks can be walked. In a target
/// folder of its own: other flags would have everything built anew each time.
pub(crate) fn profiled_daemon() -> Result<PathBuf> {
    let object = ebpf::object()?;
    let arch = Arch::host()?;
    let folder = workspace::target_dir()?.join("profiled");
    let mut build = workspace::cargo();
    build.args(["build", "--release", "--package", "ambit", "--bin", "ambit", "--target", arch.target()]);
    build.arg("--target-dir").arg(&folder);
    let flags = format!("CARGO_TARGET_{}_RUSTFLAGS", arch.target().replace('-', "_").to_uppercase());
    build.env(flags, "-Ctarget-feature=+crt-static -Cforce-frame-pointers=yes");
    build.env("CARGO_PROFILE_RELEASE_STRIP", "none").env("AMBIT_EBPF_OBJECT", &object);
    build.env("CFLAGS", "-fno-omit-frame-pointer");
    step("Building the daemon with frame pointers (minutes the first time)", || workspace::run(&mut build))?;
    built(&folder.join(arch.target()).join("release/ambit"))
}

/// Builds the harness as it measures, with the daemon's profile; returns its path.
pub(crate) fn harness() -> Result<PathBuf> {
    release_build(Arch::host()?, &["ambit-integration"], None)
}

/// Where that is.
pub(crate) fn harness_path() -> Result<PathBuf> {
    Ok(workspace::target_dir()?.join(Arch::host()?.target()).join("release/ambit-integration"))
}

/// Static release builds of `programs`; returns the path of the first.
fn release_build(arch: Arch, programs: &[&str], object: Option<&Path>) -> Result<PathBuf> {
    let target = arch.target();
    let mut build = workspace::cargo();
    build.args(["build", "--release", "--target", target]);
    // Always both packages, so that dependencies have one set of features, and are built once.
    build.args(["--package", "ambit", "--package", "ambit-integration"]);
    build.args(programs.iter().flat_map(|program| ["--bin", program]));
    // Only for the target: procedural macros cannot be static. RUSTFLAGS would go before this.
    let variable = |name: &str| format!("CARGO_TARGET_{}_{name}", target.replace('-', "_").to_uppercase());
    build.env(variable("RUSTFLAGS"), "-Ctarget-feature=+crt-static");
    build.envs(object.map(|object| ("AMBIT_EBPF_OBJECT", object)));
    if arch != Arch::host()? {
        setup::cross(arch)?;
        build.env(variable("LINKER"), arch.compiler());
        build.env(format!("CC_{}", target.replace('-', "_")), arch.compiler());
    }
    let what =
        format!("Building {} (release, static, {target}; minutes the first time)", programs.join(", "));
    step(&what, || workspace::run(&mut build))?;
    built(&workspace::target_dir()?.join(target).join("release").join(programs[0]))
}

/// A processor architecture that ambit is built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Arch {
    /// x86-64.
    Amd64,
    /// 64-bit ARM.
    Arm64,
}

impl Arch {
    /// That of this machine.
    pub(crate) fn host() -> Result<Self> {
        match env::consts::ARCH {
            "x86_64" => Ok(Self::Amd64),
            "aarch64" => Ok(Self::Arm64),
            other => bail!("ambit is built for x86-64 and 64-bit ARM, not for {other}"),
        }
    }

    /// As images name it.
    pub(crate) fn image_name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// As `bpf_target_arch` names it.
    pub(crate) fn bpf_name(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64",
            Self::Arm64 => "aarch64",
        }
    }

    /// The target as rustc names it.
    pub(crate) fn target(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-gnu",
            Self::Arm64 => "aarch64-unknown-linux-gnu",
        }
    }

    /// Debian's C compiler for it, also on machines of another architecture.
    pub(crate) fn compiler(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-linux-gnu-gcc",
            Self::Arm64 => "aarch64-linux-gnu-gcc",
        }
    }
}

fn built(binary: &Path) -> Result<PathBuf> {
    binary.canonicalize().with_context(|| format!("cargo left no {}", binary.display()))
}

/// Puts `built` at `at` in one step, also while the binary that is there runs.
fn place(built: &Path, at: &Path) -> Result<PathBuf> {
    let fresh = at.with_extension("new");
    let copy = || {
        fs::create_dir_all(at.parent().unwrap_or(Path::new(".")))?;
        fs::copy(built, &fresh)?;
        fs::rename(&fresh, at)?;
        at.canonicalize()
    };
    copy().with_context(|| format!("cannot put the daemon at {}", at.display()))
}
