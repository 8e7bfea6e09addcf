//! The tests on a real Kubernetes, with the chart, the image and real kubelets.
//!
//! All tests share one cluster, in namespaces of their own; ambit is installed in it or not, as a test asks. A cluster in
//! which a test has failed is nobody's fair start: the next test gets a new one.

mod attacks;
mod authorization;
mod balancing;
mod birth;
mod chart;
mod clusters;
mod control;
mod custom;
mod dns;
mod egress;
mod enrolment;
mod guide;
mod identities;
mod install;
mod issuers;
mod outage;
mod pods;
mod policy;
mod privilege;
mod probes;
mod removal;
mod restart;
mod site;
mod tokens;
mod traffic;

use std::path::Path;

use anyhow::Result;

pub use self::{
    pods::{Plan, Pod},
    probes::probed_pods_must_stay_ready,
    site::{Kit, Site, Wire},
};
use crate::{report::Report, sandbox::Sandbox};

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
        install::TESTS,
        chart::TESTS,
        identities::TESTS,
        enrolment::TESTS,
        traffic::TESTS,
        balancing::TESTS,
        dns::TESTS,
        egress::TESTS,
        policy::TESTS,
        authorization::TESTS,
        tokens::TESTS,
        guide::TESTS,
        custom::TESTS,
        probes::TESTS,
        &attacks::tests(),
        birth::TESTS,
        outage::TESTS,
        clusters::TESTS,
        restart::TESTS,
        privilege::TESTS,
        removal::TESTS,
        issuers::TESTS,
    ]
    .concat()
}

/// Runs the tests whose name contains `filter`, one after another. Logs of the cluster in which a test failed are kept in
/// the folder `logs`.
pub fn run(sandbox: &Sandbox, kit: &Kit, filter: &str, logs: &Path, report: &Report) -> Result<()> {
    let mut stage = Stage { sandbox, kit, logs, site: None, clusters: 0 };
    for test in tests().iter().filter(|test| test.name.contains(filter)) {
        report.test(test.name, test.about, || stage.perform(test));
    }
    stage.end()
}

struct Stage<'a> {
    sandbox: &'a Sandbox,
    kit: &'a Kit,
    logs: &'a Path,
    site: Option<Site>,
    clusters: usize,
}

impl Stage<'_> {
    /// Runs one test; returns the figures that it wants shown.
    fn perform(&mut self, test: &Test) -> Result<Vec<String>> {
        let mut site = match self.site.take() {
            Some(site) => site,
            None => {
                self.clusters += 1;
                Site::up(self.sandbox, self.kit, &format!("kube{}", self.clusters))?
            }
        };
        let prepared = match test.scene {
            Scene::Bare => site.uninstall(),
            Scene::Installed => site.install(&[]),
        };
        match prepared.and_then(|()| (test.work)(&mut site)).and_then(|()| site.clear()) {
            Ok(()) => {
                let notes = site.notes();
                self.site = Some(site);
                Ok(notes)
            }
            Err(error) => {
                let kept = site.keep_logs(&self.logs.join(test.name.replace("::", "-")));
                let place =
                    kept.map_or_else(|e| format!("not kept: {e:#}"), |place| place.display().to_string());
                let mut text = format!("{error:#}\n-- logs: {place}");
                if let Err(error) = site.down() {
                    text += &format!("\n-- taking the cluster down: {error:#}");
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

    /// Helm warns of one with every command.
    #[test]
    fn the_chart_has_no_links() {
        let mut folders =
            vec![std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/charts"))];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap().flatten() {
                let kind = entry.file_type().unwrap();
                assert!(!kind.is_symlink(), "{} is a link", entry.path().display());
                if kind.is_dir() {
                    folders.push(entry.path());
                }
            }
        }
    }

    #[test]
    fn names_are_unique_and_say_their_topic() {
        let names: Vec<&str> = super::tests().iter().map(|test| test.name).collect();
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len());
        assert!(names.iter().all(|name| name.contains("::") && name.len() <= 58), "{names:?}");
    }
}
