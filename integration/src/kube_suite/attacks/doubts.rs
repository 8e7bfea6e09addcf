//! Definitions of policies that go and come back.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result, ensure};

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
    "the CRD removed and made anew, agents restarted in between: STRICT holds until it is stated otherwise",
    definition,
)];

const DEFINITION: &str = "peerauthentications.security.istio.io";

fn definition(site: &mut Site) -> Result<()> {
    // Those of earlier tests would be held as well, and nobody states them again.
    site.cluster.api.kubectl(&["delete", "peerauthentications", "--all", "--all-namespaces"])?;
    let meshed = site.namespace(true)?;
    site.peer_authentication(&meshed, "STRICT")?;
    let [pod] = site.pods(&meshed, &[Plan::server("server").on("a")])?;
    eventually(IN_FORCE, || plaintext(site, &pod, false))?;
    let mut crd = site.cluster.api.json(&["get", "crd", DEFINITION])?;
    site.cluster.api.kubectl(&["delete", "crd", DEFINITION, "--timeout=60s"])?;
    let again = (|| {
        for _ in 0..8 {
            thread::sleep(SECOND);
            plaintext(site, &pod, false).context("policies went with their definition")?;
        }
        let problems = site.ambit("a", &["status", "-o", "json"])?.ok()?;
        ensure!(problems.contains("stay in force until"), "nothing is told of it: {problems}");
        site.kill_agent("a")?;
        eventually(60 * SECOND, || {
            let status = site.ambit("a", &["status", "-o", "json"])?.ok()?;
            ensure!(status.contains("stay in force until"), "after the agent's restart: {status}");
            Ok(())
        })?;
        plaintext(site, &pod, false).context("policies went with the agent")
    })();
    if let Some(metadata) = crd["metadata"].as_object_mut() {
        metadata.retain(|field, _| matches!(&**field, "name" | "labels" | "annotations"));
    }
    if let Some(fields) = crd.as_object_mut() {
        fields.remove("status");
    }
    site.apply(&crd)?;
    site.cluster.api.kubectl(&["wait", "--for=condition=Established", "crd", DEFINITION, "--timeout=60s"])?;
    again?;
    // Longer than an agent waits before it looks for a definition again.
    for _ in 0..20 {
        thread::sleep(SECOND);
        plaintext(site, &pod, false).context("a new definition begins empty, which is nobody's word")?;
    }
    eventually(30 * SECOND, || site.peer_authentication(&meshed, "PERMISSIVE"))?;
    eventually(10 * IN_FORCE, || plaintext(site, &pod, true)).context("stated again")?;
    site.cluster.api.kubectl(&["delete", "peerauthentication", "default", "-n", &meshed])?;
    eventually(10 * IN_FORCE, || {
        let status = site.ambit("a", &["status", "-o", "json"])?.ok()?;
        ensure!(!status.contains("stay in force until"), "{status}");
        Ok(())
    })
}

/// Whether the node's own curl reaches the pod, which is in plaintext.
fn plaintext(site: &Site, pod: &Pod, taken: bool) -> Result<()> {
    let mut command = site.cluster.access().on_node("a", "curl")?;
    let url = format!("http://{}:{}/", pod.ip, ports::HTTP);
    let answer = process::run(command.args(["-sS", "-m", "3", &url]), Duration::from_secs(10))?;
    ensure!(answer.status.success() == taken, "plaintext taken: {}: {}", !taken, answer.told());
    Ok(())
}
