//! Objects that are unreadable, double or gone, and directories that only look like a pod's: doubt closes.

use std::{fs, os::unix::fs::chown, process::Command, thread};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    agent::IN_FORCE,
    cgroups::{self, Cgroup},
    load::ports,
    manifests::peer_authentication,
    process::{Process, eventually},
    suite::{SECOND, Test, cni, marker, own, unstarted},
    topology::MESHED,
    world::World,
};

pub(super) const TESTS: &[Test] = &[
    unstarted(
        "attacks::a_policy_that_cannot_be_read_is_strict",
        "from the agent's start on, until it is readable",
        &[],
        unreadable_policy,
    ),
    unstarted(
        "attacks::a_file_that_was_never_read_closes",
        "it may hold a policy: nobody is let in until it is read or gone",
        &[],
        unread_file,
    ),
    unstarted(
        "attacks::a_namespace_that_cannot_be_read_is_meshed",
        "its pods are not left in plaintext",
        &[],
        unreadable_namespace,
    ),
    own(
        "attacks::pods_of_one_uid_are_two_pods",
        "mTLS between them, STRICT for both, told as a problem",
        &[],
        one_uid,
    ),
    own(
        "attacks::a_pod_cannot_be_put_into_anothers_netns",
        "the rightful one keeps capture and identity",
        &[],
        one_netns,
    ),
    own(
        "attacks::a_cgroup_that_bears_a_uid_is_no_pod",
        "delegated, or not in the kubelet's hierarchy",
        &[],
        rogue_cgroup,
    ),
    own(
        "attacks::what_the_cni_told_outlives_the_agent",
        "a pod without a process of the runtime's is found again",
        &[],
        told_by_cni,
    ),
];

const STRICT_FILE: &str = "strict.yaml";

fn unreadable_policy(world: &mut World) -> Result<()> {
    world.manifests.write(STRICT_FILE, &peer_authentication(MESHED, "STRIKT"))?;
    world.start_agents()?;
    eventually(IN_FORCE, || world.must_reach("a", "b"))?;
    let refused = || eventually(IN_FORCE, || world.must_not_reach("c", "b").map(drop));
    refused().context("a malformed STRICT counts for nothing after a restart")?;
    told(world, &["PeerAuthentication shop/default", "spec.mtls.mode", "counts as STRICT"])?;
    // One that was good before, too, and be it PERMISSIVE.
    world.manifests.write(STRICT_FILE, &peer_authentication(MESHED, "PERMISSIVE"))?;
    eventually(IN_FORCE, || world.must_reach("c", "b"))?;
    world.manifests.write(STRICT_FILE, &peer_authentication(MESHED, "[STRICT]"))?;
    refused()?;
    // Only for what it may select: pods outside of its namespace go on.
    world.must_reach("a", "d")?;
    world.manifests.remove(STRICT_FILE)?;
    eventually(IN_FORCE, || world.must_reach("c", "b"))
}

fn unread_file(world: &mut World) -> Result<()> {
    world.manifests.write("broken.yaml", "apiVersion: v1\nkind: [\n")?;
    world.manifests.peer_authentication(MESHED, "PERMISSIVE")?;
    world.start_agents()?;
    let refused = || eventually(IN_FORCE, || world.must_not_reach("c", "b").map(drop));
    refused().context("what is in the file counts for nothing")?;
    // It was there before the agent, and may hold an AuthorizationPolicy that was in force.
    world.must_not_reach("a", "b")?;
    told(world, &["broken.yaml", "may hold policies"])?;
    world.manifests.remove("broken.yaml")?;
    eventually(IN_FORCE, || world.must_reach("c", "b"))?;
    world.manifests.write(
        "broken.yaml",
        "apiVersion: security.istio.io/v1\nkind: PeerAuthenticaton\nmetadata: {name: x}\n",
    )?;
    refused().context("misspelt")?;
    world.must_reach("a", "b").context("what was never in force cuts nobody off")?;
    world.manifests.write("broken.yaml", "# nothing\n")?;
    eventually(IN_FORCE, || world.must_reach("c", "b"))
}

fn unreadable_namespace(world: &mut World) -> Result<()> {
    let path = world.manifests.folder().join("namespaces.yaml");
    let good = fs::read_to_string(&path)?;
    let broken = good.replace("ambit.dev/dataplane: enabled", "ambit.dev/dataplane: [enabled]");
    ensure!(broken != good, "the label is not there");
    world.manifests.write("namespaces.yaml", &broken)?;
    world.manifests.peer_authentication(MESHED, "STRICT")?;
    world.start_agents()?;
    eventually(IN_FORCE, || world.must_reach("a", "b"))?;
    eventually(IN_FORCE, || world.must_not_reach("c", "b").map(drop)).context("left in plaintext")?;
    told(world, &["Namespace shop", "metadata.labels"])
}

fn one_uid(world: &mut World) -> Result<()> {
    world.manifests.peer_authentication(MESHED, "STRICT")?;
    eventually(IN_FORCE, || world.must_not_reach("c", "b").map(drop))?;
    // On one node and on two.
    for name in ["a", "b", "e"] {
        let pod = world.pod(name).clone();
        world.manifests.pod_as(&world.topology, &pod, "one-for-all")?;
    }
    for (client, server) in [("a", "b"), ("b", "e"), ("a", "e"), ("e", "a")] {
        if server != "a" {
            eventually(IN_FORCE, || world.must_reach(client, server))
                .with_context(|| format!("{client} to {server}"))?;
        }
    }
    for server in ["b", "e"] {
        eventually(IN_FORCE, || world.must_not_reach("c", server).map(drop))
            .with_context(|| server.to_owned())?;
    }
    for pod in ["shop/a", "shop/b", "shop/e"] {
        told(world, &[pod, "metadata.uid", "one-for-all"])?;
    }
    eventually(IN_FORCE, || {
        for agent in &world.agents {
            let status = agent.status()?;
            let pods = status["pods"].as_array().context("no pods")?;
            let all = pods.iter().all(|pod| {
                let renamed = pod["uid"].as_str().is_some_and(|uid| uid.ends_with("one-for-all"));
                renamed && pod["state"] == "enrolled"
            });
            ensure!(all, "not yet: {pods:#?}");
        }
        Ok(())
    })?;
    let secret = marker("twins");
    let to = (world.pod("b").v4, ports::HTTP);
    let link = world.on_the_link("twins", || world.connect("a", to, &["--send", &secret]).map(drop))?;
    ensure!(!link.contains(&secret), "two pods of one UID speak in plaintext");
    // Each has its own UID again.
    for name in ["a", "b", "e"] {
        let pod = world.pod(name).clone();
        world.manifests.pod(&world.topology, &pod, &[])?;
    }
    eventually(IN_FORCE, || {
        world.must_reach("a", "b")?;
        for agent in &world.agents {
            let status = agent.status()?;
            ensure!(status["problems"].as_array().is_some_and(Vec::is_empty), "{:#}", status["problems"]);
        }
        Ok(())
    })
}

fn one_netns(world: &mut World) -> Result<()> {
    world.manifests.peer_authentication(MESHED, "STRICT")?;
    eventually(IN_FORCE, || world.must_not_reach("c", "e").map(drop))?;
    let path = world.manifests.folder().join("pod-a.yaml");
    let text = fs::read_to_string(&path)?;
    let (own, other) = (world.pod("a").netns.name().to_owned(), world.pod("e").netns.name().to_owned());
    let moved = text.replace(&format!("ambit.dev/netns: {own}\n"), &format!("ambit.dev/netns: {other}\n"));
    ensure!(moved != text, "the annotation is not there");
    for _ in 0..2 {
        world.manifests.write("pod-a.yaml", &moved)?;
        eventually(3 * SECOND, || {
            let status = world.agents[0].status()?;
            let (a, e) = (pod(&status, "a")?, pod(&status, "e")?);
            ensure!(a["state"] != "enrolled" && e["state"] == "enrolled", "{a:#} {e:#}");
            Ok(())
        })?;
        world.must_not_reach("c", "e")?;
        // With its own identity, or b would be reached as somebody else.
        eventually(IN_FORCE, || world.must_reach("b", "e"))?;
        eventually(IN_FORCE, || world.must_reach("e", "b"))?;
        // The same where none of them is enrolled yet.
        world.agents[0].stop()?;
        world.agents[0].start()?;
    }
    Ok(())
}

fn rogue_cgroup(world: &mut World) -> Result<()> {
    world.manifests.peer_authentication(MESHED, "STRICT")?;
    cni::newborn(world, "a")?;
    let text = cni::manifest(world, world.pod("a"), true);
    world.manifests.write("pod-a.yaml", &text)?;
    let uid = cni::uid(world.pod("a"));
    let node = world.topology.nodes[0].name.clone();
    // Removed with all that is in them.
    let (user, system) =
        (Cgroup::create(&format!("{node}-user"))?, Cgroup::create(&format!("{node}-system"))?);
    chown(user.path(), Some(1000), Some(1000))?;
    let delegated = format!("{node}-user/kubepods/burstable/pod{uid}/sandbox");
    let elsewhere = format!("{node}-system/pod{uid}/sandbox");
    // Processes in the network namespace of somebody who would be taken for pod a.
    let start = |group: &str| -> Result<Process> {
        let netns = &world.pod("a").netns;
        let mut command: Command = cgroups::inside(group, netns.command("sleep").arg("600"))?;
        Process::start(&mut command, &world.folder.join("rogue.log"))
    };
    let rogues = [start(&delegated)?, start(&elsewhere)?];
    thread::sleep(3 * SECOND);
    let status = world.agents[0].status()?;
    ensure!(
        pod(&status, "a")?["state"] != "enrolled",
        "enrolled by a directory's name: {:#}",
        pod(&status, "a")?
    );
    drop(rogues);
    drop((user, system));
    // The control: the kubelet's own.
    let kubelet = format!("{node}-kubelet");
    let _group = Cgroup::create(&kubelet)?;
    // An application that is older than what the runtime has in the pod, and has gone into a network namespace of its own.
    let group = format!("{kubelet}/kubepods/burstable/pod{uid}/app");
    let mut hidden = world.pod("a").netns.command("unshare");
    hidden.args(["--user", "--net", "sleep", "600"]);
    let _hidden = Process::start(&mut cgroups::inside(&group, &hidden)?, &world.folder.join("hidden.log"))?;
    thread::sleep(SECOND);
    let _pause = cni::pause(world, "a", &kubelet)?;
    eventually(3 * SECOND, || {
        let status = world.agents[0].status()?;
        ensure!(pod(&status, "a")?["foundBy"] == "cgroup", "{:#}", pod(&status, "a")?);
        Ok(())
    })?;
    world.must_reach("a", "b")
}

fn told_by_cni(world: &mut World) -> Result<()> {
    world.manifests.peer_authentication(MESHED, "STRICT")?;
    cni::newborn(world, "a")?;
    cni::call(world, "a", "ADD")?.ok()?;
    world.must_reach("a", "b")?;
    // From now on its object has the address.
    let text = cni::manifest(world, world.pod("a"), true);
    world.manifests.write("pod-a.yaml", &text)?;
    thread::sleep(IN_FORCE);
    for _ in 0..2 {
        world.agents[0].kill();
        world.agents[0].start()?;
        eventually(3 * SECOND, || {
            let status = world.agents[0].status()?;
            ensure!(pod(&status, "a")?["foundBy"] == "pin", "{:#}", pod(&status, "a")?);
            Ok(())
        })?;
        world.must_reach("a", "b")?;
    }
    Ok(())
}

/// A pod as the agent's status shows it.
fn pod<'a>(status: &'a Value, name: &str) -> Result<&'a Value> {
    let pods = status["pods"].as_array().context("pods")?;
    pods.iter().find(|pod| pod["name"] == name).with_context(|| format!("{name} is not listed: {status:#}"))
}

/// The second node's agent reports a problem with all of these words.
fn told(world: &World, words: &[&str]) -> Result<()> {
    eventually(3 * SECOND, || {
        let status = world.agents[1].status()?;
        let problems = status["problems"].as_array().context("status lists problems")?;
        let named =
            problems.iter().map(ToString::to_string).any(|text| words.iter().all(|word| text.contains(word)));
        ensure!(named, "no problem has all of {words:?}: {problems:#?}");
        Ok(())
    })
}
