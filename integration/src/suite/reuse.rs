//! Addresses and names that go from one pod to the next within a second, and namespaces that vanish under the agent.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result, ensure};

use super::{SECOND, Test, marker, own};
use crate::{
    load::{self, ports},
    process::{Process, eventually},
    topology::MESHED,
    world::World,
};

pub(super) const TESTS: &[Test] = &[
    own(
        "reuse::an_address_goes_to_another_identity",
        "under load: never the old identity, never plaintext, reached within two seconds",
        &[],
        another_identity,
    ),
    own(
        "reuse::an_address_goes_to_the_same_identity",
        "another pod of the same service account: no tunnel of the old one is used",
        &[],
        same_identity,
    ),
    own(
        "reuse::a_pod_not_yet_known_is_not_reached",
        "the address already another's, the manifest still the old one's: refused, nothing in plaintext",
        &[],
        not_yet_known,
    ),
    own(
        "reuse::a_namespace_vanishes_and_comes_back",
        "deleted under the agent: the others go on, and the same path is enrolled anew",
        &[],
        vanishes,
    ),
];

/// How soon a pod that has been replaced must be served.
const SOON: Duration = Duration::from_secs(2);

fn another_identity(world: &mut World) -> Result<()> {
    world.manifests.peer_authentication(MESHED, "STRICT")?;
    world.must_reach("a", "b")?;
    let secret = marker("reuse");
    let capture = world.capture_link("reuse")?;
    let to = format!("{}:{}", world.pod("b").v4, ports::ECHO);
    let mut command = load::tool(&world.pod("a").netns)?;
    command.args(["churn", "--to", &to, "--for-ms", "60000", "--count", "10000000", "--rest-ms", "5"]);
    let mut load = Process::start(&mut command, &world.folder.join("reuse-churn.log"))?;
    let mut before = world.pod("b").identity();
    for account in ["heir", "b", "heir"] {
        let marks = [world.agents[0].mark(), world.agents[1].mark()];
        world.replace_pod("b", account, true)?;
        let pod = world.pod("b").clone();
        world.manifests.pod(&world.topology, &pod, &[])?;
        eventually(SOON, || world.must_reach("a", "b")).with_context(|| account.to_owned())?;
        world.must_not_reach("c", "b").with_context(|| account.to_owned())?;
        let attempt = world.connect("a", (pod.v4, ports::HTTP), &["--send", &secret])?;
        ensure!(attempt.connected, "{attempt:?}");
        // From the moment in which it is reached it is the new identity, at both ends.
        // What was said into a tunnel to the pod that has gone is reset, and has reached nobody.
        let reached = |line: &&str| {
            let words = ["access", ":9001", "connection complete", "bytes_sent=5"];
            words.iter().all(|word| line.contains(word)) && !line.contains("bytes_recv=0 ")
        };
        let line = eventually(SECOND, || {
            let log = world.agents[0].log_since(marks[0]);
            log.lines().find(reached).map(str::to_owned).context("the log does not tell of the connection")
        })?;
        ensure!(line.contains(&pod.identity()), "reached as {before}: {line}");
        let served = world.agents[1].log_since(marks[1]);
        let wrong = served.lines().skip_while(|line| !line.contains("pod enrolled")).find(|line| {
            line.contains("connection complete")
                && line.contains("inbound")
                && line.contains(&format!("{before}\""))
        });
        ensure!(wrong.is_none(), "the new pod was served as {before}: {wrong:?}");
        before = pod.identity();
    }
    ensure!(load.runs(), "the load has ended: {}", load.output());
    ensure!(!capture.stop()?.contains(&secret), "plaintext went out");
    Ok(())
}

fn same_identity(world: &mut World) -> Result<()> {
    for round in 0..3 {
        world.must_reach("a", "b")?;
        world.replace_pod("b", "b", true)?;
        let pod = world.pod("b").clone();
        // Another pod of the same service account, whose manifest follows that of the first at once.
        world.manifests.remove("pod-b.yaml")?;
        world.manifests.pod_as(&world.topology, &pod, &format!("heir-{round}"))?;
        eventually(SOON, || world.must_reach("a", "b")).with_context(|| format!("round {round}"))?;
        for _ in 0..10 {
            world.must_reach("a", "b").with_context(|| format!("round {round}, once reached"))?;
            world.must_reach("e", "b").with_context(|| format!("round {round}, once reached"))?;
        }
    }
    Ok(())
}

fn not_yet_known(world: &mut World) -> Result<()> {
    world.manifests.peer_authentication(MESHED, "STRICT")?;
    world.must_reach("a", "b")?;
    // The agent of the server's node is gone, so nobody enrols the heir: its applications are in the open.
    world.agents[1].kill();
    let secret = marker("unknown-heir");
    let capture = world.capture_link("unknown-heir")?;
    world.replace_pod("b", "heir", true)?;
    for _ in 0..10 {
        let attempt = world.connect("a", (world.pod("b").v4, ports::WHOAMI), &["--send", &secret])?;
        ensure!(attempt.error.is_some() && attempt.received.is_empty(), "not refused: {attempt:?}");
    }
    ensure!(!capture.stop()?.contains(&secret), "plaintext went to a pod that is not known");
    // Known by its manifest, with an identity that its namespace has no agent for: still refused.
    let pod = world.pod("b").clone();
    world.manifests.pod(&world.topology, &pod, &[])?;
    thread::sleep(SECOND);
    let attempt = world.connect("a", (pod.v4, ports::WHOAMI), &["--send", &secret])?;
    ensure!(attempt.error.is_some() && attempt.received.is_empty(), "not refused: {attempt:?}");
    world.agents[1].start()?;
    eventually(SOON, || world.must_reach("a", "b"))?;
    world.must_not_reach("c", "b").map(drop)
}

fn vanishes(world: &mut World) -> Result<()> {
    world.manifests.peer_authentication(MESHED, "STRICT")?;
    for _ in 0..3 {
        world.must_reach("a", "b")?;
        world.topology.unplug("b")?;
        thread::sleep(2 * SECOND);
        ensure!(world.agents[1].runs(), "the agent has ended");
        world.must_reach("a", "e")?;
        world.replace_pod("b", "b", false)?;
        eventually(SOON, || world.must_reach("a", "b"))?;
        world.must_not_reach("c", "b")?;
    }
    Ok(())
}
