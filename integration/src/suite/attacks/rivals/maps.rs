//! Maps without room for what should be in them: refused or captured, never let through.

use std::{net::SocketAddr, thread, time::Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{counters, in_a_tunnel};
use crate::{
    agent::{Agent, START_LIMIT},
    cgroups::Cgroup,
    load::{self, ports},
    process::{self, Process, eventually},
    suite::{SECOND, marker},
    topology::MESHED,
    world::World,
};

pub(super) fn full_bypass(world: &mut World) -> Result<()> {
    let node = world.topology.nodes[1].clone();
    let kubelet = Cgroup::create(&format!("{}-kubelet", node.name))?;
    world.agents[1].add_flags(&["--kubelet-cgroup", &kubelet.path().display().to_string()]);
    let probe = format!("    livenessProbe:\n      tcpSocket:\n        port: {}\n", ports::ECHO);
    world.manifests.pod_with(&world.topology, world.pod("b"), &[], &probe)?;
    world.start_agents()?;
    world.must_reach("a", "b")?;
    world.must_reach("c", "b")?;

    let mut probes = load::tool(&node.netns)?;
    let echo = SocketAddr::new(world.pod("b").v4.into(), ports::ECHO);
    probes.args(["many", "--to", &echo.to_string(), "--connections", "8", "--rounds", "1", "--hold"]);
    let log = world.folder.join("probes.log");
    let mut probes = Process::start(&mut kubelet.command(&probes)?, &log)?;
    probes.wait_for("holding", 10 * SECOND)?;

    let (mark, pid) = (world.agents[1].mark(), world.agents[1].pid()?.cast_signed());
    let before = process::cpu_time(pid)?;
    for client in ["c", "a"] {
        let refused = world.must_be_refused(client, "b", 2 * SECOND)?;
        ensure!(refused.received.is_empty(), "{client}: {refused:?}");
    }
    thread::sleep(SECOND);
    let spent = process::cpu_time(pid)? - before;
    ensure!(spent < SECOND / 2, "the agent is busy with itself: {spent:?} of processor time in a second");
    world.agents[1].wait_log(mark, &["overloaded", "BYPASS"])?;

    probes.close_input();
    probes.wait(5 * SECOND)?;
    eventually(3 * SECOND, || world.must_reach("c", "b"))?;
    world.must_reach("a", "b")
}

pub(super) fn stuck_server(world: &mut World) -> Result<()> {
    let serve = |pod: &str, port: u16| -> Result<Process> {
        let pod = world.pod(pod);
        let mut server = load::tool(&pod.netns)?;
        server.args(["whoami-server", "--listen", &format!("{}:{port}", pod.v4)]);
        let mut server = Process::start(&mut server, &world.folder.join(format!("server-{port}.log")))?;
        server.wait_for("ready", 5 * SECOND).map(|()| server)
    };
    let (e, a) = (world.pod("e").clone(), world.pod("a").clone());
    e.netns.sysctl(&["net.core.somaxconn=8"])?;
    let mut stuck = serve("e", 7_000)?;
    let _other = serve("a", 7_001)?;
    stuck.signal(Signal::SIGSTOP);
    let mut flood = load::tool(&world.pod("d").netns)?;
    flood.args(["many", "--to", &format!("{}:7000", e.v4), "--connections", "1000", "--rounds", "1"]);
    let mut flood = Process::start(&mut flood, &world.folder.join("flood.log"))?;
    thread::sleep(2 * SECOND);
    let waiting = process::must(e.netns.command("ss").args(["-Htn", "state", "syn-sent"]))?.lines().count();
    world.notes.push(format!("{waiting} dials waited"));
    ensure!((1..=512).contains(&waiting), "{waiting} dials wait");
    for _ in 0..20 {
        let attempt = world.connect("d", (a.v4, 7_001), &["--send", "hello"])?;
        ensure!(attempt.received.starts_with("peer "), "{attempt:?}");
    }
    ensure!(flood.runs(), "the flood has ended: {}", flood.output());
    flood.kill();
    stuck.signal(Signal::SIGCONT);
    let answers = || {
        let attempt = world.connect("d", (e.v4, 7_000), &["--send", "hello"])?;
        ensure!(attempt.received.starts_with("peer "), "{attempt:?}");
        Ok(())
    };
    eventually(15 * SECOND, answers)
}

pub(super) fn full_destinations(world: &mut World) -> Result<()> {
    // Three pods and two nodes, two services with three addresses: eleven.
    world.agents.iter_mut().try_for_each(Agent::spawn)?;
    for agent in &world.agents {
        eventually(START_LIMIT, || waits_for(agent, "capture"))?;
        ensure!(agent.metrics()?.sum("ambit_capture_everything", &[]) == 1.0, "the metrics do not tell");
    }
    for v6 in [false, true] {
        in_a_tunnel(world, &SocketAddr::new(world.pod("b").ip(v6), ports::HTTP).to_string())?;
    }
    world.must_reach("c", "b")?;
    // The agent knows that pod d is not meshed.
    let before = counters(&world.agents[0], "a")?;
    world.must_reach("a", "d")?;
    let now = counters(&world.agents[0], "a")?;
    ensure!(now["captured"].as_u64() > before["captured"].as_u64(), "was {before}, is {now}");
    ensure!(now["passed"] == before["passed"], "was {before}, is {now}");

    // Nine are left.
    let pod = world.pod("e").clone();
    world.manifests.pod(&world.topology, &pod, &[("ambit.dev/dataplane", "disabled")])?;
    world.agents.iter_mut().try_for_each(Agent::wait_ready)?;
    in_a_tunnel(world, &SocketAddr::new(world.pod("b").v4.into(), ports::HTTP).to_string())?;
    let before = counters(&world.agents[0], "a")?;
    world.must_reach("a", "d")?;
    let now = counters(&world.agents[0], "a")?;
    ensure!(now["passed"].as_u64() > before["passed"].as_u64(), "was {before}, is {now}");
    ensure!(now["captured"] == before["captured"], "was {before}, is {now}");
    Ok(())
}

pub(super) fn full_pods(world: &mut World) -> Result<()> {
    world.manifests.peer_authentication(MESHED, "PERMISSIVE")?;
    world.agents.iter_mut().try_for_each(Agent::spawn)?;
    world.agents[1].wait_ready()?;
    let agent = &world.agents[0];
    let kept_out = eventually(START_LIMIT, || {
        waits_for(agent, "capture")?;
        let status = agent.status()?;
        let pods = status["pods"].as_array().context("pods")?;
        let failed: Vec<&Value> = pods.iter().filter(|pod| pod["state"] == "failed").collect();
        ensure!(pods.len() == 2 && failed.len() == 1, "{status:#}");
        let why = failed[0]["error"].as_str().unwrap_or_default();
        ensure!(why.contains("PODS is full") && why.contains("--map-entries"), "{why}");
        Ok(failed[0]["name"].as_str().context("its name")?.to_owned())
    })?;
    ensure!(agent.metrics()?.sum("ambit_pods_kept_out", &[]) == 1.0, "the metrics do not tell");
    for client in ["c", "d", "b"] {
        world.must_not_reach(client, &kept_out)?;
    }
    let other = if kept_out == "a" { "e" } else { "a" };
    world.must_reach(other, "b")?;

    // Its place is free when the other one leaves.
    let pod = world.pod(other).clone();
    world.manifests.pod(&world.topology, &pod, &[("ambit.dev/dataplane", "disabled")])?;
    world.agents[0].wait_ready()?;
    world.must_reach(&kept_out, "b")
}

fn waits_for(agent: &Agent, gate: &str) -> Result<()> {
    let status = agent.status()?;
    let pending = status["pending"].as_array().context("pending")?;
    ensure!(pending.len() == 1 && pending[0] == gate, "it waits for {pending:?}");
    Ok(())
}

pub(super) fn other_maps(world: &mut World) -> Result<()> {
    world.must_reach("a", "b")?;
    let secret = marker("other-maps");
    let capture = world.capture_link("other-maps")?;
    for node in [0, 1] {
        let agent = &mut world.agents[node];
        agent.add_flags(&["--map-entries", "DESTINATIONS=300000,BYPASS=140000"]);
        let mark = agent.mark();
        let new = agent.successor()?;
        let mut old = agent.replace(new).context("the old agent")?;
        let told = |world: &World| world.agents[node].log_since(mark);
        let deadline = Instant::now() + START_LIMIT;
        while !told(world).contains("taken over from the agent") {
            ensure!(Instant::now() < deadline, "nobody has taken over: {}", told(world));
            for v6 in [false, true] {
                world.connect("a", (world.pod("b").ip(v6), ports::ECHO), &["--send", &secret])?;
            }
        }
        old.signal(Signal::SIGTERM);
        eventually(SECOND, || world.must_reach("a", "b"))?;
        eventually(SECOND, || world.must_reach("c", "e"))?;
        old.kill();
        world.must_reach("a", "b")?;
        world.must_reach("c", "e")?;
    }
    ensure!(!capture.stop()?.contains(&secret), "plaintext went out while an agent took over");
    Ok(())
}
