//! What an operator reads when a real SPIRE or istiod gives nothing: the very setting that is missing.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result, ensure};

use super::{Stage, Test, istiod::Istiod, spire::Spire};
use crate::{agent::Agent, process::eventually, world::World};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "peers::istiod_that_does_not_trust_the_agent_is_told",
        about: "without CA_TRUSTED_NODE_ACCOUNTS: agents are not ready, and name the variable and their account",
        work: untrusted,
    },
    Test {
        name: "peers::spire_that_gives_nothing_says_what_to_do",
        about: "a wrong path, the workloads' socket, no entry of the agent's own: agents are not ready, and say which",
        work: unhelpful,
    },
];

const TOLD: Duration = Duration::from_secs(15);
const HEARD: Duration = Duration::from_secs(5);
const BACK: Duration = Duration::from_secs(10);

fn untrusted(stage: &Stage<'_>, world: &mut World) -> Result<()> {
    let mut istiod = Istiod::start_with(stage, world, false)?;
    istiod.serve_agents(world);
    world.agents.iter_mut().try_for_each(Agent::spawn)?;
    eventually(TOLD, || cut_off(world, &["CA_TRUSTED_NODE_ACCOUNTS", "istio-system/ambit"]))?;
    istiod.trust_agents()?;
    eventually(BACK, || served(world))?;
    istiod.remove()
}

fn unhelpful(stage: &Stage<'_>, world: &mut World) -> Result<()> {
    let spire = Spire::start(&stage.kit.programs, world)?;
    ["a", "b", "e"].iter().try_for_each(|pod| spire.entry(world, pod, 3_600))?;
    let nowhere = world.folder.join("nowhere.sock");
    for (socket, words) in [
        (nowhere.clone(), ["no SPIRE agent at", &*nowhere.display().to_string()]),
        (spire.workload_socket(0), ["is no admin socket", "admin_socket_path"]),
    ] {
        let socket = socket.display().to_string();
        world.agents[0].set_flags(&["--issuer", "spire", "--spire-socket", &socket]);
        world.agents[0].spawn()?;
        eventually(TOLD, || cut_off(world, &words)).with_context(|| socket.clone())?;
        world.agents[0].kill();
    }
    let admin = |node: usize| spire.admin_socket(node).display().to_string();
    for node in 0..2 {
        world.agents[node].set_flags(&["--issuer", "spire", "--spire-socket", &admin(node)]);
    }
    world.start_agents()?;
    eventually(TOLD, || served(world))?;
    spire.delete_delegate(0)?;
    world.agents[0].kill();
    // The SPIRE agent asks its server every second.
    thread::sleep(HEARD);
    world.agents[0].spawn()?;
    eventually(TOLD, || cut_off(world, &["no entry of its own", "authorized_delegates"]))
}

/// Whether the first node's agent is not ready for want of certificates, and a problem has all of `words`.
fn cut_off(world: &World, words: &[&str]) -> Result<()> {
    let status = world.agents[0].status()?;
    ensure!(status["ready"] == false, "it is ready: {:#}", status["problems"]);
    let pending = status["pending"].as_array().context("pending")?;
    ensure!(pending.iter().any(|gate| gate == "certificates"), "{pending:?}");
    let told = status["problems"].to_string();
    ensure!(words.iter().all(|word| told.contains(word)), "no problem has {words:?}: {told}");
    Ok(())
}

fn served(world: &World) -> Result<()> {
    let status = world.agents[0].status()?;
    ensure!(
        status["ready"] == true && status["problems"].as_array().is_some_and(Vec::is_empty),
        "{status:#}"
    );
    world.must_reach("a", "b")
}
