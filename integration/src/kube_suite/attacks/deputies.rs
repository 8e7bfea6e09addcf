//! The kubelet as a deputy of pods outside the mesh.

use std::thread;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{
    kube_suite::{
        Plan, Pod, Site, Test, installed,
        site::{IN_FORCE, SECOND},
    },
    load::ports,
    process::eventually,
};

pub(super) const TESTS: &[Test] = &[
    installed(
        "attacks::a_probe_of_another_host_is_not_admitted",
        "nor a hook; a pod that probes itself is",
        admission,
    ),
    installed(
        "attacks::the_kubelet_is_nobodys_deputy",
        "a foreign probe or hook does not get past STRICT; probes of other ports go on",
        deputy,
    ),
];

/// Where pods with probes of other hosts are let in.
const ALLOWED: &str = "ambit.dev/probe-hosts=allowed";

fn http(host: &str, port: u16) -> Value {
    json!({ "httpGet": { "host": host, "port": port, "path": "/" }, "periodSeconds": 1 })
}

fn admission(site: &mut Site) -> Result<()> {
    let namespace = site.namespace(false)?;
    let hook = json!({ "preStop": { "httpGet": { "host": "198.18.0.1", "port": 80 } } });
    let refused = [
        Plan::client("probe").with("livenessProbe", http("198.18.0.1", 80)),
        Plan::client("tcp")
            .with("readinessProbe", json!({ "tcpSocket": { "host": "db.example", "port": 80 } })),
        Plan::client("hook").with("lifecycle", hook),
    ];
    for plan in &refused {
        let manifest = plan.manifest(&namespace).to_string();
        let answer = site.cluster.api.try_kubectl(&["apply", "-f", "-"], &manifest)?;
        ensure!(!answer.status.success() && answer.stderr.contains("ambit-probe-hosts"), "{}", answer.told());
    }
    let taken = [
        Plan::server("plain").with("readinessProbe", json!({ "httpGet": { "port": ports::HTTP } })),
        Plan::client("local").with(
            "livenessProbe",
            json!({ "tcpSocket": { "host": "127.0.0.1", "port": 10_248 }, "failureThreshold": 1000 }),
        ),
    ];
    for plan in &taken {
        site.apply(&plan.manifest(&namespace))?;
    }
    site.cluster.api.kubectl(&["label", "namespace", &namespace, ALLOWED])?;
    site.apply(&refused[0].manifest(&namespace)).context("where it is allowed")
}

fn deputy(site: &mut Site) -> Result<()> {
    let meshed = site.namespace(true)?;
    let outside = site.namespace(false)?;
    site.cluster.api.kubectl(&["label", "namespace", &outside, ALLOWED])?;
    site.peer_authentication(&meshed, "STRICT")?;
    let probed = |name: &str, port: u16| {
        Plan::server(name)
            .on("a")
            .with("readinessProbe", json!({ "tcpSocket": { "port": port }, "periodSeconds": 1 }))
    };
    let [victim, _bystander] =
        site.pods(&meshed, &[probed("victim", ports::HTTP), probed("bystander", ports::ECHO)])?;
    let address = victim.ip.to_string();
    let probe = Plan::client("probe").on("a").with("readinessProbe", http(&address, ports::HTTP));
    let hook = json!({ "postStart": { "httpGet": { "host": address, "port": ports::HTTP, "path": "/" } } });
    site.apply(&probe.manifest(&outside))?;
    site.apply(&Plan::client("hook").on("a").with("lifecycle", hook).manifest(&outside))?;
    eventually(60 * SECOND, || failed(site, &outside, "hook", "FailedPostStartHook"))
        .context("a hook got past STRICT")?;
    eventually(60 * SECOND, || failed(site, &outside, "probe", "Unhealthy"))?;
    for _ in 0..8 {
        thread::sleep(SECOND);
        ensure!(!is_ready(site, &outside, "probe")?, "a probe of another pod got past STRICT");
        ensure!(is_ready(site, &meshed, "bystander")?, "a probe of a port that nobody else names is refused");
    }
    // The control: what refused was STRICT.
    site.peer_authentication(&meshed, "PERMISSIVE")?;
    eventually(10 * IN_FORCE, || {
        ensure!(is_ready(site, &outside, "probe")?, "refused by something else");
        Ok(())
    })
}

/// The API has an event of that reason on the pod.
fn failed(site: &Site, namespace: &str, pod: &str, reason: &str) -> Result<()> {
    let on = format!("involvedObject.name={pod},reason={reason}");
    let events = site.cluster.api.json(&["get", "events", "-n", namespace, "--field-selector", &on])?;
    ensure!(events["items"].as_array().is_some_and(|items| !items.is_empty()), "no event {reason} on {pod}");
    Ok(())
}

fn is_ready(site: &Site, namespace: &str, pod: &str) -> Result<bool> {
    let object = site.cluster.api.json(&["get", "pod", pod, "-n", namespace])?;
    Pod::read(&object)?;
    let conditions = object["status"]["conditions"].as_array().context("conditions")?;
    Ok(conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True"))
}
