//! Floods of connections, silence and half messages: what one pod or one client does costs no other pod a connection, and what
//! nobody has proved who he is for costs the agent little.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::Test;
use crate::{
    agent::{Agent, IN_FORCE},
    cgroups::MemoryGroup,
    load::{self, ports},
    process::{self, Process, eventually},
    suite::{SECOND, own, unstarted},
    tools::FloodTally,
    topology::MESHED,
    world::World,
};

pub(super) const TESTS: &[Test] = &[
    own(
        "attacks::floods::one_pods_flood_costs_no_other_pod",
        "8,400 unfinished handshakes at one pod: its neighbour takes every connection",
        &[],
        other_pods,
    ),
    own(
        "attacks::floods::one_clients_flood_costs_no_other_client",
        "the same, and other clients of the same pod get through",
        &[],
        other_clients,
    ),
    own(
        "attacks::floods::open_connections_leave_room",
        "one client keeps thousands open: others of the pod, and other pods, get theirs",
        &[],
        open_connections,
    ),
    own(
        "attacks::floods::dead_destinations_cost_the_dialler",
        "a pod dials thousands of connections that nobody answers",
        &[],
        dead_destinations,
    ),
    unstarted(
        "attacks::floods::stalled_streams_hold_bounded_memory",
        "thousands of streams stuck both ways: bounded memory, and another pod is served",
        &[],
        |world| stalled_streams(world, 1 << 30),
    ),
    unstarted(
        "attacks::floods::little_memory_is_not_overrun",
        "the same with 320 MiB for an agent: it lives, and another pod is served",
        &[],
        |world| stalled_streams(world, 320 << 20),
    ),
    own(
        "attacks::floods::the_unproven_cost_little",
        "processor time of a thousand connections of each kind that never prove who they are",
        &[],
        processor_time,
    ),
];

/// A tool in a pod that floods.
struct Flooding(Process);

impl Flooding {
    fn start(
        world: &World,
        pod: &str,
        to: (Ipv4Addr, u16),
        connections: usize,
        flags: &[&str],
    ) -> Result<Self> {
        let mut command = load::tool(&world.pod(pod).netns)?;
        command.args(["flood", "--to", &format!("{}:{}", to.0, to.1)]);
        command.args(["--connections", &connections.to_string()]).args(flags);
        let log = world.folder.join(format!("flood-{pod}-{}.log", flags.join("")));
        let mut process = Process::start(&mut command, &log)?;
        process.wait_for("flooding", 60 * SECOND)?;
        Ok(Self(process))
    }

    fn end(mut self) -> Result<FloodTally> {
        self.0.wait(60 * SECOND)?;
        let output = self.0.output();
        let tally = output.lines().rfind(|line| line.starts_with('{')).context("no tally of the flood")?;
        serde_json::from_str(tally).with_context(|| tally.to_owned())
    }
}

fn strict(world: &World, client: &str, server: &str) -> Result<()> {
    world.manifests.peer_authentication(MESHED, "STRICT")?;
    eventually(IN_FORCE, || world.must_not_reach(client, server)).map(drop)
}

/// Demands that `from` reaches `to`, again and again, and never late.
fn keeps_reaching(world: &World, from: &str, to: &str, times: usize) -> Result<Duration> {
    let mut longest = Duration::ZERO;
    for time in 1..=times {
        let began = Instant::now();
        world.must_reach(from, to).with_context(|| format!("connection {time} of {times}"))?;
        longest = longest.max(began.elapsed());
    }
    ensure!(longest < 3 * SECOND, "{from} reached {to}, but only after {longest:?}");
    Ok(longest)
}

fn overloaded(world: &World, node: usize) -> Result<f64> {
    Ok(world.agents[node].metrics()?.sum("ambit_refusals_total", &["reason=\"overloaded\""]))
}

fn other_pods(world: &mut World) -> Result<()> {
    strict(world, "d", "e")?;
    let a = (world.pod("a").v4, 7000);
    let flooding =
        Flooding::start(world, "d", a, 8_400, &["--says", "hello", "--hold-ms", "6000", "--again"])?;
    let mut longest = keeps_reaching(world, "b", "e", 20)?;
    // More at a time than there are tunnels from before.
    let to = format!("{}:{}", world.pod("e").v4, ports::ECHO);
    for connections in ["50", "100"] {
        let many = ["many", "--to", &to, "--connections", connections, "--rounds", "1"];
        let tally = world.tool("b", &many, 60 * SECOND)?;
        ensure!(tally["failed"] == 0, "of {connections} new tunnels at once: {tally}");
    }
    longest = longest.max(keeps_reaching(world, "b", "e", 20)?);
    // Whoever asks the agent itself is answered.
    let refused = overloaded(world, 0)?;
    let tally = flooding.end()?;
    world.notes.push(format!("longest {longest:?}; {refused} refused, {tally:?}"));
    ensure!(tally.connected > 8_000, "{tally:?}");
    ensure!(refused > 0.0, "no connection of the flood was refused as overloaded");
    world.must_reach("b", "e")
}

fn other_clients(world: &mut World) -> Result<()> {
    strict(world, "d", "e")?;
    let e = (world.pod("e").v4, ports::WHOAMI);
    let flooding =
        Flooding::start(world, "d", e, 8_400, &["--says", "hello", "--hold-ms", "6000", "--again"])?;
    let longest = keeps_reaching(world, "b", "e", 20)?.max(keeps_reaching(world, "a", "e", 20)?);
    let tally = flooding.end()?;
    world.notes.push(format!("longest {longest:?}; {tally:?}"));
    ensure!(overloaded(world, 0)? > 0.0, "no connection of the flood was refused as overloaded");
    Ok(())
}

fn open_connections(world: &mut World) -> Result<()> {
    let mark = world.agents[0].mark();
    let e = (world.pod("e").v4, ports::ECHO);
    // In plaintext they count as begun after a second of silence, and are kept.
    let flooding = Flooding::start(world, "d", e, 6_000, &["--says", "nothing", "--hold-ms", "8000"])?;
    std::thread::sleep(3 * SECOND);
    let longest = keeps_reaching(world, "b", "e", 10)?.max(keeps_reaching(world, "e", "b", 10)?);
    for _ in 0..10 {
        let to_a = world.connect("b", (world.pod("a").v4, ports::WHOAMI), &[])?;
        // Nothing listens in pod a: that is what its own kernel says, not the agent.
        ensure!(to_a.error.as_deref() != Some("TimedOut"), "{to_a:?}");
    }
    let tally = flooding.end()?;
    world.notes.push(format!("longest {longest:?}; {tally:?}"));
    ensure!((500..5_000).contains(&tally.open), "one client keeps a share: {tally:?}");
    ensure!(overloaded(world, 0)? > 0.0, "no connection of the flood was refused as overloaded");
    let log = world.agents[0].log_since(mark);
    ensure!(!log.contains("cannot accept a connection"), "the agent ran out of descriptors");
    let lines = log.lines().filter(|line| line.contains("overloaded")).count();
    ensure!(lines < 1_000, "{lines} lines of the log for one flood");
    Ok(())
}

fn dead_destinations(world: &mut World) -> Result<()> {
    let ghost = Ipv4Addr::new(198, 18, 2, 99);
    let manifest = format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: ghost\n  namespace: {MESHED}\n  uid: uid-ghost\n  \
         creationTimestamp: \"2026-01-01T00:00:00Z\"\nspec:\n  nodeName: elsewhere\n  serviceAccountName: ghost\n  \
         containers:\n  - name: main\n    image: example.invalid/main:1\nstatus:\n  phase: Running\n  podIP: {ghost}\n  \
         podIPs:\n  - ip: {ghost}\n"
    );
    world.topology.nodes[1].netns.ip(&["route", "add", "blackhole", &format!("{ghost}/32")])?;
    world.manifests.write("ghost.yaml", &manifest)?;
    std::thread::sleep(2 * SECOND);
    let flooding = Flooding::start(
        world,
        "a",
        (ghost, 7000),
        6_000,
        &["--says", "nothing", "--hold-ms", "6000", "--again", "--at-once"],
    )?;
    let mut longest = keeps_reaching(world, "a", "b", 20)?;
    longest = longest.max(keeps_reaching(world, "e", "b", 10)?).max(keeps_reaching(world, "b", "e", 10)?);
    let files = world.agents[0].open_files()?;
    let tally = flooding.end()?;
    world.notes.push(format!("longest {longest:?}; {tally:?}, {files} files"));
    ensure!(tally.refused == 0 && tally.open >= 5_000, "nobody has answered them: {tally:?}");
    ensure!(files < 5_000, "the agent dials for all at a time: {files} files");
    Ok(())
}

/// What an agent holds resident at most while one pod has all its streams stuck, in KiB: itself, the 64 MiB of buffers that
/// one pod may hold, and 16 KiB for each of the connections that it may have.
const RESIDENT: u64 = (64 + 64 + 64) * 1024;

fn stalled_streams(world: &mut World, memory: u64) -> Result<()> {
    let mut groups = Vec::new();
    for agent in &mut world.agents {
        let group = MemoryGroup::create(&format!("{}-memory", agent.node().name), memory)?;
        agent.enter(group.entrance());
        groups.push(group);
    }
    world.start_agents()?;
    let done = stall(world, &groups, memory);
    // The groups can be removed only without them.
    let alive = world.agents.iter_mut().all(Agent::runs);
    world.agents.iter_mut().for_each(Agent::kill);
    done?;
    ensure!(alive, "an agent has died");
    Ok(())
}

fn stall(world: &mut World, groups: &[MemoryGroup], memory: u64) -> Result<()> {
    const PORT: u16 = 7100;
    let b = world.pod("b").clone();
    let mut mute = load::tool(&b.netns)?;
    mute.args(["mute-server", "--listen", &format!("{}:{PORT}", b.v4)]);
    let mut mute = Process::start(&mut mute, &world.folder.join("mute.log"))?;
    mute.wait_for("ready", 10 * SECOND)?;
    let quiet = ping_pong(world, 2)?;
    let before = resident(world)?;
    let flooding = Flooding::start(
        world,
        "a",
        (b.v4, PORT),
        10_000,
        &["--says", "stuffing", "--hold-ms", "15000", "--at-once"],
    )?;
    std::thread::sleep(5 * SECOND);
    let during = resident(world)?;
    let loud = ping_pong(world, 5)?;
    let files = [world.agents[0].open_files()?, world.agents[1].open_files()?];
    let last = resident(world)?;
    let used = groups.iter().map(MemoryGroup::used).collect::<Result<Vec<_>>>()?;
    let tally = flooding.end()?;
    let mib: Vec<_> = used.iter().map(|(all, sockets)| (all >> 20, sockets >> 20)).collect();
    world.notes.push(format!(
        "resident {before:?} KiB before, {during:?} and {last:?} with {} streams stuck ({files:?} files); all memory and that of \
         sockets {mib:?} MiB; round trip p99 {:.0} µs before, {:.0} µs then",
        tally.open, quiet.p99_us, loud.p99_us
    ));
    ensure!(tally.open >= 400, "hardly any stream is stuck: {tally:?}");
    for (node, resident) in [during, last].concat().into_iter().enumerate() {
        ensure!(resident < RESIDENT, "node{}: {resident} KiB resident, more than {RESIDENT}", node % 2 + 1);
    }
    for (all, sockets) in used {
        ensure!(all < memory * 9 / 10, "{all} bytes of memory used, {sockets} of them in sockets");
    }
    ensure!(loud.rounds > 100, "the other pod was hardly served: {loud:?}, {quiet:?} before");
    drop(mute);
    eventually(10 * SECOND, || world.must_reach("a", "b"))
}

/// What another pod of the first node gets.
fn ping_pong(world: &World, seconds: u64) -> Result<crate::tools::Latency> {
    let to = format!("{}:{}", world.pod("e").v4, ports::ECHO);
    let milliseconds = (seconds * 1000).to_string();
    let latency = world.tool("d", &["ping-pong", "--to", &to, "--for-ms", &milliseconds], 60 * SECOND)?;
    Ok(serde_json::from_value(latency)?)
}

fn resident(world: &World) -> Result<[u64; 2]> {
    Ok([world.agents[0].resident_kib()?, world.agents[1].resident_kib()?])
}

/// How much more than a thousand good connections a thousand of a bad kind may cost: the machine has other things to do.
const DEARER: f64 = 10.0;

fn processor_time(world: &mut World) -> Result<()> {
    let e = world.pod("e").v4;
    let agent = |world: &World| process::cpu_time(world.agents[0].pid()?.cast_signed());
    // All at once, so that none finds a tunnel of another.
    let many = ["many", "--to", &format!("{e}:{}", ports::ECHO), "--connections", "1000", "--rounds", "1"];
    let start = agent(world)?;
    let tally = world.tool("b", &many, 90 * SECOND)?;
    ensure!(tally["good"] == 1_000, "{tally}");
    let good = agent(world)?.saturating_sub(start);
    let handshakes = world.agents[0].metrics()?.sum("ambit_handshakes_total", &["reporter=\"destination\""]);
    world
        .notes
        .push(format!("ms for a thousand: full connections {} ({handshakes} handshakes)", good.as_millis()));
    strict(world, "d", "e")?;
    let kinds = [
        "nothing",
        "half-hello",
        "hello-by-bytes",
        "huge-hello",
        "hello-in-records",
        "hello",
        "post-quantum-hello",
        "retried-hello",
        "hello-and-garbage",
        "hello-and-records",
        "other-hello",
        "looks-like-tls",
    ];
    let mut dear = Vec::new();
    for kind in kinds {
        let start = agent(world)?;
        let flags = ["--says", kind, "--hold-ms", "4000"];
        let tally = Flooding::start(world, "d", (e, ports::ECHO), 1_000, &flags)?.end()?;
        ensure!(tally.connected == 1_000, "{kind}: {tally:?}");
        let cost = agent(world)?.saturating_sub(start);
        let ratio = cost.as_secs_f64() / good.as_secs_f64().max(0.01);
        world.notes.push(format!("{kind} {} ({ratio:.2} of those)", cost.as_millis()));
        if ratio > DEARER {
            dear.push(format!("{kind}: {cost:?}"));
        }
    }
    ensure!(dear.is_empty(), "a thousand full connections cost {good:?}, but {dear:?}");
    world.must_reach("b", "e")
}
