//! A certificate service that goes away, for shorter and for longer than certificates live.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{SECOND, Test, unstarted};
use crate::{
    ca::CaService,
    load::{self, ports},
    outages::FIVE_TIMES,
    process::{Process, eventually},
    world::World,
};

pub(super) const TESTS: &[Test] = &[
    unstarted(
        "issuers::an_outage_of_nine_tenths_is_not_noticed",
        "the CA away for 27 of a certificate's 30 s: no call fails",
        &["--svid-ttl", "30s"],
        shorter,
    ),
    unstarted(
        "issuers::an_outage_beyond_the_end_is_told_and_heals",
        "refused with the reason, in log and metric; the CA back: served again",
        &["--svid-ttl", "15s"],
        longer,
    ),
    unstarted(
        "soak::the_ca_is_away_five_times_for_two_minutes",
        "certificates of 60 s: pods reach each other within 5 s of each return",
        &["--svid-ttl", "60s"],
        again_and_again,
    ),
];

/// How long a connection waits for a certificate that may still come, and a little more.
const CERTIFICATE_WAIT: Duration = Duration::from_millis(5_500);
/// The longest wait between two attempts (docs/certificates.md).
const BACKOFF_CAP: Duration = Duration::from_secs(150);

fn shorter(world: &mut World) -> Result<()> {
    let mut service = CaService::prepare(world, &[])?;
    service.start()?;
    service.serve_agents(world);
    world.start_agents()?;
    world.must_reach("a", "b")?;
    let fresh = Instant::now();
    service.kill();
    let (mut long, mut short) = load(world, 45)?;
    thread::sleep((SECOND * 27).saturating_sub(fresh.elapsed()));
    let tried = failures(world)?;
    ensure!(tried >= 3.0, "the agents have not asked in vain: {tried}");
    service.start()?;
    let away = fresh.elapsed().as_secs_f64();
    long.wait(SECOND * 40)?;
    short.wait(SECOND * 40)?;
    let tally = clean(&short)?;
    let rounds = told(&long)?["rounds"].as_u64().unwrap_or(0);
    ensure!(rounds > 500, "the long connection did not last: {}", long.output());
    world.notes.push(format!(
        "CA away for {away:.1} s, {tried} attempts in vain: {} short connections, {} failed; {rounds} round trips on the long one",
        tally["good"], tally["failed"]
    ));
    for agent in &world.agents {
        let (status, expired) = (agent.status()?, agent.metrics()?.sum_of_value("identity_unavailable"));
        ensure!(expired == 0.0 && status["ready"] == true, "{expired} refused; {status:#}");
    }
    Ok(())
}

fn longer(world: &mut World) -> Result<()> {
    let mut service = CaService::prepare(world, &[])?;
    service.start()?;
    service.serve_agents(world);
    world.start_agents()?;
    world.must_reach("a", "b")?;
    service.kill();
    let (mut long, _) = load(world, 30)?;
    eventually(SECOND * 25, || all(world, "expired"))?;
    // What was made before stays; what is pooled for reuse has ended with its certificate.
    let (mark, before) =
        (world.agents[0].mark(), world.agents[0].metrics()?.sum_of_value("identity_unavailable"));
    world.must_be_refused("a", "b", CERTIFICATE_WAIT)?;
    let line = world.agents[0].wait_log(mark, &["access", "identity_unavailable", "expired"])?;
    ensure!(line.contains("cannot be reached"), "the log does not say why: {line}");
    let after = world.agents[0].metrics()?.sum_of_value("identity_unavailable");
    ensure!(after > before, "the metric of identity_unavailable stayed at {before}");
    let certs = world.agents[0].certs()?;
    let error = certs["certificates"][0]["lastError"].as_str().unwrap_or_default();
    ensure!(error.contains("cannot be reached"), "{certs:#}");
    ensure!(world.agents[0].status()?["ready"] == false, "ready without a certificate");
    thread::sleep(SECOND * 5);
    world.must_be_refused("a", "b", CERTIFICATE_WAIT)?;
    service.start()?;
    let back = Instant::now();
    eventually(BACKOFF_CAP, || all(world, "valid"))?;
    eventually(SECOND * 5, || world.must_reach("a", "b"))?;
    world.notes.push(format!("served again {:.1} s after the CA was back", back.elapsed().as_secs_f64()));
    long.wait(SECOND * 40)?;
    ensure!(
        told(&long)?["rounds"].as_u64() > Some(300),
        "the long connection did not last: {}",
        long.output()
    );
    eventually(SECOND * 5, || {
        let status = world.agents[0].status()?;
        ensure!(status["ready"] == true, "{status:#}");
        Ok(())
    })
}

fn again_and_again(world: &mut World) -> Result<()> {
    let mut service = CaService::prepare(world, &[])?;
    service.start()?;
    service.serve_agents(world);
    world.start_agents()?;
    world.must_reach("a", "b")?;
    let away = |service: &mut CaService| {
        service.kill();
        Ok(())
    };
    FIVE_TIMES.bear(world, &mut service, away, CaService::start)
}

/// A long connection and short ones from pod a to pod b.
fn load(world: &World, seconds: u32) -> Result<(Process, Process)> {
    let to = format!("{}:{}", world.pod("b").v4, ports::ECHO);
    let start = |tool: &[&str]| -> Result<Process> {
        let mut command = load::tool(&world.pod("a").netns)?;
        command.args(tool).args(["--to", &to, "--for-ms", &(seconds * 1000).to_string()]);
        Process::start(&mut command, &world.folder.join(format!("outage-{}.log", tool[0])))
    };
    let long = start(&["ping-pong", "--rest-ms", "20"])?;
    Ok((long, start(&["churn", "--count", "1000000", "--rest-ms", "5"])?))
}

fn told(tool: &Process) -> Result<Value> {
    let output = tool.output();
    serde_json::from_str(output.trim()).with_context(|| format!("the tool told: {output}"))
}

fn clean(churn: &Process) -> Result<Value> {
    let tally = told(churn)?;
    ensure!(tally["failed"] == 0 && tally["good"].as_u64() > Some(1_000), "{tally}");
    Ok(tally)
}

/// Whether all certificates of both agents are in `state`.
fn all(world: &World, state: &str) -> Result<()> {
    for agent in &world.agents {
        let certs = agent.certs()?;
        let states = certs["certificates"].as_array().context("certificates")?;
        ensure!(states.iter().all(|one| one["state"] == state), "not all are {state}: {certs:#}");
    }
    Ok(())
}

fn failures(world: &World) -> Result<f64> {
    let failed =
        world.agents.iter().map(|agent| Ok(agent.metrics()?.sum("ambit_certificate_failures_total", &[])));
    failed.sum()
}
