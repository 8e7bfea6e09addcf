//! The suites, run and told of.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;

use crate::{
    console::Console,
    kube_suite::{self, Kit},
    peers,
    report::Report,
    sandbox, suite,
};

/// What is asked of every suite.
#[derive(clap::Args)]
struct Asked {
    /// Try a test that fails once more, from a fresh start; what holds only then is told of.
    #[arg(long)]
    again: bool,
    /// Where logs of tests that fail are kept.
    #[arg(long, default_value = "logs")]
    logs: PathBuf,
    /// Run only tests whose name contains this.
    #[arg(default_value = "")]
    filter: String,
}

/// How the end-to-end tests run.
#[derive(clap::Args)]
pub struct Args {
    /// The daemon.
    #[arg(long)]
    binary: PathBuf,
    /// Those that take many minutes instead of the others.
    #[arg(long)]
    soak: bool,
    /// How many unit tests have passed before, for the line at the end.
    #[arg(long, default_value_t = 0)]
    passed: usize,
    /// So many worlds at a time, for tests that may have others beside them.
    #[arg(long, default_value_t = 1)]
    lanes: usize,
    #[command(flatten)]
    asked: Asked,
}

/// How the tests on a real Kubernetes run.
#[derive(clap::Args)]
pub struct KubeArgs {
    #[command(flatten)]
    kit: Kit,
    #[command(flatten)]
    asked: Asked,
}

/// How the tests against what others have made run.
#[derive(clap::Args)]
pub struct PeersArgs {
    #[command(flatten)]
    kit: peers::Kit,
    /// So many tests at a time, each in a world of its own.
    #[arg(long, default_value_t = 1)]
    lanes: usize,
    #[command(flatten)]
    asked: Asked,
}

/// Runs the end-to-end tests.
pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let (Asked { again, logs, filter }, lanes) = (&args.asked, &args.lanes);
    sandbox::supervised(|sandbox| {
        let console = Console::new(false);
        console.heading("End-to-end tests");
        let filter = match args.soak && !filter.contains(suite::SOAK) {
            true => format!("{}{filter}", suite::SOAK),
            false => filter.clone(),
        };
        let report = Report::new(console, *again);
        suite::run(sandbox, &args.binary, &filter, logs, *lanes, &report)?;
        report.conclude(args.passed)
    })
}

/// Runs the tests on a real Kubernetes.
pub(super) fn run_kube(args: &KubeArgs) -> Result<ExitCode> {
    let Asked { again, logs, filter } = &args.asked;
    sandbox::supervised(|sandbox| {
        let console = Console::new(false);
        console.heading("Tests on a real Kubernetes");
        let report = Report::new(console, *again);
        kube_suite::run(sandbox, &args.kit, filter, logs, &report)?;
        report.conclude(0)
    })
}

/// Runs the tests against a real SPIRE, a real istiod, Open Policy Agent, an OpenID provider and promtool.
pub(super) fn run_peers(args: &PeersArgs) -> Result<ExitCode> {
    let Asked { again, logs, filter } = &args.asked;
    sandbox::supervised(|sandbox| {
        let console = Console::new(false);
        console.heading("Tests against real programs of others");
        let report = Report::new(console, *again);
        peers::run(sandbox, &args.kit, filter, logs, args.lanes, &report);
        report.conclude(0)
    })
}

/// Whose tests are listed.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Suite {
    /// Those of the verb `test`.
    Test,
    /// Those of the verb `test-kube`.
    TestKube,
    /// Those of the verb `test-peers`.
    TestPeers,
}

/// Lists the tests of a suite, and what each shows.
pub(super) fn list(suite: Suite) {
    let tests: Vec<(&str, &str)> = match suite {
        Suite::Test => suite::tests().iter().map(|test| (test.name, test.about)).collect(),
        Suite::TestKube => kube_suite::tests().iter().map(|test| (test.name, test.about)).collect(),
        Suite::TestPeers => peers::tests().iter().map(|test| (test.name, test.about)).collect(),
    };
    let console = Console::new(false);
    tests.iter().for_each(|(name, about)| console.line(format_args!("{name:<58} {about}")));
}
