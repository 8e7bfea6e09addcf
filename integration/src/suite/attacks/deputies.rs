//! The kubelet as a deputy of pods outside the mesh: what it connects for on behalf of one pod is no probe of another.

use anyhow::{Context as _, Result};

use crate::{
    agent::IN_FORCE,
    cgroups::Cgroup,
    process::eventually,
    suite::{
        Test,
        probes::{DECLARED, connect, declare, passes, refused, start_strict},
        unstarted,
    },
    world::World,
};

pub(super) const TESTS: &[Test] = &[unstarted(
    "attacks::another_pods_probe_is_no_probe",
    "a foreign host in a probe or hook on the node takes the exemption of what it names",
    &[],
    another_pods,
)];

fn another_pods(world: &mut World) -> Result<()> {
    let node = world.topology.nodes[1].clone();
    let kubelet = Cgroup::create(&format!("{}-kubelet", node.name))?;
    world.agents[1].add_flags(&["--kubelet-cgroup", &kubelet.path().display().to_string()]);
    declare(world)?;
    start_strict(world)?;
    let probe = |world: &World, v6: bool, port: u16| connect(world, &node.netns, Some(&kubelet), (v6, port));
    let [admin, echo, whoami] = DECLARED;
    for port in DECLARED {
        eventually(IN_FORCE, || passes(&probe(world, false, port)?, port))?;
        passes(&probe(world, true, port)?, port)?;
    }
    let (v4, v6) = (world.pod("b").v4, world.pod("b").v6);
    let asks = |world: &World, pod: &str, what: &str| {
        world.manifests.pod_with(&world.topology, world.pod(pod), &[], what)
    };
    // On another node it is another kubelet that connects.
    let name =
        format!("    livenessProbe:\n      httpGet:\n        host: b.example\n        port: {whoami}\n");
    asks(world, "c", &name)?;
    asks(
        world,
        "d",
        &format!("    livenessProbe:\n      httpGet:\n        host: {v4}\n        port: {echo}\n"),
    )?;
    eventually(IN_FORCE, || refused(&probe(world, false, echo)?, "a probe of another pod"))
        .context("by address")?;
    passes(&probe(world, true, echo)?, echo).context("the address that is not named")?;
    passes(&probe(world, false, admin)?, admin).context("a port that is not named")?;
    passes(&probe(world, false, whoami)?, whoami).context("named on another node")?;

    let hook = format!(
        "    lifecycle:\n      preStop:\n        httpGet:\n          host: \"{v6}\"\n          port: \"{admin}\"\n"
    );
    asks(world, "d", &hook)?;
    eventually(IN_FORCE, || refused(&probe(world, true, admin)?, "a hook of another pod"))
        .context("by a hook")?;
    passes(&probe(world, false, admin)?, admin).context("the address that is not named")?;

    // A name may lead anywhere.
    asks(world, "d", &name)?;
    for v6 in [false, true] {
        eventually(IN_FORCE, || refused(&probe(world, v6, whoami)?, "a name")).context("by a name")?;
    }
    passes(&probe(world, false, admin)?, admin).context("a port that is not named")?;
    // Hooks of a pod run when it is gone from the API already.
    world.manifests.remove("pod-d.yaml")?;
    std::thread::sleep(IN_FORCE);
    refused(&probe(world, false, whoami)?, "a pod that has just gone")?;
    world.agents[1].wait_log(0, &["probes of this pod are treated as any plaintext", "legacy/d"])?;
    world.must_reach("a", "b")
}
