//! Small messages of many connections between two pods, which share packets on the way to another node.

use std::thread;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{SECOND, Test, own, transfers, upgrade};
use crate::{
    load::{self, ports},
    process::Process,
    world::World,
};

pub(super) const TESTS: &[Test] = &[
    own(
        "bundles::many_connections_share_packets",
        "40 connections, each message there and back in its place, while both agents are replaced",
        &["--bundles", "force"],
        shared_packets,
    ),
    own(
        "bundles::bytes_keep_their_order",
        "pieces of all sizes, by the bundle and beside it, with half-closes and resets, over both families",
        &["--bundles", "force"],
        |world| transfers::arrive_some(world, "b"),
    ),
    own(
        "bundles::are_made_where_many_speak",
        "none for a few connections, nor for many that seldom speak",
        &[],
        where_many_speak,
    ),
    own("bundles::are_none_where_that_is_off", "40 connections by themselves", &["--bundles", "off"], off),
];

/// Connections that speak at a time.
const MANY: u32 = 40;
/// Connections that speak seldom.
const SOME: u32 = 16;

/// Connections that exchange messages until they are told to end.
struct Busy(Process);

impl Busy {
    fn start(world: &World, connections: u32, rest_ms: &str) -> Result<Self> {
        let to = format!("{}:{}", world.pod("b").v4, ports::ECHO);
        let mut command = load::tool(&world.pod("a").netns)?;
        command.args([
            "many",
            "--to",
            &to,
            "--connections",
            &connections.to_string(),
            "--rounds",
            "2",
            "--hold",
        ]);
        command.args(["--busy-every-ms", rest_ms]);
        let mut process = Process::start(&mut command, &world.folder.join("busy.log"))?;
        process.wait_for("holding", 30 * SECOND)?;
        Ok(Self(process))
    }

    /// Ends them; none may have failed.
    fn end(mut self, connections: u32) -> Result<()> {
        self.0.close_input();
        ensure!(self.0.wait(30 * SECOND)?.success(), "{}", self.0.output());
        let output = self.0.output();
        let tally = output.lines().find_map(|line| serde_json::from_str::<Value>(line).ok());
        let tally = tally.with_context(|| format!("no tally: {output}"))?;
        ensure!(tally["failed"] == 0 && tally["good"] == connections, "{tally}");
        Ok(())
    }
}

/// Messages that went by bundles, and how many times some did, of one agent.
fn sent(world: &World, agent: usize) -> Result<[f64; 2]> {
    let metrics = world.agents[agent].metrics()?;
    Ok(["ambit_bundled_messages_total", "ambit_bundle_batches_total"].map(|name| metrics.sum(name, &[])))
}

fn shared_packets(world: &mut World) -> Result<()> {
    world.must_reach("a", "b")?;
    let busy = Busy::start(world, MANY, "1")?;
    thread::sleep(2 * SECOND);
    for agent in [0, 1] {
        let [messages, batches] = sent(world, agent)?;
        ensure!(messages > 500.0, "node{}: {messages} messages went by bundles", agent + 1);
        ensure!(batches < messages, "node{}: {messages} messages one by one", agent + 1);
        world.notes.push(format!("node{}: {messages} messages, {batches} times", agent + 1));
    }
    for node in [1, 0] {
        upgrade::upgrade(world, node)?;
    }
    let [before, _] = sent(world, 0)?;
    let others = Busy::start(world, MANY, "1")?;
    thread::sleep(SECOND);
    let [after, _] = sent(world, 0)?;
    ensure!(after > before, "the agents that have taken over bundle nothing");
    others.end(MANY)?;
    busy.end(MANY)
}

fn where_many_speak(world: &mut World) -> Result<()> {
    world.must_reach("a", "b")?;
    let few = Busy::start(world, 4, "0")?;
    thread::sleep(SECOND);
    ensure!(sent(world, 0)? == [0.0, 0.0], "four connections have a bundle");
    few.end(4)?;
    // Enough of them, but what they say at the beginning is too little to count as much.
    let seldom = Busy::start(world, SOME, "250")?;
    thread::sleep(SECOND);
    ensure!(sent(world, 0)? == [0.0, 0.0], "connections that seldom speak have a bundle");
    seldom.end(SOME)
}

fn off(world: &mut World) -> Result<()> {
    world.must_reach("a", "b")?;
    let many = Busy::start(world, MANY, "0")?;
    thread::sleep(SECOND);
    ensure!([sent(world, 0)?, sent(world, 1)?] == [[0.0; 2]; 2], "what is off is off");
    many.end(MANY)
}
