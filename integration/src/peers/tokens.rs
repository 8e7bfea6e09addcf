//! What a real istiod gives a node's agent for its token: certificates of the pods there, through a restart of istiod.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::{Stage, Test, istiod::Istiod};
use crate::{certs, dialled::Dialled, outages::FIVE_TIMES, process::eventually, world::World};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "peers::istiod_issues_through_a_restart",
        about: "certificates of 30 s for what runs on the node; istiod away and back: no call fails",
        work: issued,
    },
    Test {
        name: "peers::istiod_is_back_after_expiry",
        about: "istiod away until certificates of 20 s have ended: pods reach each other within 5 s of its return",
        work: returned,
    },
    Test {
        name: "peers::soak_istiod_is_away_five_times",
        about: "for two minutes each, with certificates of 60 s: pods reach each other within 5 s of each return",
        work: again_and_again,
    },
];

const SECOND: Duration = Duration::from_secs(1);
/// How long a connection waits for a certificate that may still come, and a little more.
const CERTIFICATE_WAIT: Duration = Duration::from_millis(5_500);

fn issued(stage: &Stage<'_>, world: &mut World) -> Result<()> {
    let mut istiod = Istiod::start(stage, world)?;
    istiod.serve_agents(world);
    for agent in &mut world.agents {
        agent.add_flags(&["--svid-ttl", "30s"]);
    }
    world.start_agents()?;
    world.must_reach("a", "b")?;
    verified(world, &istiod)?;
    refused_elsewhere(world, &istiod)?;
    let before = sum(world, "ambit_certificates_issued_total")?;
    let mut load = Dialled::start(world, "a", "b", 50)?;
    std::thread::sleep(SECOND * 3);
    istiod.kill();
    let gone = Instant::now();
    // Renewal begins at half-life, so someone asks in vain while it is away.
    eventually(SECOND * 20, || {
        let failures = sum(world, "ambit_certificate_failures_total")?;
        ensure!(failures > 0.0, "nobody has asked in vain");
        Ok(())
    })?;
    istiod.resume()?;
    let away = gone.elapsed().as_secs_f64();
    let (good, rounds) = (load.none_failed()?, load.lasted()?);
    let issued = sum(world, "ambit_certificates_issued_total")? - before;
    let failures = sum(world, "ambit_certificate_failures_total")?;
    world.notes.push(format!(
        "istiod away for {away:.1} s, {failures} attempts in vain, {issued} renewals of three; {good} short connections, none \
         failed; {rounds} round trips on the long one"
    ));
    ensure!(issued >= 6.0, "only {issued} renewals in 50 s");
    for agent in &world.agents {
        let status = agent.status()?;
        ensure!(status["ready"] == true, "{status:#}");
    }
    verified(world, &istiod)?;
    istiod.remove()
}

fn returned(stage: &Stage<'_>, world: &mut World) -> Result<()> {
    let mut istiod = Istiod::start(stage, world)?;
    istiod.serve_agents(world);
    for agent in &mut world.agents {
        agent.add_flags(&["--svid-ttl", "20s"]);
    }
    world.start_agents()?;
    world.must_reach("a", "b")?;
    istiod.kill();
    // Past their end, and long enough for back-offs to have grown.
    std::thread::sleep(SECOND * 30);
    world.must_be_refused("a", "b", CERTIFICATE_WAIT)?;
    istiod.resume()?;
    let back = Instant::now();
    eventually(SECOND * 5, || ["a", "e"].iter().try_for_each(|client| world.must_reach(client, "b")))?;
    world.notes.push(format!("back after {:.1} s", back.elapsed().as_secs_f64()));
    istiod.remove()
}

fn again_and_again(stage: &Stage<'_>, world: &mut World) -> Result<()> {
    let mut istiod = Istiod::start(stage, world)?;
    istiod.serve_agents(world);
    for agent in &mut world.agents {
        agent.add_flags(&["--svid-ttl", "60s"]);
    }
    world.start_agents()?;
    world.must_reach("a", "b")?;
    let away = |istiod: &mut Istiod| {
        istiod.kill();
        Ok(())
    };
    FIVE_TIMES.bear(world, &mut istiod, away, Istiod::resume)?;
    istiod.remove()
}

/// openssl's opinion of every certificate, under the root that istiod has published.
fn verified(world: &mut World, istiod: &Istiod) -> Result<()> {
    for pod in ["a", "b", "e"] {
        let identity = world.pod(pod).identity();
        let pem = world.agent_of(pod).certs_pem(&identity)?;
        let leaf = *certs::blocks(&pem).first().context("no certificate")?;
        certs::verify(&world.folder, &[leaf], &istiod.root()).with_context(|| format!("that of {pod}"))?;
    }
    Ok(())
}

/// A node's agent is given what runs there, and nothing else.
fn refused_elsewhere(world: &World, istiod: &Istiod) -> Result<()> {
    for (node, pod, code) in
        [(0, "a", "Ok"), (0, "b", "Unauthenticated"), (1, "b", "Ok"), (1, "a", "Unauthenticated")]
    {
        let identity = world.pod(pod).identity();
        let csr = certs::request(&world.folder, pod, &[&format!("URI:{identity}")])?.certificate;
        let answer = istiod.ask(node, &csr, &identity)?;
        ensure!(answer.code == code, "the agent of node {node} asks for {pod}: {answer:?}");
    }
    Ok(())
}

fn sum(world: &World, name: &str) -> Result<f64> {
    world.agents.iter().map(|agent| Ok(agent.metrics()?.sum(name, &[]))).sum()
}
