//! `ambit explain`, `check` and `analyze`: what they say is what happens on the wire, asked of an agent and of its manifests.

use std::{collections::BTreeMap, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{SECOND, Test, shared};
use crate::{
    agent::IN_FORCE,
    load::ports,
    process::{self, Finished, eventually},
    topology::MESHED,
    world::World,
};

pub(super) const TESTS: &[Test] = &[
    shared(
        "explain::agrees_with_the_wire",
        "modes, DENY, ALLOW by identity, address, port: live and from the manifests, as the connections fare",
        agrees,
    ),
    shared(
        "explain::names_what_decided_and_what_would_change_it",
        "policy, rule and field; by service and by identity; --expect for CI",
        names,
    ),
    shared(
        "explain::check_shows_all_that_is_for_a_pod",
        "modes by port with their origin, policies with their rules, RequestAuthentications",
        check,
    ),
    shared(
        "explain::analyze_finds_mistakes_and_has_an_exit_code",
        "live and in a folder; text, JSON and SARIF",
        analyze,
    ),
];

const FILE: &str = "explain.yaml";
const LIMIT: Duration = Duration::from_secs(15);

/// Kind, name and spec of an object.
type Object<'a> = (&'a str, &'a str, &'a str);

/// Objects of the meshed namespace.
fn objects(list: &[Object<'_>]) -> String {
    let object = |(kind, name, spec): &Object<'_>| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {MESHED}}}\nspec: {{{spec}}}\n"
        )
    };
    list.iter().map(object).collect::<Vec<_>>().join("---\n")
}

/// Runs a command of the daemon that asks `source`.
fn ask(world: &World, source: &Source, arguments: &[&str]) -> Result<Finished> {
    let mut command = Command::new(&world.binary);
    command.args(arguments);
    match source {
        Source::Agent(run_dir) => command.arg("--run-dir").arg(run_dir),
        Source::Manifests => command.arg("--manifests").arg(world.manifests.folder()),
    };
    process::run(&mut command, LIMIT)
}

enum Source {
    Agent(PathBuf),
    Manifests,
}

/// An agent of either node, and the folder.
fn sources(world: &World) -> [Source; 3] {
    [Source::Agent(world.agents[0].run_dir()), Source::Agent(world.agents[1].run_dir()), Source::Manifests]
}

/// The cases of an explanation.
fn explain(world: &World, source: &Source, from: &str, to: &str, flags: &[&str]) -> Result<Vec<Value>> {
    let arguments = [&["explain", from, to, "-o", "json"], flags].concat();
    let text = ask(world, source, &arguments)?.ok()?;
    let answer: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
    answer["cases"].as_array().cloned().context("cases")
}

/// Whether a connection from `from` to pod b is let in, on the wire.
fn on_the_wire(world: &World, from: &str) -> Result<bool> {
    let attempt = world.whoami(from, "b")?;
    Ok(!attempt.received.is_empty())
}

fn agrees(world: &mut World) -> Result<()> {
    let c = world.pod("c").v4;
    let for_b = "selector: {matchLabels: {app: b}}";
    let by_address = format!("{for_b}, rules: [{{from: [{{source: {{ipBlocks: [{c}]}}}}]}}]");
    let by_port = format!("{for_b}, rules: [{{to: [{{operation: {{ports: ['{}']}}}}]}}]", ports::HTTP);
    let allow_a = format!("{for_b}, rules: [{{from: [{{source: {{serviceAccounts: [a]}}}}]}}]");
    let deny_e = format!(
        "action: DENY, rules: [{{from: [{{source: {{principals: ['cluster.local/ns/{MESHED}/sa/e']}}}}]}}]"
    );
    let port_open = format!(
        "{for_b}, mtls: {{mode: STRICT}}, portLevelMtls: {{{}: {{mode: PERMISSIVE}}}}",
        ports::WHOAMI
    );
    let (pa, ap) = ("PeerAuthentication", "AuthorizationPolicy");
    // The objects, and whether a, e and c are let in to b.
    let rows: [(Vec<Object<'_>>, [bool; 3]); 8] = [
        (vec![], [true; 3]),
        (vec![(pa, "p", "mtls: {mode: STRICT}")], [true, true, false]),
        (vec![(pa, "p", "mtls: {mode: STRICT}"), (pa, "q", &port_open)], [true; 3]),
        (vec![(ap, "p", &allow_a)], [true, false, false]),
        (vec![(ap, "p", &allow_a), (ap, "q", &by_address)], [true, false, true]),
        (vec![(ap, "p", &deny_e)], [true, false, true]),
        (vec![(ap, "p", &by_port)], [false; 3]),
        (vec![(ap, "p", "action: DENI")], [false; 3]),
    ];
    for (list, expected) in rows {
        world.manifests.write(FILE, &objects(&list))?;
        let pods = ["a", "e", "c"];
        let as_expected = || {
            for (pod, let_in) in pods.into_iter().zip(expected) {
                ensure!(on_the_wire(world, pod)? == let_in, "{pod} on the wire, by {list:?}");
            }
            Ok(())
        };
        eventually(IN_FORCE + SECOND, as_expected)?;
        for (number, source) in sources(world).iter().enumerate() {
            for (pod, let_in) in pods.into_iter().zip(expected) {
                let from = world.pod(pod).v4.to_string();
                let to = format!("{MESHED}/b:{}", ports::WHOAMI);
                let cases = explain(world, source, &from, &to, &[])?;
                let verdict = if let_in { "allow" } else { "deny" };
                ensure!(
                    cases.len() == 1 && cases[0]["verdict"] == verdict,
                    "source {number}, {pod}, by {list:?}: {cases:#?}"
                );
            }
        }
    }
    world.manifests.remove(FILE)
}

fn names(world: &mut World) -> Result<()> {
    let spec = "selector: {matchLabels: {app: b}}, rules: [{from: [{source: {serviceAccounts: [a]}}]}]";
    let dry = "action: DENY, rules: [{from: [{source: {namespaces: [shop]}}]}]";
    let dry = objects(&[("AuthorizationPolicy", "later", dry)])
        .replace("name: later", "name: later, annotations: {istio.io/dry-run: \"true\"}");
    let text = objects(&[
        ("AuthorizationPolicy", "only-a", spec),
        ("PeerAuthentication", "strict", "mtls: {mode: STRICT}"),
    ]);
    world.manifests.write(FILE, &format!("{text}---\n{dry}"))?;
    eventually(IN_FORCE + SECOND, || world.must_not_reach("e", "b").map(drop))?;
    for source in &sources(world) {
        let port = ports::WHOAMI;
        let e = explain(world, source, &format!("{MESHED}/e"), &format!("{MESHED}/b:{port}"), &[])?;
        let e = &e[0];
        ensure!(e["reason"] == "policy_denied" && e["policy"] == format!("{MESHED}/only-a"), "{e:#}");
        let told = &e["policies"][0];
        ensure!(told["field"] == "from[0].source.serviceAccounts", "{e:#}");
        ensure!(told["wants"] == format!("{MESHED}/a") && told["has"] == format!("{MESHED}/e"), "{e:#}");
        ensure!(e["mtls"]["mode"] == "STRICT" && e["mtls"]["scope"] == "namespace", "{e:#}");
        ensure!(e["changes"][0]["then"] == "allow", "{e:#}");
        ensure!(e["policies"][1]["state"] == "dry_run", "{e:#}");
        // By the service: its port 9001 leads to 9001 of b and e, of which only b has the policy.
        let service = format!("{MESHED}/svc/web:9001");
        let cases =
            explain(world, source, &format!("spiffe://cluster.local/ns/{MESHED}/sa/e"), &service, &[])?;
        let verdicts: BTreeMap<String, &Value> = cases
            .iter()
            .map(|case| (case["destinations"][0].as_str().unwrap_or_default().to_owned(), &case["verdict"]))
            .collect();
        ensure!(verdicts[&format!("{MESHED}/b")] == "deny", "{cases:#?}");
        // Plaintext is told what it lacks.
        let c = explain(world, source, &world.pod("c").v4.to_string(), &format!("{MESHED}/b:{port}"), &[])?;
        ensure!(c[0]["reason"] == "mtls_required" && c[0]["mutualTls"] == false, "{c:#?}");
        ensure!(c[0]["policy"] == format!("{MESHED}/strict"), "{c:#?}");
        // For CI.
        for (expect, from, ends) in [("allow", "a", 0), ("deny", "a", 1), ("deny", "e", 0), ("allow", "e", 1)]
        {
            let arguments =
                ["explain", &format!("{MESHED}/{from}"), &format!("{MESHED}/b:{port}"), "--expect", expect];
            let ended = ask(world, source, &arguments)?;
            ensure!(ended.status.code() == Some(ends), "--expect {expect} of {from}: {}", ended.told());
            let word = if from == "a" { "LET IN" } else { "REFUSED (policy_denied)" };
            ensure!(ended.stdout.contains(word), "{}", ended.told());
        }
        let nobody = ask(world, source, &["explain", "nobody", "b:1"])?;
        ensure!(nobody.stderr.contains("there is no pod, workload or service nobody"), "{}", nobody.told());
    }
    world.manifests.remove(FILE)
}

fn check(world: &mut World) -> Result<()> {
    let rules = "selector: {matchLabels: {app: b}}, rules: [{to: [{operation: {ports: ['8080']}}]}]";
    let modes = "selector: {matchLabels: {app: b}}, portLevelMtls: {9001: {mode: STRICT}}";
    let text = objects(&[
        ("AuthorizationPolicy", "web", rules),
        ("PeerAuthentication", "modes", modes),
        ("RequestAuthentication", "tokens", "jwtRules: [{issuer: https://issuer.example}]"),
    ]);
    world.manifests.write(FILE, &text)?;
    for source in &sources(world) {
        let told = || {
            let text = ask(world, source, &["check", &format!("{MESHED}/b"), "-o", "json"])?.ok()?;
            let answer: Value = serde_json::from_str(&text).context("check -o json")?;
            let group = &answer["groups"][0];
            ensure!(group["identity"] == format!("spiffe://cluster.local/ns/{MESHED}/sa/b"), "{group:#}");
            ensure!(group["inMesh"] == true && group["mtls"]["scope"] == "default", "{group:#}");
            let port = &group["ports"][0];
            ensure!(port["port"] == 9001 && port["mtls"]["mode"] == "STRICT", "{group:#}");
            let policy = &group["policies"][0];
            ensure!(policy["scope"] == "selector" && policy["rules"][0] == "to ports 8080", "{group:#}");
            ensure!(group["requestAuthentications"][0] == format!("{MESHED}/tokens"), "{group:#}");
            Ok(())
        };
        eventually(IN_FORCE + SECOND, told)?;
        let text = ask(world, source, &["check", &format!("{MESHED}/b")])?.ok()?;
        ensure!(
            text.contains("port 9001: STRICT by PeerAuthentication")
                && text.contains("says which tokens are good"),
            "{text}"
        );
    }
    world.manifests.remove(FILE)
}

fn analyze(world: &mut World) -> Result<()> {
    let findings = |finished: &Finished| -> Result<Vec<String>> {
        let answer: Value = serde_json::from_str(&finished.stdout).with_context(|| finished.told())?;
        let code = |finding: &Value| finding["code"].as_str().unwrap_or_default().to_owned();
        Ok(answer["findings"].as_array().context("findings")?.iter().map(code).collect())
    };
    let run = |source: &Source, format: &str| -> Result<Finished> {
        let mut command = Command::new(&world.binary);
        command.args(["analyze", "-o", format]);
        match source {
            Source::Agent(run_dir) => command.arg("--run-dir").arg(run_dir),
            Source::Manifests => command.arg(world.manifests.folder()),
        };
        process::run(&mut command, LIMIT)
    };
    for source in &sources(world) {
        // Objects of the test before may still be leaving.
        eventually(IN_FORCE + SECOND, || {
            let clean = run(source, "json")?;
            ensure!(clean.status.code() == Some(0), "{}", clean.told());
            Ok(())
        })?;
    }
    // Port 81 of the service is 8081 of the pods.
    let rules = "selector: {matchLabels: {app: b}}, rules: [{to: [{operation: {ports: ['81']}}]}]";
    let text = objects(&[
        ("AuthorizationPolicy", "port", rules),
        ("AuthorizationPolicy", "typo", "selector: {matchLabels: {app: bb}}"),
    ]);
    world.manifests.write(FILE, &text)?;
    for source in &sources(world) {
        let told = || {
            let finished = run(source, "json")?;
            let codes = findings(&finished)?;
            ensure!(codes == ["service-port", "selects-nothing"], "{codes:?}: {}", finished.told());
            ensure!(finished.status.code() == Some(1), "{}", finished.told());
            Ok(())
        };
        eventually(IN_FORCE + SECOND, told)?;
    }
    let text = run(&Source::Manifests, "text")?;
    let file = world.manifests.folder().join(FILE).display().to_string();
    ensure!(text.stdout.contains(&file) && text.stdout.contains("[service-port]"), "{}", text.told());
    let sarif: Value = serde_json::from_str(&run(&Source::Manifests, "sarif")?.stdout).context("SARIF")?;
    let result = &sarif["runs"][0]["results"][0];
    ensure!(result["ruleId"] == "service-port" && result["level"] == "error", "{sarif:#}");
    ensure!(result["locations"][0]["physicalLocation"]["region"]["startLine"] == 1, "{result:#}");
    world.manifests.remove(FILE)
}
