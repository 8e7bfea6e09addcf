//! AuthorizationPolicy, changed under running pods: who may come to pod b, and what both ends are told.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{SECOND, Test, own, shared, unstarted};
use crate::{
    agent::IN_FORCE,
    load::{self, ports},
    process::{Process, eventually},
    topology::MESHED,
    world::World,
};

pub(super) const TESTS: &[Test] = &[
    shared(
        "authorization::deny_all_is_the_baseline",
        "an ALLOW without rules: nobody; beside another: whom that allows",
        baseline,
    ),
    shared(
        "authorization::allow_by_service_account_and_namespace",
        "a and not e; the namespace, and not plaintext",
        by_identity,
    ),
    shared(
        "authorization::allow_by_ip_block_and_port",
        "plaintext too, by its address; one port and not the other",
        by_address,
    ),
    shared(
        "authorization::a_policy_for_a_service_is_for_its_pods",
        "by targetRefs: b, and not e, whatever way it is called",
        for_service,
    ),
    shared(
        "authorization::a_compromised_service_is_cut_off",
        "while its connection runs; both ends name the policy; others go on",
        compromised,
    ),
    shared(
        "authorization::what_is_never_known_opens_nothing",
        "ALLOW by a filter's metadata: nobody; DENY by it: everybody, told as a problem",
        never_known,
    ),
    unstarted(
        "authorization::a_policy_that_cannot_be_read_closes",
        "from the agent's start on, and whatever it said before",
        &[],
        unreadable,
    ),
    unstarted(
        "authorization::a_file_unread_from_the_start_closes",
        "it may hold a DENY: nobody is let in; one that comes later does not",
        &[],
        unread_file,
    ),
    own(
        "authorization::nothing_passes_before_the_first_sync",
        "an agent that has not read everything serves no pod, in or out",
        &[],
        unsynced,
    ),
];

/// An AuthorizationPolicy for pod b.
fn for_b(name: &str, spec: &str) -> String {
    policy(name, &format!("selector: {{matchLabels: {{app: b}}}}, {spec}"))
}

/// An AuthorizationPolicy for all pods of the meshed namespace, or those that the spec says.
fn policy(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: {name}\n  namespace: {MESHED}\n\
         spec: {{{spec}}}\n"
    )
}

const FILE: &str = "authorization.yaml";
const OTHER_FILE: &str = "authorization-other.yaml";

/// Whom the file, once it is in force, lets in to pod b: a in mutual TLS, e in mutual TLS, c in plaintext.
fn expect(world: &World, text: &str, [a, e, c]: [bool; 3]) -> Result<()> {
    world.manifests.write(FILE, text)?;
    let verdicts = || {
        for (pod, expected) in [("a", a), ("e", e), ("c", c)] {
            if expected {
                world.must_reach(pod, "b")?;
            } else {
                world.must_not_reach(pod, "b")?;
            }
        }
        Ok(())
    };
    eventually(IN_FORCE + SECOND, verdicts).with_context(|| text.to_owned())
}

/// No policy is left.
fn open(world: &World) -> Result<()> {
    world.manifests.remove(FILE)?;
    world.manifests.remove(OTHER_FILE)?;
    let all = || ["a", "e", "c"].into_iter().try_for_each(|pod| world.must_reach(pod, "b"));
    eventually(IN_FORCE + SECOND, all)
}

fn baseline(world: &mut World) -> Result<()> {
    let mark = world.agents[1].mark();
    expect(world, &policy("deny-all", ""), [false; 3])?;
    world.agents[1].wait_log(mark, &["access", "policy_denied", "shop/deny-all", "has no rule"])?;
    // Pods of other namespaces do not mind.
    world.must_reach("a", "d")?;
    world
        .manifests
        .write(OTHER_FILE, &for_b("only-a", "rules: [{from: [{source: {serviceAccounts: [a]}}]}]"))?;
    expect(world, &policy("deny-all", ""), [true, false, false])?;
    // Every pod has the baseline, and e no other policy.
    world.must_not_reach("b", "e")?;
    open(world)
}

fn by_identity(world: &mut World) -> Result<()> {
    let source = |fields: &str| for_b("who", &format!("rules: [{{from: [{{source: {{{fields}}}}}]}}]"));
    let marks = [0, 1].map(|node| world.agents[node].mark());
    expect(world, &source(&format!("serviceAccounts: [{MESHED}/a]")), [true, false, false])?;
    // The client's agent is told as much as the server's knows: policy, rule and the field that failed.
    for (node, mark) in marks.into_iter().enumerate() {
        let words = [
            "access",
            "policy_denied",
            "policy=\"shop/who\"",
            "rule=\"rules[0]\"",
            "from[0].source.serviceAccounts does not hold",
            "sa/e",
        ];
        world.agents[node].wait_log(mark, &words).with_context(|| format!("agent of node{}", node + 1))?;
    }
    expect(world, &source(&format!("principals: ['cluster.local/ns/{MESHED}/sa/e']")), [false, true, false])?;
    expect(world, &source(&format!("namespaces: [{MESHED}]")), [true, true, false])?;
    expect(world, &source("namespaces: [elsewhere]"), [false; 3])?;
    expect(world, &source("notServiceAccounts: [a]"), [false, true, true])?;
    let denied = "action: DENY, rules: [{from: [{source: {notPrincipals: ['*']}}]}]";
    expect(world, &for_b("no-plaintext", denied), [true, true, false])?;
    open(world)
}

fn by_address(world: &mut World) -> Result<()> {
    let [a, c] = ["a", "c"].map(|pod| world.pod(pod).v4);
    let block = |fields: &str| for_b("where", &format!("rules: [{{from: [{{source: {{{fields}}}}}]}}]"));
    expect(world, &block(&format!("ipBlocks: [{c}/32, {a}]")), [true, false, true])?;
    expect(world, &block("ipBlocks: [198.18.0.0/15]"), [true; 3])?;
    expect(world, &block(&format!("notIpBlocks: ['{a}']")), [false, true, true])?;
    let port =
        |ports: &str| for_b("where", &format!("rules: [{{to: [{{operation: {{ports: [{ports}]}}}}]}}]"));
    expect(world, &port(&format!("'{}'", ports::WHOAMI)), [true; 3])?;
    let http = |world: &World| -> Result<bool> {
        let to = (world.pod("b").v4, ports::HTTP);
        Ok(world.connect("a", to, &["--send", "GET / HTTP/1.1\r\n\r\n"])?.error.is_none())
    };
    ensure!(!http(world)?, "let in on a port that is not allowed");
    expect(world, &port(&format!("'{}'", ports::HTTP)), [false; 3])?;
    ensure!(http(world)?, "not let in on the port that is allowed");
    let deny =
        format!("action: DENY, rules: [{{when: [{{key: destination.port, values: ['{}']}}]}}]", ports::HTTP);
    expect(world, &for_b("where", &deny), [true; 3])?;
    ensure!(!http(world)?, "let in on a port that is denied");
    open(world)
}

fn for_service(world: &mut World) -> Result<()> {
    // Services select by `tier`, and pods have it only here: the slices speak for the endpoints.
    let pod = world.pod("b").clone();
    world.manifests.pod(&world.topology, &pod, &[("tier", "single")])?;
    let spec = "targetRefs: [{kind: Service, group: '', name: single}], action: DENY, rules: [{from: [{source: {serviceAccounts: [a]}}]}]";
    expect(world, &policy("for-single", spec), [false, true, true])?;
    world.must_reach("a", "e")?;
    world.manifests.pod(&world.topology, &pod, &[])?;
    open(world)
}

fn compromised(world: &mut World) -> Result<()> {
    let to = format!("{}:{}", world.pod("b").v4, ports::ECHO);
    let start = |world: &World, pod: &str| -> Result<Process> {
        let mut command = load::tool(&world.pod(pod).netns)?;
        command.args(["ping-pong", "--to", &to, "--for-ms", "4000", "--rest-ms", "20"]);
        Process::start(&mut command, &world.folder.join(format!("compromised-{pod}.log")))
    };
    let (mut cut, mut kept) = (start(world, "a")?, start(world, "e")?);
    std::thread::sleep(Duration::from_millis(500));
    ensure!(cut.runs() && kept.runs(), "a client has ended before anything changed");
    let marks = [0, 1].map(|node| world.agents[node].mark());
    let began = Instant::now();
    let spec = "action: DENY, rules: [{from: [{source: {serviceAccounts: [a]}}]}]";
    world.manifests.write(FILE, &for_b("quarantine-a", spec))?;
    let ended = cut.wait(SECOND * 3)?;
    let took = began.elapsed();
    ensure!(!ended.success(), "the connection of a denied peer went on: {}", cut.output());
    ensure!(took < SECOND, "it was cut only after {took:?}");
    for (node, mark) in marks.into_iter().enumerate() {
        let words = [
            "access",
            "policy_denied",
            "policy=\"shop/quarantine-a\"",
            "rule=\"rules[0]\"",
            "connection complete",
        ];
        world.agents[node].wait_log(mark, &words).with_context(|| format!("agent of node{}", node + 1))?;
    }
    world.must_not_reach("a", "b")?;
    world.must_reach("e", "b")?;
    ensure!(kept.wait(SECOND * 8)?.success(), "the connection of another peer was cut: {}", kept.output());
    world
        .notes
        .push(format!("a live connection was cut {} ms after the policy was written", took.as_millis()));
    open(world)
}

fn never_known(world: &mut World) -> Result<()> {
    let filter = "when: [{key: experimental.envoy.filters.x, values: [y]}]";
    expect(world, &for_b("filter", &format!("rules: [{{{filter}}}]")), [false; 3])?;
    told(world, &["AuthorizationPolicy shop/filter", "rules[0].when[0].values", "allows nothing"])?;
    expect(world, &for_b("filter", &format!("action: DENY, rules: [{{{filter}}}]")), [false; 3])?;
    told(world, &["AuthorizationPolicy shop/filter", "rules[0].when[0].values", "by the rest of it"])?;
    let from = format!("action: DENY, rules: [{{from: [{{source: {{serviceAccounts: [a]}}}}], {filter}}}]");
    expect(world, &for_b("filter", &from), [false, true, true])?;
    open(world)
}

fn unreadable(world: &mut World) -> Result<()> {
    let good = for_b("broken", "rules: [{}]");
    let broken = for_b("broken", "action: DENNY, rules: [{from: [{source: {serviceAccounts: [a]}}]}]");
    world.manifests.write(FILE, &broken)?;
    world.start_agents()?;
    eventually(IN_FORCE, || world.must_reach("a", "e"))?;
    expect(world, &broken, [false; 3])
        .context("an object that cannot be read counts for nothing at the start")?;
    told(world, &["AuthorizationPolicy shop/broken", "spec.action", "the strictest that it may say"])?;
    expect(world, &good, [true; 3])?;
    expect(world, &broken, [false; 3])?;
    // Passed over, a misspelt field would open the policy to all pods, or to anybody.
    expect(world, &good, [true; 3])?;
    expect(world, &good.replace("selector", "selectors"), [false; 3])?;
    eventually(IN_FORCE, || world.must_not_reach("b", "e").map(drop))
        .context("whom it selects is not known")?;
    expect(world, &good, [true; 3])?;
    expect(world, &for_b("broken", "rules: [{form: [{source: {namespaces: [shop]}}]}]"), [false; 3])?;
    eventually(IN_FORCE, || world.must_reach("a", "e"))?;
    open(world)
}

fn unread_file(world: &mut World) -> Result<()> {
    world.manifests.write(FILE, "apiVersion: security.istio.io/v1\nkind: [\n")?;
    world.start_agents()?;
    let mark = world.agents[1].mark();
    for client in ["a", "c"] {
        eventually(IN_FORCE, || world.must_not_reach(client, "b").map(drop))?;
    }
    world.agents[1].wait_log(mark, &["access", "not_ready", "not all policies are known"])?;
    told(world, &[FILE, "nobody is let in"])?;
    world.must_reach("a", "d").context("who is not in the mesh does not mind")?;
    open(world)?;
    world.manifests.write(FILE, "apiVersion: security.istio.io/v1\nkind: [\n")?;
    told(world, &[FILE, "STRICT"])?;
    world.must_reach("a", "b")?;
    world.must_not_reach("c", "b")?;
    open(world)
}

/// Pod b was enrolled; the agent that comes then has a source that never answers.
fn unsynced(world: &mut World) -> Result<()> {
    world.must_reach("a", "b")?;
    world.must_reach("c", "b")?;
    let kubeconfig = world.folder.join("kubeconfig");
    let server = "apiVersion: v1\nkind: Config\ncurrent-context: x\n\
                  clusters: [{name: x, cluster: {server: 'https://127.0.0.1:1'}}]\n\
                  contexts: [{name: x, context: {cluster: x, user: x}}]\nusers: [{name: x, user: {}}]\n";
    std::fs::write(&kubeconfig, server)?;
    let usual = world.agents[1].command();
    let mut command = std::process::Command::new(usual.get_program());
    let manifests = world.manifests.folder().as_os_str().to_owned();
    command.args(usual.get_args().map(|argument| match argument.to_str() {
        Some("--manifests") => "--kubeconfig".as_ref(),
        _ if argument == manifests => kubeconfig.as_os_str(),
        _ => argument,
    }));
    world.agents[1].kill();
    let log = world.folder.join("unsynced.log");
    let mut agent = Process::start(&mut command, &log)?;
    let waits = eventually(5 * SECOND, || {
        let status = world.agents[1].status()?;
        ensure!(status["ready"] == false && status["pending"].to_string().contains("cluster"), "{status:#}");
        Ok(())
    });
    waits.with_context(|| agent.output())?;
    let flags = ["--send", "hello", "--limit-ms", "1500"];
    for client in ["a", "c"] {
        let attempt = world.connect(client, (world.pod("b").v4, ports::WHOAMI), &flags)?;
        ensure!(attempt.received.is_empty() && attempt.error.is_some(), "{client} came in: {attempt:?}");
    }
    let attempt = world.connect("b", (world.pod("e").v4, ports::WHOAMI), &flags)?;
    ensure!(attempt.received.is_empty() && attempt.error.is_some(), "b came out: {attempt:?}");
    ensure!(agent.runs(), "the agent has ended: {}", agent.output());
    agent.kill();
    world.agents[1].start()?;
    eventually(IN_FORCE, || world.must_reach("a", "b"))?;
    world.must_reach("b", "e")
}

/// One problem of the status has all of `words`.
fn told(world: &World, words: &[&str]) -> Result<()> {
    eventually(2 * SECOND, || {
        let status = world.agents[1].status()?;
        let problems: Vec<Value> = status["problems"].as_array().cloned().unwrap_or_default();
        let named =
            problems.iter().map(Value::to_string).any(|text| words.iter().all(|word| text.contains(word)));
        ensure!(named, "no problem has all of {words:?}: {problems:#?}");
        Ok(())
    })
}
