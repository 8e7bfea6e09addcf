//! Jaeger gathers the spans of one request: of the client, of the agent that read the request, of the server.

use std::time::SystemTime;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{Stage, Test};
use crate::{
    agent::IN_FORCE,
    manifests::WATCHED,
    mirror,
    process::{self, Process, eventually},
    topology::MESHED,
    world::World,
};

pub(super) const TESTS: &[Test] = &[Test {
    name: "peers::jaeger_shows_one_trace_of_client_agent_and_server",
    about: "spans by OTLP to a real Jaeger, asked for by its API: each is the child of the one before",
    work: one_trace,
}];

const SECOND: std::time::Duration = std::time::Duration::from_secs(1);
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CLIENT: &str = "00f067aa0ba902b7";
const SERVER: &str = "b7ad6b7169203331";

/// Jaeger on the server's node, where its agent sends to.
fn jaeger(stage: &Stage<'_>, world: &World) -> Result<Process> {
    let mut command = world.topology.nodes[1].netns.command(stage.kit.jaeger_programs.path("all-in-one"));
    command.env("SPAN_STORAGE_TYPE", "memory").arg("--collector.otlp.enabled=true");
    let jaeger = Process::start(&mut command, &world.folder.join("jaeger.log"))?;
    eventually(30 * SECOND, || ask(world, "/api/services").map(drop)).context("Jaeger does not answer")?;
    Ok(jaeger)
}

/// What Jaeger's API says.
fn ask(world: &World, path: &str) -> Result<Value> {
    let url = format!("http://127.0.0.1:16686{path}");
    let mut curl = world.topology.nodes[1].netns.command("curl");
    let told = process::run(curl.args(["-sSf", "-m", "5", "--noproxy", "*", &url]), 10 * SECOND)?.ok()?;
    serde_json::from_str(&told).with_context(|| told.clone())
}

/// Tells Jaeger of a span of an application.
fn tell(world: &World, service: &str, span: &str, parent: &str, kind: u8) -> Result<()> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_nanos();
    let told = json!({ "resourceSpans": [{
        "resource": { "attributes": [{ "key": "service.name", "value": { "stringValue": service } }] },
        "scopeSpans": [{ "spans": [{
            "traceId": TRACE, "spanId": span, "parentSpanId": parent, "name": "GET", "kind": kind,
            "startTimeUnixNano": now.to_string(), "endTimeUnixNano": (now + 1_000_000).to_string(),
        }] }],
    }] });
    let mut curl = world.topology.nodes[1].netns.command("curl");
    curl.args(["-sSf", "-m", "5", "--noproxy", "*", "-H", "content-type: application/json"]);
    curl.args(["-d", &told.to_string(), "http://127.0.0.1:4318/v1/traces"]);
    process::run(&mut curl, 10 * SECOND)?.ok().map(drop)
}

fn one_trace(stage: &Stage<'_>, world: &mut World) -> Result<()> {
    let _jaeger = jaeger(stage, world)?;
    let _mirror = mirror::start(world.pod("b"), &world.folder)?;
    for agent in &mut world.agents {
        agent.add_flags(&["--trace-endpoint", "http://127.0.0.1:4317", "--trace-sampling", "0"]);
    }
    world.start_agents()?;
    world.manifests.write("namespaces.yaml", WATCHED)?;
    let url = format!("http://{}:{}/items/7", world.pod("b").v4, mirror::PORT);
    let field = format!("traceparent: 00-{TRACE}-{CLIENT}-01");
    let parent = eventually(IN_FORCE + SECOND, || {
        let got = world.curl("a", &["-H", &field, &url])?.ok()?;
        let context = got
            .lines()
            .find_map(|line| line.to_ascii_lowercase().strip_prefix("traceparent: ").map(str::to_owned));
        let context = context.with_context(|| format!("no traceparent: {got}"))?;
        let parts: Vec<&str> = context.trim().split('-').collect();
        ensure!(parts.len() == 4 && parts[1] == TRACE && parts[2] != CLIENT, "not read yet: {context}");
        Ok(parts[2].to_owned())
    })?;
    tell(world, "web", CLIENT, "", 3)?;
    tell(world, "cart", SERVER, &parent, 2)?;
    let spans = eventually(10 * SECOND, || {
        let told = ask(world, &format!("/api/traces/{TRACE}"))?;
        let spans = told["data"][0]["spans"].as_array().cloned().unwrap_or_default();
        let ids: Vec<&str> = spans.iter().filter_map(|span| span["spanID"].as_str()).collect();
        ensure!([CLIENT, &parent, SERVER].iter().all(|id| ids.contains(id)), "{told:#}");
        Ok(told["data"][0].clone())
    })?;
    let span = |id: &str| {
        let mut all = spans["spans"].as_array().into_iter().flatten();
        all.find(|span| span["spanID"] == id).cloned().unwrap_or_default()
    };
    for (child, of) in [(&*parent, CLIENT), (SERVER, &*parent)] {
        ensure!(span(child)["references"][0]["spanID"] == of, "{:#}", span(child));
    }
    let agents = span(&parent);
    let tag = |name: &str| {
        let mut tags = agents["tags"].as_array().into_iter().flatten();
        tags.find(|tag| tag["key"] == name).map(|tag| tag["value"].clone()).unwrap_or_default()
    };
    ensure!(tag("url.path") == "/items/7" && tag("http.response.status_code") == 200, "{agents:#}");
    let service = &spans["processes"][agents["processID"].as_str().unwrap_or_default()]["serviceName"];
    world.notes.push(format!("the agent's span is of service {service} in {MESHED}"));
    Ok(())
}
