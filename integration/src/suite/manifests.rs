//! Manifests that no apiserver would have let in, and files that are no manifests at all.

use std::{fs, os::unix::fs::symlink, process::Command};

use anyhow::{Context as _, Result, ensure};

use super::{SECOND, Test, own};
use crate::{
    agent::IN_FORCE,
    manifests::peer_authentication,
    process::{self, eventually},
    topology::MESHED,
    world::World,
};

pub(super) const TESTS: &[Test] = &[
    own(
        "manifests::bad_objects_are_named_and_change_nothing",
        "file, object and field in log and status",
        &[],
        bad_objects,
    ),
    own(
        "manifests::bad_files_are_named_and_change_nothing",
        "half-written, 5 MB, FIFO, /dev/zero, a link to itself",
        &[],
        bad_files,
    ),
];

/// A file, what is wrong in it, and the words by which the error must be recognised.
struct Bad {
    file: &'static str,
    text: String,
    words: &'static [&'static str],
}

fn bad_objects(world: &mut World) -> Result<()> {
    world.manifests.peer_authentication(MESHED, "STRICT")?;
    eventually(IN_FORCE, || world.must_not_reach("c", "b"))?;
    let strict_file = format!("peer-authentication-{MESHED}.yaml");
    let pod = |name: &str, rest: &str| {
        format!("apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: {MESHED}\n{rest}")
    };
    let cases = [
        Bad {
            file: "pod-wrong-type.yaml",
            text: pod("wrong-type", "spec:\n  nodeName: [1, 2]\n"),
            words: &["pod-wrong-type.yaml", "wrong-type", "spec.nodeName"],
        },
        Bad {
            file: "pod-wrong-ip.yaml",
            text: pod("wrong-ip", "spec:\n  nodeName: x\nstatus:\n  podIPs:\n  - ip: not-an-address\n"),
            words: &["pod-wrong-ip.yaml", "wrong-ip", "status.podIPs"],
        },
        Bad {
            file: "service-wrong-port.yaml",
            text: format!(
                "apiVersion: v1\nkind: Service\nmetadata:\n  name: wrong-port\n  namespace: {MESHED}\nspec:\n  \
                 clusterIP: 198.19.100.9\n  ports:\n  - port: 700000\n"
            ),
            words: &["service-wrong-port.yaml", "wrong-port", "spec.ports[0].port"],
        },
        Bad {
            file: "peer-authentication-shop.yaml",
            text: peer_authentication(MESHED, "STRIKT"),
            words: &["peer-authentication-shop.yaml", "shop/default", "spec.mtls.mode"],
        },
        Bad {
            file: "pod-twice.yaml",
            text: fs::read_to_string(world.manifests.folder().join("pod-b.yaml"))?,
            words: &["pod-twice.yaml", "shop/b"],
        },
    ];
    ensure!(cases.iter().any(|bad| bad.file == strict_file), "one case replaces the policy in force");
    for bad in &cases {
        let mark = world.agents[1].mark();
        world.manifests.write(bad.file, &bad.text)?;
        told(world, mark, bad.words)?;
        nothing_changed(world).with_context(|| bad.file)?;
    }
    for bad in &cases {
        world.manifests.remove(bad.file)?;
    }
    mends(world)
}

fn bad_files(world: &mut World) -> Result<()> {
    world.manifests.peer_authentication(MESHED, "STRICT")?;
    eventually(IN_FORCE, || world.must_not_reach("c", "b"))?;
    let folder = world.manifests.folder().to_owned();
    let whole = fs::read_to_string(folder.join("pod-b.yaml"))?;
    let (half, _) = whole.split_once("serviceAccountName").context("pod-b.yaml names a service account")?;

    let mark = world.agents[1].mark();
    world.manifests.write("pod-b.yaml", &format!("{half}serviceAccountName: \"b\n"))?;
    told(world, mark, &["pod-b.yaml"])?;
    nothing_changed(world).context("half-written pod-b.yaml")?;
    world.manifests.write("pod-b.yaml", &whole)?;

    let mark = world.agents[1].mark();
    world.manifests.write("huge.yaml", &format!("junk: \"{}\"\n", "x".repeat(5_000_000)))?;
    told(world, mark, &["huge.yaml"])?;
    nothing_changed(world).context("huge.yaml")?;

    let mark = world.agents[1].mark();
    process::must(Command::new("mkfifo").arg(folder.join("fifo.yaml")))?;
    told(world, mark, &["fifo.yaml"])?;
    nothing_changed(world).context("fifo.yaml")?;

    for (name, target) in [("zero.yaml", "/dev/zero"), ("itself.yaml", "itself.yaml")] {
        let mark = world.agents[1].mark();
        symlink(target, folder.join(name))?;
        told(world, mark, &[name])?;
        nothing_changed(world).context(name)?;
    }
    for name in ["huge.yaml", "fifo.yaml", "zero.yaml", "itself.yaml"] {
        world.manifests.remove(name)?;
    }
    mends(world)
}

/// The error is in one line of the log and in one problem of the status, with all of `words`.
fn told(world: &World, mark: usize, words: &[&str]) -> Result<()> {
    world.agents[1].wait_log(mark, words)?;
    eventually(2 * SECOND, || {
        let status = world.agents[1].status()?;
        let problems = status["problems"].as_array().context("status lists problems")?;
        let named =
            problems.iter().map(ToString::to_string).any(|text| words.iter().all(|word| text.contains(word)));
        ensure!(named, "no problem has all of {words:?}: {problems:#?}");
        Ok(())
    })
}

fn nothing_changed(world: &mut World) -> Result<()> {
    for agent in &mut world.agents {
        ensure!(agent.runs(), "the agent has ended: {}", process::tail(&agent.log()));
    }
    world.must_reach("a", "b")?;
    world.must_not_reach("c", "b").map(drop)
}

/// Once the files are good again, problems are gone and changes are taken.
fn mends(world: &World) -> Result<()> {
    world.manifests.peer_authentication(MESHED, "PERMISSIVE")?;
    eventually(IN_FORCE, || world.must_reach("c", "b"))?;
    world.manifests.peer_authentication(MESHED, "STRICT")?;
    eventually(IN_FORCE, || world.must_not_reach("c", "b"))?;
    eventually(2 * SECOND, || {
        for agent in &world.agents {
            let status = agent.status()?;
            ensure!(status["problems"].as_array().is_some_and(Vec::is_empty), "{:#}", status["problems"]);
        }
        Ok(())
    })
}
