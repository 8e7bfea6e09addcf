//! Two daemons side by side on one machine: the demo's load through each in turn and in plaintext, and their memory.
//!
//! Both are up all the while, so that what else the machine does hits both alike; ratios to the plaintext of the same round count.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use crate::{
    console::Console,
    load::{self, Figures, ports, side_by_side},
    process::{Process, eventually},
    sandbox::Sandbox,
    world::World,
};

/// Connections that are held open to see what each takes.
const IDLE: usize = 2_000;
const LIMIT: Duration = Duration::from_secs(60);

/// What was measured of two daemons.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// Plaintext, the one daemon and the other, round by round.
    rounds: Vec<[Figures; 3]>,
    new: Memory,
    old: Memory,
}

/// Resident memory of both agents of one daemon together.
#[derive(Clone, Copy, Debug, Serialize)]
struct Memory {
    /// With the scene's five pods and nothing to do, KiB.
    idle_kib: u64,
    /// For each of many connections that are open and silent, bytes.
    per_idle_connection: u64,
    /// After those have closed, KiB.
    closed_kib: u64,
}

impl Comparison {
    /// Measures `new` and `old` in as many `rounds`, each load for some `seconds`.
    pub fn measure(
        sandbox: &Sandbox,
        (new, old): (&Path, &Path),
        rounds: u32,
        seconds: u32,
        console: Console,
    ) -> Result<Self> {
        let new = World::start(sandbox, "new", new, &[])?;
        let old = World::start(sandbox, "old", old, &[])?;
        for world in [&new, &old] {
            world.must_reach("a", "b")?;
        }
        console.line(format_args!("  (holding {IDLE} idle connections through each)"));
        let memory = [Memory::of(&new)?, Memory::of(&old)?];
        let mut measured = Vec::new();
        for round in 1..=rounds {
            let ways =
                [("plaintext", new.lane("c", "d")), ("new", new.lane("a", "b")), ("old", old.lane("a", "b"))];
            measured.push(side_by_side(ways, seconds, |load, way| {
                console.line(format_args!("round {round}/{rounds}: {load}, {way}"));
            })?);
        }
        new.remove()?;
        old.remove()?;
        Ok(Self { rounds: measured, new: memory[0], old: memory[1] })
    }

    /// As a table: each a ratio, the median with the least and the greatest of all rounds.
    pub fn told(&self) -> String {
        type Field = fn(&Figures) -> f64;
        const ROWS: [(&str, Field); 6] = [
            ("one stream", |figures| figures.one_stream_gbps),
            ("eight streams", |figures| figures.eight_streams_gbps),
            ("128-byte round trip, p50", |figures| figures.round_trip_p50_us),
            ("128-byte round trip, p99", |figures| figures.round_trip_p99_us),
            ("HTTP keep-alive", |figures| figures.http_requests_per_second),
            ("new connections", |figures| figures.connections_per_second),
        ];
        let mut text =
            format!("  {:<26}{:>24}{:>24}{:>24}\n", "", "new : plaintext", "old : plaintext", "new : old");
        for (name, field) in ROWS {
            let ratio = |over: usize, under: usize| {
                let ratios = self.rounds.iter().map(|round| field(&round[over]) / field(&round[under]));
                spread(ratios.collect())
            };
            text += &format!("  {name:<26}{:>24}{:>24}{:>24}\n", ratio(1, 0), ratio(2, 0), ratio(1, 2));
        }
        for (name, memory) in [("new", self.new), ("old", self.old)] {
            let Memory { idle_kib, per_idle_connection, closed_kib } = memory;
            text += &format!(
                "  {name}: two agents {idle_kib} KiB; {per_idle_connection} bytes more for each of {IDLE} idle connections, \
                 both agents; {closed_kib} KiB after they closed\n"
            );
        }
        text
    }
}

impl Memory {
    fn of(world: &World) -> Result<Self> {
        let idle_kib = resident(world)?;
        let mut command = load::tool(&world.pod("a").netns)?;
        let to = format!("{}:{}", world.pod("b").v4, ports::ECHO);
        command.args(["many", "--to", &to, "--connections", &IDLE.to_string(), "--rounds", "1", "--hold"]);
        let mut many = Process::start(&mut command, &world.folder.join("idle.log"))?;
        many.wait_for("holding", LIMIT)?;
        std::thread::sleep(Duration::from_secs(2));
        let held = resident(world)?;
        many.close_input();
        ensure!(many.wait(LIMIT)?.success(), "{}", many.output());
        let open = || -> Result<f64> {
            let metrics = world.agents[0].metrics()?;
            let sum = |name| metrics.sum(name, &[]);
            Ok(sum("istio_tcp_connections_opened_total") - sum("istio_tcp_connections_closed_total"))
        };
        eventually(LIMIT, || {
            let open = open()?;
            ensure!(open < 10.0, "{open} connections are still open");
            Ok(())
        })?;
        std::thread::sleep(Duration::from_secs(5));
        let more = held.saturating_sub(idle_kib) * 1024 / IDLE as u64;
        Ok(Self { idle_kib, per_idle_connection: more, closed_kib: resident(world)? })
    }
}

fn resident(world: &World) -> Result<u64> {
    world.agents.iter().map(|agent| agent.resident_kib().context("the agent's memory")).sum()
}

fn spread(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    match (values.first(), values.get(values.len() / 2), values.last()) {
        (Some(least), Some(median), Some(most)) => format!("{median:.3} ({least:.3}-{most:.3})"),
        _ => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::spread;

    #[test]
    fn a_spread_has_its_median_first() {
        assert_eq!(spread(vec![3.0, 1.0, 2.0]), "2.000 (1.000-3.000)");
        assert_eq!(spread(Vec::new()), "-");
    }
}
