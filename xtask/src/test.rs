//! `cargo xtask test`: lints, unit tests, and the end-to-end tests with the real binary.

use std::{
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{ExitCode, Stdio},
};

use ambit_integration::{console::Console, kube_suite, peers as peer_suite, report::Report, sandbox, suite};
use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::{
    build, ebpf,
    kernel::{self, Series},
    kube, lint, peers, setup,
    workspace::{self, step},
};

/// Run lints, unit tests and end-to-end tests. Needs root for the latter.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask test                          everything, as CI does\n  \
    cargo xtask test --unit-only              lints and unit tests, no root\n  \
    cargo xtask test --e2e-only               the end-to-end tests\n  \
    cargo xtask test --e2e-only policy::      those of one topic\n  \
    cargo xtask test --soak                   those that take many minutes, and no others\n  \
    cargo xtask test --kube                   the tests on a real two-node Kubernetes\n  \
    cargo xtask test --kube probes::          those of one topic\n  \
    cargo xtask test --peers                  the issuers against a real SPIRE and istiod, and promtool\n  \
    cargo xtask test --peers spire            some of them\n  \
    cargo xtask test --kernel 6.1 wire::      those of one topic, on Debian's Linux 6.1 under emulation\n  \
    cargo xtask test --list [--kube|--peers]          their names, and what each shows")]
pub(crate) struct Args {
    /// Leave out lints and unit tests.
    #[arg(long, conflicts_with = "unit_only")]
    e2e_only: bool,
    /// Leave out the end-to-end tests.
    #[arg(long)]
    unit_only: bool,
    /// List the end-to-end tests and run nothing.
    #[arg(long)]
    list: bool,
    /// Use this binary instead of building one.
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Run the tests on a real Kubernetes instead, with the chart and the image. Needs Go the first time.
    #[arg(long, conflicts_with_all = ["e2e_only", "unit_only"])]
    kube: bool,
    /// Run the tests against a real SPIRE, a real istiod and promtool instead. Needs Go and gcc the first time.
    #[arg(long, conflicts_with_all = ["e2e_only", "unit_only", "kube"])]
    peers: bool,
    /// Use this image (a docker-archive) instead of making one.
    #[arg(long, requires = "kube", conflicts_with = "binary")]
    image: Option<PathBuf>,
    /// Install with this setting of the chart, too.
    #[arg(long, value_name = "KEY=VALUE", requires = "kube")]
    set: Vec<String>,
    /// Run the end-to-end tests, and nothing else, on Debian's newest kernel of this series: under qemu without KVM, several
    /// times slower. Tests with tight limits of time may fail for that alone.
    #[arg(long, value_name = "SERIES", conflicts_with_all = ["kube", "peers", "unit_only", "list"])]
    kernel: Option<Series>,
    /// Run the end-to-end tests that take many minutes instead of the others.
    #[arg(long, conflicts_with_all = ["unit_only", "kube", "peers"])]
    soak: bool,
    /// Try an end-to-end test that fails once more, from a fresh start; what holds only then is told of.
    #[arg(long)]
    again: bool,
    /// Run only end-to-end tests whose name contains this.
    #[arg(default_value = "")]
    filter: String,
}

/// What is known before the end-to-end tests begin.
#[derive(Serialize, Deserialize)]
struct Prepared {
    binary: PathBuf,
    passed: usize,
}

/// Runs the verb.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if args.list {
        let namespaces = suite::tests().into_iter().map(|test| (test.name, test.about));
        let cluster = kube_suite::tests().into_iter().map(|test| (test.name, test.about));
        let peers = peer_suite::tests().into_iter().map(|test| (test.name, test.about));
        let list: Vec<_> = match (args.kube, args.peers) {
            (true, _) => cluster.collect(),
            (_, true) => peers.collect(),
            _ => namespaces.collect(),
        };
        for (name, about) in list {
            println!("{name:<58} {about}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    if args.kube {
        let prepare = || kube::kit(args.image.as_deref(), args.binary.as_deref(), &args.set);
        return sandbox::supervised(prepare, |sandbox, kit| {
            let console = Console::new(false);
            console.heading("Tests on a real Kubernetes");
            let logs = workspace::target_dir()?.join("kube-logs");
            let mut report = Report::new(console, args.again);
            kube_suite::run(sandbox, &kit, &args.filter, &logs, &mut report)?;
            report.conclude(0)
        });
    }
    if args.peers {
        return sandbox::supervised(
            || peers::kit(args.binary.as_deref()),
            |sandbox, kit| {
                let console = Console::new(false);
                console.heading("Tests against a real SPIRE, a real istiod and promtool");
                let logs = workspace::target_dir()?.join("peers-logs");
                let mut report = Report::new(console, args.again);
                peer_suite::run(sandbox, &kit, &args.filter, &logs, &mut report)?;
                report.conclude(0)
            },
        );
    }
    if let Some(series) = &args.kernel {
        let flags = [("--e2e-only", true), ("--soak", args.soak), ("--again", args.again)];
        let given = flags.iter().filter(|(_, given)| *given).map(|(flag, _)| *flag);
        let test: Vec<&str> = given.chain([args.filter.as_str()]).collect();
        return kernel::run(series, args.binary.as_deref(), &test);
    }
    if args.unit_only {
        lint::all()?;
        println!("\n{} passed, 0 failed", unit()?);
        return Ok(ExitCode::SUCCESS);
    }
    let prepare = || {
        setup::programs()?;
        let passed = if args.e2e_only || args.soak {
            0
        } else {
            lint::all()?;
            unit()?
        };
        let binary = build::daemon_or(args.binary.as_deref())?;
        Ok(Prepared { binary, passed })
    };
    sandbox::supervised(prepare, |sandbox, prepared| {
        let console = Console::new(false);
        console.heading("End-to-end tests");
        let logs = workspace::target_dir()?.join("e2e-logs");
        let filter = if args.soak && !args.filter.contains(suite::SOAK) {
            format!("{}{}", suite::SOAK, args.filter)
        } else {
            args.filter.clone()
        };
        let mut report = Report::new(console, args.again);
        suite::run(sandbox, &prepared.binary, &filter, &logs, &mut report)?;
        report.conclude(prepared.passed)
    })
}

/// Runs the unit tests of every crate; returns how many passed. One that fails is an error.
fn unit() -> Result<usize> {
    let object = ebpf::object()?;
    step("Running the unit tests", || {
        let mut test = workspace::cargo();
        test.args(["test", "--workspace", "--exclude", "ambit-ebpf"]).env("AMBIT_EBPF_OBJECT", object);
        let mut child = test.stdout(Stdio::piped()).spawn().context("cannot start cargo test")?;
        let stdout = child.stdout.take().context("its output")?;
        let mut passed = 0;
        for line in BufReader::new(stdout).lines() {
            let line = line?;
            eprintln!("{line}");
            passed += passed_in(&line);
        }
        if !child.wait()?.success() {
            bail!("unit tests failed");
        }
        Ok(passed)
    })
}

/// The count in a line `test result: ok. 12 passed; 0 failed; …`, or 0.
fn passed_in(line: &str) -> usize {
    line.strip_prefix("test result: ok. ")
        .and_then(|rest| rest.split_once(" passed"))
        .and_then(|(count, _)| count.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::passed_in;

    #[test]
    fn counts_are_read_from_result_lines() {
        assert_eq!(passed_in("test result: ok. 12 passed; 0 failed; 0 ignored"), 12);
        assert_eq!(passed_in("test frame::tests::a ... ok"), 0);
    }
}
