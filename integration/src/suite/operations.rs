//! What an operator sees: status, metrics, access log, readiness, and who may run beside whom.

use std::{process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{SECOND, Test, own, shared, unstarted};
use crate::{
    load::{self, ports},
    process::{self, Process, eventually},
    world::World,
};

pub(super) const TESTS: &[Test] = &[
    shared("operations::status_tells_pods_and_identities", "pods enrolled, SPIFFE IDs, expiry", status),
    shared(
        "operations::status_tells_live_connections",
        "peer identity, and whether it is mutual TLS, at both ends",
        connections,
    ),
    shared(
        "operations::metrics_bear_istios_names",
        "istio_tcp_* at both ends, bytes counted exactly",
        metrics,
    ),
    shared(
        "operations::one_access_log_line_a_connection",
        "addresses and identities, at both ends",
        access_log,
    ),
    shared(
        "operations::one_agent_per_run_directory",
        "one of another node is refused, the first goes on",
        second_agent,
    ),
    own(
        "operations::logs_can_be_json",
        "--log-format json: every line is an object, access log included",
        &["--log-format", "json"],
        json_logs,
    ),
    unstarted(
        "operations::two_agents_may_start_at_once",
        "both make the CA in the same moment and agree on one",
        &[],
        start_at_once,
    ),
];

fn status(world: &mut World) -> Result<()> {
    for (node, expected) in [(0, vec!["a", "e"]), (1, vec!["b"])] {
        let status = world.agents[node].status()?;
        ensure!(
            status["node"] == world.topology.nodes[node].name.as_str() && status["ready"] == true,
            "{status:#}"
        );
        let listed = array(&status, "pods")?;
        let mut names: Vec<&str> = listed.iter().filter_map(|pod| pod["name"].as_str()).collect();
        names.sort_unstable();
        ensure!(names == expected, "the pods of node{} are {names:?}", node + 1);
        for name in expected {
            let pod = world.pod(name);
            let entry = listed.iter().find(|entry| entry["name"] == name).context("listed")?;
            ensure!(has_text(entry, "enrolled") && has_text(entry, &pod.identity()), "{entry:#}");
            ensure!(
                has_text(entry, &pod.v4.to_string()) && has_text(entry, &pod.v6.to_string()),
                "{entry:#}"
            );
            let certificate = array(&status, "certificates")?.iter().find(|c| has_text(c, &pod.identity()));
            let certificate = certificate.with_context(|| format!("no certificate of {name}: {status:#}"))?;
            ensure!(has_text(certificate, "valid"), "{certificate:#}");
        }
        ensure!(array(&status, "problems")?.is_empty(), "{status:#}");
        let text = world.agents[node].status_text()?;
        ensure!(
            text.contains(&world.pod(names[0]).identity()),
            "ambit status does not name identities: {text}"
        );
    }
    Ok(())
}

fn connections(world: &mut World) -> Result<()> {
    let to = format!("{}:{}", world.pod("b").v4, ports::ECHO);
    let mut clients = Vec::new();
    for pod in ["a", "c"] {
        let mut command = load::tool(&world.pod(pod).netns)?;
        command.args(["ping-pong", "--to", &to, "--for-ms", "8000", "--rest-ms", "20"]);
        clients.push(Process::start(&mut command, &world.folder.join(format!("status-{pod}.log")))?);
    }
    let from = |world: &World, node: usize, pod: &str| -> Result<Value> {
        let status = world.agents[node].status()?;
        let prefix = format!("{}:", world.pod(pod).v4);
        let found = array(&status, "connections")?.iter().find(|connection| {
            let text = connection.to_string();
            text.contains(&prefix) && text.contains(&to)
        });
        found.cloned().with_context(|| format!("node{} lists no connection of {pod}: {status:#}", node + 1))
    };
    for (node, peer) in [(0, "b"), (1, "a")] {
        let entry = eventually(3 * SECOND, || from(world, node, "a"))?;
        ensure!(has_text(&entry, "mutual_tls"), "{entry:#}");
        let identity = world.pod(peer).identity();
        ensure!(has_text(&entry, &identity), "the peer of node{} should be {identity}: {entry:#}", node + 1);
    }
    let entry = eventually(3 * SECOND, || from(world, 1, "c"))?;
    ensure!(has_text(&entry, "plaintext") && !entry.to_string().contains("spiffe://"), "{entry:#}");
    Ok(())
}

fn metrics(world: &mut World) -> Result<()> {
    let (a, b) = (world.pod("a").identity(), world.pod("b").identity());
    let ends = [(0, "source"), (1, "destination")];
    let labels = |reporter: &str| {
        [
            format!("reporter=\"{reporter}\""),
            format!("source_principal=\"{a}\""),
            format!("destination_principal=\"{b}\""),
            "connection_security_policy=\"mutual_tls\"".to_owned(),
            "source_workload=\"a\"".to_owned(),
            "destination_workload=\"b\"".to_owned(),
            "source_workload_namespace=\"shop\"".to_owned(),
            "request_protocol=\"tcp\"".to_owned(),
        ]
    };
    let read = |world: &World, node: usize, reporter: &str| -> Result<[f64; 4]> {
        let metrics = world.agents[node].metrics()?;
        let labels = labels(reporter);
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        Ok([
            "istio_tcp_connections_opened_total",
            "istio_tcp_connections_closed_total",
            "istio_tcp_received_bytes_total",
            "istio_tcp_sent_bytes_total",
        ]
        .map(|name| metrics.sum(name, &labels)))
    };
    let before = [read(world, 0, "source")?, read(world, 1, "destination")?];
    // Five connections of one 128-byte message each way.
    let to = format!("{}:{}", world.pod("b").v4, ports::ECHO);
    let tally = world.tool("a", &["churn", "--to", &to, "--count", "5"], 20 * SECOND)?;
    ensure!(tally["failed"] == 0, "{tally}");
    for (node, reporter) in ends {
        eventually(3 * SECOND, || {
            let now = read(world, node, reporter)?;
            let grown: Vec<f64> = now.iter().zip(&before[node]).map(|(now, before)| now - before).collect();
            let expected = [5.0, 5.0, 640.0, 640.0];
            ensure!(
                grown == expected,
                "{reporter}: opened, closed, received, sent grew by {grown:?}, not {expected:?}"
            );
            Ok(())
        })?;
    }
    Ok(())
}

fn access_log(world: &mut World) -> Result<()> {
    let marks = [world.agents[0].mark(), world.agents[1].mark()];
    let to = format!("{}:{}", world.pod("b").v4, ports::ECHO);
    let tally = world.tool("a", &["churn", "--to", &to, "--count", "3"], 20 * SECOND)?;
    ensure!(tally["failed"] == 0, "{tally}");
    for (node, peer) in [(0, "b"), (1, "a")] {
        let peer = world.pod(peer).identity();
        eventually(3 * SECOND, || {
            let log = world.agents[node].log_since(marks[node]);
            let lines: Vec<&str> = log
                .lines()
                .filter(|line| line.contains("access") && line.contains(&to) && line.contains(&peer))
                .collect();
            ensure!(lines.len() == 3, "3 connections, {} lines at node{}: {lines:#?}", lines.len(), node + 1);
            Ok(())
        })?;
    }
    Ok(())
}

fn second_agent(world: &mut World) -> Result<()> {
    let [first, other] = [0, 1].map(|node| world.topology.nodes[node].name.clone());
    let command = world.agents[0].command();
    let mut second = Command::new(command.get_program());
    second
        .args(command.get_args().map(|argument| if *argument == *first { other.as_ref() } else { argument }));
    let refused = process::run(&mut second, Duration::from_secs(10))?;
    ensure!(!refused.status.success(), "a second agent ran: {}", refused.told());
    let folder = world.agents[0].run_dir().display().to_string();
    ensure!(refused.stderr.contains(&folder), "the refusal does not name {folder}: {}", refused.told());
    ensure!(world.agents[0].status()?["ready"] == true, "the first agent is no longer ready");
    world.must_reach("a", "b")
}

fn json_logs(world: &mut World) -> Result<()> {
    world.must_reach("a", "b")?;
    for agent in &world.agents {
        agent.wait_log(0, &["access", "spiffe://"])?;
        for line in agent.log().lines() {
            let parsed: Value = serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))?;
            ensure!(parsed.is_object(), "not an object: {line}");
        }
    }
    Ok(())
}

fn start_at_once(world: &mut World) -> Result<()> {
    for round in 0..5 {
        for agent in &mut world.agents {
            agent.kill();
        }
        match std::fs::remove_dir_all(&world.ca) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        for agent in &mut world.agents {
            agent.spawn()?;
        }
        for agent in &mut world.agents {
            agent.wait_ready().with_context(|| format!("round {round}"))?;
        }
        world.must_reach("a", "b").with_context(|| format!("round {round}"))?;
        world.must_reach("b", "e").with_context(|| format!("round {round}"))?;
    }
    Ok(())
}

fn array<'a>(value: &'a Value, field: &str) -> Result<&'a Vec<Value>> {
    value[field].as_array().with_context(|| format!("no list {field:?} in {value:#}"))
}

/// Whether any text in `value`, however deep, is `text`; letter case does not matter.
fn has_text(value: &Value, text: &str) -> bool {
    match value {
        Value::String(found) => found.eq_ignore_ascii_case(text),
        Value::Array(items) => items.iter().any(|item| has_text(item, text)),
        Value::Object(fields) => fields.values().any(|item| has_text(item, text)),
        _ => false,
    }
}
