//! The kubelet's probes: let through to the ports that a pod declares, for the kubelet alone.

use std::{fs, os::unix::fs::symlink, process::Command, thread};

use anyhow::{Context as _, Result, ensure};

use super::{SECOND, Test, unstarted};
use crate::{
    agent::IN_FORCE,
    cgroups::Cgroup,
    load::{self, ports},
    netns::Netns,
    process::{self, Process, eventually},
    tools::Attempt,
    topology::MESHED,
    world::World,
};

pub(super) const TESTS: &[Test] = &[
    unstarted(
        "probes::reach_declared_ports_under_strict",
        "httpGet, tcpSocket and grpc from --kubelet-cgroup; other ports and processes are refused",
        &[],
        declared,
    ),
    unstarted(
        "probes::the_kubelet_is_found_by_its_process",
        "also after it restarts in a new cgroup; another process of its name is refused",
        &[],
        found,
    ),
];

/// The ports that the manifest of [`declare`] names, one a kind of probe.
pub(super) const DECLARED: [u16; 3] = [ports::ADMIN, ports::ECHO, ports::WHOAMI];
/// Declared with another host, and not at all.
const UNDECLARED: [u16; 2] = [ports::HALF_CLOSE, ports::HTTP];

fn declared(world: &mut World) -> Result<()> {
    let node = world.topology.nodes[1].clone();
    let kubelet = Cgroup::create(&format!("{}-kubelet", node.name))?;
    let other = Cgroup::create(&format!("{}-other", node.name))?;
    world.agents[1].add_flags(&["--kubelet-cgroup", &kubelet.path().display().to_string()]);
    declare(world)?;
    start_strict(world)?;

    let mut sent = 0;
    for v6 in [false, true] {
        for port in DECLARED {
            passes(&connect(world, &node.netns, Some(&kubelet), (v6, port))?, port)?;
            sent += 1;
            refused(&connect(world, &node.netns, None, (v6, port))?, "no kubelet")?;
            refused(&connect(world, &node.netns, Some(&other), (v6, port))?, "another cgroup")?;
        }
        for port in UNDECLARED {
            refused(&connect(world, &node.netns, Some(&kubelet), (v6, port))?, "another port")?;
        }
    }
    // Out of its own network namespace nothing of the kubelet's is exempt, and no other node's kubelet is.
    for netns in [world.pod("d").netns.clone(), world.topology.nodes[0].netns.clone()] {
        let attempt = connect(world, &netns, Some(&kubelet), (false, ports::ECHO))?;
        refused(&attempt, netns.name())?;
    }

    eventually(3 * SECOND, || {
        let status = world.agents[1].status()?;
        let pods = status["pods"].as_array().context("pods")?;
        let pod = pods.iter().find(|pod| pod["name"] == "b").context("pod b")?;
        ensure!(pod["counters"]["probes"] == sent, "{sent} probes were sent: {pod:#}");
        let counted = world.agents[1].metrics()?.sum("ambit_probes_total", &["pod=\"b\""]);
        ensure!(counted == f64::from(sent), "{sent} probes were sent, ambit_probes_total is {counted}");
        Ok(())
    })?;
    world.must_reach("a", "b")?;
    world.must_reach("a", "e")?;

    let pod = world.pod("b").clone();
    world.manifests.pod(&world.topology, &pod, &[])?;
    eventually(IN_FORCE, || {
        let attempt = connect(world, &node.netns, Some(&kubelet), (false, ports::ECHO))?;
        refused(&attempt, "no probe is declared any more")
    })
}

fn found(world: &mut World) -> Result<()> {
    let node = world.topology.nodes[1].clone();
    declare(world)?;
    // A process is called as the file that it was started from.
    let folder = world.folder.join("bin");
    fs::create_dir_all(&folder)?;
    symlink("/bin/bash", folder.join("kubelet"))?;
    let logs = world.folder.clone();
    let start = |cgroup: &Cgroup, log: &str| {
        let mut command = node.netns.command(folder.join("kubelet"));
        command.args(["-c", "echo runs; read -r"]);
        let mut process = Process::start(&mut cgroup.command(&command)?, &logs.join(log))?;
        process.wait_for("runs", 5 * SECOND).map(|()| process)
    };
    let probe =
        |world: &World, cgroup: &Cgroup| connect(world, &node.netns, Some(cgroup), (false, ports::ECHO));
    let first = Cgroup::create(&format!("{}-kubelet-1", node.name))?;
    let second = Cgroup::create(&format!("{}-kubelet-2", node.name))?;
    let rogue = Cgroup::create(&format!("{}-rogue", node.name))?;
    let in_pod = Cgroup::create(&format!("{}-kubepods-rogue", node.name))?;
    let _early = start(&in_pod, "kubelet-pod.log")?;
    let mut kubelet = start(&first, "kubelet-1.log")?;
    let late = start(&rogue, "kubelet-rogue.log")?;
    start_strict(world)?;
    eventually(5 * SECOND, || passes(&probe(world, &first)?, ports::ECHO))?;
    refused(&probe(world, &rogue)?, "started after the kubelet")?;
    refused(&probe(world, &in_pod)?, "in a pod's cgroup")?;

    kubelet.kill();
    drop(late);
    let mut kubelet = start(&second, "kubelet-2.log")?;
    eventually(SECOND, || passes(&probe(world, &second)?, ports::ECHO)).context("after a restart")?;
    refused(&probe(world, &first)?, "the cgroup that the kubelet had")?;

    // As systemd restarts a service: its cgroup goes, and another of the same name comes.
    let name = format!("{}-kubelet-2", node.name);
    let mut cgroup = second;
    for round in 0..3 {
        kubelet.kill();
        drop(cgroup);
        thread::sleep(2 * SECOND);
        cgroup = Cgroup::create(&name)?;
        kubelet = start(&cgroup, &format!("kubelet-again-{round}.log"))?;
        // No kubelet probes sooner after its start.
        thread::sleep(SECOND / 2);
        passes(&probe(world, &cgroup)?, ports::ECHO).context("its first probe after a restart")?;
    }
    Ok(())
}

/// Writes the manifest of pod b with a probe of each kind, one of them by a port's name.
pub(super) fn declare(world: &World) -> Result<()> {
    let [_, echo, whoami] = DECLARED;
    let [elsewhere, _] = UNDECLARED;
    let probes = format!(
        "    livenessProbe:\n      httpGet:\n        path: /\n        port: admin\n    readinessProbe:\n      \
         tcpSocket:\n        port: {echo}\n    startupProbe:\n      grpc:\n        port: {whoami}\n  - name: side\n    \
         image: example.invalid/side:1\n    livenessProbe:\n      httpGet:\n        host: 192.0.2.1\n        \
         port: {elsewhere}\n"
    );
    world.manifests.pod_with(&world.topology, world.pod("b"), &[], &probes)
}

pub(super) fn start_strict(world: &mut World) -> Result<()> {
    world.manifests.peer_authentication(MESHED, "STRICT")?;
    for agent in &mut world.agents {
        agent.start()?;
    }
    world.must_reach("a", "b")?;
    eventually(IN_FORCE, || world.must_not_reach("c", "b").map(drop))
}

/// One connection to a port of pod b from `netns`, in `cgroup` if one is given.
pub(super) fn connect(
    world: &World,
    netns: &Netns,
    cgroup: Option<&Cgroup>,
    (v6, port): (bool, u16),
) -> Result<Attempt> {
    let mut command: Command = load::tool(netns)?;
    let to = std::net::SocketAddr::new(world.pod("b").ip(v6), port);
    command.args(["connect", "--to", &to.to_string(), "--send", "GET / HTTP/1.1\r\nhost: b\r\n\r\n"]);
    let mut command = match cgroup {
        Some(cgroup) => cgroup.command(&command)?,
        None => command,
    };
    let text = process::run(&mut command, 15 * SECOND)?.ok()?;
    serde_json::from_str(&text).context("the answer of the tool connect")
}

pub(super) fn passes(attempt: &Attempt, port: u16) -> Result<()> {
    ensure!(
        attempt.error.is_none() && !attempt.received.is_empty(),
        "a probe of port {port} was not let through: {attempt:?}"
    );
    Ok(())
}

pub(super) fn refused(attempt: &Attempt, who: &str) -> Result<()> {
    ensure!(
        attempt.error.as_deref() == Some("ConnectionReset") && attempt.received.is_empty(),
        "{who}: not refused: {attempt:?}"
    );
    Ok(())
}
