//! `cargo xtask fuzz`: what strangers send to the CA and the agents, mutated for a while.

use std::{env, ffi::OsString};

use anyhow::{Context as _, Result};

use crate::{
    setup,
    workspace::{self, step},
};

/// The release of cargo-fuzz that is installed.
const CARGO_FUZZ: &str = "0.13.1";
/// The targets, as `integration/fuzz/fuzz_targets` has them.
const TARGETS: [&str; 11] =
    ["cni", "csr", "frame", "handover", "hello", "jwt", "manifest", "path", "pem", "policy", "request"];
/// Longer inputs are refused unread.
const MAX_INPUT: u32 = 20_000;

/// Fuzz what reads the bytes of strangers: certificates, tunnel frames, first bytes, tokens, manifests, policies, local protocols. Needs no root.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask fuzz                   every target for a minute\n  \
    cargo xtask fuzz csr --seconds 600   one of them for ten")]
pub(crate) struct Args {
    /// How long each target runs, in seconds.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    seconds: u32,
    /// The targets; all of them without it.
    #[arg(value_parser = TARGETS)]
    targets: Vec<String>,
}

/// Runs the verb. Inputs that were found go to `integration/fuzz/corpus`, crashes to `integration/fuzz/artifacts`; a crash is an error.
pub(crate) fn run(args: &Args) -> Result<()> {
    let path = path_with_cargo_fuzz()?;
    let all = TARGETS.map(str::to_owned);
    let targets = if args.targets.is_empty() { &all[..] } else { &args.targets };
    for target in targets {
        step(&format!("Fuzzing {target} for {} s", args.seconds), || {
            let folder = workspace::root().join("integration/fuzz");
            let (corpus, seeds) = (folder.join("corpus").join(target), folder.join("seeds").join(target));
            std::fs::create_dir_all(&corpus)?;
            let mut fuzz = workspace::nightly_cargo();
            fuzz.env("PATH", &path).args(["fuzz", "run", "--fuzz-dir"]).arg(&folder);
            fuzz.arg("--target-dir").arg(workspace::target_dir()?.join("fuzz"));
            fuzz.arg(target).arg(&corpus).arg(&seeds).arg("--");
            fuzz.arg(format!("-max_total_time={}", args.seconds)).arg(format!("-max_len={MAX_INPUT}"));
            fuzz.args(["-timeout=10", "-rss_limit_mb=1024", "-print_final_stats=1"]);
            workspace::run(&mut fuzz)
        })?;
    }
    Ok(())
}

/// Makes sure of cargo-fuzz in the target folder; returns a search path on which cargo finds it.
fn path_with_cargo_fuzz() -> Result<OsString> {
    setup::bpf_toolchain()?;
    let tools = workspace::tools_dir()?;
    let folder = tools.join("bin");
    if !folder.join("cargo-fuzz").is_file() {
        step(&format!("Building cargo-fuzz {CARGO_FUZZ} (once, about a minute)"), || {
            // Its locked dependencies do not build with nightly.
            let mut install = workspace::cargo();
            install
                .args(["install", "cargo-fuzz", "--version", CARGO_FUZZ, "--locked", "--root"])
                .arg(&tools);
            workspace::run(install.env("CARGO_TARGET_DIR", tools.join("build")))
        })?;
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::join_paths([folder].into_iter().chain(env::split_paths(&path))).context("the search path")
}
