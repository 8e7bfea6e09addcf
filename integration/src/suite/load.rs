//! Many connections, long ones, short ones, and what they leave in the agent.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{SECOND, Test, own, shared};
use crate::{
    load::{self, ports},
    process::{Process, eventually},
    world::World,
};

pub(super) const TESTS: &[Test] = &[
    shared("load::iperf3_runs_clean_every_way", "-P 8, -R, --bidir", iperf_ways),
    shared("load::a_thousand_connections_at_once", "all open, all exchange messages, none fails", thousand),
    shared("load::twenty_thousand_short_connections", "no failure, no leak of files or memory", churn),
    shared(
        "load::connections_that_servers_end_leave_their_ports",
        "more of them within a minute than the agent has ports for its dials to applications",
        ended_by_servers,
    ),
    own(
        "load::idle_connections_take_little_memory",
        "2,000 at a time, each agent by itself, and it is given back when they have gone",
        &[],
        idle,
    ),
];

fn iperf_ways(world: &mut World) -> Result<()> {
    let lane = world.lane("a", "b");
    for flags in [&["-P", "8"][..], &["-R"], &["--bidir"], &["-P", "8", "-R"]] {
        let report = lane.iperf(2, flags)?;
        ensure!(report.gbps() > 0.05, "iperf3 {flags:?}: {} Gbit/s: {}", report.gbps(), report.end());
        if flags.contains(&"--bidir") {
            ensure!(report.reverse_gbps() > 0.05, "iperf3 {flags:?}: {} Gbit/s back", report.reverse_gbps());
        }
    }
    Ok(())
}

fn thousand(world: &mut World) -> Result<()> {
    let to = format!("{}:{}", world.pod("b").v4, ports::ECHO);
    let tally = world.tool("a", &["many", "--to", &to, "--connections", "1000"], Duration::from_secs(90))?;
    ensure!(tally["good"] == 1_000 && tally["failed"] == 0, "{tally}");
    world.must_reach("a", "b")
}

/// Files that may stay open for connections kept for reuse.
const FILES_KEPT: usize = 64;
/// Resident memory that an allocator may keep after load, in KiB.
const MEMORY_KEPT: u64 = 12 * 1024;

fn churn(world: &mut World) -> Result<()> {
    let to = format!("{}:{}", world.pod("b").v4, ports::ECHO);
    let short = |world: &World, count: u64| -> Result<()> {
        let tally = world.tool(
            "a",
            &["churn", "--to", &to, "--count", &count.to_string()],
            Duration::from_secs(150),
        )?;
        ensure!(tally["failed"] == 0 && tally["good"] == count, "{tally}");
        Ok(())
    };
    short(world, 2_000)?;
    let before = footprint(world)?;
    short(world, 20_000)?;
    eventually(10 * SECOND, || {
        let after = footprint(world)?;
        for (node, ((files, memory), (files_before, memory_before))) in
            after.into_iter().zip(before).enumerate()
        {
            let node = node + 1;
            ensure!(
                files <= files_before + FILES_KEPT,
                "node{node}: {files} files open, {files_before} before"
            );
            ensure!(
                memory <= memory_before + MEMORY_KEPT,
                "node{node}: {memory} KiB resident, {memory_before} before"
            );
        }
        Ok(())
    })
}

const IDLE: u64 = 2_000;
/// Bytes of an agent's own memory for each of them.
const EACH: u64 = 10 * 1024;
/// What threads and the C library keep for the next ones, in KiB.
const KEPT: u64 = 4 * 1024;

fn idle(world: &mut World) -> Result<()> {
    world.must_reach("a", "b")?;
    // What the start needed has gone by then.
    std::thread::sleep(3 * SECOND);
    let own =
        |world: &World| Ok::<_, anyhow::Error>([world.agents[0].own_kib()?, world.agents[1].own_kib()?]);
    let before = own(world)?;
    let mut command = load::tool(&world.pod("a").netns)?;
    let to = format!("{}:{}", world.pod("b").v4, ports::ECHO);
    command.args(["many", "--to", &to, "--connections", &IDLE.to_string(), "--rounds", "1", "--hold"]);
    let mut many = Process::start(&mut command, &world.folder.join("idle.log"))?;
    many.wait_for("holding", 60 * SECOND)?;
    let held = eventually(15 * SECOND, || {
        let held = own(world)?;
        for (node, (held, before)) in held.into_iter().zip(before).enumerate() {
            let each = held.saturating_sub(before) * 1024 / IDLE;
            ensure!(each <= EACH, "node{}: {each} bytes for each connection", node + 1);
        }
        Ok(held)
    })?;
    many.close_input();
    ensure!(many.wait(30 * SECOND)?.success(), "{}", many.output());
    let after = eventually(20 * SECOND, || {
        let after = own(world)?;
        for (node, (after, before)) in after.into_iter().zip(before).enumerate() {
            let kept = after.saturating_sub(before);
            ensure!(kept <= KEPT, "node{}: {kept} KiB are kept", node + 1);
        }
        Ok(after)
    })?;
    for (node, name) in ["client's", "server's"].into_iter().enumerate() {
        let (taken, kept) = (held[node] - before[node], after[node].saturating_sub(before[node]));
        world.notes.push(format!(
            "the {name} agent took {} bytes for each, and kept {kept} KiB of {taken}",
            taken * 1024 / IDLE
        ));
    }
    Ok(())
}

/// What is left of such a connection stays with the server for a minute (TIME_WAIT).
fn ended_by_servers(world: &mut World) -> Result<()> {
    world.lane("a", "b").wrk(10, true).map(drop)
}

/// Open files and resident KiB of both agents.
fn footprint(world: &World) -> Result<[(usize, u64); 2]> {
    let of = |node: usize| {
        Ok::<_, anyhow::Error>((world.agents[node].open_files()?, world.agents[node].resident_kib()?))
    };
    Ok([of(0)?, of(1)?])
}
