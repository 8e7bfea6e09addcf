//! `cargo xtask bench`: the demo's load at length, ambit and direct in turn, medians.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};

use crate::{
    build,
    harness::{self, Call},
    kube, setup, workspace,
};

/// Measure throughput, round trip and rates through the tunnel against plaintext, in several rounds. Needs root.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask bench\n  cargo xtask bench --rounds 9 --seconds 10\n  \
    cargo xtask bench --certificates     the CA and the agent's memory alone\n  \
    cargo xtask bench --kube             the agent in a Kubernetes of 10,000 pods\n  \
    cargo xtask bench --changes          what a change of one pod or policy costs among 10,000 pods\n  \
    cargo xtask bench --policies         10,000 policies of 10 rules: a verdict, and a compilation; needs no root\n  \
    cargo xtask bench --against OLD      this daemon and another one, both up, in turn; and what an idle connection takes\n  \
    cargo xtask bench --json > figures.json")]
pub(crate) struct Args {
    /// How many rounds; each measures both ways, and the median counts.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How long each of the five loads lasts, in seconds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Measure only what certificates cost.
    #[arg(long)]
    certificates: bool,
    /// Measure the agent in a big cluster instead: memory and processor at rest, time from a change to its effect.
    #[arg(long, conflicts_with_all = ["certificates", "rounds", "seconds"])]
    kube: bool,
    /// Measure what one change costs in a big cluster instead: processor time, system calls on maps, connections judged again.
    #[arg(long, conflicts_with_all = ["certificates", "rounds", "seconds", "kube"])]
    changes: bool,
    /// Measure what policies cost instead: a verdict and the compilation for one workload, among 10,000 of both.
    #[arg(long, conflicts_with_all = ["certificates", "rounds", "seconds", "kube", "changes"])]
    policies: bool,
    /// Compare with this other daemon instead: the same loads through both in turn, and their memory.
    #[arg(long, value_name = "BINARY", conflicts_with_all = ["certificates", "kube", "changes", "policies"])]
    against: Option<PathBuf>,
    /// Print JSON on stdout, and progress on stderr.
    #[arg(long)]
    json: bool,
    /// Use this binary instead of building one.
    #[arg(long)]
    binary: Option<PathBuf>,
}

/// Runs the verb.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if args.policies {
        return policies(args.json);
    }
    harness::must_be_root()?;
    let binary = args.binary.as_deref();
    let call = if args.kube {
        let kit = kube::kit(None, binary)?;
        Call::for_binary(binary, "bench-kube")?.kit(&kit)
    } else {
        setup::programs()?;
        let daemon = build::daemon_or(binary)?;
        let call = Call::for_binary(binary, "bench")?
            .value("--binary", daemon)
            .value("--rounds", args.rounds.to_string())
            .value("--seconds", args.seconds.to_string())
            .flag("--certificates", args.certificates)
            .flag("--changes", args.changes);
        match &args.against {
            Some(old) => {
                call.value("--against", old.canonicalize().with_context(|| old.display().to_string())?)
            }
            None => call,
        }
    };
    call.flag("--json", args.json).become_it()
}

/// What is measured there is the logic alone.
fn policies(json: bool) -> Result<ExitCode> {
    let mut run = workspace::cargo();
    run.args(["run", "--quiet", "--release", "-p", "ambit-core", "--example", "policies", "--"]);
    if json {
        run.arg("--json");
    }
    workspace::run(&mut run)?;
    Ok(ExitCode::SUCCESS)
}
