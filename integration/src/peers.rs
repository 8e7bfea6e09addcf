//! The tests against what others have made: a real SPIRE, a real istiod on a real API server, Open Policy Agent, an
//! OpenID provider, Jaeger, CoreDNS, and promtool.
//!
//! What `suite` shows with scripted servers is asked here of the programs that operators run. Each test has a scene of its
//! own; how the programs come about is the business of `cargo xtask`.

mod alerts;
mod dns;
mod istiod;
mod jaeger;
mod opa;
mod openid;
mod spire;
mod svids;
mod tokens;
mod troubles;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::{
    cluster::Programs,
    process,
    report::{self, Report},
    sandbox::Sandbox,
    world::World,
};

/// What is put to the test, and what it is tried with.
#[derive(Clone, Debug, clap::Args)]
pub struct Kit {
    /// The daemon.
    #[arg(long)]
    pub binary: PathBuf,
    /// The folder of `spire-server`, `spire-agent`, `pilot-discovery` and `promtool`.
    #[arg(long)]
    pub programs: Programs,
    /// The folder of `opa` and `opa-ext-authz`.
    #[arg(long)]
    pub opa_programs: Programs,
    /// The folder of `openid-issuer`.
    #[arg(long)]
    pub openid_programs: Programs,
    /// The folder of Jaeger's `all-in-one`.
    #[arg(long)]
    pub jaeger_programs: Programs,
    /// The folder of an API server and what it needs, for istiod, and of CoreDNS.
    #[arg(long)]
    pub kube_programs: Programs,
    /// The alert rules, as they are deployed.
    #[arg(long)]
    pub alerts: PathBuf,
}

/// One test.
#[derive(Clone, Copy)]
pub struct Test {
    /// `peers::what_holds`; filters match on any part of it.
    pub name: &'static str,
    /// What is being shown, in a line.
    pub about: &'static str,
    work: fn(&Stage<'_>, &mut World) -> Result<()>,
}

/// What a test has beside its world.
struct Stage<'a> {
    sandbox: &'a Sandbox,
    kit: &'a Kit,
    /// The name of the world, which keeps its things apart from those of others.
    name: String,
}

/// Every test, in the order in which they run.
pub fn tests() -> Vec<Test> {
    [
        svids::TESTS,
        tokens::TESTS,
        troubles::TESTS,
        opa::TESTS,
        openid::TESTS,
        jaeger::TESTS,
        dns::TESTS,
        alerts::TESTS,
    ]
    .concat()
}

/// Tests that take many minutes: they run only when it is asked for by name.
const SOAK: &str = "peers::soak_";

/// Runs the tests whose name contains `filter`, those of [`SOAK`] only if it has `soak`, so many at a time as there are `lanes`. Logs of those that fail are kept in the
/// folder `logs`.
pub fn run(sandbox: &Sandbox, kit: &Kit, filter: &str, logs: &Path, lanes: usize, report: &Report) {
    let asked =
        |test: &Test| test.name.contains(filter) && (filter.contains("soak") || !test.name.starts_with(SOAK));
    let asked = tests().into_iter().filter(asked);
    report::side_by_side(asked, lanes, |lane| {
        let mut worlds = 0;
        move |test: Test| {
            report.test(test.name, test.about, || {
                worlds += 1;
                let stage = Stage { sandbox, kit, name: format!("p{lane}-{worlds}") };
                perform(&stage, &test, logs)
            });
        }
    });
}

/// Runs one test; returns the figures that it wants shown.
fn perform(stage: &Stage<'_>, test: &Test, logs: &Path) -> Result<Vec<String>> {
    let mut world = World::build(stage.sandbox, &stage.name, &stage.kit.binary, &[])?;
    let done = (test.work)(stage, &mut world).map_err(|error| {
        let place = logs.join(test.name.replace("::", "-"));
        let kept = keep(&world.folder, &place);
        let place =
            kept.map_or_else(|error| format!("not kept: {error:#}"), |()| place.display().to_string());
        let ends: String = world.agents.iter().map(|agent| process::tail(&agent.log())).collect();
        anyhow::anyhow!("{error:#}\n-- logs: {place}{ends}")
    });
    let notes = std::mem::take(&mut world.notes);
    // The test's own failure says more than that of the removal.
    done.and(world.remove().context("taking the world down")).map(|()| notes)
}

/// Copies every log below `folder` into `place`, named after where it was.
fn keep(folder: &Path, place: &Path) -> Result<()> {
    std::fs::create_dir_all(place)?;
    for entry in std::fs::read_dir(folder)?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            keep(&path, &place.join(entry.file_name()))?;
        } else if path.extension().is_some_and(|extension| extension == "log") {
            std::fs::copy(&path, place.join(entry.file_name()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_say_their_topic() {
        let names: Vec<&str> = super::tests().iter().map(|test| test.name).collect();
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len());
        assert!(names.iter().all(|name| name.starts_with("peers::") && name.len() <= 58), "{names:?}");
    }
}
