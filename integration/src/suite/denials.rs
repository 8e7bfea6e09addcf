//! What is refused, as `ambit denials` and `ambit status` tell it at both ends, and how soon a policy is felt.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{SECOND, Test, own};
use crate::{
    agent::{Agent, IN_FORCE},
    load::{self, ports},
    process::{Process, eventually},
    topology::MESHED,
    world::World,
};

pub(super) const TESTS: &[Test] = &[
    own(
        "denials::both_ends_tell_of_a_refusal",
        "code, policy, nearest rule and the field that failed; counted once a kind",
        &[],
        refused,
    ),
    own(
        "denials::a_service_that_is_cut_off_is_named_at_both_ends",
        "while its connection runs: both ends name the policy within a second",
        &[],
        cut_off,
    ),
    own("denials::followed_live", "ambit denials --follow writes a line for each as it comes", &[], followed),
    own(
        "denials::a_policy_is_felt_at_once",
        "by new connections and by open ones, also of a pod to itself",
        &[],
        felt,
    ),
];

const FILE: &str = "authorization.yaml";

/// An AuthorizationPolicy for pod b.
fn for_b(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: {name}\n  namespace: {MESHED}\n\
         spec: {{selector: {{matchLabels: {{app: b}}}}, {spec}}}\n"
    )
}

/// The one denial that fits.
fn denial(agent: &Agent, flags: &[&str], fits: impl Fn(&Value) -> bool) -> Result<Value> {
    let all = agent.ask(&[&["denials"], flags].concat())?;
    let listed = all.as_array().cloned().unwrap_or_default();
    let fitting: Vec<&Value> = listed.iter().filter(|denial| fits(denial)).collect();
    ensure!(fitting.len() == 1, "{} of these fit: {all:#}", fitting.len());
    Ok(fitting[0].clone())
}

fn refused(world: &mut World) -> Result<()> {
    world.manifests.write(FILE, &for_b("only-a", "rules: [{from: [{source: {serviceAccounts: [a]}}]}]"))?;
    eventually(IN_FORCE, || world.must_not_reach("e", "b").map(drop))?;
    let from_e = |denial: &Value| denial["source"]["workload"] == "e";
    let before = eventually(SECOND, || denial(&world.agents[1], &[], from_e))?["count"].as_u64();
    for _ in 0..3 {
        world.must_not_reach("e", "b")?;
    }
    for (node, direction, by_peer) in [(0, "outbound", true), (1, "inbound", false)] {
        let told = eventually(SECOND, || {
            let told = denial(&world.agents[node], &["--namespace", MESHED, "--since", "1m"], from_e)?;
            let grown = told["count"].as_u64() == before.map(|before| before + 3);
            ensure!(grown, "{before:?} before, and three more make {}", told["count"]);
            Ok(told)
        })?;
        let expected: [(&str, Value); 8] = [
            ("direction", direction.into()),
            ("byPeer", by_peer.into()),
            ("code", 2.into()),
            ("reason", "policy_denied".into()),
            ("policy", "shop/only-a".into()),
            ("rule", "rules[0]".into()),
            ("field", "from[0].source.serviceAccounts".into()),
            ("port", ports::WHOAMI.into()),
        ];
        for (key, value) in expected {
            ensure!(told[key] == value, "{key} at node{} is not {value}: {told:#}", node + 1);
        }
        ensure!(told["source"]["identity"] == world.pod("e").identity().as_str(), "{told:#}");
        ensure!(told["destination"]["workload"] == "b", "{told:#}");
        ensure!(told["firstSeen"].is_string() && told["lastSeen"].is_string(), "{told:#}");
        let status = world.agents[node].status()?;
        ensure!(status["denials"].as_array().is_some_and(|list| list.iter().any(from_e)), "{status:#}");
        let text = world.agents[node].status_text()?;
        ensure!(text.contains("DENIALS") && text.contains("shop/only-a"), "{text}");
    }
    let counted = world.agents[1]
        .metrics()?
        .sum("ambit_denials_total", &["reporter=\"destination\"", "policy=\"shop/only-a\""]);
    ensure!(counted >= 4.0, "the metric counts {counted}");
    // Plaintext is refused by one end, and the other knows nothing of it.
    world.manifests.peer_authentication(MESHED, "STRICT")?;
    eventually(IN_FORCE, || {
        world.must_not_reach("c", "b")?;
        let strict = |denial: &Value| denial["code"] == 1 && denial["source"]["workload"] == "c";
        let told = denial(&world.agents[1], &[], strict)?;
        ensure!(told["policy"] == "shop/default" && told["source"]["identity"] == "", "{told:#}");
        Ok(())
    })?;
    let elsewhere = world.agents[1].ask(&["denials", "--namespace", "elsewhere"])?;
    ensure!(elsewhere.as_array().is_some_and(Vec::is_empty), "{elsewhere:#}");
    Ok(())
}

/// A connection from `pod` to the echo server of `to` that is in use for a while.
fn in_use(world: &World, pod: &str, to: std::net::SocketAddr) -> Result<Process> {
    let mut command = load::tool(&world.pod(pod).netns)?;
    command.args(["ping-pong", "--to", &to.to_string(), "--for-ms", "4000", "--rest-ms", "20"]);
    let process = Process::start(&mut command, &world.folder.join(format!("in-use-{pod}.log")))?;
    std::thread::sleep(Duration::from_millis(500));
    Ok(process)
}

fn cut_off(world: &mut World) -> Result<()> {
    let mut open = in_use(world, "a", (world.pod("b").v4, ports::ECHO).into())?;
    ensure!(open.runs(), "the client has ended before anything changed: {}", open.output());
    let deny = "action: DENY, rules: [{from: [{source: {serviceAccounts: [a]}}]}]";
    world.manifests.write(FILE, &for_b("quarantine-a", deny))?;
    let began = Instant::now();
    let ended = open.wait(SECOND * 3)?;
    ensure!(!ended.success() && began.elapsed() < SECOND, "{ended} after {:?}", began.elapsed());
    for agent in &world.agents {
        eventually(SECOND, || {
            let on_echo = |denial: &Value| denial["port"] == ports::ECHO;
            let told = denial(agent, &[], on_echo)?;
            let whole = told["policy"] == "shop/quarantine-a" && told["rule"] == "rules[0]";
            ensure!(whole && told["source"]["workload"] == "a", "{told:#}");
            Ok(())
        })
        .with_context(|| agent.node().name.clone())?;
    }
    Ok(())
}

fn followed(world: &mut World) -> Result<()> {
    let log = world.folder.join("followed.log");
    let mut follow = Process::start(&mut world.agents[1].command_for(&["denials", "--follow"]), &log)?;
    std::thread::sleep(SECOND + Duration::from_millis(500));
    world.manifests.write(FILE, &for_b("nobody", "rules: []"))?;
    eventually(IN_FORCE, || world.must_not_reach("a", "b").map(drop))?;
    eventually(3 * SECOND, || {
        let text = follow.output();
        let line = text.lines().find(|line| line.contains("shop/nobody") && line.contains("policy_denied"));
        ensure!(line.is_some_and(|line| line.contains("shop/b:9001")), "not told: {text}");
        Ok(())
    })?;
    // An agent that starts anew has forgotten what it told; what comes then is told.
    world.agents[1].stop()?;
    world.agents[1].start()?;
    eventually(3 * SECOND, || {
        world.must_not_reach("e", "b")?;
        let text = follow.output();
        ensure!(text.contains("sa/e"), "not told: {text}");
        Ok(())
    })?;
    ensure!(follow.runs(), "it has ended: {}", follow.output());
    Ok(())
}

fn felt(world: &mut World) -> Result<()> {
    let single = crate::manifests::SINGLE_V4.parse::<std::net::Ipv4Addr>()?;
    // b calls its own service: that way passes no other agent.
    let mut itself = in_use(world, "b", (single, ports::ECHO).into())?;
    ensure!(itself.runs(), "{}", itself.output());
    let began = Instant::now();
    world.manifests.write(FILE, &for_b("nobody", "rules: []"))?;
    while world.whoami("a", "b")?.error.is_none() {
        ensure!(began.elapsed() < SECOND, "a new connection is still let in");
    }
    let took = began.elapsed();
    let ended = itself.wait(SECOND * 3)?;
    ensure!(!ended.success(), "the connection of a pod to itself goes on: {}", itself.output());
    ensure!(began.elapsed() < SECOND + took, "it was cut only after {:?}", began.elapsed());
    world.notes.push(format!(
        "a new connection was refused {} ms after the policy was written (the watch of the folder included)",
        took.as_millis()
    ));
    Ok(())
}
