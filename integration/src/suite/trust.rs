//! Roots that change while connections live.

use std::{fs, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{SECOND, Test, own};
use crate::{
    certs,
    load::{self, ports},
    process::{Process, eventually},
    world::World,
};

pub(super) const TESTS: &[Test] = &[own(
    "trust::the_root_rotates_under_load",
    "old, both, new: no call fails; a connection from before is cut with its reason",
    &["--svid-ttl", "20s"],
    rotation,
)];

/// Certificates live 20 seconds: renewed after 12.5 at the latest.
const RENEWED: Duration = Duration::from_secs(16);
/// What is begun after a renewal has a tunnel of its own; what was begun before it ends within this time.
const TUNNELS_RENEWED: Duration = Duration::from_secs(1);
/// Until a change of the CA's files is in force.
const READ_AGAIN: Duration = Duration::from_secs(4);

fn rotation(world: &mut World) -> Result<()> {
    let next = world.folder.join("next-ca");
    certs::strange_authority(&next)?;
    let to = format!("{}:{}", world.pod("b").v4, ports::ECHO);
    let start = |world: &World, tool: &[&str]| -> Result<Process> {
        let mut command = load::tool(&world.pod("a").netns)?;
        Process::start(command.args(tool), &world.folder.join(format!("rotation-{}.log", tool[0])))
    };
    let mut long = start(world, &["ping-pong", "--to", &to, "--for-ms", "60000", "--rest-ms", "20"])?;
    let mut short =
        start(world, &["churn", "--to", &to, "--count", "1000000", "--for-ms", "32000", "--rest-ms", "1"])?;

    let old_root = fs::read_to_string(world.ca.join("root-cert.pem"))?;
    let new_root = fs::read_to_string(next.join("ca-cert.pem"))?;
    fs::write(world.ca.join("root-cert.pem"), format!("{old_root}{new_root}"))?;
    eventually(READ_AGAIN, || roots(world, 2))?;
    fs::copy(next.join("ca-key.pem"), world.ca.join("ca-key.pem"))?;
    fs::write(world.ca.join("ca-cert.pem"), &new_root)?;
    fs::write(world.ca.join("cert-chain.pem"), &new_root)?;
    eventually(READ_AGAIN + RENEWED, || issued_by(world, "strange"))?;
    thread::sleep(TUNNELS_RENEWED);
    let marks = [world.agents[0].mark(), world.agents[1].mark()];
    fs::write(world.ca.join("root-cert.pem"), &new_root)?;
    eventually(READ_AGAIN, || roots(world, 1))?;
    // Whichever agent sees it first cuts the connection, and tells the other.
    for (agent, mark) in world.agents.iter().zip(marks) {
        agent.wait_log(mark, &["access", "root_withdrawn", &to])?;
    }
    long.wait(5 * SECOND)?;
    short.wait(40 * SECOND)?;
    let told = short.output();
    let tally: Value = serde_json::from_str(told.trim()).with_context(|| format!("churn told: {told}"))?;
    ensure!(tally["failed"] == 0 && tally["good"].as_u64() > Some(1_000), "{tally}");
    world.must_reach("a", "b")
}

/// Whether both agents trust so many roots.
pub(super) fn roots(world: &World, expected: usize) -> Result<()> {
    for agent in &world.agents {
        let certs = agent.certs()?;
        let found = certs["roots"].as_array().map_or(0, Vec::len);
        ensure!(found == expected, "{} trusts {found} roots: {certs:#}", agent.node().name);
    }
    Ok(())
}

fn issued_by(world: &World, name: &str) -> Result<()> {
    for agent in &world.agents {
        let certs = agent.certs()?;
        let all = certs["certificates"].as_array().context("certificates")?;
        ensure!(
            all.iter().all(|one| one["issuer"].as_str().is_some_and(|issuer| issuer.contains(name))),
            "{} holds certificates of another issuer than {name}: {certs:#}",
            agent.node().name
        );
    }
    Ok(())
}
