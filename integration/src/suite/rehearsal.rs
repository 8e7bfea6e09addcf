//! Policies rehearsed before they are enforced: dry-run and AUDIT, readiness for STRICT, and policies suggested from what was seen.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Result, ensure};
use serde_json::Value;

use super::{SECOND, Test, own};
use crate::{
    agent::IN_FORCE,
    load::{self, ports},
    manifests::SINGLE_V4,
    process::{Process, eventually},
    topology::{MESHED, UNMESHED},
    world::World,
};

pub(super) const TESTS: &[Test] = &[
    own(
        "rehearsal::a_dry_run_tells_whom_it_would_refuse",
        "new and open connections; nobody is refused; as it will be once in force",
        &[],
        dry_run,
    ),
    own(
        "rehearsal::a_dry_run_allow_tells_whom_it_would_admit",
        "beside one that is in force and refuses; AUDIT counts what it matches",
        &[],
        admits,
    ),
    own(
        "rehearsal::readiness_turns_to_yes",
        "exactly those who come in plaintext, until the last of them is in the mesh",
        &[],
        readiness,
    ),
    own(
        "rehearsal::what_is_suggested_keeps_everything_working",
        "applied as it is written: all that was seen goes on, and nothing else",
        &[],
        suggest,
    ),
];

const FILE: &str = "authorization.yaml";

/// An AuthorizationPolicy for pod b that is rehearsed.
fn for_b(name: &str, dry_run: bool, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: {name}\n  namespace: {MESHED}\n  \
         annotations: {{istio.io/dry-run: '{dry_run}'}}\nspec: {{selector: {{matchLabels: {{app: b}}}}, {spec}}}\n---\n"
    )
}

const ONLY_A: &str = "rules: [{from: [{source: {serviceAccounts: [a]}}]}]";

/// The outcomes of the rehearsal of a policy on connections to pod b: what would be, and whose.
fn outcomes(world: &World, policy: &str) -> Result<Vec<(String, String)>> {
    let told = world.agents[1].ask(&["rehearsal", "--namespace", MESHED])?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let connections = told["connections"].as_array().cloned().unwrap_or_default();
    let of_policy = connections.iter().filter(|connection| connection["policy"] == policy);
    let mut found: Vec<_> =
        of_policy.map(|one| (text(&one["outcome"]), text(&one["source"]["workload"]))).collect();
    found.sort();
    found.dedup();
    Ok(found)
}

fn expect(world: &World, policy: &str, expected: &[(&str, &str)]) -> Result<()> {
    let found = outcomes(world, policy)?;
    let found: Vec<(&str, &str)> = found.iter().map(|(what, who)| (&**what, &**who)).collect();
    ensure!(found == expected, "{policy}: {found:?}, not {expected:?}");
    Ok(())
}

fn all_reach(world: &World) -> Result<()> {
    ["a", "e", "c"].into_iter().try_for_each(|pod| world.must_reach(pod, "b"))
}

fn dry_run(world: &mut World) -> Result<()> {
    all_reach(world)?;
    let to = format!("{}:{}", world.pod("b").v4, ports::ECHO);
    let mut command = load::tool(&world.pod("e").netns)?;
    command.args(["ping-pong", "--to", &to, "--for-ms", "6000", "--rest-ms", "20"]);
    let mut open = Process::start(&mut command, &world.folder.join("dry-run.log"))?;
    std::thread::sleep(Duration::from_millis(500));
    world.manifests.write(FILE, &for_b("only-a", true, ONLY_A))?;
    // The one that is open is judged without a new connection.
    eventually(IN_FORCE, || expect(world, "shop/only-a", &[("would_refuse", "e")]))?;
    all_reach(world)?;
    let refused = [("would_refuse", "c"), ("would_refuse", "e")];
    eventually(SECOND, || expect(world, "shop/only-a", &refused))?;
    let told = world.agents[1].ask(&["rehearsal"])?;
    let policy = &told["policies"][0];
    ensure!(policy["policy"] == "shop/only-a" && policy["action"] == "ALLOW", "{told:#}");
    ensure!(policy["judged"].as_u64() > policy["wouldRefuse"].as_u64(), "a would be let in: {told:#}");
    let metrics = world.agents[1].metrics()?;
    let counted = |result: &str| {
        metrics.sum("ambit_policy_rehearsals_total", &["shop/only-a", &format!("\"{result}\"")])
    };
    ensure!(counted("would_refuse") >= 3.0 && counted("unchanged") >= 1.0, "{}", metrics.text());
    let denials = world.agents[1].ask(&["denials"])?;
    ensure!(denials.as_array().is_some_and(Vec::is_empty), "a rehearsal refused somebody: {denials:#}");
    ensure!(open.runs(), "the open connection was cut: {}", open.output());
    let problems = &world.agents[1].status()?["problems"];
    ensure!(problems.as_array().is_some_and(Vec::is_empty), "{problems:#}");
    // In force it does what was told.
    world.manifests.write(FILE, &for_b("only-a", false, ONLY_A))?;
    eventually(IN_FORCE, || {
        world.must_not_reach("e", "b")?;
        world.must_not_reach("c", "b")?;
        world.must_reach("a", "b")
    })
}

fn admits(world: &mut World) -> Result<()> {
    let text = for_b("only-a", false, ONLY_A)
        + &for_b("e-too", true, "rules: [{from: [{source: {serviceAccounts: [e]}}]}]")
        + &for_b("seen", false, "action: AUDIT, rules: [{from: [{source: {principals: ['*']}}]}]");
    world.manifests.write(FILE, &text)?;
    eventually(IN_FORCE, || world.must_not_reach("e", "b").map(drop))?;
    world.must_not_reach("c", "b")?;
    world.must_reach("a", "b")?;
    eventually(SECOND, || expect(world, "shop/e-too", &[("would_admit", "e")]))?;
    eventually(SECOND, || expect(world, "shop/seen", &[("matched", "a"), ("matched", "e")]))
}

/// The namespaces as they are with both in the mesh.
const BOTH: &str = "apiVersion: v1\nkind: List\nitems:\n\
    - {apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {ambit.dev/dataplane: enabled}}}\n\
    - {apiVersion: v1, kind: Namespace, metadata: {name: legacy, labels: {ambit.dev/dataplane: enabled}}}\n";

/// Who comes to pod b in plaintext, and whether it is ready for STRICT.
fn ready(world: &World) -> Result<(Vec<String>, bool)> {
    let told = world.agents[1].ask(&["readiness", "--namespace", MESHED])?;
    let destinations = told["destinations"].as_array().cloned().unwrap_or_default();
    ensure!(destinations.len() == 1 && destinations[0]["workload"] == "b", "{told:#}");
    let sources = destinations[0]["sources"].as_array().cloned().unwrap_or_default();
    let name = |source: &Value| {
        format!(
            "{}/{}",
            source["namespace"].as_str().unwrap_or_default(),
            source["workload"].as_str().unwrap_or_default()
        )
    };
    Ok((sources.iter().map(name).collect(), destinations[0]["ready"] == true))
}

fn readiness(world: &mut World) -> Result<()> {
    ensure!(ready(world)? == (vec![], true), "nobody has come: {:?}", ready(world)?);
    all_reach(world)?;
    world.must_reach("d", "b")?;
    let [c, d] = ["c", "d"].map(|pod| format!("{UNMESHED}/{pod}"));
    eventually(SECOND, || {
        let (mut sources, ready) = ready(world)?;
        sources.sort();
        ensure!(sources == [c.clone(), d.clone()] && !ready, "{sources:?}, ready: {ready}");
        Ok(())
    })?;
    let check = world.agents[1].run(&["readiness", "--check"])?;
    ensure!(!check.status.success() && check.stdout.contains("legacy/c"), "{}", check.told());
    let plaintext = world.agents[1]
        .metrics()?
        .sum("ambit_plaintext_connections_total", &["source_workload=\"c\"", "destination_workload=\"b\""]);
    ensure!(plaintext >= 1.0, "the metric counts {plaintext}");
    // c joins; d has opted out.
    let pod_d = world.pod("d").clone();
    world.manifests.pod(&world.topology, &pod_d, &[("ambit.dev/dataplane", "disabled")])?;
    world.manifests.write("namespaces.yaml", BOTH)?;
    eventually(10 * SECOND, || {
        world.must_reach("c", "b")?;
        let (sources, ready) = ready(world)?;
        ensure!(sources == [d.clone()] && !ready, "{sources:?}, ready: {ready}");
        Ok(())
    })?;
    world.manifests.pod(&world.topology, &pod_d, &[])?;
    eventually(10 * SECOND, || {
        let (sources, ready) = ready(world)?;
        ensure!(sources.is_empty() && ready, "{sources:?}, ready: {ready}");
        Ok(())
    })?;
    ensure!(world.agents[1].run(&["readiness", "--check"])?.status.success(), "it is ready");
    world.manifests.peer_authentication(MESHED, "STRICT")?;
    eventually(IN_FORCE, || {
        let told = world.agents[1].ask(&["readiness"])?.to_string();
        ensure!(told.contains("\"STRICT\""), "{told}");
        Ok(())
    })?;
    all_reach(world)?;
    world.must_reach("d", "b")
}

/// Who calls whom; b itself by its service.
const CALLS: [(&str, &str); 6] = [("a", "b"), ("e", "b"), ("c", "b"), ("d", "b"), ("b", "e"), ("a", "e")];

fn suggest(world: &mut World) -> Result<()> {
    let itself = |world: &World| -> Result<()> {
        let to = (SINGLE_V4.parse::<Ipv4Addr>()?, ports::WHOAMI);
        let attempt = world.connect("b", to, &["--send", "hello"])?;
        ensure!(attempt.error.is_none(), "b does not reach itself: {attempt:?}");
        Ok(())
    };
    let all = |world: &World| -> Result<()> {
        CALLS.into_iter().try_for_each(|(from, to)| world.must_reach(from, to))?;
        itself(world)
    };
    let http = |world: &World, from: &str| -> Result<bool> {
        let to = (world.pod("b").v4, ports::HTTP);
        Ok(world.connect(from, to, &["--send", "GET / HTTP/1.1\r\n\r\n"])?.error.is_none())
    };
    all(world)?;
    ensure!(http(world, "a")?, "a does not reach b by HTTP");
    std::thread::sleep(Duration::from_millis(100));
    for node in 0..2 {
        let rehearsed = world.agents[node].run(&["suggest", "--namespace", MESHED, "--dry-run"])?.ok()?;
        world.manifests.write(&format!("suggested-{node}.yaml"), &rehearsed)?;
    }
    // As dry-run, first: what was seen would not be refused.
    std::thread::sleep(IN_FORCE);
    all(world)?;
    for agent in &world.agents {
        let told = agent.ask(&["rehearsal"])?;
        let connections = told["connections"].as_array().cloned().unwrap_or_default();
        ensure!(connections.is_empty(), "{told:#}");
        ensure!(told["policies"].as_array().is_some_and(|list| !list.is_empty()), "{told:#}");
    }
    for node in 0..2 {
        let text = world.agents[node].run(&["suggest", "--namespace", MESHED])?.ok()?;
        world.manifests.write(&format!("suggested-{node}.yaml"), &text)?;
    }
    eventually(IN_FORCE + SECOND, || {
        ensure!(!http(world, "e")?, "e was never seen to come to b by HTTP");
        Ok(())
    })?;
    all(world)?;
    ensure!(http(world, "a")?, "a was seen to");
    ensure!(!http(world, "c")?, "c was not");
    world.must_not_reach("c", "e")?;
    for agent in &world.agents {
        let problems = &agent.status()?["problems"];
        ensure!(problems.as_array().is_some_and(Vec::is_empty), "{problems:#}");
    }
    Ok(())
}
