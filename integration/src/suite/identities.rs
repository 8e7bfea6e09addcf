//! `ambit ca` and the agents that ask it: who gets which certificate, and renewal by the hundred.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};

use super::{SECOND, Test, unstarted};
use crate::{
    ca::{CaService, peak_and_mean},
    certs,
    crowd::Crowd,
    load::ports,
    process::{self, eventually},
    tools::Answer,
    world::World,
};

pub(super) const TESTS: &[Test] = &[
    unstarted(
        "identities::agents_live_on_what_the_ca_signs",
        "two replicas, one CA: traffic flows, openssl verifies every chain, every issue is audited",
        &[],
        served,
    ),
    unstarted(
        "identities::nobody_gets_what_runs_elsewhere",
        "another node, an extra name, another trust domain, a strange token, too long a life",
        &[],
        refused,
    ),
    unstarted(
        "identities::sixty_renew_under_load",
        "60 pods, certificates of 15 s, for a minute: nothing fails, no herd",
        &["--svid-ttl", "15s"],
        |world| renewed_under_load(world, &SHORT),
    ),
    unstarted(
        "soak::five_hundred_identities_renew",
        "500 pods, certificates of 60 s, for five minutes: nothing fails, no herd",
        &["--svid-ttl", "60s"],
        |world| renewed_under_load(world, &LONG),
    ),
];

fn served(world: &mut World) -> Result<()> {
    let mut service = CaService::prepare(world, &[])?;
    service.start()?;
    service.serve_agents(world);
    world.start_agents()?;
    world.must_reach("a", "b")?;
    world.must_reach("e", "b")?;
    let client = world.pod("a").identity();
    world.agent_of("b").wait_log(0, &["access", &client])?;
    let folder = world.folder.join("verify");
    fs::create_dir_all(&folder)?;
    let mut verified = 0;
    for pod in ["a", "e", "b"] {
        let identity = world.pod(pod).identity();
        let pem = world.agent_of(pod).certs_pem(&identity)?;
        let blocks = certs::blocks(&pem);
        let root = fs::read_to_string(service.root())?;
        let chain: Vec<&str> = blocks.iter().copied().filter(|block| *block != root).collect();
        ensure!(
            chain.len() == 2 && blocks.len() > 2,
            "{pod}: {} of {} blocks: {pem}",
            chain.len(),
            blocks.len()
        );
        certs::verify(&folder, &chain, &service.root()).with_context(|| format!("the chain of {pod}"))?;
        verified += 1;
        let audited = service.audit();
        let node = &world.topology.nodes[world.pod(pod).node].name;
        let line = audited.iter().find(|line| line.line["identity"] == identity.as_str());
        let line = line.with_context(|| format!("no audit of {identity}: {audited:?}"))?;
        ensure!(line.outcome == "issued" && line.line["node"] == node.as_str(), "{line:?}");
    }
    world.notes.push(format!(
        "openssl verify: {verified} chains of leaf and intermediate OK, as client and as server"
    ));
    Ok(())
}

fn refused(world: &mut World) -> Result<()> {
    let mut service = CaService::prepare(world, &["--max-ttl", "1h"])?;
    service.start()?;
    let folder = world.folder.join("requests");
    fs::create_dir_all(&folder)?;
    let csr = |name: &str, sans: &[&str]| certs::request(&folder, name, sans).map(|made| made.certificate);
    let (a, b) = (world.pod("a").identity(), world.pod("b").identity());
    let foreign = a.replace("cluster.local", "td2.example");
    let uri = |identity: &str| format!("URI:{identity}");
    let (own, other, strange) =
        (csr("own", &[&uri(&a)])?, csr("other", &[&uri(&b)])?, csr("strange", &[&uri(&foreign)])?);
    let dns = csr("dns", &[&uri(&a), "DNS:a.shop.svc"])?;
    let two = csr("two", &[&uri(&a), &uri(&b)])?;
    let stolen = folder.join("stolen");
    fs::write(&stolen, "stolen-from-somewhere-else")?;
    let (token, other_token) = (service.token(0), service.token(1));
    let none: Option<&Path> = None;
    let cases: [(&str, &str, Option<&Path>, &Path, &str, i64); 10] = [
        ("not_on_node", "PermissionDenied", Some(&token), &other, &b, 60),
        ("not_on_node", "PermissionDenied", Some(&other_token), &own, &a, 60),
        ("request", "InvalidArgument", Some(&token), &dns, &a, 60),
        ("request", "InvalidArgument", Some(&token), &two, &a, 60),
        ("request", "InvalidArgument", Some(&token), &other, &a, 60),
        ("trust_domain", "PermissionDenied", Some(&token), &strange, &foreign, 60),
        ("unknown_caller", "Unauthenticated", Some(&stolen), &own, &a, 60),
        ("no_credentials", "Unauthenticated", none, &own, &a, 60),
        ("lifetime", "InvalidArgument", Some(&token), &own, &a, 3_601),
        ("lifetime", "InvalidArgument", Some(&token), &own, &a, i64::MAX),
    ];
    for (number, (reason, code, token, csr, identity, ttl)) in cases.into_iter().enumerate() {
        let ttl = ttl.to_string();
        let mut flags = vec!["--identity", identity, "--ttl", &ttl];
        let token = token.map(|token| token.display().to_string());
        flags.extend(token.iter().flat_map(|token| ["--token", token]));
        let answer = service.ask(number % 2, csr, &flags)?;
        ensure!(answer.code == code && answer.chain.is_empty(), "{reason} ({number}): {answer:?}");
        // Lines are written behind the answer.
        eventually(SECOND * 2, || {
            let audited = service.audit();
            let told = audited.iter().filter(|line| line.outcome == "refused").count();
            let last = audited.iter().filter(|line| line.line["reason"] == reason).count();
            ensure!(told == number + 1 && last >= 1, "{reason} ({number}) is not audited: {audited:?}");
            Ok(())
        })?;
    }
    let token = token.display().to_string();
    for (ttl, expected) in [("0", 3_600), ("-1", 3_600), ("60", 60), ("3600", 3_600)] {
        let answer = service.ask(0, &own, &["--identity", &a, "--ttl", ttl, "--token", &token])?;
        lasts(&folder, &answer, expected).with_context(|| format!("--ttl {ttl}"))?;
        let chain: Vec<&str> = answer.chain[..answer.chain.len() - 1].iter().map(String::as_str).collect();
        certs::verify(&folder, &chain, &service.root())?;
    }
    Ok(())
}

/// Demands that the certificate of an answer ends after `seconds`, give or take the time that this takes.
fn lasts(folder: &Path, answer: &Answer, seconds: i64) -> Result<()> {
    ensure!(answer.code == "Ok" && answer.chain.len() == 3, "{answer:?}");
    let file = folder.join("answer.pem");
    fs::write(&file, &answer.chain[0])?;
    for (after, holds) in [(seconds - 30, true), (seconds + 1, false)] {
        let mut openssl = std::process::Command::new("openssl");
        openssl.args(["x509", "-noout", "-checkend", &after.to_string(), "-in"]).arg(&file);
        let good = process::run(&mut openssl, SECOND * 10)?.status.success();
        ensure!(good == holds, "valid after {after} s is {good}");
    }
    Ok(())
}

/// A crowd, and how long it plays.
struct Plan {
    pods: usize,
    seconds: u64,
    rest: Duration,
    /// The width of the windows in which renewals are counted, in seconds.
    window: f64,
}

const SHORT: Plan = Plan { pods: 60, seconds: 60, rest: Duration::from_millis(500), window: 2.5 };
const LONG: Plan = Plan { pods: 500, seconds: 300, rest: Duration::from_secs(2), window: 5.0 };

fn renewed_under_load(world: &mut World, plan: &Plan) -> Result<()> {
    let mut service = CaService::prepare(world, &[])?;
    service.start()?;
    service.serve_agents(world);
    world.start_agents()?;
    let crowd = Crowd::build(world, plan.pods)?;
    crowd.announce(world)?;
    crowd.wait_certified(world, SECOND * 300)?;
    let (first, before) = (service.audit().len(), failures(world)?);
    let tally = crowd.play((world.pod("b").v4, ports::ECHO), plan.seconds, plan.rest)?;
    let renewals: Vec<f64> = service
        .audit()
        .split_off(first)
        .into_iter()
        .filter(|line| line.outcome == "issued")
        .map(|line| line.at)
        .collect();
    let count = renewals.len();
    let (second, _) = peak_and_mean(renewals.clone(), 1.0);
    let (peak, mean) = peak_and_mean(renewals, plan.window);
    world.notes.push(format!(
        "{} pods, {} s: {} short connections, {} failed; {} long ones, {} dropped",
        tally.pods, plan.seconds, tally.short.good, tally.short.failed, tally.long.good, tally.long.failed
    ));
    world.notes.push(format!(
        "{count} renewals; in windows of {} s: peak {peak}, mean {mean:.1}, ratio {:.2}; peak second {second}",
        plan.window,
        peak as f64 / mean.max(0.1)
    ));
    ensure!(
        tally.pods == plan.pods
            && tally.short.failed == 0
            && tally.long.failed == 0
            && tally.long.good == plan.pods,
        "{tally:?}"
    );
    let rounds = plan.seconds * 1000 / u64::try_from(plan.rest.as_millis())?;
    ensure!(tally.short.good as u64 > plan.pods as u64 * rounds / 3, "too little was played: {tally:?}");
    // Renewed at half-life: two for each lifetime.
    ensure!(count > plan.pods * 4, "only {count} renewals");
    ensure!(peak as f64 <= 3.0 * mean, "{peak} renewals within {} s, {mean:.1} on average", plan.window);
    ensure!(failures(world)? == before, "attempts failed: {before} before, {} after", failures(world)?);
    crowd.remove(world)?;
    eventually(SECOND * 20, || {
        let enrolled = world.agents[0].metrics()?.sum("ambit_enrolled_pods", &[]);
        ensure!(enrolled == 2.0, "{enrolled} pods are enrolled still");
        Ok(())
    })
}

/// Attempts to get a certificate that failed, at both agents.
fn failures(world: &World) -> Result<f64> {
    let of = |node: usize| {
        Ok::<_, anyhow::Error>(world.agents[node].metrics()?.sum("ambit_certificate_failures_total", &[]))
    };
    Ok(of(0)? + of(1)?)
}
