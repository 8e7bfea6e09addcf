//! Pods are in the mesh before their first instruction, and not at all without an agent.

use std::{collections::BTreeMap, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    Plan, Pod, Site, Test, Wire, installed,
    site::{IN_FORCE, SECOND, SYSTEM},
};
use crate::{load::ports, process::eventually, suite::marker, tools::Attempt};

pub(super) const TESTS: &[Test] = &[
    installed(
        "birth::a_hundred_pods_dial_at_once",
        "STRICT: no plaintext packet, no wrong identity, no failure",
        hundred,
    ),
    installed(
        "birth::a_new_sandbox_is_in_the_mesh",
        "a pod whose sandbox dies comes back with another address, captured again",
        reborn,
    ),
    installed(
        "birth::without_an_agent_pods_wait",
        "labelled ones start when it is back; others are not hindered",
        agent_away,
    ),
];

/// Until a kubelet has found out that a sandbox is dead, and made another.
const REBIRTH: Duration = Duration::from_secs(40);
const PODS: usize = 100;
const ACCOUNTS: usize = 5;

fn hundred(site: &mut Site) -> Result<()> {
    let namespace = site.namespace(true)?;
    site.peer_authentication(&namespace, "STRICT")?;
    for account in 0..ACCOUNTS {
        site.cluster.api.kubectl(&["create", "serviceaccount", &format!("sa{account}"), "-n", &namespace])?;
    }
    let servers = site.pods(&namespace, &[Plan::server("a").on("a"), Plan::server("b").on("b")])?;
    let text = marker("newborn");
    let captures = [site.capture("a", "birth")?, site.capture("b", "birth")?];
    let newborn = |number: usize| {
        let (node, server) = (["a", "b"][number % 2], &servers[1 - number % 2]);
        let to = format!("{}:{}", server.ip, ports::WHOAMI);
        let dial = format!("exec harness tool connect --to {to} --limit-ms 10000 --send {text}");
        let plan = Plan::script(&format!("newborn-{number}"), &dial).on(node).label("app", "newborn");
        let plan = plan.account(&format!("sa{}", number % ACCOUNTS)).spec("restartPolicy", json!("Never"));
        plan.manifest(&namespace)
    };
    let items: Vec<Value> = (0..PODS).map(newborn).collect();
    site.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": items }))?;
    let pods = eventually(Duration::from_secs(240), || {
        let pods = site.cluster.api.json(&["get", "pods", "-n", &namespace, "-l", "app=newborn"])?;
        let ended =
            |pod: &&Value| ["Succeeded", "Failed"].iter().any(|phase| pod["status"]["phase"] == *phase);
        let ended = pods["items"].as_array().into_iter().flatten().filter(ended).count();
        ensure!(ended == PODS, "{ended} of {PODS} have ended");
        Ok(pods)
    })?;
    let attempts = attempts(site, &namespace)?;
    let log = site.agents_log()?;
    let mut worst = 0;
    for pod in pods["items"].as_array().into_iter().flatten() {
        let name = pod["metadata"]["name"].as_str().context("a name")?;
        let ip = pod["status"]["podIP"].as_str().with_context(|| format!("{name} had no address"))?;
        let attempt = attempts.get(name).with_context(|| format!("{name} told nothing"))?;
        ensure!(attempt.received.starts_with(&format!("peer {ip}:")), "{name}, {ip}: {attempt:?}");
        worst = worst.max(attempt.took_ms);
        let account = pod["spec"]["serviceAccountName"].as_str().context("an account")?;
        let identity = format!("/ns/{namespace}/sa/{account}\"");
        let from = format!("src.addr={ip}:");
        let mut seen = log.lines().filter(|line| line.contains(&from) && line.contains("access")).peekable();
        ensure!(seen.peek().is_some(), "no access log line has {from}");
        ensure!(
            seen.all(|line| line.contains("src.identity=") && line.contains(&identity)),
            "a wrong identity for {name} at {ip}, which is {identity}"
        );
    }
    for capture in captures {
        ensure!(!capture.stop()?.contains(&text), "a newborn pod sent plaintext");
    }
    site.note(format!(
        "{PODS} pods dialled at their first instruction; the slowest first dial took {worst} ms"
    ));
    Ok(())
}

/// What each pod's tool has told.
fn attempts(site: &Site, namespace: &str) -> Result<BTreeMap<String, Attempt>> {
    let most = (2 * PODS).to_string();
    let logs =
        ["logs", "-l", "app=newborn", "--prefix", "--tail=-1", "--max-log-requests", &most, "-n", namespace];
    let logs = site.cluster.api.kubectl(&logs)?;
    let told = |line: &str| -> Option<(String, Attempt)> {
        // [pod/newborn-1/main] {"connected":true,…
        let (prefix, answer) = line.strip_prefix("[pod/")?.split_once("] ")?;
        Some((prefix.split('/').next()?.to_owned(), serde_json::from_str(answer).ok()?))
    };
    Ok(logs.lines().filter_map(told).collect())
}

fn reborn(site: &mut Site) -> Result<()> {
    let namespace = site.namespace(true)?;
    let plans = [Plan::client("a").on("a"), Plan::server("mortal").on("b")];
    let [a, mortal] = site.pods(&namespace, &plans)?;
    site.peer_authentication(&namespace, "STRICT")?;
    eventually(IN_FORCE, || site.must_go(&a, &mortal, Wire::Tls))?;
    site.kill_pod(&mortal)?;
    let again = eventually(REBIRTH, || {
        let pod = site.pod(&namespace, "mortal")?;
        ensure!(pod.ip != mortal.ip && pod.restarts > mortal.restarts, "still the old sandbox: {pod:?}");
        site.must_go(&a, &pod, Wire::Tls)?;
        Ok(pod)
    })?;
    ensure!(again.uid == mortal.uid, "{again:?}");
    Ok(())
}

fn agent_away(site: &mut Site) -> Result<()> {
    let (meshed, other) = (site.namespace(true)?, site.namespace(false)?);
    let [a, b] = site.pods(&meshed, &[Plan::client("a").on("a"), Plan::server("b").on("b")])?;
    eventually(5 * SECOND, || site.must_reach(&a, &b))?;
    select_nodes(site, &json!({ "ambit.dev/none": "such" }))?;
    let held = while_away(site, &meshed, &other, &a, &b);
    select_nodes(site, &Value::Null)?;
    held?;
    let rollout = ["rollout", "status", "daemonset/ambit", "--timeout=60s", "-n", SYSTEM];
    site.cluster.api.kubectl(&rollout)?;
    site.wait_ready(&meshed).context("pods that waited for the agent")?;
    let late = site.pod(&meshed, "late")?;
    eventually(2 * SECOND, || site.must_reach(&late, &b))?;
    eventually(2 * SECOND, || site.must_reach(&a, &b))
}

fn while_away(site: &Site, meshed: &str, other: &str, a: &Pod, b: &Pod) -> Result<()> {
    eventually(60 * SECOND, || {
        ensure!(site.agent("a").is_err() && site.agent("b").is_err(), "agents are still there");
        Ok(())
    })?;
    eventually(10 * SECOND, || site.must_not_reach(a, b)).context("pods without their agent")?;
    site.apply(&Plan::client("late").on("a").manifest(meshed))?;
    site.pods(other, &[Plan::client("free").on("a")])
        .context("a pod of a namespace that is not in the mesh")?;
    thread::sleep(5 * SECOND);
    let late = site.cluster.api.json(&["get", "pod", "late", "-n", meshed])?;
    ensure!(late["status"]["phase"] == "Pending", "a labelled pod runs without an agent: {late:#}");
    let events = site.cluster.api.kubectl(&["events", "-n", meshed, "--for=pod/late"])?;
    ensure!(events.contains("ambit"), "no event says what the pod waits for: {events}");
    Ok(())
}

/// Lets agents run on nodes with these labels only.
fn select_nodes(site: &Site, labels: &Value) -> Result<()> {
    let patch = json!({ "spec": { "template": { "spec": { "nodeSelector": labels } } } }).to_string();
    let patch = ["patch", "daemonset", "ambit", "-n", SYSTEM, "--type=merge", "-p", &patch];
    site.cluster.api.kubectl(&patch).map(drop)
}
