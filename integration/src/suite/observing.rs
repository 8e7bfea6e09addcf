//! Requests as operators see them: counted, logged, traced and remembered, for ports of which no policy needs the requests; and the
//! policies that follow from them.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{SECOND, Test, own};
use crate::{
    agent::IN_FORCE,
    load::{self, ports},
    manifests::WATCHED,
    process::{Process, eventually},
    topology::MESHED,
    world::World,
};

pub(super) const TESTS: &[Test] = &[
    own(
        "observing::requests_are_counted_logged_and_traced",
        "by an annotation of the namespace; a trace that comes sampled is one span longer, others are left alone",
        &["--trace-endpoint", "http://127.0.0.1:4317", "--trace-sampling", "0"],
        told,
    ),
    own(
        "observing::what_is_suggested_names_methods_and_paths",
        "with identifiers folded; applied it lets in what was requested, and the like, and nothing else",
        &["--http-telemetry", "all"],
        suggested,
    ),
    own(
        "observing::a_request_is_explained_as_it_is_judged",
        "by the live agent: the port's protocol, the normalised path, the rule, and what would change it",
        &[],
        explained,
    ),
];

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";
const FILE: &str = "observing.yaml";

/// What a request of pod `from` to pod b is answered with.
fn request(world: &World, from: &str, method: &str, path: &str, fields: &str) -> Result<String> {
    let message =
        format!("{method} {path} HTTP/1.1\r\nHost: b.shop:8080\r\n{fields}Connection: close\r\n\r\n");
    let attempt = world.connect(from, (world.pod("b").v4, ports::HTTP), &["--send", &message])?;
    ensure!(attempt.error.is_none(), "{method} {path} from {from}: {attempt:?}");
    Ok(attempt.received)
}

fn status(world: &World, from: &str, method: &str, path: &str) -> Result<u16> {
    let answer = request(world, from, method, path, "")?;
    let code = answer.split(' ').nth(1).with_context(|| format!("{answer:?} is no answer"))?;
    Ok(code.parse()?)
}

fn told(world: &mut World) -> Result<()> {
    let mut command = load::tool(&world.topology.nodes[1].netns)?;
    command.args(["span-collector", "--listen", "127.0.0.1:4317"]);
    let mut collector = Process::start(&mut command, &world.folder.join("spans.log"))?;
    collector.wait_for("ready", 10 * SECOND)?;
    let counted = |world: &World, labels: &[&str]| -> Result<f64> {
        Ok(world.agents[1].metrics()?.sum("istio_requests_total", labels))
    };
    request(world, "a", "GET", "/items/1", "")?;
    ensure!(counted(world, &[])? == 0.0, "a request was read that nobody asked for");

    world.manifests.write("namespaces.yaml", WATCHED)?;
    let mark = world.agents[1].mark();
    let fields = format!("traceparent: 00-{TRACE}-{PARENT}-01\r\nX-Request-Id: r-7\r\n");
    eventually(IN_FORCE + SECOND, || {
        request(world, "a", "GET", "/items/../items/7?token=secret", &fields)?;
        ensure!(counted(world, &[])? > 0.0, "it is not counted");
        Ok(())
    })?;
    let labels = [
        "reporter=\"destination\"",
        "source_workload=\"a\"",
        "destination_workload=\"b\"",
        "request_protocol=\"http\"",
        "response_code=\"200\"",
        "response_flags=\"-\"",
        "connection_security_policy=\"mutual_tls\"",
    ];
    ensure!(counted(world, &labels)? > 0.0, "{}", world.agents[1].metrics()?.text());
    let line = world.agents[1].wait_log(mark, &["access::request", "request complete", "method=\"GET\""])?;
    for part in ["path=\"/items/7\"", "status=200", "request_id=\"r-7\"", &format!("trace_id=\"{TRACE}\"")] {
        ensure!(line.contains(part), "{line} has no {part}");
    }
    ensure!(!line.contains("secret"), "the query is in the log: {line}");

    // One span, of the client's trace; and a request without a trace begins none, as nothing is sampled.
    request(world, "a", "GET", "/untraced", "")?;
    let span = eventually(5 * SECOND, || {
        let output = collector.output();
        let line = output.lines().find(|line| line.contains(TRACE)).context("no span has come")?;
        Ok(serde_json::from_str::<Value>(line)?)
    })?;
    ensure!(span["parent"] == PARENT && span["name"] == "GET", "{span:#}");
    ensure!(span["attributes"]["url.path"] == "/items/7", "{span:#}");
    ensure!(span["attributes"]["http.response.status_code"] == 200, "{span:#}");
    ensure!(!collector.output().contains("/untraced"), "{}", collector.output());
    let exported = world.agents[1].metrics()?.sum("ambit_trace_spans_total", &["exported"]);
    ensure!(exported >= 1.0, "{exported} spans exported");
    Ok(())
}

fn suggested(world: &mut World) -> Result<()> {
    for (from, method, path) in [
        ("a", "GET", "/items/1"),
        ("a", "GET", "/items/2"),
        ("a", "POST", "/items/1/reserve"),
        ("e", "GET", "/health"),
    ] {
        ensure!(status(world, from, method, path)? == 200, "{method} {path} from {from}");
    }
    let text = eventually(2 * SECOND, || {
        let text = world.agents[1].run(&["suggest", "--namespace", MESHED])?.ok()?;
        ensure!(text.contains("/items/{*}/reserve") && text.contains("/health"), "{text}");
        Ok(text)
    })?;
    world.manifests.write(FILE, &text)?;
    let expect = |from: &str, method: &str, path: &str, expected: u16| -> Result<()> {
        let status = status(world, from, method, path)?;
        ensure!(status == expected, "{method} {path} from {from}: {status}\n{text}");
        Ok(())
    };
    eventually(IN_FORCE + SECOND, || expect("a", "DELETE", "/items/1", 403))?;
    expect("a", "GET", "/items/1", 200)?;
    expect("a", "GET", "/items/99", 200)?;
    expect("a", "POST", "/items/2/reserve", 200)?;
    expect("e", "GET", "/health", 200)?;
    expect("e", "GET", "/items/1", 403)?;
    expect("a", "GET", "/items/1/reserve", 403)?;
    let problems = &world.agents[1].status()?["problems"];
    ensure!(problems.as_array().is_some_and(Vec::is_empty), "{problems:#}");
    let denials = world.agents[1].ask(&["denials"])?;
    let denied = denials.as_array().cloned().unwrap_or_default();
    let told = denied.iter().any(|denial| denial["method"] == "DELETE" && denial["path"] == "/items/1");
    let told = told || denied.iter().any(|denial| denial["path"] == "/items/1/reserve");
    ensure!(told, "{denials:#}");
    Ok(())
}

fn explained(world: &mut World) -> Result<()> {
    world.manifests.write(
        FILE,
        &format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: shopfront, namespace: {MESHED}}}\nspec:\n  clusterIP: None\n  \
             selector: {{app: b}}\n  ports: [{{name: http, port: {0}, targetPort: {0}}}]\n---\n\
             apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: items, namespace: {MESHED}}}\n\
             spec:\n  selector: {{matchLabels: {{app: b}}}}\n  \
             rules: [{{to: [{{operation: {{methods: [GET], paths: ['/items/{{*}}']}}}}]}}]\n",
            ports::HTTP
        ),
    )?;
    let to = format!("{MESHED}/b:{}", ports::HTTP);
    let ask = |request: &[&str]| -> Result<Value> {
        let line = [&["explain", "shop/a", &to][..], request, &["-o", "json"]].concat();
        let told: Value = serde_json::from_str(&world.agents[1].run(&line)?.ok()?)?;
        Ok(told["cases"][0].clone())
    };
    eventually(IN_FORCE + SECOND, || {
        let case = ask(&["--path", "/items/../items/7?x=1"])?;
        ensure!(case["verdict"] == "allow" && case["request"]["path"] == "/items/7", "{case:#}");
        ensure!(case["protocol"]["name"] == "http", "{case:#}");
        Ok(())
    })?;
    ensure!(status(world, "a", "GET", "/items/../items/7?x=1")? == 200, "as explained");
    // Without the policy all were let in.
    eventually(IN_FORCE + SECOND, || {
        let case = ask(&["--method", "DELETE", "--path", "/items/7"])?;
        let field = &case["policies"][0]["field"];
        ensure!(case["verdict"] == "deny" && field == "to[0].operation.methods", "{case:#}");
        Ok(())
    })?;
    ensure!(status(world, "a", "DELETE", "/items/7")? == 403, "as explained");
    let case = ask(&[])?;
    ensure!(case["verdict"] == "per_request", "{case:#}");
    let expected = world.agents[1].run(&["explain", "shop/a", &to, "--path", "/x", "--expect", "deny"])?;
    ensure!(expected.status.success(), "{}", expected.told());
    Ok(())
}
