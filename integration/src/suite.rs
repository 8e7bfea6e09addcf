//! The end-to-end tests: what ambit promises, asked of the real binary and the real programs.
//!
//! A test takes the world it is given and leaves it as it was, or says that it needs one of its own.

mod addresses;
mod attacks;
mod authorization;
mod bundles;
mod certificates;
mod cni;
mod connect;
mod control;
mod custom;
mod denials;
pub(crate) mod dns;
mod egress;
mod evasion;
mod explain;
mod failure;
mod guide;
mod health;
mod identities;
mod issuers;
mod kernel_tls;
mod load;
mod manifests;
mod observing;
mod one_node;
mod operations;
mod other_addresses;
mod peers_gone;
mod policy;
mod probes;
mod rehearsal;
mod requests;
mod reuse;
mod revocation;
mod routing;
mod transfers;
mod transparency;
mod trust;
mod upgrade;
mod wire;

use std::{path::Path, time::Duration};

use anyhow::Result;

use crate::{
    process,
    report::{self, Report},
    sandbox::Sandbox,
    world::World,
};

/// One end-to-end test.
#[derive(Clone, Copy)]
pub struct Test {
    /// `topic::what_holds`; filters match on any part of it.
    pub name: &'static str,
    /// What is being shown, in a line.
    pub about: &'static str,
    scene: Scene,
}

#[derive(Clone, Copy)]
enum Scene {
    /// The shared world, left as it was found.
    Shared(fn(&mut World) -> Result<()>),
    /// A world of its own that may be broken, its agents started with these flags.
    Own(&'static [&'static str], fn(&mut World) -> Result<()>),
    /// A world of its own whose agents are not started yet.
    Unstarted(&'static [&'static str], fn(&mut World) -> Result<()>),
}

/// The topic of tests that take many minutes: they run only when it is asked for by name.
pub const SOAK: &str = "soak::";

/// Tests beside which nothing else may run: they measure, they load, or they look at the whole machine. The shared world is one
/// more that nobody runs beside.
const ALONE: [&str; 7] = [
    SOAK,
    "failure::",
    "upgrade::",
    "attacks::floods::",
    "identities::sixty_renew_under_load",
    "cni::the_installation_is_kept",
    "dns::load_is_carried_without_loss",
];

/// Every test, in the order in which they run.
pub fn tests() -> Vec<Test> {
    [
        control::TESTS,
        wire::TESTS,
        one_node::TESTS,
        transfers::TESTS,
        kernel_tls::TESTS,
        addresses::TESTS,
        connect::TESTS,
        routing::TESTS,
        egress::TESTS,
        dns::TESTS,
        other_addresses::TESTS,
        transparency::TESTS,
        policy::TESTS,
        authorization::TESTS,
        custom::TESTS,
        denials::TESTS,
        rehearsal::TESTS,
        requests::TESTS,
        requests::HOSTILE,
        explain::TESTS,
        probes::TESTS,
        operations::TESTS,
        manifests::TESTS,
        observing::TESTS,
        certificates::TESTS,
        trust::TESTS,
        cni::TESTS,
        revocation::TESTS,
        identities::TESTS,
        issuers::TESTS,
        guide::TESTS,
        health::TESTS,
        evasion::TESTS,
        &attacks::tests(),
        load::TESTS,
        bundles::TESTS,
        failure::TESTS,
        peers_gone::TESTS,
        upgrade::TESTS,
        reuse::TESTS,
    ]
    .concat()
}

/// Runs the tests whose name contains `filter`, those of topic [`SOAK`] only if it names that. With several `lanes`, tests that
/// may have others beside them run first, so many at a time; the rest runs one after another. What the agents logged in tests that
/// fail is kept in the folder `logs`.
pub fn run(
    sandbox: &Sandbox,
    binary: &Path,
    filter: &str,
    logs: &Path,
    lanes: usize,
    report: &Report,
) -> Result<()> {
    let asked =
        |test: &Test| test.name.contains(filter) && (filter.contains(SOAK) || !test.name.starts_with(SOAK));
    let asked = tests().into_iter().filter(asked);
    let (beside, alone): (Vec<Test>, Vec<Test>) = asked.partition(|test| lanes > 1 && !test.is_alone());
    report::side_by_side(beside.into_iter(), lanes, |lane| {
        let mut stage = Stage { sandbox, binary, logs, lane, shared: None, worlds: 0 };
        move |test: Test| report.test(test.name, test.about, || stage.perform(&test))
    });
    let mut stage = Stage { sandbox, binary, logs, lane: 0, shared: None, worlds: 0 };
    for test in &alone {
        report.test(test.name, test.about, || stage.perform(test));
    }
    stage.end()
}

impl Test {
    fn is_alone(&self) -> bool {
        matches!(self.scene, Scene::Shared(_)) || ALONE.iter().any(|start| self.name.starts_with(start))
    }
}

struct Stage<'a> {
    sandbox: &'a Sandbox,
    binary: &'a Path,
    logs: &'a Path,
    lane: usize,
    shared: Option<World>,
    worlds: usize,
}

impl Stage<'_> {
    /// Runs one test; returns the figures that it wants shown.
    fn perform(&mut self, test: &Test) -> Result<Vec<String>> {
        match test.scene {
            Scene::Shared(work) => self.with_shared(test.name, work),
            Scene::Own(flags, work) => {
                let mut world = World::start(self.sandbox, &self.next_name(), self.binary, flags)?;
                let done = work(&mut world).map_err(|error| self.with_logs(test.name, &error, &world));
                let notes = std::mem::take(&mut world.notes);
                ended(done, world.remove()).map(|()| notes)
            }
            Scene::Unstarted(flags, work) => {
                let mut world = World::build(self.sandbox, &self.next_name(), self.binary, flags)?;
                let done = work(&mut world).map_err(|error| self.with_logs(test.name, &error, &world));
                let notes = std::mem::take(&mut world.notes);
                ended(done, world.remove()).map(|()| notes)
            }
        }
    }

    fn with_shared(&mut self, name: &str, work: fn(&mut World) -> Result<()>) -> Result<Vec<String>> {
        let mut world = match self.shared.take() {
            Some(world) => world,
            None => World::start(self.sandbox, &self.next_name(), self.binary, &[])?,
        };
        // As found means in force again, not only written.
        let restored = |world: &World| {
            world.reset_manifests()?;
            process::eventually(Duration::from_secs(3), || world.must_reach("c", "b"))
        };
        match work(&mut world).and_then(|()| restored(&world)) {
            Ok(()) => {
                let notes = std::mem::take(&mut world.notes);
                self.shared = Some(world);
                Ok(notes)
            }
            // What a failed test leaves is nobody's fair start: the next one gets a new world.
            Err(error) => {
                let error = self.with_logs(name, &error, &world);
                ended(Err(error), world.remove()).map(|()| Vec::new())
            }
        }
    }

    /// The error with the end of both agents' logs, which are kept as a whole.
    fn with_logs(&self, test: &str, error: &anyhow::Error, world: &World) -> anyhow::Error {
        let mut text = format!("{error:#}");
        for (node, agent) in world.agents.iter().enumerate() {
            let log = agent.log();
            let file = self.logs.join(format!("{}-node{}.log", test.replace("::", "-"), node + 1));
            let kept = std::fs::create_dir_all(self.logs).and_then(|()| std::fs::write(&file, &log));
            let place =
                kept.map_or_else(|error| format!("not kept: {error}"), |()| file.display().to_string());
            text += &format!("\n-- agent of node{} ({place}){}", node + 1, process::tail(&log));
        }
        anyhow::anyhow!(text)
    }

    fn next_name(&mut self) -> String {
        self.worlds += 1;
        format!("w{}-{}", self.lane, self.worlds)
    }

    fn end(&mut self) -> Result<()> {
        self.shared.take().map_or(Ok(()), World::remove)
    }
}

/// How a test ended, with its world removed: the test's own failure says more than that of the removal.
fn ended(done: Result<()>, removed: Result<()>) -> Result<()> {
    done.and(removed.map_err(|error| error.context("taking the world down")))
}

/// A test in the shared world.
const fn shared(name: &'static str, about: &'static str, work: fn(&mut World) -> Result<()>) -> Test {
    Test { name, about, scene: Scene::Shared(work) }
}

/// A test in a world of its own, its agents started with `flags`.
const fn own(
    name: &'static str,
    about: &'static str,
    flags: &'static [&'static str],
    work: fn(&mut World) -> Result<()>,
) -> Test {
    Test { name, about, scene: Scene::Own(flags, work) }
}

/// A test in a world of its own that starts the agents itself.
const fn unstarted(
    name: &'static str,
    about: &'static str,
    flags: &'static [&'static str],
    work: fn(&mut World) -> Result<()>,
) -> Test {
    Test { name, about, scene: Scene::Unstarted(flags, work) }
}

/// A text that occurs nowhere else: to be sent, and looked for on the wire.
pub(crate) fn marker(what: &str) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("MARKER-{what}-{:x}", now.as_nanos())
}

const SECOND: Duration = Duration::from_secs(1);

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
