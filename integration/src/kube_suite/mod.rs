//! The tests on a real Kubernetes: what issue 5 promises, asked of the chart, the image and real kubelets.
//!
//! All tests share one cluster, in namespaces of their own; ambit is installed in it or not, as a test asks. A cluster in
//! which a test has failed is nobody's fair start: the next test gets a new one.

mod birth;
mod control;
mod enrolment;
mod identities;
mod install;
mod outage;
mod pods;
mod policy;
mod privilege;
mod probes;
mod restart;
mod site;
mod traffic;

use std::{path::Path, time::Instant};

use anyhow::Result;

pub use self::{
    pods::{Plan, Pod},
    probes::probed_pods_must_stay_ready,
    site::{Kit, Site, Wire},
};
use crate::{console::Console, sandbox::Sandbox, suite::Summary};

/// One test on the cluster.
#[derive(Clone, Copy)]
pub struct Test {
    /// `topic::what_holds`; filters match on any part of it.
    pub name: &'static str,
    /// What is being shown, in a line.
    pub about: &'static str,
    scene: Scene,
    work: fn(&mut Site) -> Result<()>,
}

/// What a test finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scene {
    /// A cluster without ambit.
    Bare,
    /// A cluster with ambit as the chart installs it.
    Installed,
}

/// Every test, in the order in which they run.
pub fn tests() -> Vec<Test> {
    [
        control::TESTS,
        identities::TESTS,
        install::TESTS,
        enrolment::TESTS,
        traffic::TESTS,
        policy::TESTS,
        probes::TESTS,
        birth::TESTS,
        outage::TESTS,
        restart::TESTS,
        privilege::TESTS,
    ]
    .concat()
}

/// Runs the tests whose name contains `filter`, one after another, telling of each on `console`. Logs of the cluster in
/// which a test failed are kept in the folder `logs`.
pub fn run(sandbox: &Sandbox, kit: &Kit, filter: &str, logs: &Path, console: Console) -> Result<Summary> {
    let mut stage = Stage { sandbox, kit, logs, console, site: None, clusters: 0 };
    let mut summary = Summary::default();
    for test in tests().iter().filter(|test| test.name.contains(filter)) {
        let start = Instant::now();
        let done = stage.perform(test);
        let took = start.elapsed().as_secs_f64();
        console.partial(format_args!("  {:<58} ", test.name));
        match done {
            Ok(()) => {
                summary.passed += 1;
                console.line(format_args!("{} {took:6.1} s", console.paint("32", "ok    ")));
                for note in stage.site.iter_mut().flat_map(Site::notes) {
                    console.line(format_args!("      {note}"));
                }
            }
            Err(error) => {
                summary.failed.push(test.name.to_owned());
                console.line(format_args!("{} {took:6.1} s", console.paint("31", "FAILED")));
                console.line(format_args!("      shows that: {}", test.about));
                for line in format!("{error:#}").lines() {
                    console.line(format_args!("      {line}"));
                }
            }
        }
    }
    stage.end()?;
    Ok(summary)
}

struct Stage<'a> {
    sandbox: &'a Sandbox,
    kit: &'a Kit,
    logs: &'a Path,
    console: Console,
    site: Option<Site>,
    clusters: usize,
}

impl Stage<'_> {
    fn perform(&mut self, test: &Test) -> Result<()> {
        let mut site = match self.site.take() {
            Some(site) => site,
            None => {
                self.clusters += 1;
                Site::up(self.sandbox, self.kit, &format!("kube{}", self.clusters), self.console)?
            }
        };
        let prepared = match test.scene {
            Scene::Bare => site.uninstall(),
            Scene::Installed => site.install(&[]),
        };
        match prepared.and_then(|()| (test.work)(&mut site)).and_then(|()| site.clear()) {
            Ok(()) => {
                self.site = Some(site);
                Ok(())
            }
            Err(error) => {
                let kept = site.keep_logs(&self.logs.join(test.name.replace("::", "-")));
                let place =
                    kept.map_or_else(|e| format!("not kept: {e:#}"), |place| place.display().to_string());
                let mut text = format!(
                    "{error:#}
-- logs: {place}"
                );
                if let Err(error) = site.down() {
                    text += &format!(
                        "
-- taking the cluster down: {error:#}"
                    );
                }
                Err(anyhow::anyhow!(text))
            }
        }
    }

    fn end(&mut self) -> Result<()> {
        self.site.take().map_or(Ok(()), Site::down)
    }
}

/// A test in a cluster without ambit.
const fn bare(name: &'static str, about: &'static str, work: fn(&mut Site) -> Result<()>) -> Test {
    Test { name, about, scene: Scene::Bare, work }
}

/// A test in a cluster with ambit.
const fn installed(name: &'static str, about: &'static str, work: fn(&mut Site) -> Result<()>) -> Test {
    Test { name, about, scene: Scene::Installed, work }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_say_their_topic() {
        let names: Vec<&str> = super::tests().iter().map(|test| test.name).collect();
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len());
        assert!(names.iter().all(|name| name.contains("::") && name.len() <= 58), "{names:?}");
    }
}
