//! `cargo xtask bench`: plaintext, ambit and proxies under the same loads in turn, medians with their spread.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};

use crate::{
    build,
    harness::{self, Call},
    kube, proxies, setup, workspace,
};

/// Measure plaintext, ambit, Envoy and HAProxy under the same loads, in turn and in several rounds. Needs root.
///
/// Every load goes over every path in every round. Figures and a report, one HTML file, are in target/bench when it is over, or
/// when Ctrl-C ends it. How long it takes is told at the beginning. docs/performance.md says what the figures mean.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask bench --quick             five loads, plaintext, ambit and Envoy: less than three minutes
  cargo xtask bench                     everything: the better part of an hour
  cargo xtask bench --list              which loads and paths there are
  cargo xtask bench --loads rtt,http-32 --paths plaintext,ambit
  cargo xtask bench --against OLD       another ambit beside this one, both up at the same time
  cargo xtask bench --compare OLD.json NEW.json
                                        what became better or worse beyond noise
  cargo xtask bench --certificates      the CA, and an agent with a thousand identities
  cargo xtask bench --kube              the agent in a Kubernetes of 10,000 pods
  cargo xtask bench --changes           what a change of one pod or policy costs among 10,000 pods
  cargo xtask bench --policies          10,000 policies of 10 rules: a verdict, and a compilation; needs no root

A path of your own, --path NAME=CMD:
  CMD runs by `sh -c` once for the client's pod and once for each of two servers' pods, each time in the pod's network
  namespace, and stays in the foreground; end it with `exec PROGRAM`, so that its memory is its own. It finds in its environment
    BENCH_SIDE                  client or server
    BENCH_FORWARDS              LISTEN=TARGET pairs with blanks between, such as 127.1.4.1:8080=198.18.2.13:16040: it takes
                                connections at each LISTEN and carries them to TARGET. The client's side takes plaintext and
                                speaks mutual TLS to its targets; the server's takes mutual TLS and its targets are plaintext
    BENCH_CERTIFICATE, BENCH_KEY, BENCH_CERTIFICATE_AND_KEY, BENCH_ROOTS
                                PEM files: ECDSA P-256, with BENCH_IDENTITY as URI name
    BENCH_PEER_IDENTITY, BENCH_PEER_NAME
                                the URI name, and the DNS name, of the other side, which each side has to check: a server that
                                takes another valid certificate is not measured
  Example: --path 'mine=exec ./my-proxy --config <(./make-config)'")]
pub(crate) struct Args {
    /// Only these loads, by name or how names begin (`http`, `node-rtt`), with commas between.
    #[arg(long, value_name = "LOAD,…", value_delimiter = ',')]
    loads: Vec<String>,
    /// Only these paths, with commas between.
    #[arg(long, value_name = "PATH,…", value_delimiter = ',')]
    paths: Vec<String>,
    /// A path of your own besides; see below. May be given several times.
    #[arg(long, value_name = "NAME=CMD")]
    path: Vec<String>,
    /// Five loads over three paths, for a second each.
    #[arg(long)]
    quick: bool,
    /// How many rounds; the median counts [default: 5].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: Option<u32>,
    /// How long each load lasts in each round, in seconds [default: 3, with --quick 1].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: Option<u32>,
    /// TCP's congestion control in the pods and nodes, such as cubic [default: the machine's own].
    #[arg(long, value_name = "ALGORITHM")]
    congestion: Option<String>,
    /// Where bench.json and bench.html go [default: target/bench].
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// List loads and paths, and measure nothing.
    #[arg(long, conflicts_with_all = ["quick", "rounds", "seconds"])]
    list: bool,
    /// Say what became better or worse beyond noise between two runs' figures, and measure nothing.
    #[arg(long, num_args = 2, value_names = ["OLD.json", "NEW.json"], conflicts_with_all = ["list", "quick", "rounds", "seconds"])]
    compare: Vec<PathBuf>,
    /// Measure what certificates cost instead.
    #[arg(long, conflicts_with_all = ["loads", "paths", "path", "quick", "rounds"])]
    certificates: bool,
    /// Measure the agent in a big cluster instead: memory and processor at rest, time from a change to its effect.
    #[arg(long, conflicts_with_all = ["certificates", "loads", "paths", "path", "quick", "rounds", "seconds"])]
    kube: bool,
    /// Measure what one change costs in a big cluster instead: processor time, system calls on maps, connections judged again.
    #[arg(long, conflicts_with_all = ["certificates", "loads", "paths", "path", "quick", "rounds", "seconds", "kube"])]
    changes: bool,
    /// Measure what policies cost instead: a verdict and the compilation for one workload, among 10,000 of both.
    #[arg(long, conflicts_with_all = ["certificates", "loads", "paths", "path", "quick", "rounds", "seconds", "kube", "changes"])]
    policies: bool,
    /// Another daemon as the path `other`, beside this one; then plaintext and these two alone, unless --paths names more.
    #[arg(long, value_name = "BINARY", conflicts_with_all = ["certificates", "kube", "changes", "policies"])]
    against: Option<PathBuf>,
    /// Print the figures as JSON on stdout, and progress on stderr.
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
    if args.list {
        return Call::new("bench")?.flag("--list", true).become_it();
    }
    if let [old, new] = args.compare.as_slice() {
        return Call::new("bench")?.value("--compare", old).words([new]).become_it();
    }
    harness::must_be_root()?;
    let binary = args.binary.as_deref();
    if args.kube {
        let kit = kube::kit(None, binary)?;
        return Call::for_binary(binary, "bench-kube")?.kit(&kit).flag("--json", args.json).become_it();
    }
    setup::programs()?;
    let proxies = if args.wants_proxies() { Some(proxies::programs()?) } else { None };
    let daemon = build::daemon_or(binary)?;
    let out = match &args.out {
        Some(out) => out.clone(),
        None => workspace::target_dir()?.join("bench"),
    };
    let mut call = Call::for_binary(binary, "bench")?
        .value("--binary", daemon)
        .value("--out", out)
        .flag("--certificates", args.certificates)
        .flag("--changes", args.changes)
        .flag("--quick", args.quick)
        .flag("--json", args.json);
    if let Some(old) = &args.against {
        call = call.value("--against", old.canonicalize().with_context(|| old.display().to_string())?);
    }
    for (flag, number) in [("--rounds", args.rounds), ("--seconds", args.seconds)] {
        call = number.into_iter().fold(call, |call, number| call.value(flag, number.to_string()));
    }
    for (flag, words) in [("--loads", &args.loads), ("--paths", &args.paths), ("--path", &args.path)] {
        call = words.iter().fold(call, |call, word| call.value(flag, word));
    }
    call = args.congestion.iter().fold(call, |call, name| call.value("--congestion", name));
    call = proxies.into_iter().fold(call, |call, folder| call.value("--proxies", folder));
    call.become_it()
}

impl Args {
    /// Whether Envoy or HAProxy is among the paths.
    fn wants_proxies(&self) -> bool {
        if self.certificates || self.changes {
            return false;
        }
        match self.paths.as_slice() {
            [] => self.against.is_none(),
            paths => paths.iter().any(|path| path.starts_with("envoy") || path.starts_with("haproxy")),
        }
    }
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
