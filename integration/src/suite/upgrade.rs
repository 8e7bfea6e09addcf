//! One agent takes over from another, under load and with accidents, and what SIGTERM means for connections.

use std::{path::Path, process::Command, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{SECOND, Test, own};
use crate::{
    load::{self, ports},
    process::{Process, eventually},
    world::World,
};

pub(super) const TESTS: &[Test] = &[
    own(
        "upgrade::loses_no_connection_under_load",
        "both nodes, twice: iperf3 runs through, no short connection fails, mTLS and plaintext",
        &[],
        under_load,
    ),
    own(
        "upgrade::a_successor_that_dies_changes_nothing",
        "killed at every stage of its start: the old agent goes on",
        &[],
        successor_dies,
    ),
    own(
        "upgrade::a_predecessor_that_dies_is_replaced",
        "SIGKILL while the new agent starts: it serves all the same",
        &[],
        predecessor_dies,
    ),
    own(
        "upgrade::sigterm_lets_connections_end",
        "established ones go on, new ones are taken meanwhile, a second signal ends it at once",
        &["--drain", "6s"],
        drain,
    ),
];

/// What the old agent says when it pauses.
const TAKES_OVER: &str = "another agent takes over";
/// What the new agent says when all is its own.
const TAKEN_OVER: &str = "taken over from the agent";

fn under_load(world: &mut World) -> Result<()> {
    world.must_reach("a", "b")?;
    world.must_reach("c", "b")?;
    let port = ports::IPERF.to_string();
    let mut server = world.pod("b").netns.command("iperf3");
    let mut server = Process::start(
        server.args(["-s", "-1", "--forceflush", "-p", &port]),
        &world.folder.join("upgrade-iperf3-s.log"),
    )?;
    server.wait_for("Server listening", 5 * SECOND)?;
    let mut bulk = world.pod("a").netns.command("iperf3");
    // Bounded, so that on two cores the agents get to start beside it.
    bulk.args(["-c", &world.pod("b").v4.to_string(), "-p", &port, "-t", "24", "-b", "500M"]);
    let mut bulk = Process::start(&mut bulk, &world.folder.join("upgrade-iperf3-c.log"))?;
    let pairs = [("a", "b"), ("c", "b"), ("e", "b"), ("a", "e"), ("b", "e")];
    let mut churns = pairs.map(|(from, to)| churn(world, from, to, 22_000));
    thread::sleep(SECOND);
    for round in 0..2 {
        for node in [0, 1] {
            upgrade(world, node).with_context(|| format!("round {round}, node{}", node + 1))?;
        }
    }
    for churn in &mut churns {
        let churn = churn.as_mut().map_err(|error| anyhow::anyhow!("{error:#}"))?;
        let tally = churn.tally(40 * SECOND)?;
        ensure!(tally["failed"] == 0 && tally["good"].as_u64() > Some(200), "{}: {tally}", churn.name);
    }
    let ended = bulk.wait(30 * SECOND)?;
    ensure!(ended.success(), "iperf3 was cut: {}", bulk.output());
    Ok(())
}

/// Starts the new agent, waits until it serves, stops the old one and waits for its end.
pub(super) fn upgrade(world: &mut World, node: usize) -> Result<()> {
    let agent = &mut world.agents[node];
    let mark = agent.mark();
    let new = agent.successor()?;
    agent.wait_log(mark, &[TAKEN_OVER])?;
    let mut old = agent.replace(new).context("the old agent")?;
    agent.wait_ready()?;
    old.signal(Signal::SIGTERM);
    // The old one may go on until its connections end; the next upgrade does not wait for it.
    thread::sleep(SECOND);
    let told = agent.status()?;
    ensure!(told["ready"] == true, "the new agent is not ready: {told:#}");
    world.retired.push(old);
    Ok(())
}

fn successor_dies(world: &mut World) -> Result<()> {
    world.must_reach("a", "b")?;
    let pid = world.agents[0].pid()?;
    let mut load = churn(world, "a", "b", 120_000)?;
    // While it gets ready nothing may be noticed.
    for delay in [0, 10, 20] {
        let mark = world.agents[0].mark();
        let mut new = world.agents[0].successor()?;
        world.agents[0].wait_log(mark, &["another agent serves this node"])?;
        thread::sleep(Duration::from_millis(delay));
        new.kill();
        let told = || format!("killed {delay} ms after it began");
        // On a quick machine it may be in the middle of the take-over by now.
        if world.agents[0].log_since(mark).contains(TAKES_OVER) {
            eventually(SECOND, || world.must_reach("a", "b")).with_context(told)?;
        } else {
            world.must_reach("a", "b").with_context(told)?;
        }
    }
    // In the middle of the take-over connections may be refused for a moment, and never longer.
    for step in 0..12_u64 {
        let mark = world.agents[0].mark();
        let mut new = world.agents[0].successor()?;
        let _: Result<String> = world.agents[0].wait_log(mark, &[TAKES_OVER]);
        thread::sleep(Duration::from_millis(step * 25));
        new.kill();
        // What the two have said by now is written a moment later.
        thread::sleep(Duration::from_millis(100));
        if world.agents[0].log_since(mark).contains(TAKEN_OVER) {
            // It was too quick: with it the node's agent has died.
            break;
        }
        eventually(SECOND, || world.must_reach("a", "b")).with_context(|| format!("step {step}"))?;
        eventually(SECOND, || world.must_reach("e", "b")).with_context(|| format!("step {step}"))?;
        ensure!(world.agents[0].pid()? == pid, "the old agent goes on");
        ensure!(world.agents[0].runs(), "the old agent has ended");
        ensure!(world.agents[0].status()?["ready"] == true, "the old agent is not ready");
    }
    ensure!(load.process.runs(), "the load has ended: {}", load.process.output());
    Ok(())
}

fn predecessor_dies(world: &mut World) -> Result<()> {
    world.must_reach("a", "b")?;
    for delay in [0, 30, 100, 200, 400] {
        for node in [0, 1] {
            let agent = &mut world.agents[node];
            let mark = agent.mark();
            let new = agent.successor()?;
            agent.wait_log(mark, &["another agent serves this node"])?;
            thread::sleep(Duration::from_millis(delay));
            agent.replace(new).context("the old agent")?.kill();
            agent.wait_ready().with_context(|| format!("killed after {delay} ms"))?;
            eventually(SECOND, || world.must_reach("a", "b")).with_context(|| format!("after {delay} ms"))?;
            eventually(SECOND, || world.must_reach("c", "b")).with_context(|| format!("after {delay} ms"))?;
        }
    }
    Ok(())
}

fn drain(world: &mut World) -> Result<()> {
    let to = format!("{}:{}", world.pod("b").v4, ports::ECHO);
    let talk = |world: &World, name: &str, for_ms: &str| -> Result<Process> {
        let mut command = load::tool(&world.pod("a").netns)?;
        command.args(["ping-pong", "--to", &to, "--for-ms", for_ms, "--rest-ms", "20"]);
        Process::start(&mut command, &world.folder.join(format!("drain-{name}.log")))
    };
    let stop = |world: &mut World| -> Result<Process> {
        let mut old = world.agents[0].take().context("the agent")?;
        thread::sleep(SECOND / 2);
        old.signal(Signal::SIGTERM);
        thread::sleep(SECOND / 2);
        ensure!(old.runs(), "the agent has not waited for the connection");
        Ok(old)
    };

    let mut short = talk(world, "short", "4000")?;
    let mut old = stop(world)?;
    world.must_reach("a", "b").context("a new connection meanwhile")?;
    ensure!(short.wait(8 * SECOND)?.success(), "the connection was cut: {}", short.output());
    ensure!(old.wait(4 * SECOND)?.success(), "the agent did not end well");
    world.must_not_reach("a", "b")?;

    // A successor that comes meanwhile takes over.
    world.agents[0].start()?;
    let mut short = talk(world, "handed-over", "4000")?;
    let mut old = stop(world)?;
    world.agents[0].start()?;
    world.must_reach("a", "b")?;
    ensure!(short.wait(8 * SECOND)?.success(), "the connection was cut: {}", short.output());
    ensure!(old.wait(8 * SECOND)?.success(), "the agent did not end well");

    let mut long = talk(world, "long", "60000")?;
    let mut old = stop(world)?;
    ensure!(old.wait(10 * SECOND)?.success(), "the agent did not end well");
    ensure!(!long.wait(2 * SECOND)?.success(), "the connection outlived the agent");

    world.agents[0].start()?;
    let mut long = talk(world, "twice", "60000")?;
    let mut old = stop(world)?;
    old.signal(Signal::SIGINT);
    ensure!(old.wait(2 * SECOND)?.success(), "the agent did not end well");
    ensure!(!long.wait(2 * SECOND)?.success(), "the connection outlived the agent");
    world.agents[0].start()
}

/// Short connections from one pod to another's echo server, in the background.
struct Churn {
    name: String,
    process: Process,
}

fn churn(world: &World, from: &str, to: &str, for_ms: u64) -> Result<Churn> {
    let mut command: Command = load::tool(&world.pod(from).netns)?;
    let addr = format!("{}:{}", world.pod(to).v4, ports::ECHO);
    let (count, time) = (10_000_000.to_string(), for_ms.to_string());
    command.args(["churn", "--to", &addr, "--count", &count, "--for-ms", &time, "--rest-ms", "5"]);
    let log: &Path = &world.folder.join(format!("churn-{from}-{to}.log"));
    Ok(Churn { name: format!("{from} to {to}"), process: Process::start(&mut command, log)? })
}

impl Churn {
    fn tally(&mut self, limit: Duration) -> Result<Value> {
        ensure!(self.process.wait(limit)?.success(), "{}: {}", self.name, self.process.output());
        serde_json::from_str(&self.process.output()).with_context(|| self.name.clone())
    }
}
