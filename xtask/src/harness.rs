//! The program `ambit-integration`: building it, and becoming it.
//!
//! Whatever stands in network namespaces is its work; what it needs is built before and given to it.

use std::{
    ffi::OsStr,
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::unistd::geteuid;

use crate::{
    build,
    workspace::{self, step},
};

/// A call of the harness.
pub(crate) struct Call(Command);

/// What the verbs that run on a real Kubernetes put to the test.
pub(crate) struct Kit {
    /// The folder of Kubernetes' programs.
    pub(crate) programs: PathBuf,
    /// The folder of the chart.
    pub(crate) chart: PathBuf,
    /// The image, as a docker-archive.
    pub(crate) image: PathBuf,
}

impl Call {
    /// A call of `verb`; builds the harness, with the profile of releases unless only the other has been built before.
    pub(crate) fn new(verb: &str) -> Result<Self> {
        let is_built = |program: Result<PathBuf>| program.is_ok_and(|program| program.is_file());
        match !is_built(build::harness_path()) && is_built(dev_path()) {
            true => Self::of(&dev_program()?, verb),
            false => Self::of(&build::harness()?, verb),
        }
    }

    /// The same, for tests, demo and bench of `binary`: where it is given, most likely by someone who tries a change, the harness
    /// is built with the profile that is quickly built.
    pub(crate) fn for_binary(binary: Option<&Path>, verb: &str) -> Result<Self> {
        match binary {
            Some(_) => Self::of(&dev_program()?, verb),
            None => Self::of(&build::harness()?, verb),
        }
    }

    fn of(program: &Path, verb: &str) -> Result<Self> {
        let mut command = Command::new(program);
        command.arg(verb);
        Ok(Self(command))
    }

    /// With a flag, if it is given.
    pub(crate) fn flag(mut self, flag: &str, given: bool) -> Self {
        if given {
            self.0.arg(flag);
        }
        self
    }

    /// With a flag that has a value.
    pub(crate) fn value(mut self, flag: &str, value: impl AsRef<OsStr>) -> Self {
        self.0.arg(flag).arg(value);
        self
    }

    /// With words.
    pub(crate) fn words(mut self, words: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.0.args(words);
        self
    }

    /// With the kit that is put to the test.
    pub(crate) fn kit(self, kit: &Kit) -> Self {
        self.value("--programs", &kit.programs).value("--chart", &kit.chart).value("--image", &kit.image)
    }

    /// Runs it to its end, its output on stderr; a failure is an error.
    pub(crate) fn run(mut self) -> Result<()> {
        workspace::run(&mut self.0)
    }

    /// Runs a suite to its end, and says how it went. One that does not tell is an error.
    pub(crate) fn tally(mut self) -> Result<Tally> {
        let mut child = self.0.stdout(Stdio::piped()).spawn().context("cannot start the harness")?;
        let mut told = None;
        for line in BufReader::new(child.stdout.take().context("its output")?).lines() {
            let line = line?;
            println!("{line}");
            told = Tally::read(&line).or(told);
        }
        let status = child.wait()?;
        let tally = told.with_context(|| format!("the suite ended without a result: {status}"))?;
        ensure!(status.success() || tally.failed > 0, "the suite failed: {status}");
        Ok(tally)
    }

    /// Becomes it: what it answers, and signals, are its own.
    pub(crate) fn become_it(mut self) -> Result<ExitCode> {
        Err(self.0.exec()).context("cannot start the harness")
    }
}

/// How many tests of a run have held, and how many have not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
}

impl Tally {
    /// So many that have held.
    pub(crate) fn passed(passed: usize) -> Self {
        Self { passed, failed: 0 }
    }

    /// The last line of a suite, `12 passed, 0 failed`.
    fn read(line: &str) -> Option<Self> {
        let (passed, failed) = line.strip_suffix(" failed")?.split_once(" passed, ")?;
        Some(Self { passed: passed.parse().ok()?, failed: failed.parse().ok()? })
    }
}

/// Refuses to go on without root: better now than after minutes of building.
pub(crate) fn must_be_root() -> Result<()> {
    if !geteuid().is_root() {
        bail!("this makes network namespaces and loads eBPF programs, and needs root: run it with sudo");
    }
    Ok(())
}

/// Where logs of tests that fail are kept: a folder of the target folder.
pub(crate) fn logs(suite: &str) -> Result<PathBuf> {
    Ok(workspace::target_dir()?.join(suite))
}

fn dev_program() -> Result<PathBuf> {
    step("Building the harness (dev)", || {
        let mut build = workspace::cargo();
        // The whole workspace and a test target, so that dependencies are those of the unit tests, built already.
        build.args(["build", "--workspace", "--exclude", "ambit-ebpf"]);
        build.args(["--bin", "ambit-integration", "--test", "generated"]);
        workspace::run(&mut build)
    })?;
    dev_path()
}

fn dev_path() -> Result<PathBuf> {
    Ok(workspace::target_dir()?.join("debug/ambit-integration"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_of_a_suite_is_understood() {
        assert_eq!(Tally::read("12 passed, 3 failed"), Some(Tally { passed: 12, failed: 3 }));
        assert_eq!(Tally::read("  policy::x    ok   1.0 s"), None);
    }
}
