//! The agent has the capabilities that it needs, and no other.

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::{
    Plan, Site, Test, Wire, installed,
    site::{IN_FORCE, RELEASE, SECOND, SYSTEM},
};
use crate::process::eventually;

/// Nobody listens there.
const CLOSED: u16 = 9_900;

pub(super) const TESTS: &[Test] = &[
    installed(
        "privilege::not_privileged",
        "no privileged container, read-only roots, no escalation",
        container,
    ),
    installed(
        "privilege::every_capability_is_needed",
        "without any one of them agents do not start, pods do not get into the mesh, or connects are not told the truth",
        capabilities,
    ),
];

fn container(site: &mut Site) -> Result<()> {
    for kind in ["daemonset", "deployment"] {
        let list = site.cluster.api.json(&["get", kind, "-n", SYSTEM])?;
        for pod in
            list["items"].as_array().into_iter().flatten().map(|item| &item["spec"]["template"]["spec"])
        {
            for container in pod["containers"].as_array().into_iter().flatten() {
                let context = &container["securityContext"];
                ensure!(
                    context["privileged"] != true
                        && context["readOnlyRootFilesystem"] == true
                        && context["allowPrivilegeEscalation"] == false
                        && context["capabilities"]["drop"] == json!(["ALL"]),
                    "{kind} {}: {context:#}",
                    container["name"]
                );
            }
        }
    }
    Ok(())
}

fn capabilities(site: &mut Site) -> Result<()> {
    let agent = site.cluster.api.json(&["get", "daemonset", RELEASE, "-n", SYSTEM])?;
    let containers = &agent["spec"]["template"]["spec"]["containers"];
    let name = containers[0]["name"].as_str().context("a name")?.to_owned();
    let context = containers[0]["securityContext"].clone();
    let all: Vec<Value> = context["capabilities"]["add"].as_array().cloned().unwrap_or_default();
    ensure!(!all.is_empty(), "the agent has no capability at all: {context:#}");
    works(site).context("with all of them")?;
    for missing in &all {
        let fewer: Vec<&Value> = all.iter().filter(|capability| *capability != missing).collect();
        give(site, &name, &json!(fewer))?;
        let went_well = rolled_out(site, "30s").and_then(|()| works(site));
        if went_well.is_ok() {
            bail!("the agent does its work without {missing}: take it off the chart");
        }
    }
    give(site, &name, &json!(all))?;
    rolled_out(site, "90s")?;
    site.note(format!("needed: {}", Value::from(all)));
    works(site)
}

fn give(site: &Site, container: &str, capabilities: &Value) -> Result<()> {
    let context = json!({ "capabilities": { "add": capabilities } });
    let container = json!({ "name": container, "securityContext": context });
    let patch = json!({ "spec": { "template": { "spec": { "containers": [container] } } } }).to_string();
    // Pods that wait for a predecessor which is not ready wait for ever.
    site.cluster.api.kubectl(&["patch", "daemonset", RELEASE, "-n", SYSTEM, "-p", &patch])?;
    site.cluster
        .api
        .kubectl(&["delete", "pods", "-n", SYSTEM, "-l", &selector(site)?, "--wait=true"])
        .map(drop)
}

fn selector(site: &Site) -> Result<String> {
    let agent = site.cluster.api.json(&["get", "daemonset", RELEASE, "-n", SYSTEM])?;
    let labels = agent["spec"]["selector"]["matchLabels"].as_object().context("a selector")?;
    let pairs = labels.iter().map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default()));
    Ok(pairs.collect::<Vec<_>>().join(","))
}

fn rolled_out(site: &Site, limit: &str) -> Result<()> {
    let status = ["rollout", "status", "daemonset", RELEASE, "-n", SYSTEM, "--timeout", limit];
    site.cluster.api.kubectl(&status).map(drop)
}

/// Whether new pods, running pods and policies all come into force, and connects are told the truth.
fn works(site: &mut Site) -> Result<()> {
    let namespace = site.namespace(false)?;
    let [a, b] = site.pods(&namespace, &[Plan::client("a").on("a"), Plan::server("b").on("b")])?;
    site.opt_in(&namespace)?;
    eventually(IN_FORCE, || site.must_go(&a, &b, Wire::Tls))?;
    let [late] = site.pods(&namespace, &[Plan::client("late").on("a")])?;
    eventually(5 * SECOND, || site.must_go(&late, &b, Wire::Tls))?;
    let refused = site.connect(&late, (b.ip, CLOSED), &[])?;
    let told = !refused.connected && refused.error.as_deref() == Some("ConnectionRefused");
    ensure!(told, "connect(2) does not tell that nobody listens: {refused:?}");
    site.peer_authentication(&namespace, "STRICT")?;
    eventually(IN_FORCE, || site.must_go(&late, &b, Wire::Tls))
}
