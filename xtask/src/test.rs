//! `cargo xtask test`: lints, unit tests, and the end-to-end tests with the real binary.

use std::{
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    build::{self, Arch},
    ebpf,
    harness::{self, Call},
    kernels::{Kernel, Series},
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
    cargo xtask test --peers                  a real SPIRE, istiod, OPA, OpenID provider and promtool\n  \
    cargo xtask test --peers spire            some of them\n  \
    cargo xtask test --peers soak             those that take many minutes: outages, twenty pods rolled\n  \
    cargo xtask test --kernel 6.1 wire::      those of one topic, on Debian's Linux 6.1 under emulation\n  \
    cargo xtask test --kernel 6.12 --unit-only tunnel::   the daemon's unit tests there\n  \
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
    /// Run the tests against a real SPIRE, a real istiod, Open Policy Agent, an OpenID provider and promtool instead. Needs Go
    /// and gcc the first time.
    #[arg(long, conflicts_with_all = ["e2e_only", "unit_only", "kube"])]
    peers: bool,
    /// Use this image (a docker-archive) instead of making one.
    #[arg(long, requires = "kube", conflicts_with = "binary")]
    image: Option<PathBuf>,
    /// Install with this setting of the chart, too.
    #[arg(long, value_name = "KEY=VALUE", requires = "kube")]
    set: Vec<String>,
    /// Run the end-to-end tests, or with --unit-only the daemon's unit tests, and nothing else, on Debian's newest kernel of this
    /// series: under qemu without KVM, several times slower. Tests with tight limits of time may fail for that alone.
    #[arg(long, value_name = "SERIES", conflicts_with_all = ["kube", "peers", "list"])]
    kernel: Option<Series>,
    /// Run the end-to-end tests that take many minutes instead of the others.
    #[arg(long, conflicts_with_all = ["unit_only", "kube", "peers"])]
    soak: bool,
    /// Try an end-to-end test that fails once more, from a fresh start; what holds only then is told of.
    #[arg(long)]
    again: bool,
    /// So many end-to-end tests at a time, each in a world of its own; those that measure still run alone.
    #[arg(long, default_value_t = 1, conflicts_with_all = ["kube", "kernel"], value_parser = clap::value_parser!(u32).range(1..=8))]
    lanes: u32,
    /// Run only end-to-end tests whose name contains this.
    #[arg(default_value = "")]
    filter: String,
}

/// Runs the verb.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let verb = match &args.kernel {
        _ if args.kube => "test-kube",
        _ if args.peers => "test-peers",
        Some(_) => "test-kernel",
        None => "test",
    };
    if args.list {
        return Call::new("list")?.words([verb]).become_it();
    }
    if args.unit_only && args.kernel.is_none() {
        lint::all()?;
        println!("\n{} passed, 0 failed", unit()?);
        return Ok(ExitCode::SUCCESS);
    }
    harness::must_be_root()?;
    let binary = args.binary.as_deref();
    if args.kube {
        let kit = kube::kit(args.image.as_deref(), binary)?;
        let call = Call::for_binary(binary, verb)?.kit(&kit).value("--logs", harness::logs("kube-logs")?);
        let settings = args.set.iter().flat_map(|setting| ["--set", setting.as_str()]);
        return args.asked(call.words(settings)).become_it();
    }
    if args.peers {
        let call = peers::kit(binary)?.call(Call::for_binary(binary, verb)?);
        let call = call.value("--lanes", args.lanes.to_string());
        return args.asked(call.value("--logs", harness::logs("peers-logs")?)).become_it();
    }
    let logs = harness::logs("e2e-logs")?;
    if let Some(series) = &args.kernel {
        if Arch::host()? != Arch::Amd64 {
            bail!(
                "--kernel is for x86-64 machines only, for now: leave it out to test on this machine's kernel"
            );
        }
        setup::kernel_programs()?;
        let kernel = Kernel::newest(series)?;
        let program = if args.unit_only { unit_program()? } else { build::daemon_or(binary)? };
        let call = match args.unit_only {
            true => Call::new(verb)?,
            false => Call::for_binary(binary, verb)?,
        };
        let call = call.value("--release", &kernel.release).value("--kernel", &kernel.folder);
        let call = call.value("--binary", program).value("--logs", logs).flag("--unit", args.unit_only);
        let call = call.words(["--"]);
        return match args.unit_only {
            true => call.words([&args.filter]).become_it(),
            false => args.asked(call.flag("--soak", args.soak)).become_it(),
        };
    }
    setup::test_programs()?;
    let passed = if args.e2e_only || args.soak {
        0
    } else {
        lint::all()?;
        unit()?
    };
    let daemon = build::daemon_or(binary)?;
    let call = Call::for_binary(binary, verb)?.value("--binary", daemon).value("--logs", logs);
    let call = call.value("--passed", passed.to_string()).value("--lanes", args.lanes.to_string());
    args.asked(call.flag("--soak", args.soak)).become_it()
}

impl Args {
    /// What is asked of every suite.
    fn asked(&self, call: Call) -> Call {
        call.flag("--again", self.again).words([&self.filter])
    }
}

/// Runs the unit tests of every crate; returns how many passed. One that fails is an error.
pub(crate) fn unit() -> Result<usize> {
    let mut test = unit_tests()?;
    step("Running the unit tests", || {
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

/// Builds the unit tests; returns the program of the daemon's.
fn unit_program() -> Result<PathBuf> {
    let mut build = unit_tests()?;
    build.args(["--no-run", "--message-format", "json-render-diagnostics"]).stderr(Stdio::inherit());
    let told = step("Building the unit tests", || workspace::output(&mut build))?;
    told.lines().find_map(daemon_tests).context("cargo test told of no unit tests of the daemon")
}

fn unit_tests() -> Result<Command> {
    let mut test = workspace::cargo();
    test.args(["test", "--workspace", "--exclude", "ambit-ebpf"]).env("AMBIT_EBPF_OBJECT", ebpf::object()?);
    Ok(test)
}

/// The program in one of cargo's messages, if it is that of the unit tests of the daemon's library.
fn daemon_tests(message: &str) -> Option<PathBuf> {
    let message: serde_json::Value = serde_json::from_str(message).ok()?;
    let is_library = message["target"]["kind"].as_array()?.iter().any(|kind| kind == "lib");
    let is_it = is_library && message["target"]["name"] == "ambit" && message["profile"]["test"] == true;
    message["executable"].as_str().filter(|_| is_it).map(PathBuf::from)
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
    use super::*;

    #[test]
    fn the_daemons_unit_tests_are_told_from_other_programs() {
        let message = |kind: &str, name: &str, test: bool| {
            format!(
                r#"{{"reason":"compiler-artifact","target":{{"kind":["{kind}"],"name":"{name}"}},"profile":{{"test":{test}}},"executable":"/t/{name}-1"}}"#
            )
        };
        assert_eq!(daemon_tests(&message("lib", "ambit", true)), Some("/t/ambit-1".into()));
        for other in [
            message("bin", "ambit", true),
            message("lib", "ambit_core", true),
            message("lib", "ambit", false),
            r#"{"reason":"build-finished","success":true}"#.to_owned(),
            "no JSON".to_owned(),
        ] {
            assert_eq!(daemon_tests(&other), None, "{other}");
        }
    }

    #[test]
    fn counts_are_read_from_result_lines() {
        assert_eq!(passed_in("test result: ok. 12 passed; 0 failed; 0 ignored"), 12);
        assert_eq!(passed_in("test frame::tests::a ... ok"), 0);
    }
}
