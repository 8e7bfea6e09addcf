//! Agents that die, stop, come back, renew and leave.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::{SECOND, Test, marker, own};
use crate::{
    agent::IN_FORCE,
    load::{self, ports},
    process::{self, Process, eventually},
    sandbox,
    world::World,
};

/// What is waited for, and is not what a test is about, may take so long on a loaded machine.
const LOADED: Duration = Duration::from_secs(30);

pub(super) const TESTS: &[Test] = &[
    own(
        "failure::a_killed_client_agent_fails_closed",
        "SIGKILL: refused in a second, nothing in plaintext, heals",
        &[],
        |world| killed(world, 0),
    ),
    own(
        "failure::a_killed_server_agent_fails_closed",
        "the same at the server's node, for plaintext clients too",
        &[],
        |world| killed(world, 1),
    ),
    own(
        "failure::a_stopped_agent_fails_closed",
        "SIGTERM: a clean end, pods stay closed, heals",
        &[],
        stopped,
    ),
    own(
        "failure::ten_kills_under_load_leave_nothing",
        "no stale pin or listener, no pod broken",
        &[],
        ten_rounds,
    ),
    own(
        "failure::a_killed_agent_is_back_by_itself",
        "--supervise: started again at once; stopped when told to, and when its parent is killed",
        &["--supervise"],
        supervised,
    ),
    own(
        "failure::a_pod_let_go_finishes_first",
        "its tunnelled connection goes on, then nothing is left in its namespace",
        &[],
        let_go,
    ),
    own(
        "failure::renewal_is_not_noticed",
        "certificates of 20 s, renewed under a long connection and many short ones",
        &["--svid-ttl", "20s"],
        rotation,
    ),
    own(
        "failure::uninstall_leaves_nothing",
        "no pin, no rule, no sysctl; pods talk in plaintext as before",
        &[],
        uninstall,
    ),
];

fn killed(world: &mut World, node: usize) -> Result<()> {
    world.must_reach("a", "b")?;
    world.must_reach("c", "b")?;
    // The first packet of a pair of IPv6 neighbours may wait for a second.
    world.connect("a", (world.pod("b").ip(true), ports::WHOAMI), &["--send", "hello"])?;
    let secret = marker("while-away");
    let capture = world.capture_link("killed")?;
    world.agents[node].kill();
    let start = Instant::now();
    while start.elapsed() < 2 * SECOND {
        let to = world.pod("b");
        for v6 in [false, true] {
            let attempt = world.connect("a", (to.ip(v6), ports::HTTP), &["--send", &secret])?;
            ensure!(attempt.error.is_some() && attempt.received.is_empty(), "not refused: {attempt:?}");
            ensure!(attempt.took_ms <= 1_000, "refused only after {} ms", attempt.took_ms);
        }
    }
    if node == 1 {
        world.must_not_reach("c", "b").context("plaintext into a pod whose agent is away")?;
    }
    world.must_reach("c", "d").context("unmeshed to unmeshed")?;
    if node == 1 {
        world.must_reach("a", "d").context("meshed to unmeshed, the client's agent alive")?;
        world.must_reach("a", "e").context("meshed to meshed on the node whose agent lives")?;
    }
    world.agents[node].start()?;
    eventually(SECOND, || world.must_reach("a", "b")).context("after the restart")?;
    eventually(SECOND, || world.must_reach("c", "b")).context("after the restart")?;
    let link = capture.stop()?;
    ensure!(!link.contains(&secret), "plaintext went out while the agent was away");
    Ok(())
}

fn stopped(world: &mut World) -> Result<()> {
    let secret = marker("while-stopped");
    let capture = world.capture_link("stopped")?;
    for node in [0, 1] {
        world.agents[node].stop()?;
        let attempt = world.connect("a", (world.pod("b").v4, ports::HTTP), &["--send", &secret])?;
        ensure!(attempt.error.is_some() && attempt.took_ms <= 1_000, "not refused: {attempt:?}");
        world.agents[node].start()?;
        eventually(SECOND, || world.must_reach("a", "b"))?;
    }
    ensure!(!capture.stop()?.contains(&secret), "plaintext went out while an agent was stopped");
    Ok(())
}

fn ten_rounds(world: &mut World) -> Result<()> {
    world.must_reach("a", "b")?;
    let before = (leavings(world)?, listeners(world)?);
    let to = format!("{}:{}", world.pod("b").v4, ports::ECHO);
    let mut load = load::tool(&world.pod("a").netns)?;
    load.args(["churn", "--to", &to, "--count", "10000000", "--for-ms", "120000", "--rest-ms", "2"]);
    let mut load = Process::start(&mut load, &world.folder.join("ten-rounds.log"))?;
    let mut bulk = load::tool(&world.pod("c").netns)?;
    bulk.args(["churn", "--to", &to, "--count", "10000000", "--for-ms", "120000", "--rest-ms", "2"]);
    let mut bulk = Process::start(&mut bulk, &world.folder.join("ten-rounds-plain.log"))?;
    for round in 0..10 {
        let node = round % 2;
        world.agents[node].kill();
        world.must_not_reach("a", "b").with_context(|| format!("round {round}, node{} killed", node + 1))?;
        world.must_reach("c", "d")?;
        world.agents[node].start().with_context(|| format!("round {round}"))?;
        eventually(SECOND, || world.must_reach("a", "b"))
            .with_context(|| format!("round {round}, restarted"))?;
        world.must_reach("b", "e").with_context(|| format!("round {round}, restarted"))?;
        ensure!(load.runs() && bulk.runs(), "the load has ended");
    }
    load.kill();
    bulk.kill();
    eventually(5 * SECOND, || {
        let after = (leavings(world)?, listeners(world)?);
        ensure!(after.0 == before.0, "pins and rules were {:#?}, are {:#?}", before.0, after.0);
        ensure!(after.1 == before.1, "listeners per pod were {:?}, are {:?}", before.1, after.1);
        Ok(())
    })
}

fn supervised(world: &mut World) -> Result<()> {
    let running = |world: &World| -> Result<i32> {
        let parent = world.agents[1].pid()?;
        let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
        children.trim().parse().with_context(|| format!("the children of {parent}: {children:?}"))
    };
    world.must_reach("a", "b")?;
    for round in 0..3 {
        // One that dies in its first second is left to whoever supervises the parent.
        thread::sleep(2 * SECOND);
        let agent = running(world)?;
        kill(Pid::from_raw(agent), Signal::SIGKILL)?;
        eventually(3 * SECOND, || {
            world.must_reach("a", "b")?;
            ensure!(running(world)? != agent, "the same process runs");
            Ok(())
        })
        .with_context(|| format!("round {round}"))?;
    }
    let log = world.agents[1].log();
    ensure!(log.contains("the agent was killed; starting it again"), "the log does not tell of it");
    let agent = running(world)?;
    world.agents[1].stop()?;
    ensure!(!Path::new(&format!("/proc/{agent}")).exists(), "the agent outlived its parent");
    world.agents[1].start()?;
    eventually(SECOND, || world.must_reach("a", "b"))?;
    let agent = running(world)?;
    world.agents[1].kill();
    // The machine's first process takes a second to bury it.
    eventually(5 * SECOND, || {
        ensure!(!Path::new(&format!("/proc/{agent}")).exists(), "the agent outlived its parent");
        Ok(())
    })?;
    world.must_not_reach("a", "b")?;
    world.agents[1].start()?;
    eventually(SECOND, || world.must_reach("a", "b"))
}

fn let_go(world: &mut World) -> Result<()> {
    world.must_reach("a", "b")?;
    let pod = world.pod("b").clone();
    let to = format!("{}:{}", pod.v4, ports::ECHO);
    let mut long = load::tool(&world.pod("a").netns)?;
    long.args(["many", "--to", &to, "--connections", "1", "--hold", "--busy-every-ms", "10"]);
    let mut long = Process::start(&mut long, &world.folder.join("let-go.log"))?;
    long.wait_for("holding", LOADED)?;
    let enrolled = network_state(world, "b")?;
    world.manifests.pod(&world.topology, &pod, &[("ambit.dev/dataplane", "disabled")])?;
    let text = marker("let-go");
    let url = format!("http://{}:{}/", pod.v4, ports::HTTP);
    eventually(LOADED, || {
        let link = world.on_the_link("let-go", || world.curl("a", &["-d", &text, &url])?.ok().map(drop))?;
        ensure!(link.contains(&text), "new connections are still in a tunnel");
        Ok(())
    })?;
    ensure!(long.runs(), "the connection did not outlive the change: {}", long.output());
    thread::sleep(SECOND);
    long.close_input();
    long.wait(LOADED)?;
    ensure!(long.output().contains("\"good\":1,\"failed\":0"), "the connection broke: {}", long.output());
    let untouched = network_state(world, "c")?;
    ensure!(enrolled != untouched, "an enrolled pod looks like one that never was");
    eventually(LOADED, || {
        let state = network_state(world, "b")?;
        ensure!(state == untouched, "pod b is left with\n{state}\nwhere an untouched one has\n{untouched}");
        Ok(())
    })?;
    world.manifests.pod(&world.topology, &pod, &[])?;
    eventually(LOADED, || {
        let link = world.on_the_link("taken-up", || world.curl("a", &["-d", &text, &url])?.ok().map(drop))?;
        ensure!(!link.contains(&text), "new connections are in plaintext");
        Ok(())
    })
}

fn rotation(world: &mut World) -> Result<()> {
    let serials = |world: &World| -> Result<BTreeSet<String>> {
        let mut serials = BTreeSet::new();
        for agent in &world.agents {
            for certificate in agent.status()?["certificates"].as_array().into_iter().flatten() {
                serials.insert(certificate["serial"].as_str().context("a serial")?.to_owned());
            }
        }
        Ok(serials)
    };
    let first = serials(world)?;
    ensure!(first.len() == 3, "three pods, three identities: {first:?}");
    let to = format!("{}:{}", world.pod("b").v4, ports::ECHO);
    let command = |arguments: &[&str]| -> Result<_> {
        let mut command = load::tool(&world.pod("a").netns)?;
        command.args(arguments);
        Ok(command)
    };
    let mut long = command(&["ping-pong", "--to", &to, "--for-ms", "45000", "--rest-ms", "10"])?;
    let mut short =
        command(&["churn", "--to", &to, "--count", "1000000", "--for-ms", "45000", "--rest-ms", "10"])?;
    let limit = Duration::from_secs(80);
    let (long, short) = thread::scope(|scope| {
        let long = scope.spawn(|| process::run(&mut long, limit));
        let short = process::run(&mut short, limit);
        (long.join(), short)
    });
    let long = long.map_err(|_| anyhow::anyhow!("the long connection's thread panicked"))??;
    ensure!(long.status.success(), "the long connection broke: {}", long.told());
    let tally: Value = serde_json::from_str(&short?.ok()?)?;
    ensure!(tally["failed"] == 0 && tally["good"].as_u64() > Some(500), "{tally}");
    let last = serials(world)?;
    ensure!(first.is_disjoint(&last), "not every certificate was renewed: {first:?}, {last:?}");
    Ok(())
}

fn uninstall(world: &mut World) -> Result<()> {
    world.must_reach("a", "b")?;
    for agent in &mut world.agents {
        agent.stop()?;
        let gone = agent.uninstall()?;
        ensure!(gone.status.success(), "{}", gone.told());
        let pins = sandbox::pins(&agent.node().name);
        ensure!(!pins.exists(), "{} is still there", pins.display());
    }
    // Pod c was never touched; every other pod of its kind must look the same.
    let untouched = network_state(world, "c")?;
    for pod in ["a", "b", "e"] {
        let state = network_state(world, pod)?;
        ensure!(
            state == untouched,
            "pod {pod} is left with\n{state}\nwhere an untouched one has\n{untouched}"
        );
    }
    let secret = marker("uninstalled");
    let url = format!("http://{}:{}/", world.pod("b").v4, ports::HTTP);
    let link =
        world.on_the_link("uninstalled", || world.curl("a", &["-d", &secret, &url])?.ok().map(drop))?;
    ensure!(link.contains(&secret), "after uninstall, traffic is plaintext as before");
    for agent in &mut world.agents {
        agent.start()?;
    }
    eventually(IN_FORCE, || world.must_reach("a", "b"))?;
    let secret = marker("again");
    let link =
        world.on_the_link("installed-again", || world.curl("a", &["-d", &secret, &url])?.ok().map(drop))?;
    ensure!(!link.contains(&secret), "after a new start, traffic is in plaintext");
    Ok(())
}

/// Policy rules and routes of every table, and the switches an agent might turn, of a pod's namespace.
fn network_state(world: &World, pod: &str) -> Result<String> {
    let netns = &world.pod(pod).netns;
    let mut state = String::new();
    for arguments in [["-4", "rule", "list"], ["-6", "rule", "list"]] {
        state += &netns.ip(&arguments)?;
    }
    let switches =
        ["net.ipv4.tcp_fwmark_accept", "net.ipv4.conf.all.route_localnet", "net.ipv4.conf.lo.rp_filter"];
    state += &process::must(netns.command("sysctl").args(switches))?;
    let own = [world.pod(pod).v4.to_string(), world.pod(pod).v6.to_string()];
    for family in ["-4", "-6"] {
        // The pod's own addresses are all that two pods' routes may differ in, and the order is the kernel's.
        let routes = netns.ip(&[family, "route", "show", "table", "all"])?;
        let routes = own.iter().fold(routes, |routes, ip| routes.replace(ip, "OWN"));
        let mut lines: Vec<&str> = routes.lines().filter(|line| !line.contains("fe80::")).collect();
        lines.sort_unstable();
        state += &lines.join("\n");
    }
    Ok(state + &process::must(netns.command("nft").args(["list", "ruleset"]))?)
}

/// Pins of both nodes and policy rules of the meshed pods.
fn leavings(world: &World) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for node in &world.topology.nodes {
        list(&sandbox::pins(&node.name), &mut found)?;
    }
    for pod in ["a", "b", "e"] {
        for family in ["-4", "-6"] {
            let rules = world.pod(pod).netns.ip(&[family, "rule", "list"])?;
            // Numbered, so that a rule set twice is not taken for one.
            found.extend(
                rules.lines().enumerate().map(|(number, rule)| format!("{pod} {family} {number} {rule}")),
            );
        }
    }
    Ok(found)
}

fn list(folder: &Path, found: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            list(&path, found)?;
        } else {
            found.insert(path.display().to_string());
        }
    }
    Ok(())
}

/// How many TCP sockets listen in each meshed pod.
fn listeners(world: &World) -> Result<Vec<usize>> {
    ["a", "b", "e"]
        .iter()
        .map(|pod| Ok(process::must(world.pod(pod).netns.command("ss").args(["-Hltn"]))?.lines().count()))
        .collect()
}
