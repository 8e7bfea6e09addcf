//! `cargo xtask ci`: everything that must hold before a change is taken, the cheap first, with times and one sum at the end.

use std::{
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use crate::{
    build, deny, harness,
    harness::{Call, Tally},
    image, kube, lint, peers, setup, test, times,
    workspace::{self, step},
};

/// Run all that CI runs: lints, unit tests, and every suite. Needs root, and Go and gcc the first time.
///
/// On a busy machine a test of timing may fail by chance: it gets a second try, and the end names what needed one.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  .ci/run                   with a target folder in the user's cache, as CI does\n  \
    cargo xtask ci            with the workspace's own"
)]
pub(crate) struct Args {}

/// Runs the verb.
pub(crate) fn run(_args: &Args) -> Result<ExitCode> {
    harness::must_be_root()?;
    let mut parts = Parts::default();
    let done = all(&mut parts);
    println!("\n{}", parts.table());
    if let Err(error) = &done {
        println!("stopped: {error:#}\n");
    }
    println!("{} passed, {} failed", parts.sum().passed, parts.sum().failed);
    Ok(if done.is_ok() && parts.good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The parts, the cheap first. What follows a part that cannot do without it stops there; suites do not stop each other.
fn all(parts: &mut Parts) -> Result<()> {
    parts.part("set-up", || setup::everything().map(|()| Tally::default()))?;
    let programs = Background::start()?;
    parts.part("format, walls, lints", || lint::all().map(|()| Tally::default()))?;
    parts.part("unit tests", || test::unit().map(Tally::passed))?;
    let (mut binary, mut archive) = (None, None);
    parts.part("daemon, harness, image", || {
        binary = Some(build::daemon(true)?);
        archive = Some(image::of(None)?);
        Ok(Tally::default())
    })?;
    let (binary, archive) = (binary.context("no daemon")?, archive.context("no image")?);
    parts.suite("end-to-end tests", || {
        let call = Call::new("test")?.value("--binary", &binary).value("--logs", harness::logs("e2e-logs")?);
        // Two at a time: most of them wait for something.
        call.value("--lanes", "2").flag("--again", true).tally()
    });
    parts.suite("tests on Kubernetes", || {
        let kit = kube::kit(Some(&archive), None)?;
        let call = Call::new("test-kube")?.kit(&kit).value("--logs", harness::logs("kube-logs")?);
        call.flag("--again", true).tally()
    });
    parts.part("others' programs", || programs.finish().map(|()| Tally::default()))?;
    parts.suite("dependencies", || deny::check().map(|()| Tally::default()));
    parts.suite("tests against peers", || {
        let call = peers::kit(Some(&binary))?.call(Call::new("test-peers")?).value("--lanes", "3");
        call.value("--logs", harness::logs("peers-logs")?).flag("--again", true).tally()
    });
    Ok(())
}

/// The parts that have ended.
#[derive(Default)]
struct Parts(Vec<Part>);

struct Part {
    name: &'static str,
    took: Duration,
    tally: Tally,
    good: bool,
}

impl Parts {
    /// Does a part that the next ones need.
    fn part(&mut self, name: &'static str, work: impl FnOnce() -> Result<Tally>) -> Result<()> {
        let start = Instant::now();
        let done = work();
        let tally = done.as_ref().copied().unwrap_or_default();
        self.0.push(Part { name, took: start.elapsed(), tally, good: done.is_ok() && tally.failed == 0 });
        done.map(drop)
    }

    /// Does a part that no other needs.
    fn suite(&mut self, name: &'static str, work: impl FnOnce() -> Result<Tally>) {
        if let Err(error) = self.part(name, work) {
            eprintln!("error: {name}: {error:#}");
        }
    }

    fn sum(&self) -> Tally {
        let add = |sum: Tally, part: &Part| Tally {
            passed: sum.passed + part.tally.passed,
            failed: sum.failed + part.tally.failed,
        };
        self.0.iter().fold(Tally::default(), add)
    }

    fn good(&self) -> bool {
        self.0.iter().all(|part| part.good)
    }

    fn table(&self) -> String {
        let mut text = String::new();
        for Part { name, took, tally, good } in &self.0 {
            let Tally { passed, failed } = tally;
            let result = match (good, passed + failed) {
                (true, 0) => "ok".to_owned(),
                (false, 0) => "FAILED".to_owned(),
                _ => format!("{passed} passed, {failed} failed"),
            };
            text += &format!("{name:<24} {:>12}   {result}\n", times::shown(*took));
        }
        let took = self.0.iter().map(|part| part.took).sum();
        text + &format!("{:<24} {:>12}\n", "all", times::shown(took))
    }
}

/// Builds of programs that only the last suites need, by processor time that nothing else wants.
struct Background(Child);

impl Background {
    /// Starts them. They say what they do in a file of the target folder.
    fn start() -> Result<Self> {
        let log = workspace::target_dir()?.join("programs.log");
        let file = std::fs::File::create(&log).with_context(|| log.display().to_string())?;
        let own = std::env::current_exe().context("own executable")?;
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "TERM", "chrt", "--idle", "0"])
            .arg(own)
            .args(["setup", "--kube", "--peers"]);
        // A group of their own: compilers that a build has started end with it.
        command.process_group(0);
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().context("cannot start the builds of others' programs")?;
        eprintln!("==> The programs of others are built meanwhile, if need be: {}", log.display());
        Ok(Self(child))
    }

    /// Waits for their end.
    fn finish(mut self) -> Result<()> {
        let status = step("Waiting for the programs of others", || Ok(self.0.wait()?))?;
        if !status.success() {
            let log = workspace::target_dir()?.join("programs.log");
            bail!("the builds of others' programs failed:\n{}", tail(&log));
        }
        Ok(())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Ok(Some(_)) = self.0.try_wait() {
            return;
        }
        // It leads its group, and is still there.
        let _ = killpg(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGKILL);
        let _ = self.0.wait();
    }
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_add_up_and_one_that_failed_spoils_the_whole() {
        let mut parts = Parts::default();
        parts.part("unit tests", || Ok(Tally::passed(7))).unwrap();
        parts.suite("one suite", || Ok(Tally { passed: 2, failed: 0 }));
        assert!(parts.good());
        parts.suite("another", || Ok(Tally { passed: 1, failed: 3 }));
        parts.suite("a third", || bail!("it did not start"));
        assert!(!parts.good());
        assert_eq!(parts.sum(), Tally { passed: 10, failed: 3 });
        assert!(parts.table().contains("1 passed, 3 failed"));
        assert!(parts.part("needed", || bail!("no")).is_err());
    }
}
