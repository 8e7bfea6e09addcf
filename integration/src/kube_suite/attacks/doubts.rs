//! Definitions of policies, and of what pods may reach outside, that go and come back.

mod way_out;

use std::{thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use self::way_out::WayOut;
use crate::{
    kube_suite::{
        Plan, Pod, Site, Test, installed,
        site::{IN_FORCE, SECOND},
    },
    load::ports,
    process::{self, eventually},
};

pub(super) const TESTS: &[Test] = &[installed(
    "attacks::policies_outlive_their_definition",
    "CRDs of policies, rules and entries removed and made anew, agents restarted in between: all holds until it is stated otherwise",
    definitions,
)];

const POLICIES: &str = "peerauthentications.security.istio.io";

fn all_definitions() -> impl Iterator<Item = &'static str> {
    [POLICIES].into_iter().chain(way_out::DEFINITIONS)
}

fn definitions(site: &mut Site) -> Result<()> {
    for definition in all_definitions() {
        // Those of earlier tests would be held as well, and nobody states them again.
        site.cluster.api.kubectl(&["delete", definition, "--all", "--all-namespaces"])?;
    }
    let meshed = site.namespace(true)?;
    site.peer_authentication(&meshed, "STRICT")?;
    let [pod] = site.pods(&meshed, &[Plan::server("server").on("a")])?;
    eventually(IN_FORCE, || plaintext(site, &pod, false))?;
    let way_out = WayOut::make(site)?;
    let kept: Vec<Value> = all_definitions()
        .map(|definition| site.cluster.api.json(&["get", "crd", definition]))
        .collect::<Result<_>>()?;
    for definition in all_definitions() {
        site.cluster.api.kubectl(&["delete", "crd", definition, "--timeout=60s"])?;
    }
    let held = while_away(site, &pod, &way_out);
    for crd in kept {
        site.apply(&as_it_was_made(crd))?;
    }
    for definition in all_definitions() {
        let wait = ["wait", "--for=condition=Established", "crd", definition, "--timeout=60s"];
        site.cluster.api.kubectl(&wait)?;
    }
    held?;
    // Longer than an agent waits before it looks for a definition again.
    for _ in 0..20 {
        thread::sleep(SECOND);
        plaintext(site, &pod, false).context("a new definition begins empty, which is nobody's word")?;
        way_out.must_hold(site).context("a new definition begins empty, which is nobody's word")?;
    }
    eventually(30 * SECOND, || site.peer_authentication(&meshed, "PERMISSIVE"))?;
    eventually(10 * IN_FORCE, || plaintext(site, &pod, true)).context("stated again")?;
    way_out.state_again(site)?;
    site.cluster.api.kubectl(&["delete", "peerauthentication", "default", "-n", &meshed])?;
    eventually(10 * IN_FORCE, || {
        let status = site.ambit("a", &["status", "-o", "json"])?.ok()?;
        ensure!(!status.contains("stay in force until"), "{status}");
        Ok(())
    })
}

/// Without definitions all stays as it was, also over a restart of the agent, which tells of it.
fn while_away(site: &Site, pod: &Pod, way_out: &WayOut) -> Result<()> {
    for _ in 0..8 {
        thread::sleep(SECOND);
        plaintext(site, pod, false).context("policies went with their definition")?;
        way_out.must_hold(site).context("went with its definition")?;
    }
    must_be_told(site)?;
    site.kill_agent("a")?;
    eventually(60 * SECOND, || must_be_told(site)).context("after the agent's restart")?;
    plaintext(site, pod, false).context("policies went with the agent")?;
    way_out.must_be_closed(site).context("went with the agent")?;
    eventually(10 * IN_FORCE, || way_out.must_hold(site)).context("went with the agent")
}

/// The agent tells of every kind that it holds.
fn must_be_told(site: &Site) -> Result<()> {
    let status = site.ambit("a", &["status", "-o", "json"])?.ok()?;
    for held in ["1 peerauthentications", "1 destinationrules", "2 serviceentries", "1 workloadentries"] {
        let told = format!("was removed: {held} that nobody has stated since stay in force until");
        ensure!(status.contains(&told), "nothing is told of {held}: {status}");
    }
    Ok(())
}

/// A definition without what the API server has written into it.
fn as_it_was_made(mut crd: Value) -> Value {
    if let Some(metadata) = crd["metadata"].as_object_mut() {
        metadata.retain(|field, _| matches!(&**field, "name" | "labels" | "annotations"));
    }
    if let Some(fields) = crd.as_object_mut() {
        fields.remove("status");
    }
    crd
}

/// Whether the node's own curl reaches the pod, which is in plaintext.
fn plaintext(site: &Site, pod: &Pod, taken: bool) -> Result<()> {
    let mut command = site.cluster.access().on_node("a", "curl")?;
    let url = format!("http://{}:{}/", pod.ip, ports::HTTP);
    let answer = process::run(command.args(["-sS", "-m", "3", &url]), Duration::from_secs(10))?;
    ensure!(answer.status.success() == taken, "plaintext taken: {}: {}", !taken, answer.told());
    Ok(())
}
